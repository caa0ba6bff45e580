"""How long a quantization will take: its work by what it is done with, over how fast this machine does that.

Work is counted from shapes; the rates are probed on the machine in a second (`speed`). Torch is not known here.
"""

from __future__ import annotations

from memplan.domain.model import Layer, ModelSpec
from memplan.quantize.forecast_steps import SAMPLE_TOKENS, Reading, widths_of
from memplan.quantize.mix import windows_measured
from memplan.quantize.request import QuantizeRequest
from memplan.records import dataclass

# Rows of a layer that a search looks at, its candidates, and ranges tried for a scale: awq.py, smooth.py, grid.py.
_SEARCH_ROWS, _CANDIDATES = 128, 41
_SMOOTH_ROWS, _SMOOTH_CANDIDATES = 256, 10
_RANGES = 31
_REFITS = 8  # two rounds of two zero points, a scale and the product that finds it
_REPORT_ROWS = 256
# Passes over the elements of a matrix that one rounding to its grid takes.
_ROUNDING_PASSES = 8
_COLUMNS = 128
_WIDTHS = 3  # that a unit is tried in: auto.py


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Products of matrices in 16 bit and in float32 and factorisations (FLOP), and elements that are passed over."""

    half_flops: int = 0
    float_flops: int = 0
    factor_flops: int = 0
    elements: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(
            half_flops=self.half_flops + other.half_flops,
            float_flops=self.float_flops + other.float_flops,
            factor_flops=self.factor_flops + other.factor_flops,
            elements=self.elements + other.elements,
        )

    def times(self, count: int) -> Work:
        """So many of it."""
        return Work(
            half_flops=self.half_flops * count,
            float_flops=self.float_flops * count,
            factor_flops=self.factor_flops * count,
            elements=self.elements * count,
        )

    @property
    def flops(self) -> int:
        """All of it that is products and factorisations."""
        return self.half_flops + self.float_flops + self.factor_flops


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineSpeed:
    """What a machine does in a second, as `speed.probe` measured it."""

    half_flops_per_s: float
    float_flops_per_s: float
    factor_flops_per_s: float
    elements_per_s: float

    def slower(self, times: float) -> MachineSpeed:
        """A machine that takes so many times as long for everything."""
        return MachineSpeed(
            half_flops_per_s=self.half_flops_per_s / times,
            float_flops_per_s=self.float_flops_per_s / times,
            factor_flops_per_s=self.factor_flops_per_s / times,
            elements_per_s=self.elements_per_s / times,
        )

    def seconds(self, work: Work) -> float:
        """How long some work takes, one thing after the other."""
        return (
            work.half_flops / self.half_flops_per_s
            + work.float_flops / self.float_flops_per_s
            + work.factor_flops / self.factor_flops_per_s
            + work.elements / self.elements_per_s
        )


def work_of(spec: ModelSpec, request: QuantizeRequest, *, tokens: int, proof_tokens: int) -> tuple[Work, Work]:
    """Return the work on all blocks, and that of the proof."""
    blocks = Work()
    for layer, copies in spec.distinct_layers():
        blocks += _block(layer, request, tokens).times(copies)
        if request.method.name == "auto":
            blocks += _sensitivity(layer, request).times(copies)
    passes = 2 * 2 * proof_tokens * spec.active_parameters
    proof = Work(float_flops=passes) if request.device == "cpu" else Work(half_flops=passes)
    unpacking = 2 * _ROUNDING_PASSES * sum(layer.num_parameters * copies for layer, copies in spec.distinct_layers())
    scoring = _ROUNDING_PASSES * 2 * proof_tokens * spec.vocab_size
    return blocks, proof + Work(elements=unpacking + scoring)


def _block(layer: Layer, request: QuantizeRequest, tokens: int) -> Work:
    """Calibration passes, statistics, searches, rounding and writing of a block."""
    method, widths = request.method, widths_of(layer)
    work = Work(elements=2 * layer.num_parameters)
    if method.needs_calibration:
        one_pass = Work(half_flops=2 * tokens * layer.num_parameters)
        # With runs that end at every subset in turn, layers before it are not run again (passes.py).
        work += one_pass.times(2)
    for reading in widths.readings:
        work += _reading(reading, request, tokens).times(reading.copies)
    return work


def _sensitivity(layer: Layer, request: QuantizeRequest) -> Work:
    """Every unit of a block rounded in every width but 16 bits, and the block run with it, in float32."""
    windows, _ = windows_measured(request.num_samples)
    readings = widths_of(layer).readings
    one_pass = Work(float_flops=2 * windows * request.window_tokens * layer.num_parameters)
    weights = sum(each.weights * each.copies for each in readings)
    work = one_pass.times(1 + _WIDTHS * len(readings))
    return work + Work(elements=_WIDTHS * 2 * _ROUNDING_PASSES * weights)


def _reading(reading: Reading, request: QuantizeRequest, tokens: int) -> Work:
    """What is done with layers that read one input."""
    method, num_in, weights = request.method, reading.num_in, reading.weights
    group = request.group_size or num_in
    work = Work(elements=2 * _ROUNDING_PASSES * weights)
    if method.rounding == "gptq" or method.scaling == "awq":
        work += Work(float_flops=2 * tokens * num_in**2, elements=2 * tokens * num_in)
        work += Work(float_flops=4 * _REPORT_ROWS * num_in**2 * len(reading.outs))
    if method.scaling == "awq":
        rows = sum(min(out, _SEARCH_ROWS) for out in reading.outs)
        work += Work(
            float_flops=_CANDIDATES * 2 * rows * num_in**2, elements=_CANDIDATES * _ROUNDING_PASSES * rows * num_in
        )
    if method.scaling == "smooth":
        rows = sum(min(out, _SMOOTH_ROWS) for out in reading.outs)
        work += Work(float_flops=_SMOOTH_CANDIDATES * 2 * rows * SAMPLE_TOKENS * num_in)
    if method.rounding == "clipped":
        tries = _RANGES + _REFITS
        work += Work(float_flops=tries * 2 * weights * group, elements=tries * _ROUNDING_PASSES * weights)
    if method.rounding == "gptq":
        searched = _RANGES * _ROUNDING_PASSES * weights if request.searches_range else 0
        work += Work(
            factor_flops=4 * num_in**3 // 3,
            float_flops=weights * num_in,
            elements=searched + weights * _COLUMNS // 2,
        )
    return work
