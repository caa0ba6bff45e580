"""What would still fit: the most layers on the GPUs, and the longest context of a slot."""

from __future__ import annotations

from memplan.catalog.rules import Rules
from memplan.domain.model import ModelSpec
from memplan.engines.llama_cpp.plan import Plan, plan_devices
from memplan.engines.llama_cpp.settings import LlamaSettings
from memplan.records import replace
from memplan.units import round_up

_STEP = 256


def largest_gpu_layers(spec: ModelSpec, settings: LlamaSettings, rules: Rules, fits_in: int) -> int | None:
    """The largest -ngl whose GPUs all hold at most `fits_in` bytes; None when not even 0 does."""
    low, high = -1, spec.num_layers + 1
    while low < high:
        middle = (low + high + 1) // 2
        plan = plan_devices(spec, replace(settings, n_gpu_layers=middle), rules)
        low, high = (middle, high) if fits(plan, fits_in) else (low, middle - 1)
    return low if low >= 0 else None


def largest_context(spec: ModelSpec, settings: LlamaSettings, rules: Rules, fits_in: int) -> int | None:
    """The longest context of one slot, up to the model's own; 0 when not even the shortest fits."""
    limit = round_up(spec.max_context_tokens, _STEP) // _STEP
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(_with_context(spec, settings, rules, middle), fits_in) else (low, middle - 1)
    return min(low * _STEP, spec.max_context_tokens)


def _with_context(spec: ModelSpec, settings: LlamaSettings, rules: Rules, steps: int) -> Plan:
    slot = steps * _STEP
    shared = settings.slot_tokens == settings.ctx_size
    total = slot if shared else slot * settings.slots
    return plan_devices(spec, replace(settings, slot_tokens=slot, ctx_size=total), rules)


def fits(plan: Plan, fits_in: int) -> bool:
    """Whether every GPU holds its buffers within `fits_in` bytes."""
    return all(plan.device_bytes(device) <= fits_in for device in range(plan.devices.num_gpus))
