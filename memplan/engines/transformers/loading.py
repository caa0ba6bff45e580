"""Weights as `from_pretrained` puts them on a device, and what loading takes beside them.

Which quantized formats stay packed depends on the release, the card and the optional `kernels` package; the rest is
expanded to the compute type, as a whole model while loading or, for compressed-tensors in late releases, at the first
forward pass. From 5.0 on the experts of a layer are stacked into two parameters: the unstacked ones and their stack are
there together for a moment.

Source: quantizers/ and utils/quantization_config.py (what each format needs), core_model_loading.py (MergeModulelist,
Concatenate), modeling_utils.py (caching_allocator_warmup), 4.31 to 5.23; compressed-tensors 0.15 to 0.20,
model_compressor.py (decompression at the first forward pass).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from memplan.budget.allocator import allocate
from memplan.budget.storage import stored_parts
from memplan.catalog.rules import Rules, parse_release
from memplan.catalog.tables import load_table
from memplan.domain.dtypes import DType
from memplan.domain.gpu import GpuSpec
from memplan.domain.model import Layer, ModelSpec
from memplan.domain.tensors import Tensor
from memplan.engines.transformers.settings import TransformersSettings
from memplan.errors import UsageError
from memplan.records import dataclass, replace
from memplan.units import MIB, ceil_div, round_up

_FILE = Path("engines") / "transformers.yaml"
_ROUND = 512
_SMALL_REQUEST = MIB
_SMALL_SEGMENT = 2 * MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A model as it stands on the devices once it has run: `spec` with every matrix stored as it then is.

    `note` says why a quantized checkpoint is expanded. `is_dense` tells that it is.
    """

    spec: ModelSpec
    is_dense: bool = False
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loader:
    """What a release needs to keep a format packed, and since when it reads the format at all.

    `dense_since` is the release from which the format is expanded whatever the card. `expands` tells that a card or
    an installation that is not up to it gets the expanded model, rather than an error, from that release on. `on_gpu`
    tells that a model in this format must lie on GPUs as a whole.
    """

    since: str | None = "4.31.0"
    capability: float = 0.0
    kernels_since: str | None = None
    dense_since: str | None = None
    expands: str | None = None
    on_gpu: bool = False


def as_loaded(spec: ModelSpec, gpu: GpuSpec, settings: TransformersSettings, rules: Rules) -> LoadedModel:
    """Return the model as this release keeps it on this card.

    Raises: UsageError for a format that the release or the card cannot load.
    """
    scheme = spec.quantization
    if not scheme or scheme == "none":
        return LoadedModel(spec=spec)
    loader = loader_of(scheme)
    release = rules.release
    if loader.since is None or release < parse_release(loader.since):
        since = f"it came in {loader.since}" if loader.since else "no release does"
        raise UsageError(
            f"transformers {rules.version} does not load {scheme} weights: {since}",
            hint="name the model's plain checkpoint, or another engine",
        )
    reason = _missing(loader, scheme, gpu, settings, rules)
    if reason is None:
        return LoadedModel(spec=spec)
    if loader.expands is None or release < parse_release(loader.expands):
        raise UsageError(f"transformers {rules.version} refuses {scheme} weights here: {reason}")
    note = f"{scheme} weights are expanded to {settings.dtype.value}: {reason}"
    return LoadedModel(spec=dense(spec), is_dense=True, note=note)


def loader_of(scheme: str) -> Loader:
    """What is known about a format, by the beginning of its name."""
    loaders: dict[str, dict[str, object]] = load_table(_FILE)["loaders"]
    for prefix, facts in loaders.items():
        if scheme.startswith(prefix):
            return Loader(**facts)  # type: ignore[arg-type]
    return Loader()


def _missing(loader: Loader, scheme: str, gpu: GpuSpec, settings: TransformersSettings, rules: Rules) -> str | None:
    """Why the format cannot stay packed; None when it can."""
    if loader.dense_since and rules.release >= parse_release(loader.dense_since):
        return f"from {loader.dense_since} on its modules are expanded when they first run"
    if loader.capability and gpu.vendor == "nvidia" and (gpu.cuda_capability or 9.0) < loader.capability:
        return f"its kernels need compute capability {loader.capability:g}, {gpu.name} has {gpu.compute_capability}"
    if loader.kernels_since is not None and not settings.kernels:
        if rules.release < parse_release(loader.kernels_since):
            return f"transformers {rules.version} has no kernels for it"
        return "the `kernels` package is not installed (say --set kernels=true if it is)"
    return None


