"""A quantized model's perplexity beside what papers print, once the real weights are on this disk.

    python benchmarks/quantize/published.py FOLDER [--model llama-2-7b] [--methods rtn,gptq,awq] [--bits 4]
        [--group-size N] [--calibration pile] [--text wikitext-2] [--offline]
    python benchmarks/quantize/published.py --list

FOLDER has the 16-bit weights. The convention is the papers': WikiText-2's test part in windows of 2,048 tokens without
overlap, weights with zero points, groups and calibration as in the table that has the model (published_figures.py), on
128 windows of 512 tokens. Without --model it is the one whose 16-bit perplexity is the measured one, within 0.4 %.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from argparse import Namespace
from pathlib import Path

from published_figures import MODELS, PRINTED, nearest, printed_of

_QUALITY_MISSED = 6


def main() -> int:
    """Measure the model, quantize it, measure again, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--list", action="store_true", help="print what the papers say, and stop")
    parser.add_argument("--model", choices=sorted(MODELS))
    parser.add_argument("--methods", default="rtn,gptq,awq")
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--group-size", type=int)
    parser.add_argument("--calibration")
    parser.add_argument("--text", default="wikitext-2")
    parser.add_argument("--offline", action="store_true")
    asked = parser.parse_args()
    if asked.list or asked.folder is None:
        print(listing())
        return 0
    texts = ["--text", asked.text, "--window", "2048", *(["--offline"] if asked.offline else []), "--json"]
    base = overall("evaluate", str(asked.folder), *texts)["perplexity"]
    model = asked.model or nearest(base)
    table = printed_of(model, asked.bits)
    group = asked.group_size if asked.group_size is not None else 128 if table is None else table.group_size
    calibration = asked.calibration or ("pile" if table is None else table.calibration)
    groups = f"groups of {group}" if group else "whole rows"
    print(f"{asked.folder}: {model or 'a model of no table here'}, {asked.bits} bits, {groups}, {asked.text}")
    print(f"calibrated on {calibration}; papers: {'' if table is None else table.source}\n")
    paper = {} if table is None or model is None else {name: row.get(model) for name, row in table.perplexity.items()}
    print("| method | measured | paper | rise measured | rise in the paper |")
    print("|---|---:|---:|---:|---:|")
    print(f"| 16 bit | {base:.3f} | {figure(paper.get('base'))} | | |")
    for method in asked.methods.split(","):
        measured = quantized(asked, method, group, calibration, texts)
        printed, before = paper.get(method), paper.get("base")
        rise = "" if printed is None or before is None else f"{printed / before - 1:+.2%}"
        print(f"| {method} | {measured:.3f} | {figure(printed)} | {measured / base - 1:+.2%} | {rise} |", flush=True)
    return 0


def quantized(asked: Namespace, method: str, group: int, calibration: str, texts: list[str]) -> float:
    """The perplexity of the model as one method leaves it, be it put aside for what it lost."""
    with tempfile.TemporaryDirectory() as place:
        output = Path(place) / "made"
        options = ["--method", method, "--bits", str(asked.bits), "--group-size", str(group), "--no-symmetric"]
        options += ["--calibration", calibration, "--output", str(output), "--quiet"]
        memplan("quantize", str(asked.folder), *options, *(["--offline"] if asked.offline else []))
        made = output if output.exists() else output.with_name("made.rejected")
        return overall("evaluate", str(made), *texts)["perplexity"]


def figure(value: float | None) -> str:
    """A perplexity as papers print it."""
    return "" if value is None else f"{value:.2f}"


def listing() -> str:
    """All that is known of papers, by table."""
    lines = []
    for table in PRINTED:
        groups = f"groups of {table.group_size}" if table.group_size else "whole rows"
        lines.append(f"{table.bits} bits, {groups}, calibrated on {table.calibration}: {table.source}")
        for model in table.perplexity["base"]:
            cells = ", ".join(f"{name} {row[model]:g}" for name, row in table.perplexity.items())
            lines.append(f"  {model}: {cells}")
    return "\n".join(lines)


def overall(*arguments: str) -> dict[str, float]:
    """The figures over all texts that an evaluation prints."""
    found: dict[str, float] = json.loads(memplan(*arguments))["overall"]
    return found


def memplan(*arguments: str) -> str:
    """What a command prints. Raises: CalledProcessError when it fails, but for lost quality."""
    done = subprocess.run([sys.executable, "-m", "memplan", *arguments], check=False, stdout=subprocess.PIPE, text=True)
    if done.returncode != _QUALITY_MISSED:
        done.check_returncode()
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
