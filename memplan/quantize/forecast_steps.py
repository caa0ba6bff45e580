"""What each step of a quantization holds at its peak, on the widest block. Torch is not known here.

The steps are those of `sensitivity`, `pipeline`, `block` and `forward`, the sizes what they hold: a Hessian is in
features squared in float32, GPTQ makes its factor in the same memory and rounds some rows at a time in float32,
statistics for a scaling hold a Hessian for every input of the block, the proof holds a block in float32 and the logits
of a batch of two models.
"""

from __future__ import annotations

from memplan.domain.model import Layer, ModelSpec
from memplan.domain.tensors import Role
from memplan.quantize.mix import WINDOWS_AT_ONCE, windows_measured
from memplan.quantize.request import POOL_BYTES, QuantizeRequest
from memplan.records import dataclass
from memplan.units import MIB

FLOAT_BYTES = 4
ITEM_BYTES = 2
# The limits of forward.py and ends.py: tokens of a batch, hidden states in memory, a slice of the head.
PROOF_BATCH_TOKENS = 2048
MOST_HIDDEN_BYTES = 256 * MIB
HEAD_SLICE_BYTES = 256 * MIB
PIECE_BYTES = 128 * MIB
# Of log-probabilities, taken to float32 for two models, and a mask: perplexity.py.
_CHUNK_TOKENS, _CHUNK_COPIES = 64, 3
# Tokens that smoothing is tried on: statistics.py.
SAMPLE_TOKENS = 512
# Rows that are worked on at a time, and how many copies of them are made: rows.py.
_ROWS, _ROW_COPIES = 1024, 4
# A Hessian's factor is made in its place, with a product of a quarter of its size: factor.py. Rows that GPTQ rounds at
# once, in float32 as they were and as they become, with codes of a byte in two orders: gptq.py.
_FACTOR_QUARTERS, _GPTQ_ROWS, _GPTQ_WEIGHT_BYTES = 5, 8192, 2 * 4 + 2
_ROUNDED = frozenset({Role.ATTENTION, Role.STATE, Role.MLP, Role.EXPERT, Role.SHARED_EXPERT})


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step of the work on the widest block, with what it holds at its peak, in bytes by what it is."""

    name: str
    holds: dict[str, int]

    @property
    def total_bytes(self) -> int:
        """All that the step holds."""
        return sum(self.holds.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """Linear layers that read one input: its features, the out features of each, and how many experts are such."""

    num_in: int
    outs: tuple[int, ...]
    copies: int = 1

    @property
    def weights(self) -> int:
        """How many weights the layers of one copy have."""
        return self.num_in * sum(self.outs)

    @property
    def hessian_bytes(self) -> int:
        """The Hessian of one copy's input."""
        return self.num_in**2 * FLOAT_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Widths:
    """The linear layers of a block that are rounded, by what they read."""

    readings: tuple[Reading, ...]

    @property
    def weights(self) -> int:
        """How many weights there are."""
        return sum(each.weights * each.copies for each in self.readings)

    @property
    def largest(self) -> int:
        """The weights of the largest layer."""
        return max((each.num_in * max(each.outs) for each in self.readings), default=0)

    @property
    def touched(self) -> int:
        """The most weights that a scaling moves through: layers that read one input, or one and what feeds it."""
        together = max((each.weights for each in self.readings), default=0)
        last = max(self.readings, key=lambda each: each.num_in, default=None)
        return max(together, self.largest + last.weights if last else 0)

    @property
    def widest(self) -> int:
        """The most in features of a layer."""
        return max((each.num_in for each in self.readings), default=0)

    @property
    def hessian_bytes(self) -> int:
        """The Hessians of all inputs but those of experts."""
        return sum(each.hessian_bytes for each in self.readings if each.copies == 1)

    @property
    def expert_hessian_bytes(self) -> int:
        """The Hessians of the inputs of experts that are measured together: of one at least, all where they are few."""
        sizes = [(each.hessian_bytes, each.copies) for each in self.readings if each.copies > 1]
        return min(sum(size * copies for size, copies in sizes), max(POOL_BYTES, sum(size for size, _ in sizes)))

    @property
    def experts_at_once(self) -> int:
        """How many experts have their Hessians measured together."""
        experts = [each for each in self.readings if each.copies > 1]
        together = POOL_BYTES // max(1, sum(each.hessian_bytes for each in experts))
        return min(max((each.copies for each in experts), default=0), max(1, together))

    @property
    def weights_at_once(self) -> int:
        """The weights of those. Their Hessians go as they are rounded, and are the larger of the two."""
        return self.experts_at_once * sum(each.weights for each in self.readings if each.copies > 1)

    @property
    def one_by_one_bytes(self) -> int:
        """The Hessians of one input of each of those."""
        sizes = (each.hessian_bytes for each in self.readings if each.copies > 1)
        return self.experts_at_once * max(sizes, default=0)

    @property
    def sample_bytes(self) -> int:
        """Some tokens of all inputs but those of experts, or of the inputs of experts that are measured together."""
        of_one = SAMPLE_TOKENS * FLOAT_BYTES
        sizes = [(each.num_in * of_one, each.copies) for each in self.readings if each.copies > 1]
        experts = min(sum(size * copies for size, copies in sizes), max(POOL_BYTES, sum(size for size, _ in sizes)))
        return max(experts, sum(each.num_in * of_one for each in self.readings if each.copies == 1))

    @property
    def other_experts(self) -> int:
        """The weights of all experts but one."""
        return sum(each.weights * (each.copies - 1) for each in self.readings)


