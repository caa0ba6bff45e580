"""The simulated allocator against PyTorch's own: snapshots of real runs, replayed from their requests alone.

    python benchmarks/profile/allocator_truth.py SNAPSHOT [SNAPSHOT ...] [--capacity SIZE] [--json]

A snapshot has the requests of a run and, apart from them, what its device gave and got back. The requests are replayed
under the run's own settings; what the replay holds at each phase's peak and end is put beside what the device held. A
history that began with the process ought to agree to the byte; one that began later starts from a cache that the replay
does not have. `--capacity` limits the replay, for a run that filled its device.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from memplan.domain.timeline import Level, PhaseMemory
from memplan.errors import MemplanError
from memplan.profile.replay import replay
from memplan.profile.snapshot import read_snapshot
from memplan.units import parse_size_bytes

FIELDS = ("allocated_bytes", "reserved_bytes", "inactive_split_bytes")


def compare(path: Path, capacity_bytes: int | None) -> list[dict[str, object]]:
    """One row for each phase and each of its two moments: what the device held, and what the replay does."""
    snapshot = read_snapshot(path)
    simulated = replay(snapshot.log, snapshot.settings, capacity_bytes=capacity_bytes)
    rows = []
    for real, made in zip(snapshot.replay.phases, simulated.phases, strict=False):
        for moment in ("peak", "after"):
            rows.append(row(path, real, moment, getattr(real, moment), getattr(made, moment)))
    return rows


def row(path: Path, phase: PhaseMemory, moment: str, real: Level, made: Level) -> dict[str, object]:
    """The levels of one moment side by side, and the error of what was reserved."""
    found: dict[str, object] = {"snapshot": path.name, "phase": phase.phase, "iteration": phase.iteration}
    found |= {"moment": moment, "requests": phase.num_allocations}
    for name in FIELDS:
        found[f"measured_{name}"] = getattr(real, name)
        found[f"simulated_{name}"] = getattr(made, name)
    found["reserved_error"] = made.reserved_bytes / real.reserved_bytes - 1 if real.reserved_bytes else 0.0
    return found


def main() -> int:
    """Compare every snapshot and print a table or JSON; exit 2 for a file that is none."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("snapshots", nargs="+", type=Path)
    parser.add_argument("--capacity")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    try:
        capacity = parse_size_bytes(options.capacity) if options.capacity else None
        rows = [each for path in options.snapshots for each in compare(path, capacity)]
    except MemplanError as error:
        parser.exit(2, f"{error.message}\n")
    if options.json:
        print(json.dumps(rows, indent=2))
        return 0
    print("| snapshot | phase | moment | allocated | reserved | fragmented | reserved, error |")
    print("|---|---|---|---:|---:|---:|---:|")
    for each in rows:
        pairs = (
            f"{each['simulated_' + name] / 2**20:,.1f} of {each['measured_' + name] / 2**20:,.1f}" for name in FIELDS
        )
        name = f"{each['phase']} {each['iteration']}"
        print(
            f"| {each['snapshot']} | {name} | {each['moment']} | {' | '.join(pairs)} | {each['reserved_error']:+.2%} |"
        )
    print("\nMiB, simulated of measured.")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
