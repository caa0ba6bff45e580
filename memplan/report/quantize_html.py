"""A quantization as one self-contained page: its quality, every layer's error, outliers, memory over time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from memplan.domain.quality import DomainQuality
from memplan.quantize.mix import Choice
from memplan.quantize.result import QuantizeResult
from memplan.report.html_figures import drawing
from memplan.report.html_parts import data_table, escape, figure, notes, page, pairs, table_row, titled
from memplan.report.quantize_text import describe, duration, unit_name
from memplan.units import GIB, format_gib

_WIDTH, _LEFT, _RIGHT, _TOP, _BOTTOM = 760, 64, 12, 16, 28
_HEIGHT = 240
_ABOUT = (
    "Error of a layer: the squared error of its outputs over their squared size, on the calibration tokens; rounding "
    "alone is what rounding every weight to nearest would come to. Outlier: the largest input of a layer over the mean "
    "size of an input. Memory is what the process itself held, without mapped files; 1 GiB is 2^30 bytes."
)
_MOST_OUTLIERS = 12


def quantization_page(result: QuantizeResult) -> str:
    """Return the page."""
    kind = "fits" if result.gate.verdict == "passed" else "does_not_fit"
    title = f"{result.model_name}: {describe(result.request)}"
    worst = result.gate.worst
    said = (
        f"perplexity on {worst.domain} {worst.increase_fraction:+.2%} ± {worst.standard_error_fraction:.2%}, "
        f"{worst.limit_fraction:.2%} allowed in any domain"
    )
    layers = _layers(result.blocks)
    body = [
        f"<h1>{escape(title)}</h1>",
        f'<div class="verdict {kind}"><p><span class="word">quality {result.gate.verdict}</span>: '
        f"{escape(said)}</p></div>",
        titled("Quality", _quality(result)),
        titled("What it took", pairs(_took(result))),
        *([titled("Mix of widths", _mix(result.mix))] if result.mix else []),
        titled("Error of every layer", _errors(layers)),
        titled("Outliers", _outliers(layers)),
        titled("Memory over time", _memory(result)),
        titled("Layers", _table(layers)),
        *notes(result.notes),
    ]
    return page(title, body, about=_ABOUT)


def _layers(blocks: Sequence[dict[str, Any]]) -> list[tuple[str, dict[str, float | None]]]:
    return [(f"{block['name']}.{name}", facts) for block in blocks for name, facts in block["layers"].items()]


def _quality(result: QuantizeResult) -> str:
    head = ("domain", "tokens", "perplexity", "before", "rise", "±", "KL", "same top-1")
    right = range(1, len(head))
    rows = [table_row(_cells(each), right=right) for each in (*result.quality.domains, result.quality.overall)]
    return data_table(f"On {result.quality.text_set}, beside the 16-bit model", head, rows, right=right, kind="wide")


def _cells(domain: DomainQuality) -> list[str]:
    difference = domain.difference
    assert difference is not None
    return [
        domain.domain,
        f"{domain.tokens:,}",
        f"{domain.perplexity:.3f}",
        f"{difference.base_perplexity:.3f}",
        f"{difference.perplexity_increase:+.2%}",
        f"{difference.perplexity_increase_standard_error:.2%}",
        f"{difference.kl_divergence.mean:.5f}",
        f"{difference.top1_agreement.mean:.1%}",
    ]


def _took(result: QuantizeResult) -> list[tuple[str, str]]:
    found = result.forecast
    expected = found.host_bytes if found.device == "cpu" else found.device_bytes
    rows = [("checkpoint", format_gib(result.output_bytes)), ("time", duration(result.seconds))]
    if found.seconds is not None:
        rows.append(("time, forecast", duration(found.seconds)))
    if result.peak_bytes:
        rows.append(("memory at its peak", f"{format_gib(result.peak_bytes)}, forecast {format_gib(expected)}"))
    return rows


def _errors(layers: Sequence[tuple[str, dict[str, float | None]]]) -> str:
    """Two marks for every layer in its order: the error, and that of rounding alone, on a scale of powers of ten."""
    known = [(name, facts) for name, facts in layers if facts["relative_error"] and facts["relative_error_of_rounding"]]
    if not known:
        return ""
    values = [value for _, facts in known for value in (facts["relative_error"], facts["relative_error_of_rounding"])]
    low, high = _decades([value for value in values if value])
    drawn = _decade_lines(low, high)
    step = (_WIDTH - _LEFT - _RIGHT) / len(known)
    for number, (name, facts) in enumerate(known):
        x = _LEFT + (number + 0.5) * step
        error, plain = facts["relative_error"] or 0.0, facts["relative_error_of_rounding"] or 0.0
        at, over = _decade_y(error, low, high), _decade_y(plain, low, high)
        about = f"<title>{escape(name)}: {error:.3%}, rounding alone {plain:.3%}</title>"
        drawn.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{at:.1f}" y2="{over:.1f}"/>')
        drawn.append(f'<circle class="c-outside_budget" cx="{x:.1f}" cy="{over:.1f}" r="3">{about}</circle>')
        drawn.append(f'<circle class="c-weights" cx="{x:.1f}" cy="{at:.1f}" r="3">{about}</circle>')
    errors = [facts["relative_error"] or 0.0 for _, facts in known]
    said = f"from {min(errors):.3%} to {max(errors):.3%}"
    key = (
        '<ul class="key"><li><span class="c-weights"></span>this checkpoint</li>'
        '<li><span class="c-outside_budget"></span>rounding alone</li></ul>'
    )
    svg = drawing("errors", _HEIGHT, "Error of every layer", said, "".join(drawn))
    return figure("From the first layer to the last; powers of ten upwards", svg, key)


def _mix(mix: Sequence[Choice]) -> str:
    """Every unit with its width, and the damage that each width does."""
    widths = list(dict.fromkeys(width for choice in mix for width in choice.unit.damage))
    head = ("layers", "width", *(width.name for width in widths))
    right = range(2, len(head))
    rows = []
    for choice in mix:
        damages = [choice.unit.damage.get(width) for width in widths]
        shown = ["" if damage is None else f"{damage:.2e}" for damage in damages]
        rows.append(table_row([unit_name(choice.unit), choice.width.name, *shown], right=right))
    caption = "Damage of every width: the error of the block's output over its square, with these layers alone rounded"
    return data_table(caption, head, rows, right=right, kind="wide")


def _decades(values: Sequence[float]) -> tuple[int, int]:
    """The powers of ten around some values."""
    from math import ceil, floor, log10

    low, high = floor(log10(min(values))), ceil(log10(max(values)))
    return low, max(high, low + 1)


def _decade_y(value: float, low: int, high: int) -> float:
    from math import log10

    part = (log10(value) - low) / (high - low) if value > 0 else 0.0
    return _HEIGHT - _BOTTOM - part * (_HEIGHT - _BOTTOM - _TOP)


def _decade_lines(low: int, high: int) -> list[str]:
    drawn = []
    for power in range(low, high + 1):
        y = _decade_y(10.0**power, low, high)
        drawn.append(_line(y, f"{10.0**power:.{max(0, -power - 2)}%}"))
    return drawn


def _line(y: float, text: str) -> str:
    return (
        f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text class="faint" x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{escape(text)}</text>'
    )


def _outliers(layers: Sequence[tuple[str, dict[str, float | None]]]) -> str:
    known = sorted(((facts.get("input_outlier") or 0.0, name) for name, facts in layers), reverse=True)
    rows = [table_row([name, f"{ratio:,.0f}"], right=(1,)) for ratio, name in known[:_MOST_OUTLIERS] if ratio]
    caption = "Layers whose largest input stands out most from the mean size of an input"
    return data_table(caption, ("layer", "largest over mean"), rows, right=(1,)) if rows else ""


def _memory(result: QuantizeResult) -> str:
    samples = result.memory
    if len(samples) < 2:
        return ""
    expected = result.forecast.host_bytes if result.forecast.device == "cpu" else 0
    top, end = max(expected, max(held for _, held, _ in samples)) * 1.05, samples[-1][0] or 1.0
    room, height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _BOTTOM - _TOP
    places = [(_LEFT + at / end * room, _HEIGHT - _BOTTOM - held / top * height) for at, held, _ in samples]
    base = _HEIGHT - _BOTTOM
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
    drawn = [_line(base - part * height, f"{part * top / GIB:.2f} GiB") for part in (0.0, 0.25, 0.5, 0.75)]
    drawn.append(f'<path class="c-weights" d="M{places[0][0]:.1f} {base}L{path}L{places[-1][0]:.1f} {base}Z"/>')
    free_from = 0.0
    for number in range(1, len(samples)):
        phase = samples[number][2]
        if phase != samples[number - 1][2]:
            x, name = places[number][0], phase.rpartition(".")[2] if "." in phase else phase
            drawn.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{base}"/>')
            if x >= free_from and x + 7 * len(name) < _WIDTH:
                drawn.append(f'<text class="faint" x="{x + 3:.1f}" y="{base + 16}">{escape(name)}</text>')
                free_from = x + 7 * len(name) + 8
    if expected:
        y = base - expected / top * height
        drawn.append(f'<line class="end" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        drawn.append(
            f'<text class="halo" x="{_WIDTH - _RIGHT}" y="{y + 14:.1f}" text-anchor="end">'
            f"forecast {format_gib(expected)}</text>"
        )
    most = max(held for _, held, _ in samples)
    said = f"at most {format_gib(most)} over {duration(end)}"
    svg = drawing("memory", _HEIGHT, "Memory over time", said, "".join(drawn))
    return figure(f"Blocks by their number, then writing and the proof; {said}", svg)


def _table(layers: Sequence[tuple[str, dict[str, float | None]]]) -> str:
    def shown(value: float | None) -> str:
        return "" if value is None else f"{value:.3%}"

    rows = [
        table_row([name, shown(facts["relative_error"]), shown(facts["relative_error_of_rounding"])])
        for name, facts in layers
    ]
    return data_table("Error of every layer", ("layer", "error", "rounding alone"), rows, kind="wide")