def widths_of(layer: Layer) -> Widths:
    """Layers that read the same input have the same role and width in every family that is known."""
    found: dict[tuple[Role, int, int], list[int]] = {}
    for tensor in layer.tensors:
        if tensor.linear and tensor.role in _ROUNDED and len(tensor.shape) == 2:
            found.setdefault((tensor.role, tensor.shape[1], tensor.count), []).append(tensor.shape[0])
    return Widths(
        readings=tuple(
            Reading(num_in=num_in, outs=tuple(outs), copies=count) for (_, num_in, count), outs in found.items()
        )
    )


def steps_of(spec: ModelSpec, request: QuantizeRequest, layer: Layer, *, proof_tokens: int) -> tuple[Step, ...]:
    """Return the steps on the block `layer`, the widest."""
    widths = widths_of(layer)
    steps = [_sensitivity(spec, request, layer, widths)] if request.method.name == "auto" else []
    steps.append(_first_inputs(spec, request, widths))
    if request.method.scaling != "none":
        steps.append(_trial(layer, widths))
    if request.method.needs_calibration:
        steps.append(_statistics(spec, request, layer, widths))
    if request.method.rounding == "gptq":
        steps += _gptq(request, layer, widths)
    else:
        steps.append(_rounding(request, layer, widths))
    if request.method.needs_calibration:
        holds = {**_rounded(request, layer, widths), "a batch": _pass_bytes(spec, request, widths)}
        steps.append(Step(name="outputs", holds=holds))
    steps.append(_writing(request, layer, widths))
    return (*steps, *_proof(spec, request, layer, widths, proof_tokens))


def _first_inputs(spec: ModelSpec, request: QuantizeRequest, widths: Widths) -> Step:
    read_by_rows = (Role.EMBEDDING, Role.LM_HEAD)
    others = sum(tensor.num_elements for tensor in spec.shared if tensor.role not in read_by_rows) * ITEM_BYTES
    rows_bytes = 3 * _batch_tokens(request) * spec.hidden_size * ITEM_BYTES
    return Step(name="first inputs", holds={"norms and other tables": others, "rows of embeddings": rows_bytes})


def _sensitivity(spec: ModelSpec, request: QuantizeRequest, layer: Layer, widths: Widths) -> Step:
    """A block in float32, one unit of it at a time rounded, with what goes in and out of it for all windows."""
    windows, _ = windows_measured(request.num_samples)
    unit = max((each.weights * each.copies for each in widths.readings), default=0)
    at_once = min(WINDOWS_AT_ONCE, windows) * request.window_tokens
    holds = {
        "a block": layer.num_parameters * FLOAT_BYTES,
        "a unit put aside": unit * FLOAT_BYTES,
        "a layer on its grid": widths.largest * (FLOAT_BYTES + 1),
        "inputs and outputs": 2 * windows * request.window_tokens * spec.hidden_size * FLOAT_BYTES,
        "a batch": at_once * (2 * spec.hidden_size + 3 * widths.widest) * FLOAT_BYTES,
        "rows at work": _ROW_COPIES * _ROWS * widths.widest * FLOAT_BYTES,
    }
    return Step(name="sensitivity", holds=holds)


def _trial(layer: Layer, widths: Widths) -> Step:
    holds = {
        "the block": layer.num_parameters * ITEM_BYTES,
        "a copy in float32": (layer.num_parameters - widths.other_experts) * FLOAT_BYTES,
        "layers put aside": widths.touched * FLOAT_BYTES,
    }
    return Step(name="trial of scalings", holds=holds)


def _statistics(spec: ModelSpec, request: QuantizeRequest, layer: Layer, widths: Widths) -> Step:
    method = request.method
    together = method.scaling == "awq" or (method.rounding == "gptq" and not request.true_sequential)
    widest_bytes = widths.widest**2 * FLOAT_BYTES
    hessian_bytes = widths.hessian_bytes + (widest_bytes if widths.expert_hessian_bytes else 0)
    expert_bytes = widths.expert_hessian_bytes if together else widths.one_by_one_bytes
    hessian_bytes = max(hessian_bytes if together else widest_bytes, expert_bytes)
    waiting = widths.weights_at_once if method.rounding == "gptq" and expert_bytes == hessian_bytes else 0
    block = {"the block": layer.num_parameters * ITEM_BYTES}
    holds = {
        **(block if together else _rounded(request, layer, widths, waiting)),
        "Hessians": hessian_bytes if together or method.rounding == "gptq" else 0,
        "samples of tokens": widths.sample_bytes if method.scaling == "smooth" else 0,
        "a batch": _pass_bytes(spec, request, widths),
        "inputs in float32": _batch_tokens(request) * widths.widest * FLOAT_BYTES,
    }
    return Step(name="statistics", holds=holds)


