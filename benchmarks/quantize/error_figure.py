"""The figure of error per layer in docs/quantize.md: a model quantized by some methods, beside rounding to nearest.

    python benchmarks/quantize/error_figure.py [--model demo] [--methods gptq,awq] [--output docs/quantize/errors.svg]

Every layer in its order has a mark for each method, as its quantization_report.json has it: the squared error of its
outputs over their squared size, on the calibration tokens, on a scale of powers of ten. Printed are the means.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 860, 320, 62, 12, 40, 46
COLORS = ("#888888", "#0b6fb8", "#c4541a", "#3f8f3f")
ROUNDING = "rounding alone"
Errors = dict[str, float]


def main() -> None:
    """Quantize, draw, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--methods", default="gptq,awq")
    parser.add_argument("--output", type=Path, default=Path(__file__).parents[2] / "docs" / "quantize" / "errors.svg")
    asked = parser.parse_args()
    found: dict[str, Errors] = {}
    with tempfile.TemporaryDirectory() as folder:
        for method in asked.methods.split(","):
            command = [sys.executable, "-m", "memplan", "quantize", asked.model, "--method", method, "--output", "made"]
            subprocess.run([*command, "--force", "--quiet"], check=True, cwd=folder, stdout=subprocess.DEVNULL)
            report = json.loads((Path(folder) / "made" / "quantization_report.json").read_text())
            found.setdefault(ROUNDING, errors_of(report, "relative_error_of_rounding"))
            found[method] = errors_of(report, "relative_error")
    asked.output.parent.mkdir(parents=True, exist_ok=True)
    asked.output.write_text(figure(asked.model, found), encoding="utf-8")
    for name, errors in found.items():
        print(f"{name}: {sum(errors.values()) / len(errors):.3%} on average, {max(errors.values()):.3%} at most")


def errors_of(report: dict[str, object], key: str) -> Errors:
    """One error for every layer, in their order."""
    blocks = report["blocks"]
    assert isinstance(blocks, list)
    return {f"{block['name']}.{name}": facts[key] for block in blocks for name, facts in block["layers"].items()}


def figure(model: str, found: dict[str, Errors]) -> str:
    """The figure as SVG."""
    values = [value for errors in found.values() for value in errors.values() if value]
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    layers = list(next(iter(found.values())))
    drawn = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        'font-size="12" role="img" aria-label="Error of every layer">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        *scale(low, high),
        *blocks_of(layers),
    ]
    for number, (name, errors) in enumerate(found.items()):
        color = COLORS[number % len(COLORS)]
        x = LEFT + number * 150
        drawn.append(f'<circle cx="{x + 5}" cy="18" r="4" fill="{color}"/><text x="{x + 14}" y="22">{name}</text>')
        for place, layer in enumerate(layers):
            if errors.get(layer):
                y = height_of(errors[layer], low, high)
                about = f"<title>{layer}: {errors[layer]:.3%} ({name})</title>"
                drawn.append(
                    f'<circle cx="{across(place, layers):.1f}" cy="{y:.1f}" r="3.5" fill="{color}">{about}</circle>'
                )
    drawn.append(
        f'<text x="{WIDTH - RIGHT}" y="22" text-anchor="end">{model}: error of a layer\'s outputs</text></svg>'
    )
    return "\n".join(drawn) + "\n"


def across(place: int, layers: Sequence[str]) -> float:
    """Where a layer stands."""
    return LEFT + (place + 0.5) * (WIDTH - LEFT - RIGHT) / len(layers)


def height_of(value: float, low: int, high: int) -> float:
    """Where an error stands between two powers of ten."""
    return HEIGHT - BOTTOM - (math.log10(value) - low) / (high - low) * (HEIGHT - BOTTOM - TOP)


def scale(low: int, high: int) -> list[str]:
    """A line for every power of ten, and finer ones for twice and five times as much."""
    drawn = []
    for power in range(low, high + 1):
        for times in (1, 2, 5) if power < high else (1,):
            y = height_of(times * 10.0**power, low, high)
            shade = "#cccccc" if times == 1 else "#eeeeee"
            drawn.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="{shade}"/>')
            text = f"{times * 10.0**power:.{max(0, -power - 2)}%}"
            drawn.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end" fill="#555555">{text}</text>')
    return drawn


def blocks_of(layers: Sequence[str]) -> list[str]:
    """A line between blocks, and their numbers below."""
    drawn, before = [], ""
    width = (WIDTH - LEFT - RIGHT) / len(layers)
    for place, layer in enumerate(layers):
        block = next((part for part in layer.split(".") if part.isdigit()), "")
        if block != before:
            x = across(place, layers) - width / 2
            drawn.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}" stroke="#cccccc"/>')
            drawn.append(f'<text x="{x + 4:.1f}" y="{HEIGHT - BOTTOM + 16}" fill="#555555">block {block}</text>')
            before = block
    names = [layer.rpartition(".")[2].removesuffix("_proj") for layer in layers if layer.split(".")[2:3] == ["0"]]
    said = f"in every block: {', '.join(names)}" if names else ""
    drawn.append(f'<text x="{LEFT}" y="{HEIGHT - 10}" fill="#555555">{said}</text>')
    return drawn


if __name__ == "__main__":
    main()
