"""A quantized model's perplexity beside what papers print, once the real weights are on this disk.

    python benchmarks/quantize/published.py FOLDER [--model llama-2-7b] [--methods rtn,gptq,awq] [--bits 4]
        [--calibration pile] [--text wikitext-2] [--offline]

FOLDER has the 16-bit weights. The convention is the papers': WikiText-2's test part in windows of 2,048 tokens without
overlap, groups of 128, calibrated on 128 windows of 512 tokens of the Pile (AWQ) or as asked. Without --model the
figures of the papers are taken whose 16-bit perplexity is the nearest to the measured one, within 1 %.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

# Perplexity of WikiText-2 by (model, bits): 16 bit, and by method with groups of 128.
# Source: arXiv 2306.00978 (AWQ), table 4; `gptq` is its GPTQ with the order of activation ("GPTQ-R").
PAPER: dict[tuple[str, int], dict[str, float]] = {
    ("llama-2-7b", 4): {"base": 5.47, "rtn": 5.73, "gptq": 5.63, "awq": 5.60},
}
_BASES = {"llama-2-7b": 5.47, "llama-2-13b": 4.88, "llama-2-70b": 3.32}
_SAME_MODEL = 0.01


def main() -> int:
    """Quantize, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", choices=sorted(_BASES))
    parser.add_argument("--methods", default="rtn,gptq,awq")
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--calibration", default="pile")
    parser.add_argument("--text", default="wikitext-2")
    parser.add_argument("--offline", action="store_true")
    asked = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as place:
        for method in asked.methods.split(","):
            output = Path(place) / method
            reached = ["--calibration", asked.calibration, *(["--offline"] if asked.offline else [])]
            options = ["--method", method, "--bits", str(asked.bits), "--group-size", "128", *reached]
            options += ["--max-perplexity-increase", "100%", "--output", str(output), "--quiet"]
            memplan("quantize", str(asked.folder), *options)
            texts = ["--text", asked.text, "--window", "2048", *(["--offline"] if asked.offline else [])]
            compared = ["--against", str(asked.folder), "--max-perplexity-increase", "100%", "--json"]
            said = json.loads(memplan("evaluate", str(output), *texts, *compared))["overall"]
            rows.append((method, said["perplexity"], said["difference"]["base_perplexity"]))
    model = asked.model or nearest(rows[0][2])
    print(f"{asked.folder}: {model or 'a model of no table here'}, {asked.bits} bits, groups of 128, {asked.text}\n")
    print("| method | measured | paper | rise measured | rise in the paper |")
    print("|---|---:|---:|---:|---:|")
    paper = PAPER.get((model or "", asked.bits), {})
    base = _BASES.get(model or "")
    print(f"| 16 bit | {rows[0][2]:.3f} | {'' if base is None else f'{base:.2f}'} | | |")
    for method, perplexity, before in rows:
        known = paper.get(method)
        printed = ("", "") if known is None else (f"{known:.2f}", f"{known / paper['base'] - 1:+.2%}")
        print(f"| {method} | {perplexity:.3f} | {printed[0]} | {perplexity / before - 1:+.2%} | {printed[1]} |")
    return 0


def nearest(perplexity: float) -> str | None:
    """The model whose 16-bit perplexity is this one."""
    name = min(_BASES, key=lambda each: abs(_BASES[each] - perplexity))
    return name if abs(_BASES[name] / perplexity - 1) <= _SAME_MODEL else None


def memplan(*arguments: str) -> str:
    """What a command prints. Raises: CalledProcessError when it fails."""
    command = [sys.executable, "-m", "memplan", *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


if __name__ == "__main__":
    sys.exit(main())