def dense(spec: ModelSpec) -> ModelSpec:
    """The model with every matrix in its plain form."""

    def plain(tensor: Tensor) -> Tensor:
        packed = tensor.storage is not None or (tensor.dtype is not None and tensor.dtype.bits < 16)
        return replace(tensor, storage=None, dtype=None) if packed else tensor

    made: dict[int, Layer] = {}
    for layer in spec.layers:
        if id(layer) not in made:
            made[id(layer)] = replace(layer, tensors=tuple(map(plain, layer.tensors)))
    return replace(
        spec,
        layers=tuple(made[id(layer)] for layer in spec.layers),
        shared=tuple(map(plain, spec.shared)),
        towers=tuple(replace(tower, tensors=tuple(map(plain, tower.tensors))) for tower in spec.towers),
        quantization=None,
    )


def tensor_sizes(tensor: Tensor, dtype: DType) -> tuple[int, ...]:
    """The bytes of one of a tensor's copies, as the parameters it is stored in: packed weights, scales, zeros."""
    if tensor.storage is not None:
        parts = stored_parts(tensor.shape, tensor.storage)
        sizes = (parts.weights_bytes, parts.scales_bytes, parts.zeros_bytes, parts.rest_bytes)
        return tuple(size for size in sizes if size)
    elements = tensor.num_elements // tensor.count
    kept = dtype if tensor.dtype is None or tensor.dtype.is_float else tensor.dtype
    if tensor.dtype is DType.F32 and len(tensor.shape) == 1:
        kept = DType.F32
    return (ceil_div(elements * kept.bits, 8),)


def tensor_bytes(tensor: Tensor, dtype: DType) -> int:
    """The bytes of a tensor with all its copies."""
    return sum(tensor_sizes(tensor, dtype)) * tensor.count


def requests(tensors: Iterable[Tensor], dtype: DType, rules: Rules) -> list[int]:
    """The sizes in which parameters are allocated: experts one by one, or stacked where the release stacks them."""
    sizes: list[int] = []
    stacks: dict[str, int] = {}
    for tensor in tensors:
        if is_stacked(tensor, rules):
            stacks[_stack_of(tensor)] = stacks.get(_stack_of(tensor), 0) + tensor_bytes(tensor, dtype)
        else:
            sizes.extend(tensor_sizes(tensor, dtype) * tensor.count)
    return [*sizes, *stacks.values()]


def is_stacked(tensor: Tensor, rules: Rules) -> bool:
    """Whether a release stacks the experts that a tensor stands for into one parameter."""
    return bool(rules["stacked_experts"]) and tensor.count > 1 and ".*." in tensor.name and tensor.storage is None


def _stack_of(tensor: Tensor) -> str:
    part = tensor.name.rsplit(".", 2)[-2]
    return "gate_up" if part in ("gate_proj", "up_proj", "w1", "w3") else part


def allocated(sizes: list[int], rules: Rules) -> int:
    """What the device is short of for these parameters.

    A release that warms the allocator up asks for one segment as large as the model and fills it, so that nothing is
    left over in segments of single parameters; small parameters have segments of 2 MiB of their own either way.
    """
    if not rules["warm_up"]:
        return allocate(tuple(sizes)).reserved_bytes
    small = sum(round_up(size, _ROUND) for size in sizes if size <= _SMALL_REQUEST)
    large = sum(round_up(size, _ROUND) for size in sizes if size > _SMALL_REQUEST)
    return round_up(large, _SMALL_SEGMENT) + round_up(small, _SMALL_SEGMENT)


def load_transient_bytes(
    layers: Iterable[Layer], source: ModelSpec, settings: TransformersSettings, loaded: LoadedModel, rules: Rules
) -> int:
    """What is there beside the weights at the worst moment of loading: parts of one layer that are being stacked,
    quantized or expanded.
    """
    distinct = {id(layer): layer for layer in layers}.values()
    most = 0
    for layer in distinct:
        stack = sum(
            tensor_bytes(tensor, settings.dtype)
            for tensor in layer.tensors
            if is_stacked(tensor, rules) and _stack_of(tensor) == "gate_up"
        )
        matrix = max((tensor.num_elements // tensor.count for tensor in layer.tensors if tensor.linear), default=0)
        converts = loaded.is_dense or source.quantization is not None
        most = max(most, stack, matrix * settings.dtype.bits // 8 if converts else 0)
    return most
