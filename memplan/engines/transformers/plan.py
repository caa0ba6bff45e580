"""From a placement to devices: which modules each GPU holds, which layers it computes, and what its fullest moment is.

Layers whose weights lie on the host are computed by the first GPU: their weights are copied there for the moment, and
their caches stay there.

Source: accelerate/big_modeling.py dispatch_model (main_device), hooks.py AlignDevicesHook, 0.20 to 1.15.
"""

from __future__ import annotations

from collections.abc import Mapping

from memplan.catalog.rules import Rules
from memplan.domain.gpu import GpuSpec
from memplan.domain.model import Layer, ModelSpec
from memplan.domain.serving import ServingSettings
from memplan.domain.tensors import Role, Tensor
from memplan.engines.transformers.caches import layer_cache
from memplan.engines.transformers.extras import adapter_bytes, draft_bytes
from memplan.engines.transformers.families import Family
from memplan.engines.transformers.fitted import Fitted, context_bytes, workspace_bytes
from memplan.engines.transformers.layer_shape import LayerShape, shape_of
from memplan.engines.transformers.loading import (
    LoadedModel,
    allocated,
    load_transient_bytes,
    requests,
    tensor_bytes,
)
from memplan.engines.transformers.module_tree import ModuleTree, layer_names, module_tree
from memplan.engines.transformers.passes import Peak, PlacedLayer, decode_step, device_peak, prefill_step
from memplan.engines.transformers.placement import (
    CPU,
    Device,
    balanced_memory,
    device_of,
    place,
    placement_rules,
)
from memplan.engines.transformers.settings import TransformersSettings
from memplan.records import dataclass, replace

