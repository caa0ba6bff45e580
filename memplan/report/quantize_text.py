"""A quantization on a terminal: the forecast, and what came of it."""

from __future__ import annotations

from collections.abc import Sequence

from memplan.quantize.forecast import Forecast
from memplan.quantize.mix import Choice, Unit
from memplan.quantize.request import QuantizeRequest
from memplan.quantize.result import QuantizeResult
from memplan.report.layout import Style
from memplan.report.quality_text import render_quality
from memplan.units import format_gib

_NAME = 24
_WORST = 3


def render_forecast(forecast: Forecast, request: QuantizeRequest) -> str:
    """Return what a quantization will take."""
    lines = [f"{forecast.model_name}: {describe(request)}", ""]
    where = "memory" if forecast.device == "cpu" else "GPU memory"
    hungriest = forecast.hungriest
    needed = forecast.host_bytes if forecast.device == "cpu" else forecast.device_bytes
    lines.append(f"  {where:<{_NAME}}{format_gib(needed):>12}   at its peak: {hungriest.name}")
    if forecast.device != "cpu":
        lines.append(f"  {'host memory':<{_NAME}}{format_gib(forecast.host_bytes):>12}")
    lines.append(f"  {'disk while it works':<{_NAME}}{format_gib(forecast.disk_bytes):>12}")
    lines.append(f"  {'checkpoint':<{_NAME}}{format_gib(forecast.output_bytes):>12}")
    lines.append(
        f"  {'work':<{_NAME}}{forecast.flops / 1e12:>8,.1f} TFLOP   {forecast.num_blocks} blocks, and the proof"
    )
    if forecast.seconds is not None:
        lines.append(f"  {'time':<{_NAME}}{duration(forecast.seconds):>12}   by the speed of this machine")
    lines += ["", "  one block at a time; each step holds"]
    for step in forecast.steps:
        held = ", ".join(f"{what} {format_gib(size)}" for what, size in step.holds.items() if size)
        lines.append(f"  {step.name:<{_NAME}}{format_gib(step.total_bytes):>12}   {held}")
    return "\n".join(lines) + "\n"


def duration(seconds: float) -> str:
    """A time in the largest unit that says it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def describe(request: QuantizeRequest) -> str:
    """What is done, in words."""
    group = f"groups of {request.group_size}" if request.group_size else "whole rows"
    kind = "symmetric" if request.symmetric else "asymmetric"
    activations = (
        f", activations of {request.method.activation_bits} bits" if request.method.activation_bits < 16 else ""
    )
    return f"{request.method.name}, {request.bits} bits, {group}, {kind}{activations}, as {request.format}"


def render_result(result: QuantizeResult, style: Style) -> str:
    """Return what a quantization came to."""
    lines = [f"{result.model_name}: {describe(result.request)}", ""]
    lines.append(f"  {'checkpoint':<{_NAME}}{format_gib(result.output_bytes):>12}   {result.folder}")
    lines.append(f"  {'took':<{_NAME}}{result.seconds:>10.0f} s")
    if result.peak_bytes is not None and result.forecast.device == "cpu":
        forecast = format_gib(result.forecast.host_bytes)
        lines.append(f"  {'memory at its peak':<{_NAME}}{format_gib(result.peak_bytes):>12}   forecast {forecast}")
    lines += _mix(result.mix)
    worst = _worst_layers(result)
    if worst:
        lines += ["", "  most noise added (error over signal)"]
        lines += [f"  {name:<{2 * _NAME}}{error:>8.2%}   rounding alone {plain:.2%}" for error, plain, name in worst]
    lines += [f"  note: {note}" for note in result.notes]
    lines += ["", render_quality(result.quality, style, result.gate).rstrip("\n")]
    if result.gate.verdict == "passed":
        lines += ["", "hint: memplan emit-config --gpu NAME > vllm.yaml"]
    return "\n".join(lines) + "\n"


def _mix(mix: Sequence[Choice]) -> list[str]:
    """How many layers have which width and the damage of each, then the units that suffer most from theirs."""
    if not mix:
        return []
    lines = ["", "  mix of least damage (error of the block's output over its square)"]
    for width in sorted({choice.width for choice in mix}, key=lambda width: (width.bits, -width.group_size)):
        chosen = [choice for choice in mix if choice.width == width]
        count, damage = sum(len(choice.unit.modules) for choice in chosen), sum(choice.damage for choice in chosen)
        lines.append(f"  {width.name:<{2 * _NAME}}{damage:>10.2e}   {count} layers")
    for choice in sorted(mix, key=lambda choice: -choice.damage)[:_WORST]:
        lines.append(f"  {unit_name(choice.unit):<{2 * _NAME}}{choice.damage:>10.2e}   {choice.width.name}")
    return lines


def unit_name(unit: Unit) -> str:
    """The first layer of a unit, and how many others are with it."""
    others = len(unit.modules) - 1
    return unit.modules[0] + (f" and {others} more" if others else "")


def _worst_layers(result: QuantizeResult) -> list[tuple[float, float, str]]:
    found = [
        (facts["relative_error"], facts["relative_error_of_rounding"], f"{block['name']}.{layer}")
        for block in result.blocks
        for layer, facts in block["layers"].items()
        if facts["relative_error"] is not None
    ]
    return sorted(found, reverse=True)[:_WORST]
