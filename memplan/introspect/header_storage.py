"""What the headers say about how one matrix is stored: its packed weights, scales, zero points and the rest.

A quantized matrix lies in several tensors under one module's name (`qweight`, `scales`, `weight_scale_inv`, ...). What
a config says about it is kept when the headers agree; otherwise the headers are turned into a Storage of their own,
whose bytes come out as stored.
"""

from __future__ import annotations

from collections.abc import Mapping

from memplan.domain.dtypes import DType
from memplan.domain.tensors import Storage, Tensor
from memplan.introspect.header_names import Group
from memplan.introspect.inventory import StoredTensor, stored_dtype
from memplan.records import dataclass, replace
from memplan.units import ceil_div, round_up

_WEIGHTS = ("weight", "qweight", "weight_packed", "blocks", "weight_q", "W_q")
_SCALES = ("weight_scale_inv", "weight_scale", "scales", "scale", "weight_scales", "scale_inv", "weight_scb", "SCB")
_ZEROS = ("qzeros", "weight_zero_point", "biases", "zeros")
_INDEX = ("g_idx", "weight_g_idx")
# What else quantizers keep under a module's name: counted with the matrix, and not told apart.
_OTHERS = (
    *("weight_scale_2", "weight_global_scale", "weight_shape", "input_scale", "input_global_scale", "input_zero_point"),
    *(
        "activation_scale",
        "pre_quant_scale",
        "absmax",
        "quant_map",
        "nested_absmax",
        "nested_quant_map",
        "weight_format",
    ),
    *("q_weight", "q_scale", "q_scale_max", "q_groups", "q_group_map", "q_invperm", "q_perm", "trellis", "suh", "svh"),
    *("codes", "codebooks", "Qidxs", "SU", "SV", "Wscale"),
)
KNOWN_PARTS = frozenset((*_WEIGHTS, *_SCALES, *_ZEROS, *_INDEX, *_OTHERS))


@dataclass(frozen=True, slots=True)
class Parts:
    """The tensors of one module by what they are for; `rest_bytes` is everything else under its name, per matrix."""

    weight: Group
    scales: Group | None
    zeros: Group | None
    index: Group | None
    rest_bytes: int


def find_parts(own: Mapping[str, Group], count: int) -> Parts | None:
    """Tell a module's tensors apart, given by the last part of their names; None when none holds the weights.

    `count` is how many equal modules there are (experts), over which their bytes divide evenly.
    """
    weight = next((own[name] for name in _WEIGHTS if name in own), None)
    if weight is None:
        return None
    scales = next((own[name] for name in _SCALES if name in own), None)
    zeros = next((own[name] for name in _ZEROS if name in own), None)
    index = next((own[name] for name in _INDEX if name in own), None)
    known = sum(group.size_bytes for group in (weight, scales, zeros, index) if group is not None)
    rest = sum(group.size_bytes for group in own.values()) - known
    return Parts(weight, scales, zeros, index, ceil_div(rest, count))


def stored_as(tensor: Tensor, parts: Parts) -> Tensor:
    """Return `tensor` stored as its parts say."""
    known = tensor.storage
    if known is not None and _agrees(known, tensor, parts):
        return tensor
    storage = _observed(tensor, parts, known)
    return replace(tensor, storage=storage, dtype=storage.element)


def _agrees(storage: Storage, tensor: Tensor, parts: Parts) -> bool:
    """Whether packed weights and scales take the bytes that `storage` gives them."""
    out_width, in_width, stack = _matrix(tensor)
    lines, line = (in_width, out_width) if storage.packed_out else (out_width, in_width)
    if storage.flat:
        lines, line = 1, out_width * in_width
    words = ceil_div(round(line * storage.bits * 80), storage.word_bits * 80)
    weights_bytes = stack * tensor.count * lines * ceil_div(words * storage.word_bits, 8)
    if weights_bytes != parts.weight.size_bytes:
        return False
    if parts.scales is None or storage.flat or storage.nested_group:
        return parts.scales is None or storage.scale_bits > 0
    return parts.scales.size_bytes == stack * tensor.count * _scale_bytes(storage, out_width, in_width)


