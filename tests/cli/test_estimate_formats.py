"""`memplan estimate` in every format: one budget, several, and none because no GPU was named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from memplan_process import memplan

MODEL = ("llama-3.1-8b", "--context", "8k")
ONE = (*MODEL, "--gpu", "l4")
SEVERAL = (*MODEL, "--gpu", "l4,h100", "--quant", "none,fp8")


@pytest.mark.parametrize(
    ("arguments", "schema", "estimates"),
    [(ONE, "memplan.estimate/1", 0), (SEVERAL, "memplan.estimates/1", 4), (MODEL, "memplan.estimates/1", 5)],
    ids=["one", "several", "no GPU"],
)
def test_json_has_the_schema_of_what_was_asked(
    arguments: tuple[str, ...], schema: str, estimates: int, tmp_path: Path
) -> None:
    content = json.loads(memplan("estimate", *arguments, "--json", home=tmp_path).stdout)
    assert content["schema"] == schema
    assert len(content.get("estimates", ())) >= estimates


@pytest.mark.parametrize("arguments", [ONE, SEVERAL, MODEL], ids=["one", "several", "no GPU"])
def test_every_format_goes_to_stdout_alone(arguments: tuple[str, ...], tmp_path: Path) -> None:
    starts = {"--markdown": "# ", "--html": "<!doctype html>", "--quiet": "", "--no-color": "meta-llama/Llama-3.1-8B"}
    for option, start in starts.items():
        done = memplan("estimate", *arguments, option, home=tmp_path)
        assert done.returncode in (0, 1), done.stderr
        assert done.stderr == ""
        assert done.stdout.startswith(start)
        assert "\x1b" not in done.stdout
        assert done.stdout.endswith("\n")


def test_quiet_has_one_line_per_budget_that_says_which(tmp_path: Path) -> None:
    lines = memplan("estimate", *SEVERAL, "--quiet", home=tmp_path).stdout.splitlines()
    assert len(lines) == 4
    assert [line.split(":")[0].split(", ")[:2] for line in lines] == [
        ["l4", "bfloat16"],
        ["l4", "fp8"],
        ["h100", "bfloat16"],
        ["h100", "fp8"],
    ]


def test_a_page_is_written_to_the_named_file(tmp_path: Path) -> None:
    done = memplan("estimate", *ONE, "--html", "--output", "page.html", home=tmp_path)
    assert (done.returncode, done.stdout) == (0, "")
    assert (tmp_path / "page.html").read_text(encoding="utf-8").rstrip().endswith("</html>")


def test_without_a_gpu_the_gpus_that_hold_the_model_are_listed_by_price(tmp_path: Path) -> None:
    text = memplan("estimate", *MODEL, home=tmp_path).stdout
    assert "what it needs" in text
    assert "GPUs that hold it, the cheapest first" in text
    assert "hint: `--gpu " in text
