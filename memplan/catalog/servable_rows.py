"""Rows of the tables in `servable/`: which one holds for a device, a release and a format, and why none does.

A table has `weights` and `kv`, each a mapping from a format to its `title`, `source`, `rows` and what to say
`otherwise` (and what to `use` then). The first row that matches decides. The keys of a row:

- `gpu`: devices, separated by commas: `any`, a vendor, `nvidia 8.0+`, `nvidia 8.0-8.8`, `nvidia 9.0`, or the beginning
  of a generation or chip: `amd cdna3`, `amd gfx120`, `intel xe2`
- `since`, `before`: the first release with it, and the first without
- `bits`, `groups`: the widths and group sizes (0: whole channels) that it has; `unlike` those that it is not for
- `when`: traits that the model or its layout must have, or, behind `!`, must not have
- `kernel`, `speed` and perhaps a `note`; or `refused` with the reason, and what to `use` instead
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from memplan.catalog.rules import Release, parse_release
from memplan.domain.gpu import GpuSpec
from memplan.records import dataclass, field

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What a row is matched with: a device, a release, the width and group of a format, and traits."""

    gpu: GpuSpec
    release: Release
    bits: int | None = None
    group: int | None = None
    traits: frozenset[str] = field(default_factory=frozenset)


def first_row(rows: Iterable[Row], case: Case) -> Row | None:
    """Return the row that decides, or None."""
    return next((row for row in rows if _is_for(row, case) and _is_in_time(row, case.release)), None)


def missed(rows: Iterable[Row], case: Case) -> tuple[str, str]:
    """Return since when the case runs, or until when it ran, as far as releases alone are in the way: two texts, of
    which one at most is not empty.
    """
    others = [row for row in rows if "refused" not in row and _is_for(row, case)]
    later = [str(row["since"]) for row in others if "since" in row and parse_release(str(row["since"])) > case.release]
    if later:
        return min(later, key=parse_release), ""
    earlier = [str(row["before"]) for row in others if "before" in row]
    return "", max(earlier, key=parse_release, default="")


def is_on(devices: str, gpu: GpuSpec) -> bool:
    """Whether a GPU is among the devices that a row's `gpu` names."""
    return any(_is_one(device.split(), gpu) for device in devices.split(","))


def _is_for(row: Row, case: Case) -> bool:
    if not is_on(str(row["gpu"]), case.gpu):
        return False
    if not _has_shape(row, case) or ("unlike" in row and _has_shape(row["unlike"], case)):
        return False
    return all((trait.lstrip("!") in case.traits) != trait.startswith("!") for trait in row.get("when", ()))


def _has_shape(row: Row, case: Case) -> bool:
    has_bits = case.bits is None or "bits" not in row or case.bits in row["bits"]
    return has_bits and (case.group is None or "groups" not in row or case.group in row["groups"])


def _is_in_time(row: Row, release: Release) -> bool:
    if "since" in row and release < parse_release(str(row["since"])):
        return False
    return "before" not in row or release < parse_release(str(row["before"]))


def _is_one(words: list[str], gpu: GpuSpec) -> bool:
    if words == ["any"]:
        return True
    if words[0] != gpu.vendor:
        return False
    if len(words) == 1:
        return True
    if not words[1][0].isdigit():
        return gpu.architecture.startswith(words[1]) or (gpu.compute_capability or "").startswith(words[1])
    capability = gpu.cuda_capability
    if capability is None:
        return False
    low, dash, high = words[1].rstrip("+").partition("-")
    if words[1].endswith("+"):
        return capability >= float(low)
    return float(low) <= capability <= float(high if dash else low)
