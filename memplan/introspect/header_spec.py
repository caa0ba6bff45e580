"""Joining what a checkpoint's headers say with what its config says: exact stored bytes on the family's tensors.

The headers are right about bytes; the family knows what a tensor is for and how engines cut it. Where both name a
tensor, the family's is kept and stored as the headers have it. A tensor that only one side has is named in a note:
predicted and not stored, it is left out; stored and not predicted, it is kept as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from memplan.domain.dtypes import DType
from memplan.domain.model import Layer, ModelSpec
from memplan.domain.tensors import Role, Tensor
from memplan.introspect.bytesource import show
from memplan.introspect.header_names import Group, bare_name, collapse_numbers, sort_tensors
from memplan.introspect.header_storage import KNOWN_PARTS, find_parts, stored_as
from memplan.introspect.inventory import Inventory, stored_dtype
from memplan.records import dataclass, field, replace

# Stored by older tools and loaded by no engine as weights: causal masks, rotary frequencies, scales of a KV cache.
_IGNORED = (
    *("inv_freq", "rotary_emb.cos_cached", "rotary_emb.sin_cached", "position_ids", "num_batches_tracked"),
    *("attn.bias", "attn.masked_bias", "attention.bias", "attention.masked_bias"),
    *("k_scale", "v_scale", "q_scale", "prob_scale", "k_proj.output_scale", "v_proj.output_scale"),
)
_MAX_NAMED = 3
_SAME_SIZE_FRACTION = 0.15
_FLOATS = (DType.BF16, DType.F16, DType.F32, DType.F64)


@dataclass(slots=True)
class _Findings:
    """What the two sides disagree on, gathered while they are joined."""

    not_stored: list[Tensor] = field(default_factory=list)
    not_predicted: list[tuple[str, Group]] = field(default_factory=list)
    reshaped: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Joined:
    """Predicted tensors as stored, those that are not stored, and what is stored beside them."""

    tensors: tuple[Tensor, ...]
    absent: tuple[Tensor, ...]
    left: Mapping[str, Group]


def merge_headers(spec: ModelSpec, inventory: Inventory, *, dtype_is_known: bool = True) -> ModelSpec:
    """Return `spec` with its tensors stored as a checkpoint's headers say, and the checkpoint's total.

    `dtype_is_known` false takes the type that most weights are stored in, for a config that names none. When the names
    of the two sides do not meet, the config's tensors stay, with a note.
    """
    if not dtype_is_known:
        spec = replace(spec, dtype=_main_dtype(inventory) or spec.dtype)
    stored = sort_tensors(inventory.tensors, spec.layer_prefix, spec.num_layers)
    findings = _Findings()
    layers = _layers(spec, stored.layers, findings)
    done = _outside_layers(replace(spec, layers=layers), stored.rest, findings)
    absent = sum(tensor.num_elements for tensor in findings.not_stored)
    distinct = {id(layer): layer.tensors for layer in spec.layers}.values()
    if 2 * absent > sum(tensor.num_elements for tensors in distinct for tensor in tensors) + 1:
        note = "the names in the headers are not those of this family: its tensors are the config's"
        return replace(spec, stored_bytes=inventory.total_bytes, notes=(*spec.notes, *inventory.notes, note))
    return replace(
        done,
        weights_source="headers",
        stored_bytes=inventory.total_bytes,
        notes=(*done.notes, *inventory.notes, *_notes(findings)),
    )


def _layers(spec: ModelSpec, stored: Mapping[int, Mapping[str, Group]], findings: _Findings) -> tuple[Layer, ...]:
    """The layers as stored; those that are stored alike stay one object."""
    made: dict[object, Layer] = {}
    layers: list[Layer] = []
    for index, layer in enumerate(spec.layers):
        own = stored.get(index, {})
        key = (id(layer), tuple(own.items()))
        if key not in made:
            joined = _join(layer.tensors, own, findings)
            left = {name: group for name, group in joined.left.items() if not name.endswith(_IGNORED)}
            if _are_renamed(joined.absent, left, spec.dtype):
                joined, left = _Joined((*joined.tensors, *joined.absent), (), {}), {}
            findings.not_stored += joined.absent
            findings.not_predicted += ((f"{spec.layer_prefix}{index}.{name}", group) for name, group in left.items())
            others = (_other(name, group, Role.OTHER) for name, group in left.items())
            made[key] = replace(layer, tensors=(*joined.tensors, *others))
        layers.append(made[key])
    return tuple(layers)


def _outside_layers(spec: ModelSpec, stored: Mapping[str, Group], findings: _Findings) -> ModelSpec:
    """Everything but the decoder's layers: embeddings, head, towers and prediction layers as stored."""
    outside = [*spec.shared, *spec.mtp, *(tensor for tower in spec.towers for tensor in tower.tensors)]
    left: Mapping[str, Group] = collapse_numbers(stored, [bare_name(tensor.name) for tensor in outside])
    joined = _join(outside, left, findings)
    left = {name: group for name, group in joined.left.items() if not name.endswith(_IGNORED)}
    predicted_head = next((tensor for tensor in joined.absent if tensor.role is Role.LM_HEAD), None)
    absent = tuple(tensor for tensor in joined.absent if tensor.role is not Role.LM_HEAD)
    notes, tied = list(spec.notes), spec.tied_embeddings
    if predicted_head is not None:
        tied = True
        notes.append("no head is stored: it is tied to the embedding")
    elif tied and (again := left.pop("lm_head.weight", None)):
        notes.append(f"the tied head is stored once more, {again.size_bytes} bytes that are not loaded")
    predictors = {name: group for name, group in left.items() if _is_mtp(name, spec)}
    left = {name: group for name, group in left.items() if name not in predictors}
    if _are_renamed(absent, left, spec.dtype):
        kept, left = {id(tensor): tensor for tensor in absent}, {}
    else:
        kept = {}
        findings.not_stored += (tensor for tensor in absent if tensor not in spec.mtp)
        findings.not_predicted += left.items()
    # `_join` keeps the order and drops the absent, so what is stored can be handed back by position.
    stored_again = iter(joined.tensors)
    gone = {id(tensor) for tensor in joined.absent}
    as_stored = {id(t): kept.get(id(t)) if id(t) in gone else next(stored_again) for t in outside}

    def pick(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return tuple(found for tensor in tensors if (found := as_stored[id(tensor)]) is not None)

    towers = tuple(replace(tower, tensors=pick(tower.tensors)) for tower in spec.towers)
    return replace(
        spec,
        shared=(*pick(spec.shared), *(_other(name, group, Role.OTHER) for name, group in left.items())),
        towers=tuple(tower for tower in towers if tower.tensors),
        mtp=(*pick(spec.mtp), *(_other(name, group, Role.MTP) for name, group in predictors.items())),
        tied_embeddings=tied,
        notes=tuple(notes),
    )


def _join(tensors: Sequence[Tensor], stored: Mapping[str, Group], findings: _Findings) -> _Joined:
    """Claim what is stored for each predicted tensor, by its name or by its module's."""
    names = {bare_name(tensor.name) for tensor in tensors}
    modules = _by_module(stored, names)
    left = dict(stored)
    joined: list[Tensor] = []
    absent: list[Tensor] = []
    for tensor in tensors:
        name = bare_name(tensor.name)
        own = {part: group for part, (_, group) in modules.get(name.removesuffix(".weight"), {}).items()}
        for _, (full, _) in modules.get(name.removesuffix(".weight"), {}).items():
            left.pop(full, None)
        if name in stored:
            own["weight"] = stored[name]
            left.pop(name, None)
        if own:
            joined.append(_as_stored(tensor, own, findings))
        else:
            absent.append(tensor)
    return _Joined(tuple(joined), tuple(absent), left)


def _by_module(stored: Mapping[str, Group], predicted: set[str]) -> dict[str, dict[str, tuple[str, Group]]]:
    """Stored parts of quantized modules: by module and part, each with its full name."""
    modules: dict[str, dict[str, tuple[str, Group]]] = {}
    for name, group in stored.items():
        if name in predicted:
            continue
        module, _, part = name.rpartition(".")
        if ".weight." in name:  # bitsandbytes: `weight.absmax` belongs to the module of `weight`
            module, _, part = name.partition(".weight.")
        elif part.endswith(("_blocks", "_scales")) and part not in KNOWN_PARTS:
            module, part = name[: -len("_blocks")], part[-len("blocks") :]  # gpt-oss: `gate_up_proj_blocks`
        if part in KNOWN_PARTS or part.startswith("quant_state."):
            modules.setdefault(module, {})[part] = name, group
    return modules


def _as_stored(tensor: Tensor, own: Mapping[str, Group], findings: _Findings) -> Tensor:
    """A predicted tensor as its module's stored tensors have it."""
    weight = own.get("weight")
    if weight is None or set(own) - {"weight", "input_scale"}:
        parts = find_parts(own, tensor.count)
        return tensor if parts is None else stored_as(tensor, parts)
    dtype = stored_dtype(weight.first)
    if dtype not in _FLOATS:
        is_whole = tensor.storage is None and weight.num_elements == tensor.num_elements
        return replace(tensor, dtype=dtype) if is_whole else tensor
    if tensor.storage is not None:
        tensor = replace(tensor, storage=None, dtype=None)
    if weight.num_elements == tensor.num_elements:
        return tensor
    findings.reshaped.append(tensor.name)
    return replace(tensor, shape=weight.first.shape, count=weight.count)


def _are_renamed(absent: Sequence[Tensor], left: Mapping[str, Group], dtype: DType) -> bool:
    """Whether tensors that are left over on both sides are the same under other names.

    They are when they hold equally many elements; quantized ones, whose scales are counted on one side only, when
    their bytes are about the same.
    """
    if not absent or not left:
        return False
    if sum(tensor.num_elements for tensor in absent) == sum(group.num_elements for group in left.values()):
        return True
    predicted_bits = sum(
        tensor.num_elements * (tensor.storage.bits if tensor.storage else (tensor.dtype or dtype).bits)
        for tensor in absent
    )
    stored_bytes = sum(group.size_bytes for group in left.values())
    return abs(stored_bytes - predicted_bits / 8) <= _SAME_SIZE_FRACTION * stored_bytes


def _is_mtp(name: str, spec: ModelSpec) -> bool:
    """Whether a stored tensor belongs to a prediction layer: under `mtp.`, or numbered on from the last layer."""
    if name.startswith(("mtp.", "mtp_layers.")):
        return True
    prefix = bare_name(spec.layer_prefix)
    number = name[len(prefix) :].partition(".")[0] if name.startswith(prefix) else ""
    return number.isdecimal() and len(number) < 6 and int(number) >= spec.num_layers


def _other(name: str, group: Group, role: Role) -> Tensor:
    """A stored tensor that nothing predicts; a single number is no parameter."""
    return Tensor(
        name=name,
        shape=group.first.shape,
        role=role,
        count=group.count,
        dtype=stored_dtype(group.first),
        is_buffer=group.first.num_elements <= 1,
    )


def _main_dtype(inventory: Inventory) -> DType | None:
    """The floating-point type that holds most bytes."""
    sizes: dict[DType, int] = {}
    for tensor in inventory.tensors.values():
        dtype = stored_dtype(tensor)
        if dtype in _FLOATS:
            sizes[dtype] = sizes.get(dtype, 0) + tensor.size_bytes
    return max(sizes, key=lambda dtype: sizes[dtype]) if sizes else None


def _notes(findings: _Findings) -> list[str]:
    notes = []
    if findings.not_stored:
        names = [tensor.name for tensor in findings.not_stored]
        notes.append(f"predicted but not stored, so left out: {_some(names)}")
    if findings.not_predicted:
        size_bytes = sum(group.size_bytes for _, group in findings.not_predicted)
        names = [name for name, _ in findings.not_predicted]
        notes.append(f"stored but not predicted, {size_bytes} bytes, taken as they are: {_some(names)}")
    if findings.reshaped:
        notes.append(f"stored in another shape than the config gives: {_some(findings.reshaped)}")
    return notes


def _some(names: Sequence[str]) -> str:
    unique = list(dict.fromkeys(names))
    named = ", ".join(show(name) for name in unique[:_MAX_NAMED])
    return named + (f" and {len(unique) - _MAX_NAMED} more" if len(unique) > _MAX_NAMED else "")
