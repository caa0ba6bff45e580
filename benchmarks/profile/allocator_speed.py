"""How many events a second the simulated allocator takes, alone and as a whole replay, by kind of trace and settings.

    python benchmarks/profile/allocator_speed.py [--events N] [--rounds N] [--snapshot FILE] [--json]

The traces are made here, without torch: decode steps with a growing cache, training steps that keep activations until
their backward pass, and a server whose requests come and go in any size; `--snapshot` adds one that PyTorch recorded.
`allocator` is allocate and free alone, `replay` the whole answer with phases, contents of peaks and the curve. CPU time
of one core; the shortest of the rounds counts, because other work on the machine only ever adds to it. The limit is
300,000 events a second for the allocator.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable
from pathlib import Path

from memplan.budget.caching_allocator.kinds import make_allocator
from memplan.budget.caching_allocator.settings import AllocatorSettings, parse_settings
from memplan.profile.events import EventLog, Label
from memplan.profile.passages import run_allocator
from memplan.profile.replay import replay
from memplan.profile.snapshot import read_snapshot

LIMIT_PER_S = 300_000
SETTINGS = {
    "default": "",
    "expandable": "expandable_segments:True",
    "max split 128 MiB": "max_split_size_mb:128",
    "rounded to quarters": "roundup_power2_divisions:4",
    "collected above 40 %": "garbage_collection_threshold:0.5,per_process_memory_fraction:0.8",
}
CAPACITY_BYTES = 80 << 30
KIB, MIB = 1 << 10, 1 << 20
LAYERS, HIDDEN, INNER = 32, 4096, 14336


def _label(layer: int, operator: str) -> Label:
    return Label(module=f"model.layers.{layer}.mlp", operator=operator, where="modeling.py:100 forward")


def decode_steps(events: int) -> EventLog:
    """One token a step for 64 sequences; a layer's keys and values are copied to one longer each time."""
    log = EventLog()
    log.begin("load")
    for layer in range(LAYERS):
        for size in (HIDDEN * HIDDEN * 2, HIDDEN * HIDDEN, HIDDEN * INNER * 2, HIDDEN * INNER * 2, INNER * HIDDEN * 2):
            log.allocate(size, _label(layer, "aten.empty"), "weights")
    cache = [log.allocate(2 * MIB, _label(layer, "aten.cat"), "kv_cache") for layer in range(LAYERS)]
    step = 0
    while len(log.order) < events:
        log.begin("decode", step)
        step += 1
        for layer in range(LAYERS):
            rows = [log.allocate(64 * HIDDEN * 2, _label(layer, "aten.mm"), "activations") for _ in range(4)]
            longer = log.allocate(2 * MIB + step * 64 * 2 * KIB, _label(layer, "aten.cat"), "kv_cache")
            log.free(cache[layer])
            cache[layer] = longer
            inner = [log.allocate(64 * INNER * 2, _label(layer, "aten.mm"), "activations") for _ in range(3)]
            for number in (*rows, *inner):
                log.free(number)
    return log


def training_steps(events: int) -> EventLog:
    """Steps of changing lengths: a forward pass keeps its activations, the backward pass frees them in reverse."""
    log, chance = EventLog(), random.Random(1)
    step = 0
    while len(log.order) < events:
        tokens = chance.randrange(256, 4096)
        log.begin("forward", step)
        saved = []
        for layer in range(LAYERS):
            for width in (HIDDEN, HIDDEN, HIDDEN * 3, INNER, INNER, INNER, HIDDEN):
                saved.append((log.allocate(tokens * width * 2, _label(layer, "aten.mm"), "activations"), layer))
                log.free(log.allocate(tokens * 4, _label(layer, "aten.mean"), "activations"))
        log.begin("backward", step)
        for number, layer in reversed(saved):
            gradient = log.allocate(log.sizes[number], _label(layer, "aten.mm"), "activations")
            log.free(number)
            log.free(gradient)
        step += 1
    return log


def server(events: int) -> EventLog:
    """Requests of any size between a kilobyte and half a gigabyte, up to 300 alive at once, freed in any order."""
    log, chance = EventLog(), random.Random(2)
    log.begin("generate")
    live: list[int] = []
    while len(log.order) < events:
        if live and (chance.random() < 0.5 or len(live) > 300):
            log.free(live.pop(chance.randrange(max(0, len(live) - 20), len(live))))
        else:
            live.append(log.allocate(int(2 ** chance.uniform(10, 28)), _label(len(live) % LAYERS, "aten.empty")))
    return log


TRACES: dict[str, Callable[[int], EventLog]] = {
    "decode": decode_steps,
    "training": training_steps,
    "server": server,
}


def shortest(work: Callable[[], object], rounds: int) -> float:
    """The shortest CPU time of a piece of work in seconds."""
    best = float("inf")
    for _ in range(rounds):
        start = time.process_time()
        work()
        best = min(best, time.process_time() - start)
    return best


def measure(name: str, log: EventLog, setting: str, settings: AllocatorSettings, rounds: int) -> dict[str, object]:
    """One row: events a second of the allocator alone and of the replay, and what the trace came to."""

    def alone() -> None:
        run_allocator(log, make_allocator(settings, capacity_bytes=CAPACITY_BYTES), shares_pools=True)

    whole = replay(log, settings, capacity_bytes=CAPACITY_BYTES)
    return {
        "trace": name,
        "settings": setting,
        "events": len(log.order),
        "allocator_per_s": round(len(log.order) / shortest(alone, rounds)),
        "replay_per_s": round(
            len(log.order) / shortest(lambda: replay(log, settings, capacity_bytes=CAPACITY_BYTES), rounds)
        ),
        "peak_allocated_bytes": whole.peak_allocated_bytes,
        "peak_reserved_bytes": whole.peak_reserved_bytes,
        "out_of_memory": whole.out_of_memory is not None,
    }


def main() -> int:
    """Time every trace under every setting and print a table or JSON; exit 1 when the limit is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--events", type=int, default=300_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--snapshot", type=Path)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    traces = {name: make(options.events) for name, make in TRACES.items()}
    if options.snapshot:
        traces[options.snapshot.name] = read_snapshot(options.snapshot).log
    rows = [
        measure(name, log, setting, parse_settings(text), options.rounds)
        for name, log in traces.items()
        for setting, text in SETTINGS.items()
    ]
    if options.json:
        print(json.dumps(rows, indent=2))
    else:
        print("| trace | settings | events | allocator, events/s | replay, events/s | reserved GiB |")
        print("|---|---|---:|---:|---:|---:|")
        for row in rows:
            rates = f"{row['allocator_per_s']:,} | {row['replay_per_s']:,}"
            reserved = row["peak_reserved_bytes"] / (1 << 30)
            print(f"| {row['trace']} | {row['settings']} | {row['events']:,} | {rates} | {reserved:.2f} |")
    return int(any(row["allocator_per_s"] < LIMIT_PER_S for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
