"""docs/memory-model.md against memplan's own code: its tables, its arithmetic, its worked example, its headings.

When a table differs because the code changed on purpose, `python benchmarks/render_docs.py` writes it anew.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from memplan.budget.kv_cache import kv_format, model_token_bytes, sequence_bytes
from memplan.domain.attention import FullAttention
from memplan.domain.dtypes import DType
from memplan.domain.model import ModelSpec
from memplan.pipeline import load_model
from memplan.units import GIB

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
from memory_model_tables import TABLES, markdown

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "memory-model.md").read_text(encoding="utf-8")
IN_PAGE = dict(re.findall(r"<!-- table: ([\w-]+) -->\n(.*?)\n<!-- end -->", PAGE, re.DOTALL))


@pytest.fixture(scope="module")
def llama_70b() -> ModelSpec:
    return load_model("llama-3.1-70b", revision=None, offline=True, introspect="auto")


def test_the_page_has_every_table_and_no_other() -> None:
    assert set(IN_PAGE) == set(TABLES)


@pytest.mark.parametrize("name", sorted(TABLES))
def test_a_table_is_what_the_code_computes(name: str) -> None:
    assert IN_PAGE[name] == markdown(TABLES[name]()), "write it anew with: python benchmarks/render_docs.py"


def test_llama_70b_at_4096_tokens_is_one_and_a_quarter_gib(llama_70b: ModelSpec) -> None:
    form = kv_format("float16", DType.BF16)
    caches = [cache for layer in llama_70b.layers for cache in layer.caches]
    assert caches == [FullAttention(num_kv_heads=8, key_width=128, value_width=128)] * 80
    assert (llama_70b.num_heads, llama_70b.hidden_size) == (64, 8192)
    assert model_token_bytes(llama_70b, form) == 80 * 8 * (128 + 128) * 2 == 320 * 1024
    assert sum(sequence_bytes(cache, form, 4096) for cache in caches) == 1.25 * GIB
    assert "**1.25 GiB**" in PAGE


def test_the_command_prints_the_worked_example(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "memplan", "estimate", "llama-3.1-70b", "--context", "4096"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True)
    assert "1.25 GiB for 1 request of 4,096 tokens, 320 KiB a token" in done.stdout


def arithmetic() -> Iterator[tuple[str, float, str, str]]:
    """Every `A x B = N bytes` (or bits) of the page: its working, the number, the unit, and the GiB behind it."""
    for line in PAGE.splitlines():
        match = re.fullmatch(r"([\d,. x/+()*-]+) = ([\d,.]+) (bytes|bits)(?: = ([\d.]+) GiB)?", line)
        if match:
            working = match[1].replace(",", "").replace("x", "*")
            yield working, float(match[2].replace(",", "")), match[3], match[4] or ""


def test_every_line_of_arithmetic_is_right() -> None:
    lines = list(arithmetic())
    assert len(lines) >= 7
    for working, result, _, in_gib in lines:
        value = eval(working, {"__builtins__": {}})  # digits, signs and brackets only
        assert value == pytest.approx(result, rel=1e-12), working
        if in_gib:
            assert f"{value / GIB:.2f}" == in_gib, working


def test_the_numbers_of_articles_are_wrong_by_the_factors_named(llama_70b: ModelSpec) -> None:
    right = model_token_bytes(llama_70b, kv_format("float16", DType.BF16)) * 4096
    query_heads = right // 8 * 64
    assert query_heads == 2 * llama_70b.num_layers * llama_70b.hidden_size * 2 * 4096
    assert "8 times too much, or 4 times" in PAGE
    assert (query_heads // right, query_heads // 2 // right) == (8, 4)
    keys_alone = right // 2
    assert keys_alone > 500_000_000


def test_every_heading_that_code_and_pages_point_to_is_there() -> None:
    headings = {
        page: set(re.findall(r"^#+ (.+)$", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE))
        for page in ("docs/memory-model.md", "docs/engines/transformers.md")
    }
    pointed = re.compile(r'(docs/(?:memory-model|engines/transformers)\.md), "?([A-Z][\w. -]*?)"?(?=[),:."\n])')
    for path in (ROOT / "memplan").rglob("*.py"):
        for page, heading in pointed.findall(path.read_text(encoding="utf-8")):
            assert heading in headings[page], f"{path.relative_to(ROOT)} points to {heading} of {page}"


@pytest.mark.parametrize("page", sorted((ROOT / "docs").rglob("*.md")), ids=lambda path: path.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if target.startswith("http"):
            continue
        file, _, anchor = target.partition("#")
        path = (page.parent / file).resolve() if file else page
        assert path.exists(), target
        if anchor:
            assert anchor in {_anchor(heading) for heading in _headings(path)}, target


def _headings(page: Path) -> list[str]:
    return re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)


def _anchor(heading: str) -> str:
    """A heading as GitHub makes an anchor of it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
