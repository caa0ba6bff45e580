"""`--method auto`: the sensitivity of every unit measured once, kept in a file, and the mix that fits chosen by it.

The file lies beside the output and stays there: another --target-memory of the same model and texts measures nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from memplan.domain.model import ModelSpec
from memplan.errors import UsageError
from memplan.quantize.mix import Choice, Unit, fitting, weights_when_loaded, windows_measured
from memplan.quantize.pipeline import Quantization
from memplan.quantize.sensitivity import measure_units
from memplan.quantize.width import Width
from memplan.quantize.workspace import write_whole
from memplan.units import format_gib

_SCHEMA = "memplan.sensitivity/1"
_NO_MATTER = ("request", "number of processes")  # to what is measured

Progress = Callable[[int, int, str], None]


def mixed(
    work: Quantization, spec: ModelSpec, target_bytes: int, keep_in: Path, progress: Progress
) -> tuple[Choice, ...]:
    """Give the layers of `work` the widths of least damage whose weights take `target_bytes` once vLLM loaded them.

    Of several processes the first measures, and hands the damages on. Raises: DoesNotFit when the smallest widths take
    more; UsageError when they fit as they are.
    """
    request = work.request
    plain_bytes = weights_when_loaded(spec, None)
    if plain_bytes <= target_bytes:
        raise UsageError(
            f"the weights take {format_gib(plain_bytes)} in 16 bit, less than --target-memory",
            hint="nothing need be done",
        )
    widths = tuple(
        dict.fromkeys((Width(request.bits, request.group_size), Width(request.bits, 32), Width(8), Width(16)))
    )
    measured = _measured(work, widths, keep_in, progress) if work.ranks.is_first else ()
    _, facts = work.ranks.hand_on(0, (), {"units": [_plain(unit) for unit in measured]})
    units = tuple(_unit(unit) for unit in facts["units"])

    def loaded_bytes(chosen: Sequence[Width]) -> int:
        work.set_mix(_by_module(units, chosen))
        return weights_when_loaded(spec, work.format.quantization_config(work.layout))

    chosen = fitting(units, target_bytes, loaded_bytes)
    work.set_mix(_by_module(units, chosen))
    return tuple(Choice(unit=unit, width=width) for unit, width in zip(units, chosen, strict=True))


def _measured(work: Quantization, widths: Sequence[Width], keep_in: Path, progress: Progress) -> tuple[Unit, ...]:
    """The units with their damages, as they are known, or measured now and kept."""
    units = _known(keep_in, work, widths)
    if units is None:
        tokens_BN = torch.cat(list(work.all_tokens_BN))
        _, every = windows_measured(tokens_BN.shape[0])
        units = measure_units(work.skeleton, tokens_BN[::every], widths, kept=work.request.kept, progress=progress)
        facts = {"schema": _SCHEMA, "identity": _identity(work, widths), "units": [_plain(unit) for unit in units]}
        with suppress(OSError):  # measured again where it cannot be kept; a full disk is told when the work begins
            write_whole(keep_in, json.dumps(facts, indent=1).encode())
    return units


def _by_module(units: Sequence[Unit], widths: Sequence[Width]) -> dict[str, Width]:
    return {module: width for unit, width in zip(units, widths, strict=True) for module in unit.modules}


def _identity(work: Quantization, widths: Sequence[Width]) -> dict[str, Any]:
    facts = {name: value for name, value in work.identity().items() if name not in _NO_MATTER}
    return {**facts, "keeps": list(work.request.keeps), "widths": [[width.bits, width.group_size] for width in widths]}


def _plain(unit: Unit) -> dict[str, Any]:
    return {
        "modules": list(unit.modules),
        "shapes": [list(shape) for shape in unit.shapes],
        "damage": [[width.bits, width.group_size, damage] for width, damage in unit.damage.items()],
    }


def _unit(facts: Mapping[str, Any]) -> Unit:
    return Unit(
        modules=tuple(facts["modules"]),
        shapes=tuple((num_out, num_in) for num_out, num_in in facts["shapes"]),
        damage={Width(bits, group): damage for bits, group, damage in facts["damage"]},
    )


def _known(path: Path, work: Quantization, widths: Sequence[Width]) -> tuple[Unit, ...] | None:
    """The units as they were measured before; None where they were not, or of something else."""
    try:
        found: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if found["schema"] != _SCHEMA or found["identity"] != _identity(work, widths):
            return None
        return tuple(_unit(facts) for facts in found["units"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
