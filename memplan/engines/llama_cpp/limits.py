"""What would still fit: the most layers on the GPUs, and the longest context of a slot."""

from __future__ import annotations

from collections.abc import Callable

from memplan.catalog.rules import Rules
from memplan.domain.model import ModelSpec
from memplan.engines.llama_cpp.plan import Plan, least_bytes, plan_devices
from memplan.engines.llama_cpp.settings import LlamaSettings
from memplan.records import dataclass, replace
from memplan.units import round_up

_STEP = 256


def largest_gpu_layers(spec: ModelSpec, settings: LlamaSettings, rules: Rules, fits_in: int) -> int | None:
    """The largest -ngl whose GPUs all hold at most `fits_in` bytes; None when not even 0 does."""

    def at(layers: int) -> LlamaSettings:
        return replace(settings, n_gpu_layers=layers)

    found = _largest(-1, settings.n_gpu_layers, _Search(spec, rules, fits_in, at))
    return found if found >= 0 else None


def fewest_host_experts(spec: ModelSpec, settings: LlamaSettings, rules: Rules, fits_in: int) -> int | None:
    """The smallest -ncmoe with which all GPUs hold their buffers; None where a model has no experts, or none helps."""
    if not any("exps." in tensor.name for layer in spec.layers for tensor in layer.tensors):
        return None

    def at(kept: int) -> LlamaSettings:
        return replace(settings, n_cpu_moe=spec.num_layers - kept)

    kept = _largest(-1, spec.num_layers, _Search(spec, rules, fits_in, at))
    return spec.num_layers - kept if kept >= 0 else None


def largest_context(spec: ModelSpec, settings: LlamaSettings, rules: Rules, fits_in: int) -> int:
    """The longest context of one slot, up to the model's own; 0 when not even the shortest fits."""

    def at(steps: int) -> LlamaSettings:
        return with_context(settings, steps * _STEP)

    steps = _largest(0, round_up(spec.max_context_tokens, _STEP) // _STEP, _Search(spec, rules, fits_in, at))
    return min(steps * _STEP, spec.max_context_tokens)


def requests_with_room(
    spec: ModelSpec, settings: LlamaSettings, rules: Rules, fits_in: int, longest: int, tokens: int
) -> float:
    """How many requests of `tokens` the cells that fit have room for, all slots together.

    `longest` is the longest context of a slot; where it is the model's own, cells beyond it are counted at the cost of
    the last ones.
    """
    shares = settings.slot_tokens == settings.ctx_size
    cells = longest if shares else longest * settings.slots
    if longest and longest >= spec.max_context_tokens:
        held = fullest_bytes(plan_devices(spec, with_context(settings, longest), rules))
        more = fullest_bytes(plan_devices(spec, with_context(settings, 2 * longest), rules))
        if more <= held:  # nothing grows with the context: encoders, recurrent models, a cache on the host
            return float(settings.slots)
        cells += max(0, fits_in - held) * cells // (more - held)
    return cells / tokens


def fullest_bytes(plan: Plan) -> int:
    """What the fullest GPU holds; 0 without one."""
    return plan.device_bytes(plan.fullest) if plan.devices.budgeted else 0


def with_context(settings: LlamaSettings, slot_tokens: int) -> LlamaSettings:
    """The settings with another context of one slot."""
    shared = settings.slot_tokens == settings.ctx_size
    total = slot_tokens if shared else slot_tokens * settings.slots
    return replace(settings, slot_tokens=slot_tokens, ctx_size=total)


@dataclass(frozen=True, slots=True)
class _Search:
    """A number to find, as the settings that it leads to, and what every GPU may hold."""

    spec: ModelSpec
    rules: Rules
    fits_in: int
    at: Callable[[int], LlamaSettings]

    def least(self, number: int) -> int:
        return least_bytes(self.spec, self.at(number), self.rules)

    def plan(self, number: int) -> Plan:
        return plan_devices(self.spec, self.at(number), self.rules)

    def guess(self, low: int, high: int, compute: int) -> int:
        """The largest number from `low` to `high` that fits with a compute buffer of that size; `low` where none."""
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.least(middle) + compute <= self.fits_in else (low, middle - 1)
        return low


def _largest(low: int, high: int, search: _Search) -> int:
    """The largest number above `low`, at most `high`, that fits; `low` where none does.

    Weights and cache are quick to tell, compute buffers are not, and they change slowly: each plan's compute buffer
    leads to the next number to try.
    """
    if high <= low or search.least(low + 1) > search.fits_in:
        return low
    if search.least(high) <= search.fits_in and fits(search.plan(high), search.fits_in):
        return high
    beyond = high
    compute = _largest_buffer(search.plan((low + beyond) // 2))
    while beyond - low > 1:
        number = max(low + 1, search.guess(low, beyond - 1, compute))
        plan = search.plan(number)
        low, beyond = (number, beyond) if fits(plan, search.fits_in) else (low, number)
        compute = _largest_buffer(plan)
    return low


def _largest_buffer(plan: Plan) -> int:
    return max((plan.compute[device] for device in plan.devices.budgeted), default=0)


def fits(plan: Plan, fits_in: int) -> bool:
    """Whether every GPU holds its buffers within `fits_in` bytes."""
    return all(plan.device_bytes(device) <= fits_in for device in plan.devices.budgeted)
