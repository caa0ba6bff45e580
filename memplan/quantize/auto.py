"""`--method auto`: the sensitivity of every unit measured once, kept in a file, and the mix that fits chosen by it.

The file lies beside the output and stays there: another --target-memory of the same model and texts measures nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from memplan.domain.model import ModelSpec
from memplan.errors import UsageError
from memplan.quantize.mix import Unit, fitting, weights_when_loaded
from memplan.quantize.pipeline import Quantization
from memplan.quantize.sensitivity import measure_units
from memplan.quantize.width import Width
from memplan.quantize.workspace import write_whole
from memplan.units import format_gib

_SCHEMA = "memplan.sensitivity/1"
_WINDOWS = 16  # a unit's damage varies little from window to window

Progress = Callable[[int, int, str], None]


def mixed(work: Quantization, spec: ModelSpec, target_bytes: int, keep_in: Path, progress: Progress) -> str:
    """Give the layers of `work` the widths of least damage whose weights take `target_bytes` once vLLM loaded them.

    Returns what became of it in words. Raises: DoesNotFit when the smallest widths take more;
    UsageError when they fit as they are.
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
    units = _known(keep_in, work, widths)
    if units is None:
        tokens_BN = torch.cat(list(work.tokens_BN))
        every = -(-tokens_BN.shape[0] // _WINDOWS)
        units = measure_units(work.skeleton, tokens_BN[::every], widths, kept=request.kept, progress=progress)
        write_whole(keep_in, json.dumps(_plain(units, work, widths), indent=1).encode())

    def loaded_bytes(chosen: Sequence[Width]) -> int:
        work.set_mix(_by_module(units, chosen))
        return weights_when_loaded(spec, work.format.quantization_config(work.layout))

    chosen = fitting(units, target_bytes, loaded_bytes)
    work.set_mix(_by_module(units, chosen))
    counts = {
        width: sum(len(unit.modules) for unit, each in zip(units, chosen, strict=True) if each == width)
        for width in widths
    }
    return "auto: " + ", ".join(f"{count} layers in {width.name}" for width, count in counts.items() if count)


def _by_module(units: Sequence[Unit], widths: Sequence[Width]) -> dict[str, Width]:
    return {module: width for unit, width in zip(units, widths, strict=True) for module in unit.modules}


def _identity(work: Quantization, widths: Sequence[Width]) -> dict[str, Any]:
    facts = {name: value for name, value in work.identity().items() if name != "request"}
    return {**facts, "keeps": list(work.request.keeps), "widths": [[width.bits, width.group_size] for width in widths]}


def _plain(units: Sequence[Unit], work: Quantization, widths: Sequence[Width]) -> dict[str, Any]:
    facts = [
        {
            "modules": list(unit.modules),
            "shapes": [list(shape) for shape in unit.shapes],
            "damage": [[width.bits, width.group_size, damage] for width, damage in unit.damage.items()],
        }
        for unit in units
    ]
    return {"schema": _SCHEMA, "identity": _identity(work, widths), "units": facts}


def _known(path: Path, work: Quantization, widths: Sequence[Width]) -> tuple[Unit, ...] | None:
    """The units as they were measured before; None where they were not, or of something else."""
    try:
        found: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if found["schema"] != _SCHEMA or found["identity"] != _identity(work, widths):
            return None
        return tuple(
            Unit(
                modules=tuple(unit["modules"]),
                shapes=tuple((num_out, num_in) for num_out, num_in in unit["shapes"]),
                damage={Width(bits, group): damage for bits, group, damage in unit["damage"]},
            )
            for unit in found["units"]
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