_ROUNDED_METHODS = ("bnb-", "torchao", "quanto")
_QUANTIZER_SHARE = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """Where a model's parts went: the device of each decoder layer, and of every module dealt out on its own.

    `sizes` are the bytes of weights on each device.
    """

    modules: Mapping[str, Device]
    layers: tuple[Device, ...]
    sizes: Mapping[Device, int]

    @property
    def gpus(self) -> tuple[int, ...]:
        """The GPUs that hold anything."""
        return tuple(sorted(device for device, size in self.sizes.items() if isinstance(device, int) and size))

    @property
    def spilled_bytes(self) -> int:
        """Weights that lie on the host or on disk."""
        return sum(size for device, size in self.sizes.items() if not isinstance(device, int))


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """What one GPU holds and computes, whatever is asked of the model: its weights, and its layers in order.

    Each layer stands with its shape, and the bytes of its weights where those are brought from the host for a moment.
    `weight_bytes` counts torch's segments, `by_role` the tensors themselves.
    """

    number: int
    num_layers: int
    by_role: dict[Role, int]
    weight_bytes: int
    load_transient_bytes: int
    layers: tuple[tuple[Layer, LayerShape, int], ...]
    has_head: bool
    adapter_bytes: int = 0
    draft_bytes: int = 0

    @property
    def streamed_bytes(self) -> int:
        """The largest part of the model that is brought from the host for a moment."""
        return max((size for _, _, size in self.layers), default=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class DevicePlan:
    """One GPU: what it holds, its fullest moment while it generates, and what lies around that."""

    holding: Holding
    peak: Peak
    final_cache_bytes: int
    context_bytes: int
    workspace_bytes: int
    fragment_bytes: int

    @property
    def fixed_bytes(self) -> int:
        """What is there before any cache and any pass."""
        held = self.holding
        beside = held.adapter_bytes + held.draft_bytes
        return self.context_bytes + self.workspace_bytes + held.weight_bytes + beside

    @property
    def used_bytes(self) -> int:
        """Everything at the fullest moment."""
        return self.fixed_bytes + self.peak.total_bytes + self.fragment_bytes


def free_bytes(gpu: GpuSpec, asked: ServingSettings) -> int:
    """What the process may take of a GPU in all."""
    return min(gpu.memory_bytes, asked.gpu_free_bytes or gpu.memory_bytes)


def place_model(
    spec: ModelSpec, gpu: GpuSpec, asked: ServingSettings, settings: TransformersSettings, rules: Rules, fitted: Fitted
) -> Placed:
    """Deal the model out as this release's `device_map` does."""
    tree = module_tree(spec, settings.dtype)
    if settings.device_map == "cuda":
        modules: Mapping[str, Device] = {"": 0}
    else:
        modules = _dealt(tree, spec, gpu, asked, settings, rules, fitted)
    layers = tuple(device_of(modules, name) for name in layer_names(spec))
    sizes: dict[Device, int] = {}
    made: dict[int, int] = {}
    for layer, device in zip(spec.layers, layers, strict=True):
        if id(layer) not in made:
            made[id(layer)] = sum(tensor_bytes(tensor, settings.dtype) for tensor in layer.tensors)
        sizes[device] = sizes.get(device, 0) + made[id(layer)]
    for tensor in _outside_layers(spec):
        device = _device_of_tensor(modules, tensor)
        sizes[device] = sizes.get(device, 0) + tensor_bytes(tensor, settings.dtype)
    return Placed(modules=modules, layers=layers, sizes=sizes)


def _dealt(
    tree: ModuleTree,
    spec: ModelSpec,
    gpu: GpuSpec,
    asked: ServingSettings,
    settings: TransformersSettings,
    rules: Rules,
    fitted: Fitted,
) -> Mapping[str, Device]:
    """Run the release's algorithm over what is free, or over what the user allows."""
    free = max(0, free_bytes(gpu, asked) - context_bytes(gpu, fitted))
    given = settings.max_memory
    memory: dict[Device, float] = {
        index: min(given[index], free) if given else free for index in range(settings.num_gpus)
    }
    memory[CPU] = settings.cpu_bytes * (1.0 if given else rules["host_share"])
    how = placement_rules(rules)
    memory = balanced_memory(tree, memory, settings.device_map, how, is_given=given is not None)
    if (spec.quantization or "").startswith(_ROUNDED_METHODS):
        memory = {device: size * _QUANTIZER_SHARE for device, size in memory.items()}
    return place(tree, memory, how)


def _outside_layers(spec: ModelSpec) -> list[Tensor]:
    return [*(tensor for tower in spec.towers for tensor in tower.tensors), *spec.shared]


def _device_of_tensor(modules: Mapping[str, Device], tensor: Tensor) -> Device:
    """The device of a tensor outside the layers; one in the numbered layers of a tower goes by the first of them."""
    return device_of(modules, tensor.name.replace(".*.", ".0.", 1))


def holdings(
    source: ModelSpec,
    loaded: LoadedModel,
    placed: Placed,
    asked: ServingSettings,
    settings: TransformersSettings,
    rules: Rules,
) -> list[Holding]:
    """Return what every GPU holds or computes; the first one's for a model that lies on the host alone."""
    spec = loaded.spec
    numbers = placed.gpus or (0,)
    found = []
    for number in numbers:
        is_main = number == numbers[0]
        held = [layer for layer, device in zip(spec.layers, placed.layers, strict=True) if device == number]
        tensors = [t for t in _outside_layers(spec) if _device_of_tensor(placed.modules, t) == number]
        sizes = [size for layer in held for size in requests(layer.tensors, settings.dtype, rules)]
        sizes += requests(tensors, settings.dtype, rules)
        found.append(
            Holding(
                number=number,
                num_layers=len(held),
                by_role=_by_role(held, tensors, settings),
                weight_bytes=allocated(sizes, rules),
                load_transient_bytes=load_transient_bytes(held, source, settings, loaded, rules),
                layers=_computed(spec, placed, number, settings, is_main=is_main),
                has_head=placed.layers[-1] == number or (is_main and not isinstance(placed.layers[-1], int)),
                adapter_bytes=adapter_bytes(held, asked),
                draft_bytes=draft_bytes(asked.draft, settings, rules) if is_main else 0,
            )
        )
    return found


def plan_device(
    spec: ModelSpec,
    holding: Holding,
    gpu: GpuSpec,
    settings: TransformersSettings,
    family: Family,
    rules: Rules,
    fitted: Fitted,
) -> DevicePlan:
    """Return a GPU's fullest moment over the prefill and the last generated token."""
    caches = {
        id(layer): layer_cache(layer, settings, rules, family)
        for layer in {id(layer): layer for layer, _, _ in holding.layers}.values()
    }
    made = {
        (id(layer), size): PlacedLayer(shape=shape, cache=caches[id(layer)], streamed_bytes=size)
        for layer, shape, size in {(id(one[0]), one[2]): one for one in holding.layers}.values()
    }
    mine = [made[id(layer), size] for layer, _, size in holding.layers]
    step = prefill_step(settings, gpu, family, rules)
    workspace = workspace_bytes(gpu, fitted)
    peak = max(
        (
            _corrected(device_peak(spec, mine, settings, one, has_head=holding.has_head), settings, workspace)
            for one in (step, decode_step(settings, step))
        ),
        key=lambda one: one.total_bytes,
    )
    shown = settings.correction("fragments", peak.phase)
    return DevicePlan(
        holding=holding,
        peak=peak,
        final_cache_bytes=sum(each.cache.final_bytes for each in mine),
        context_bytes=context_bytes(gpu, fitted),
        workspace_bytes=workspace,
        fragment_bytes=round(fitted.fragments * peak.total_bytes * (shown.factor if shown else 1.0)),
    )


def _corrected(peak: Peak, settings: TransformersSettings, workspace_bytes: int) -> Peak:
    """A peak whose moment is what profiles have shown; they see it together with what is kept and the workspace."""
    shown = settings.correction("activations", peak.phase)
    if shown is None:
        return peak
    beside = peak.kept_bytes + workspace_bytes
    size = max(0, round(shown.factor * (peak.moment.size_bytes + beside)) - beside)
    return replace(peak, moment=replace(peak.moment, size_bytes=size))


def _computed(
    spec: ModelSpec, placed: Placed, number: int, settings: TransformersSettings, *, is_main: bool
) -> tuple[tuple[Layer, LayerShape, int], ...]:
    """The layers that a GPU computes: its own, and on the first GPU those that lie on the host."""
    distinct = {id(layer): layer for layer in spec.layers}
    shapes = {key: shape_of(layer, spec.hidden_size) for key, layer in distinct.items()}
    sizes: dict[int, int] = {}
    mine = []
    for layer, device in zip(spec.layers, placed.layers, strict=True):
        if device == number:
            mine.append((layer, shapes[id(layer)], 0))
        elif is_main and not isinstance(device, int):
            if id(layer) not in sizes:
                sizes[id(layer)] = sum(tensor_bytes(tensor, settings.dtype) for tensor in layer.tensors)
            mine.append((layer, shapes[id(layer)], sizes[id(layer)]))
    return tuple(mine)


def _by_role(layers: list[Layer], tensors: list[Tensor], settings: TransformersSettings) -> dict[Role, int]:
    roles: dict[Role, int] = {}
    made: dict[int, dict[Role, int]] = {}
    for layer in layers:
        if id(layer) not in made:
            made[id(layer)] = _sum_roles(layer.tensors, settings)
        for role, size in made[id(layer)].items():
            roles[role] = roles.get(role, 0) + size
    for role, size in _sum_roles(tensors, settings).items():
        roles[role] = roles.get(role, 0) + size
    return roles


def _sum_roles(tensors: list[Tensor] | tuple[Tensor, ...], settings: TransformersSettings) -> dict[Role, int]:
    roles: dict[Role, int] = {}
    for tensor in tensors:
        roles[tensor.role] = roles.get(tensor.role, 0) + tensor_bytes(tensor, settings.dtype)
    return roles
