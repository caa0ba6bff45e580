"""The simulated allocator against PyTorch's own: snapshots of real runs, replayed from their requests alone.

    python benchmarks/profile/allocator_truth.py SNAPSHOT [SNAPSHOT ...] [--addresses] [--capacity SIZE] [--json]

A snapshot has the requests of a run and, apart from them, what its device gave and got back. The requests are replayed
under the run's own settings; what the replay holds at each phase's peak and end is put beside what the device held. A
history that began with the process ought to agree to the byte; one that began later starts from a cache that the replay
does not have. `--capacity` limits the replay, for a run that filled its device.

`--addresses` leaves no such excuse: the replay starts from the device as the history found it, new segments lie where
CUDA put them, and every single request is asked to land at the address where PyTorch put it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from memplan.budget.caching_allocator.blocks import Block
from memplan.budget.caching_allocator.expandable import ExpandableAllocator
from memplan.budget.caching_allocator.resumed import ResumedAllocator
from memplan.domain.timeline import Level, PhaseMemory
from memplan.errors import MemplanError
from memplan.profile.plain_pickle import read_plain
from memplan.profile.replay import replay
from memplan.profile.snapshot import devices_of, history_of, read_snapshot
from memplan.profile.snapshot_history import History
from memplan.records import replace
from memplan.units import parse_size_bytes

MIB = 1 << 20
SMALL_SEGMENT_BYTES = 2 * MIB
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


def placed(path: Path) -> list[dict[str, object]]:
    """For each device, how many requests land where PyTorch put them."""
    data = read_plain(path)
    rows = []
    for device in devices_of(data):
        history = history_of(data, device=device)
        pages = history.device.pages or any(entry.action == "segment_map" for entry in history.entries)
        requests, right = in_pages(history) if pages else in_segments(history)
        rows.append({"snapshot": path.name, "device": device, "requests": requests, "in_place": right})
    return rows


def in_segments(history: History) -> tuple[int, int]:
    """Requests, and those at PyTorch's addresses, where segments are taken whole."""
    new = [entry.address for entry in history.entries if entry.action == "segment_alloc"]
    allocator = ResumedAllocator(history.settings, place=lambda _: new.pop(0))
    blocks = adopt(history, allocator)
    number = history.first
    requests = right = 0
    for entry in history.entries:
        if entry.action == "alloc":
            block = allocator.allocate(entry.size_bytes, history.log.stream_of[number])
            requests, right, number = requests + 1, right + (block.start == entry.address), number + 1
            blocks[entry.address] = block
        elif entry.action == "free_completed" and entry.address in blocks:
            allocator.free(blocks.pop(entry.address))
        elif entry.action == "segment_free":
            allocator.return_segment(entry.address)
    return requests, right


def in_pages(history: History) -> tuple[int, int]:
    """The same for expandable segments: where each of them lies is found from its first request.

    Only for a history that began with its device empty; of another no request counts.
    """
    if history.first or history.device.pages:
        return 0, 0
    allocator = ExpandableAllocator(replace(history.settings, expandable_segments=True))
    blocks: dict[int, Block] = {}
    shifts: dict[tuple[int, bool], int] = {}
    requests = right = 0
    for entry in history.entries:
        if entry.action == "alloc":
            block = allocator.allocate(entry.size_bytes, history.log.stream_of[requests])
            shift = shifts.setdefault((block.pool.stream, block.pool.is_small), entry.address - block.start)
            requests, right = requests + 1, right + (block.start + shift == entry.address)
            blocks[entry.address] = block
        elif entry.action == "free_completed" and entry.address in blocks:
            allocator.free(blocks.pop(entry.address))
    return requests, right


def adopt(history: History, allocator: ResumedAllocator) -> dict[int, Block]:
    """Give an allocator the segments and the blocks that were there before the first step."""
    before = sorted((made.address, number) for number, made in enumerate(history.before))
    blocks: dict[int, Block] = {}
    for start, length in history.device.segments.items():
        inside = [
            (address, history.held[number], history.log.sizes[number])
            for address, number in before
            if start <= address < start + length
        ]
        live = allocator.adopt_segment(
            start,
            length,
            inside,
            is_small=length == SMALL_SEGMENT_BYTES,
            stream=history.stream_of_segment(start),
        )
        blocks |= {block.start: block for block in live}
    return blocks


def print_levels(rows: list[dict[str, object]]) -> None:
    """The levels as a table."""
    print("| snapshot | phase | moment | allocated | reserved | fragmented | reserved, error |")
    print("|---|---|---|---:|---:|---:|---:|")
    for each in rows:
        pairs = (f"{each['simulated_' + name] / MIB:,.1f} of {each['measured_' + name] / MIB:,.1f}" for name in FIELDS)
        name = f"{each['phase']} {each['iteration']}"
        print(
            f"| {each['snapshot']} | {name} | {each['moment']} | {' | '.join(pairs)} | {each['reserved_error']:+.2%} |"
        )
    print("\nMiB, simulated of measured.")


def print_places(rows: list[dict[str, object]]) -> None:
    """The places as a table, and in all."""
    print("| snapshot | device | requests | in place |")
    print("|---|---:|---:|---:|")
    for each in rows:
        print(f"| {each['snapshot']} | {each['device']} | {each['requests']:,} | {each['in_place']:,} |")
    print(f"\n{sum(row['in_place'] for row in rows):,} of {sum(row['requests'] for row in rows):,} requests in place.")


def main() -> int:
    """Compare every snapshot and print a table or JSON; exit 2 for a file that is none."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("snapshots", nargs="+", type=Path)
    parser.add_argument("--addresses", action="store_true")
    parser.add_argument("--capacity")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    try:
        capacity = parse_size_bytes(options.capacity) if options.capacity else None
        if options.addresses:
            rows = [each for path in options.snapshots for each in placed(path)]
        else:
            rows = [each for path in options.snapshots for each in compare(path, capacity)]
    except MemplanError as error:
        parser.exit(2, f"{error.message}\n")
    if options.json:
        print(json.dumps(rows, indent=2))
    elif options.addresses:
        print_places(rows)
    else:
        print_levels(rows)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
