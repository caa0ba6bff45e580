"""The tables of docs/servable.md, by asking memplan.catalog.servable about one card of every kind.

`benchmarks/render_docs.py` writes them into the page; tests/contracts/test_servable_page.py holds the page to them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from memplan.catalog.gpus import find_gpu
from memplan.catalog.servable import Support, kv_support, support
from memplan.catalog.tables import load_table
from memplan.domain.attention import FullAttention
from memplan.domain.dtypes import DType
from memplan.domain.model import Layer, ModelSpec
from memplan.domain.serving import ParallelLayout

# Columns: what a kind of card is called, and the card that is asked about.
_NVIDIA = (
    ("Volta 7.0", "v100-32g"),
    ("Turing 7.5", "t4"),
    ("Ampere 8.0-8.7", "a100-80g"),
    ("Ada 8.9", "l40s"),
    ("Hopper 9.0", "h100"),
    ("Blackwell 10.x", "b200"),
    ("Blackwell 12.x", "rtx-5090"),
)
_AMD = (
    ("MI200", "mi250x"),
    ("MI300", "mi300x"),
    ("MI350", "mi355x"),
    ("RX 7900", "rx-7900-xtx"),
    ("RX 9070", "rx-9070-xt"),
)
_COLUMNS = {
    "vllm": (*_NVIDIA, *_AMD, ("Intel Arc", "arc-b580")),
    "sglang": (*_NVIDIA[1:], *_AMD[1:3]),
    "tensorrt-llm": _NVIDIA[2:],
    "llama.cpp": (_NVIDIA[0], _NVIDIA[4], _NVIDIA[5], _AMD[1], ("Intel Arc", "arc-b580"), ("Apple", "m4-max")),
    "transformers": (*_NVIDIA[1:], _AMD[1], ("Intel Arc", "arc-b580"), ("Apple", "m4-max")),
}
# The scheme that stands for a format in the tables.
_SCHEMES = {
    "gptq": "gptq-int4-g128",
    "autoround": "autoround-int4-g128",
    "awq": "awq-int4-g128",
    "ct": "ct-int4-g128",
    "bnb-4bit": "bnb-nf4",
    "bnb-8bit": "bnb-int8",
    "gguf": "gguf:q4_k_m",
    "torchao": "torchao-int8",
    "hqq": "hqq-int4-g64",
    "mlx": "mlx-int4-g64",
}
_KV_TYPES = {
    "fp8-e5m2": "fp8_e5m2",
    "int8-per-head": "int8_per_token_head",
    "int4-per-head": "int4_per_token_head",
    "fp8-per-head": "fp8_per_token_head",
    "q-others": "q5_1",
    "int8-quanto": "int4",
}
_MARKS = {"native": "", "emulated": " ~", "slow": " (slow)"}
_SPEC = ModelSpec(
    name="any",
    model_type="llama",
    architecture="LlamaForCausalLM",
    dtype=DType.BF16,
    hidden_size=4096,
    vocab_size=32000,
    num_heads=32,
    max_context_tokens=8192,
    layers=(Layer(kind="attention", caches=(FullAttention(8, 128, 128),), tensors=()),),
    shared=(),
)


def tables(engine: str, what: str) -> str:
    """One table: `weights` or `kv` by cards, `refusals` by format, or `sources`."""
    table = load_table(Path("servable") / f"{engine}.yaml")
    if what in ("weights", "kv"):
        return _by_card(engine, table, what)
    rows = list(_refusals(table)) if what == "refusals" else list(_sources(table))
    return _markdown(rows)


def _by_card(engine: str, table: dict[str, Any], what: str) -> str:
    columns = _COLUMNS[engine]
    rows = [("", *(title for title, _ in columns))]
    for key, entry in table[what].items():
        if key == "other" or not entry["rows"] or key == "fp8-latent":
            continue
        cells = tuple(_cell(_asked(engine, what, key, card)) for _, card in columns)
        rows.append((str(entry["title"]), *cells))
    return _markdown(rows)


def _asked(engine: str, what: str, key: str, card: str) -> Support:
    if what == "kv":
        return kv_support(_SPEC, _KV_TYPES.get(key, key), find_gpu(card), engine, None)
    return support(_SPEC, _SCHEMES.get(key, key), None, find_gpu(card), ParallelLayout(), engine, None)


def _cell(found: Support) -> str:
    return f"{found.kernel}{_MARKS[found.speed]}" if found.runs else "no"


def _refusals(table: dict[str, Any]) -> list[tuple[str, ...]]:
    rows = [("format", "on", "releases", "refused because", "instead")]
    for part in ("weights", "kv"):
        for entry in table[part].values():
            title = entry["title"] if part == "weights" else f"{entry['title']} cache"
            for row in entry["rows"]:
                if "refused" in row:
                    rows.append((title, str(row["gpu"]), _releases(row), row["refused"], str(row.get("use", ""))))
    return rows


def _releases(row: dict[str, Any]) -> str:
    since, before = row.get("since"), row.get("before")
    bounds = [f"from {since}" if since else "", f"before {before}" if before else ""]
    return ", ".join(bound for bound in bounds if bound) or "all"


def _sources(table: dict[str, Any]) -> list[tuple[str, ...]]:
    rows = [("format", "read in")]
    for part in ("weights", "kv"):
        for entry in table[part].values():
            rows.append(
                (entry["title"] if part == "weights" else f"{entry['title']} cache", str(entry["source"]).strip())
            )
    return rows


def _markdown(rows: list[tuple[str, ...]]) -> str:
    header, *body = rows
    lines = [header, tuple("---" for _ in header), *body]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)