def _scale_bytes(storage: Storage, out_width: int, in_width: int) -> int:
    groups_in = ceil_div(in_width, storage.group_in) if storage.group_in else 1
    groups_out = ceil_div(out_width, storage.group_out) if storage.group_out else 1
    return ceil_div(groups_in * groups_out * storage.scale_bits, 8)


def _observed(tensor: Tensor, parts: Parts, known: Storage | None) -> Storage:
    """A Storage whose bytes are those in the headers: grouped where the scales' shape shows the groups."""
    out_width, in_width, stack = _matrix(tensor)
    each = stack * tensor.count
    element = stored_dtype(parts.weight.first)
    weight_bytes = ceil_div(parts.weight.size_bytes, each)
    bits = weight_bytes * 8 / max(out_width * in_width, 1)
    rest_bytes = ceil_div(parts.rest_bytes, stack)
    storage = Storage(
        scheme=known.scheme if known else _scheme(element, bits),
        bits=bits if (bits * 80).is_integer() else 0.0,
        element=known.element if known and known.bits == bits else (element if bits == element.bits else None),
    )
    if not storage.bits:
        rest_bytes += weight_bytes
    scales_bytes = ceil_div(parts.scales.size_bytes, each) if parts.scales else 0
    grouping = _grouping(parts.scales.first, out_width, in_width) if parts.scales else None
    if parts.scales is not None and grouping is not None:
        group_in, group_out = grouping
        scaled = replace(
            storage, group_in=group_in, group_out=group_out, scale_bits=stored_dtype(parts.scales.first).bits
        )
        if _scale_bytes(scaled, out_width, in_width) == scales_bytes:
            storage, scales_bytes = scaled, 0
    rest_bytes += scales_bytes
    rest_bytes += sum(ceil_div(group.size_bytes, each) for group in (parts.zeros, parts.index) if group is not None)
    return replace(storage, tensor_bytes=rest_bytes)


def _grouping(scales: StoredTensor, out_width: int, in_width: int) -> tuple[int, int] | None:
    """The inputs and outputs that share one scale, by the shape of the scales; None when it shows none."""
    shape = scales.shape[-2:]
    if scales.num_elements == 1:
        return 0, 0
    if len(shape) == 1 or 1 in shape:
        return (0, 1) if out_width in shape else None
    # GPTQ and AWQ list groups first, others outputs first; where both fit, groups within one output are likelier.
    fits = [
        (group_in, group_out)
        for rows, columns in (shape, shape[::-1])
        if (group_in := _step(in_width, columns)) and (group_out := _step(out_width, rows))
    ]
    return min(fits, key=lambda groups: (groups[1] != 1, groups[0] == 1), default=None)


def _step(width: int, groups: int) -> int:
    """The size of groups that cut `width` into `groups`: a power of two where edges are ragged; 0 when none does."""
    if groups and width % groups == 0:
        return width // groups
    size = round_up(ceil_div(width, groups), 16) if groups else 0
    return size if size and ceil_div(width, size) == groups else 0


def _matrix(tensor: Tensor) -> tuple[int, int, int]:
    """Outputs, inputs, and how many matrices the tensor's own shape stacks."""
    if len(tensor.shape) < 2:
        return 1, tensor.num_elements // max(tensor.count, 1), 1
    out_width, in_width = tensor.shape[-2:]
    return out_width, in_width, tensor.num_elements // max(tensor.count * out_width * in_width, 1)


def _scheme(element: DType, bits: float) -> str:
    """A scheme's name for weights that no config explains, by what an engine that loads them would call it."""
    if element in (DType.FP8_E4M3, DType.FP8_E5M2):
        return "fp8"
    return {4.0: "int4", 8.0: "int8"}.get(bits, f"{bits:.3g}-bit")
