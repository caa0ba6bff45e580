"""The buffers of one start, by device: weights, cache, states, compute, output."""

from __future__ import annotations

from functools import lru_cache

from memplan.catalog.rules import Rules
from memplan.domain.model import ModelSpec
from memplan.engines.llama_cpp.buffers import WeightBuffers, weight_buffers
from memplan.engines.llama_cpp.compute import compute_bytes
from memplan.engines.llama_cpp.kv_cache import CacheBytes, Cells, cache_bytes, cells_of
from memplan.engines.llama_cpp.placement import Devices, place
from memplan.engines.llama_cpp.settings import LlamaSettings
from memplan.records import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """All buffers of a start. Tuples have one entry per GPU and one for the host at the end."""

    devices: Devices
    cells: Cells
    weights: WeightBuffers
    cache: CacheBytes
    compute: tuple[int, ...]
    output_bytes: int

    def device_bytes(self, device: int) -> int:
        """Weights, cache, states and compute buffer of one device."""
        return (
            self.weights.by_device[device]
            + self.cache.keys_and_values[device]
            + self.cache.states[device]
            + self.compute[device]
        )

    @property
    def fullest(self) -> int:
        """The GPU that holds most; the host when there is none."""
        return max(range(max(1, self.devices.num_gpus)), key=self.device_bytes)


def least_bytes(spec: ModelSpec, settings: LlamaSettings, rules: Rules) -> int:
    """What the fullest GPU holds of weights and cache: quick to tell, and never more than with compute buffers."""
    devices = place(spec, settings, rules)
    weights = weight_buffers(spec, devices, settings.backend, rules)
    cache = cache_bytes(spec, settings, rules, devices, cells_of(spec, settings, rules))
    return max(
        (weights.by_device[gpu] + cache.keys_and_values[gpu] + cache.states[gpu] for gpu in devices.budgeted),
        default=0,
    )


class _Model:
    """A model by identity, under the rules of a build: comparing hundreds of tensors would take longer than planning
    them.
    """

    __slots__ = ("rules", "spec")

    def __init__(self, spec: ModelSpec, rules: Rules) -> None:
        self.spec = spec
        self.rules = rules

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Model) and self.spec is other.spec and self.rules.version == other.rules.version

    def __hash__(self) -> int:
        return id(self.spec)


def plan_devices(spec: ModelSpec, settings: LlamaSettings, rules: Rules) -> Plan:
    """Return the buffers of a model that goes by ggml's names; the last ones are remembered."""
    return _planned(_Model(spec, rules), settings)


@lru_cache(maxsize=512)
def _planned(model: _Model, settings: LlamaSettings) -> Plan:
    spec, rules = model.spec, model.rules
    devices = place(spec, settings, rules)
    cells = cells_of(spec, settings, rules)
    rows = settings.batch_size if rules["rows_of_outputs"] == "batch" else settings.slots
    return Plan(
        devices=devices,
        cells=cells,
        weights=weight_buffers(spec, devices, settings.backend, rules),
        cache=cache_bytes(spec, settings, rules, devices, cells),
        compute=compute_bytes(spec, settings, rules, devices, cells),
        output_bytes=4 * spec.vocab_size * rows,
    )
