"""What would still fit: the most layers on the GPUs, and the longest context of a slot."""

from __future__ import annotations

from collections.abc import Callable

from memplan.catalog.rules import Rules
from memplan.domain.model import ModelSpec
from memplan.engines.llama_cpp.plan import Plan, least_bytes, plan_devices
from memplan.engines.llama_cpp.settings import LlamaSettings
from memplan.records import replace
from memplan.units import round_up

_STEP = 256


def largest_gpu_layers(spec: ModelSpec, settings: LlamaSettings, rules: Rules, fits_in: int) -> int | None:
    """The largest -ngl whose GPUs all hold at most `fits_in` bytes; None when not even 0 does."""

    def fitting(layers: int) -> bool:
        return _fits(spec, replace(settings, n_gpu_layers=layers), rules, fits_in)

    found = _largest(-1, spec.num_layers + 1, fitting)
    return found if found >= 0 else None


def largest_context(spec: ModelSpec, settings: LlamaSettings, rules: Rules, fits_in: int) -> int:
    """The longest context of one slot, up to the model's own; 0 when not even the shortest fits."""

    def fitting(steps: int) -> bool:
        return _fits(spec, with_context(settings, steps * _STEP), rules, fits_in)

    steps = _largest(0, round_up(spec.max_context_tokens, _STEP) // _STEP, fitting)
    return min(steps * _STEP, spec.max_context_tokens)


def with_context(settings: LlamaSettings, slot_tokens: int) -> LlamaSettings:
    """The settings with another context of one slot."""
    shared = settings.slot_tokens == settings.ctx_size
    total = slot_tokens if shared else slot_tokens * settings.slots
    return replace(settings, slot_tokens=slot_tokens, ctx_size=total)


def _largest(low: int, high: int, fitting: Callable[[int], bool]) -> int:
    """The largest number above `low`, at most `high`, that fits; `low` where none does. The greatest is tried first."""
    if high > low and fitting(high):
        return high
    high -= 1
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fitting(middle) else (low, middle - 1)
    return low


def _fits(spec: ModelSpec, settings: LlamaSettings, rules: Rules, fits_in: int) -> bool:
    if least_bytes(spec, settings, rules) > fits_in:
        return False
    return fits(plan_devices(spec, settings, rules), fits_in)


def fits(plan: Plan, fits_in: int) -> bool:
    """Whether every GPU holds its buffers within `fits_in` bytes."""
    return all(plan.device_bytes(device) <= fits_in for device in range(plan.devices.num_gpus))
