"""Which layers get how many bits: the mix that fits a size with the least damage. Torch is not known here.

Layers that an engine fuses are one unit and get one width. The damage of a mix is taken to be the sum of its units'
(benchmarks/quantize/sensitivity.py says how far that holds), and the best mix of a size is found by upgrades: from
the smallest widths on, always the one that takes away most damage for its bytes, along each unit's convex hull. That
is what a Lagrange multiplier finds, and off the best of all by less than one unit's bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from memplan.domain.model import ModelSpec
from memplan.errors import DoesNotFit
from memplan.quantize.width import Width
from memplan.records import dataclass, replace
from memplan.units import format_gib

# Of the calibration, evenly spaced: a unit's damage varies little from window to window. So many run at once.
WINDOWS, WINDOWS_AT_ONCE = 16, 2
_ENGINE, _GPU = "vllm", "h100-80g"
_ENDLESS = 1 << 44


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """Layers that share a width, by their names in the model, and the damage that each width does."""

    modules: tuple[str, ...]
    shapes: tuple[tuple[int, int], ...]
    damage: Mapping[Width, float]

    def hull(self) -> tuple[Option, ...]:
        """The widths that no blend of two others beats, the smallest first."""
        options = [Option(width.stored_bytes(self.shapes), damage, width) for width, damage in self.damage.items()]
        kept: list[Option] = []
        for option in sorted(options, key=lambda option: (option.stored_bytes, option.damage)):
            if kept and option.damage >= kept[-1].damage:
                continue
            while len(kept) > 1 and kept[-2].saved_by(option) >= kept[-2].saved_by(kept[-1]):
                kept.pop()
            kept.append(option)
        return tuple(kept)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The width that a unit was given."""

    unit: Unit
    width: Width

    @property
    def damage(self) -> float:
        """What it does to the unit's block."""
        return self.unit.damage[self.width]


def windows_measured(num_windows: int) -> tuple[int, int]:
    """How many of so many windows a damage is measured on, and that they are every so many-th."""
    every = -(-num_windows // WINDOWS)
    return -(-num_windows // every), every


@dataclass(frozen=True, slots=True)
class Option:
    """One width of a unit, with what it takes and what it does."""

    stored_bytes: int
    damage: float
    width: Width

    def saved_by(self, other: Option) -> float:
        """The damage that a byte takes away, going on to another option."""
        return (self.damage - other.damage) / max(1, other.stored_bytes - self.stored_bytes)


def smallest(units: Sequence[Unit]) -> list[Width]:
    """The width of every unit that takes the least."""
    return [unit.hull()[0].width for unit in units]


def choose(units: Sequence[Unit], spare_bytes: int) -> list[Width]:
    """Return a width for every unit: the least damage for `spare_bytes` more than the smallest widths take."""
    hulls = [unit.hull() for unit in units]
    at = [0] * len(hulls)
    upgrades = [
        (hull[step].saved_by(hull[step + 1]), index, step)
        for index, hull in enumerate(hulls)
        for step in range(len(hull) - 1)
    ]
    # Along a hull the gain falls, so that each unit's own upgrades come in their order.
    for _, index, step in sorted(upgrades, key=lambda upgrade: (-upgrade[0], upgrade[1], upgrade[2])):
        cost_bytes = hulls[index][step + 1].stored_bytes - hulls[index][step].stored_bytes
        if at[index] == step and cost_bytes <= spare_bytes:
            at[index] = step + 1
            spare_bytes -= cost_bytes
    return [hull[place].width for hull, place in zip(hulls, at, strict=True)]


def fitting(units: Sequence[Unit], target_bytes: int, loaded_bytes: Callable[[Sequence[Width]], int]) -> list[Width]:
    """Return the mix of least damage whose weights take `target_bytes` at most by `loaded_bytes`, the planner's figure.

    Raises: DoesNotFit when the smallest widths take more.
    """
    least_bytes = loaded_bytes(smallest(units))
    if least_bytes > target_bytes:
        raise DoesNotFit(
            f"the smallest mix takes {format_gib(least_bytes)}, --target-memory is {format_gib(target_bytes)}",
            hint="a larger --target-memory, or a smaller --bits with --format compressed-tensors",
        )
    spare_bytes = target_bytes - least_bytes
    while True:
        widths = choose(units, spare_bytes)
        over_bytes = loaded_bytes(widths) - target_bytes
        if over_bytes <= 0:
            return widths
        # The engine pads or widens something that the file does not show.
        spare_bytes -= over_bytes


def weights_when_loaded(spec: ModelSpec, quantization_config: Mapping[str, object] | None) -> int:
    """Return the bytes that the weights of a 16-bit model take once vLLM has loaded them, as they are or quantized."""
    from memplan.catalog.gpus import find_gpu
    from memplan.domain.serving import ServingSettings
    from memplan.engines.registry import load_engine
    from memplan.introspect.quantized import apply_quantization

    gpu = find_gpu(_GPU)
    gpu = replace(gpu, memory_bytes=_ENDLESS, visible_low_bytes=_ENDLESS, visible_high_bytes=_ENDLESS)
    quantized = apply_quantization(spec, quantization_config)
    return load_engine(_ENGINE).estimate(quantized, gpu, ServingSettings(), None).group_bytes("weights")