def _rounding(request: QuantizeRequest, layer: Layer, widths: Widths) -> Step:
    holds = {**_rounded(request, layer, widths), "weights in float32": widths.largest * FLOAT_BYTES}
    if request.method.scaling == "awq":
        holds["Hessians"] = max(widths.hessian_bytes, widths.expert_hessian_bytes)
        if widths.expert_hessian_bytes == holds["Hessians"]:
            holds |= _rounded(request, layer, widths, widths.weights_at_once)
    holds["rows at work"] = _ROW_COPIES * _ROWS * widths.widest * FLOAT_BYTES
    return Step(name="rounding", holds=holds)


def _gptq(request: QuantizeRequest, layer: Layer, widths: Widths) -> tuple[Step, Step]:
    """The two halves of the work on one input: its factor, then rows on their grid. With AWQ later inputs' wait."""
    held = _rounded(request, layer, widths)
    factoring = rounding = (0, 0)
    for place, each in enumerate(widths.readings):
        later = [other for other in widths.readings[place + 1 :] if other.copies == 1]
        waiting = sum(other.hessian_bytes for other in later) if request.method.scaling == "awq" else 0
        if each.copies > 1:
            # Of the experts that wait, nothing is rounded yet: `held` counts it.
            first_bytes = widths.one_by_one_bytes if request.true_sequential else widths.expert_hessian_bytes
            waiting = max(0, first_bytes - each.hessian_bytes - widths.weights_at_once)
        factoring = max(factoring, (each.hessian_bytes * _FACTOR_QUARTERS // 4 + waiting, 0))
        rows_bytes = min(_GPTQ_ROWS, sum(each.outs)) * each.num_in * _GPTQ_WEIGHT_BYTES
        rounding = max(rounding, (each.hessian_bytes + waiting, rows_bytes), key=sum)
    return (
        Step(name="factor", holds={**held, "Hessians": factoring[0]}),
        Step(name="rounding", holds={**held, "Hessians": rounding[0], "rows at work": rounding[1]}),
    )


def _writing(request: QuantizeRequest, layer: Layer, widths: Widths) -> Step:
    """The block's own weights are let go of first, and each rounded layer once it is packed, which is no larger."""
    holds = _rounded(request, layer, widths)
    del holds["the block"]
    holds["a layer that is packed"] = widths.largest * (8 + 2 * request.bits) // 8
    holds["rows at work"] = _ROW_COPIES * _ROWS * widths.widest * FLOAT_BYTES
    return Step(name="writing a block", holds=holds)


def _proof(
    spec: ModelSpec, request: QuantizeRequest, layer: Layer, widths: Widths, proof_tokens: int
) -> tuple[Step, Step]:
    """The written model and its base, one after the other through their blocks, then together through their heads."""
    item_bytes = FLOAT_BYTES if request.device == "cpu" else ITEM_BYTES
    batch = min(PROOF_BATCH_TOKENS, proof_tokens)
    on_host = request.device == "cpu"
    states_bytes = proof_tokens * spec.hidden_size * item_bytes
    kept_bytes = states_bytes if on_host and states_bytes <= MOST_HIDDEN_BYTES else 0
    pass_bytes = batch * (3 * spec.hidden_size + 3 * widths.widest) * item_bytes
    block = {
        "a block": layer.num_parameters * item_bytes,
        "a batch": pass_bytes,
        "rows at work": _ROW_COPIES * _ROWS * widths.widest * FLOAT_BYTES,
        "hidden states": 2 * kept_bytes,
    }
    logits = {
        "logits of two models": 2 * min(PIECE_BYTES, batch * spec.vocab_size * item_bytes),
        "a slice of the head": min(HEAD_SLICE_BYTES, spec.vocab_size * spec.hidden_size * item_bytes),
        "log-probabilities": _CHUNK_COPIES * min(batch, _CHUNK_TOKENS) * spec.vocab_size * FLOAT_BYTES,
        "hidden states": 2 * kept_bytes,
    }
    return Step(name="proof: a block", holds=block), Step(name="proof: logits", holds=logits)


def _rounded(request: QuantizeRequest, layer: Layer, widths: Widths, waiting: int = 0) -> dict[str, int]:
    """The block with its rounded layers: a byte for a weight until they are packed, scales and zero points.

    So many weights are `waiting` to be rounded.
    """
    scales_bytes = widths.weights // max(request.group_size, 128) * 2 * FLOAT_BYTES
    return {"the block": layer.num_parameters * ITEM_BYTES, "rounded layers": widths.weights - waiting + scales_bytes}


def _batch_tokens(request: QuantizeRequest) -> int:
    return min(request.batch_size, request.num_samples) * request.window_tokens


def _pass_bytes(spec: ModelSpec, request: QuantizeRequest, widths: Widths) -> int:
    return _batch_tokens(request) * (2 * spec.hidden_size + 3 * widths.widest) * ITEM_BYTES
