"""Which device holds each layer: offloaded layers, several GPUs, the output layer, experts that stay in host memory.

Devices are numbered: the GPUs, then the host. Layers go to GPUs from the last one backwards; over several GPUs they are
cut by share, so that a device's share counts layers, the output layer among them.

Source: load_tensors / llm_load_tensors (get_layer_buft_list), b2354 to b11000.
"""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate

from memplan.catalog.rules import Rules
from memplan.domain.model import ModelSpec
from memplan.engines.llama_cpp.overrides import Override
from memplan.engines.llama_cpp.settings import HOST_BACKEND, LlamaSettings
from memplan.records import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Devices:
    """Where everything lies, by device number. `row_shares` are set where matrices are cut over GPUs by rows.

    `is_host_alone` marks a machine without a GPU, whose host is what the budget is of.
    """

    num_gpus: int
    layers: tuple[int, ...]
    caches: tuple[int, ...]
    output: int
    experts_on_host: frozenset[int]
    row_shares: tuple[float, ...] = ()
    overrides: tuple[Override, ...] = ()
    is_host_alone: bool = False

    @property
    def budgeted(self) -> tuple[int, ...]:
        """The devices that must hold what lies on them: the GPUs, or the host of a machine without one."""
        return (self.host,) if self.is_host_alone else tuple(range(self.num_gpus))

    @property
    def host(self) -> int:
        return self.num_gpus

    @property
    def divides_layers(self) -> bool:
        """Whether single weights of a layer may lie apart from it."""
        return bool(self.overrides or self.experts_on_host)

    def weight_device(self, index: int, name: str) -> int:
        """Where a weight of layer `index` lies."""
        for override in self.overrides:
            if override.matches(f"blk.{index}.{name}"):
                return override.device
        return self.host if "exps." in name and index in self.experts_on_host else self.layers[index]

    def shared_device(self, name: str, device: int) -> int:
        """Where a weight outside the layers lies that would be on `device`."""
        return next((override.device for override in self.overrides if override.matches(name)), device)

    @property
    def uses_gpu(self) -> bool:
        return any(device != self.host for device in (*self.layers, self.output))


def place(spec: ModelSpec, settings: LlamaSettings, rules: Rules) -> Devices:
    """Return the devices of a model's layers."""
    count, host = spec.num_layers, settings.num_gpus
    if not settings.num_gpus:
        return Devices(
            num_gpus=0,
            layers=(0,) * count,
            caches=(0,) * count,
            output=0,
            experts_on_host=frozenset(range(count)),
            is_host_alone=settings.backend == HOST_BACKEND,
        )
    first = count - settings.n_gpu_layers + (1 if rules["output_first"] else 0)
    first = max(first, 0)
    offloaded = min(settings.n_gpu_layers, count + 1)
    shares = _shares(settings)

    def device(layer: int) -> int:
        if settings.split_mode == "none":
            return settings.main_gpu
        return min(bisect_right(shares, (layer - first) / offloaded), settings.num_gpus - 1)

    layers = tuple(host if index < first else device(index) for index in range(count))
    has_output = settings.n_gpu_layers > (0 if rules["output_first"] else count)
    output = device(count) if has_output else host
    return Devices(
        num_gpus=settings.num_gpus,
        layers=layers,
        caches=tuple(layer if settings.kv_offload else host for layer in layers),
        output=output,
        experts_on_host=frozenset(range(settings.n_cpu_moe)),
        overrides=settings.override_tensor,
        row_shares=shares if settings.split_mode == "row" and settings.num_gpus > 1 else (),
    )


def _shares(settings: LlamaSettings) -> tuple[float, ...]:
    """Where each GPU's part of the layers ends, as a fraction of all; equal parts for equal GPUs."""
    parts = settings.tensor_split or (1.0,) * settings.num_gpus
    total = sum(parts)
    return tuple(end / total for end in accumulate(parts))
