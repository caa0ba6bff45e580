"""Write the README's example and its accuracy table, from real runs.

    python benchmarks/render_readme.py [--check]

The example is what `memplan` prints now. The table comes from the summaries in benchmarks/results/, which
benchmarks/render_docs.py writes with `--score`. `--check` exits 1 when the README is not what would be written.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
README = ROOT / "README.md"
EXAMPLE = ("estimate", "llama-8b", "--gpu", "rtx-4090")


def example() -> str:
    """What the README's command prints, in an environment without state."""
    with tempfile.TemporaryDirectory() as home:
        environment = {**os.environ, "HOME": home, "XDG_STATE_HOME": home, "XDG_CACHE_HOME": home, "NO_COLOR": "1"}
        command = [sys.executable, "-m", "memplan", *EXAMPLE]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=home, check=False)
    return done.stdout.rstrip()


def percent(value: float, digits: int = 1) -> str:
    """A share as a percentage."""
    return f"{100 * value:.{digits}f} %"


Row = tuple[str, str, Callable[[dict[str, Any]], tuple[int, str, str] | None]]


def share(*keys: str) -> Callable[[dict[str, Any]], tuple[int, str, str] | None]:
    """A reader of one entry of a summary: number of runs, median, 90th percentile."""

    def read(summary: dict[str, Any]) -> tuple[int, str, str] | None:
        entry: Any = summary
        for key in keys:
            entry = entry.get(key) if isinstance(entry, dict) else None
        return (entry["n"], percent(entry["median"], 2), percent(entry["p90"])) if entry else None

    return read


ROWS: tuple[Row, ...] = (
    ("vLLM, weights of one GPU", "vllm", share("weights_rel")),
    ("vLLM, KV cache, as a share of the GPU's memory", "vllm", share("kv_share")),
    ("vLLM, KV cache, relative", "vllm", share("kv_rel")),
    ("SGLang, KV cache in tokens", "sglang", share("kv")),
    ("TensorRT-LLM, KV cache in tokens", "tensorrt_llm", share("kv")),
    ("llama.cpp, KV cache", "llama_cpp", share("mainline", "kv")),
    ("llama.cpp, device total", "llama_cpp", share("mainline", "total")),
)


def accuracy_table() -> str:
    """The table, from the summaries that are there."""
    lines = ["| compared with real runs | runs | median error | 90th percentile |", "|---|---|---|---|"]
    for title, name, read in ROWS:
        path = RESULTS / f"{name}.json"
        found = read(json.loads(path.read_text())) if path.exists() else None
        if found:
            lines.append(f"| {title} | {found[0]} | {found[1]} | {found[2]} |")
    exact = RESULTS / "parameters.json"
    if exact.exists():
        summary = json.loads(exact.read_text())
        lines.append(f"| parameters of models, exact | {summary['models']} | {summary['wrong']} wrong | |")
    return "\n".join(lines)


def rendered(text: str) -> str:
    """The README with its generated parts filled in."""
    for name, content in (("example", example()), ("accuracy", accuracy_table())):
        pattern = re.compile(rf"(<!-- {name}:start -->\n).*?(<!-- {name}:end -->)", re.DOTALL)
        if name == "example":
            pattern = re.compile(r"(\$ memplan estimate llama-8b --gpu rtx-4090\n).*?(```)", re.DOTALL)
        text = pattern.sub(lambda match, content=content: f"{match[1]}{content}\n{match[2]}", text, count=1)
    return text


def main() -> int:
    """Write the README, or check it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    old = README.read_text(encoding="utf-8")
    new = rendered(old)
    if options.check:
        return 0 if new == old else 1
    README.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
