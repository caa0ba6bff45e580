"""How long simulations take: CPU seconds of one core for requests of 500 tokens, and what jumping over steps saves.

    python benchmarks/simulate/speed.py [--requests N] [--json]

A million requests have to stay under 60 s, but for talks, in which every block may be found by the next turn. The
deployment is an 8B model's on an H100, by size: 256 sequences at once, steps of 8 to 20 ms, scheduled ahead as vLLM
does. How much faster it is than every step one by one is measured on one in 200 of them.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from array import array

from memplan.domain.simulation import ModelledSteps, SimulationSettings, Traffic
from memplan.simulate.run import simulate

LIMIT_S = 60.0
TOKENS = 500
# Requests a second that the deployment keeps up with when all its places are taken.
_CAPACITY = 68.0
STEPS = ModelledSteps(
    tokens=(1, 256, 512, 2048, 8192),
    pass_s=(0.008, 0.010, 0.014, 0.05, 0.2),
    positions=(0, 1000, 10000),
    decode_s=(0.0, 2e-6, 2e-5),
    prompt_s=(0.0, 1e-4, 2e-3),
    sequence_s=1e-6,
)
# By name: load, blocks, prompts alike or not, part of the prompt that all share, turns of a talk.
CASES: dict[str, tuple[float, int, bool, int, int]] = {
    "nearly full": (0.95, 9000, True, 0, 1),
    "more than it serves": (1.5, 9000, False, 0, 1),
    "blocks lack": (1.5, 5000, False, 0, 1),
    "a shared prompt": (0.95, 9000, True, 128, 1),
    "light": (0.05, 9000, True, 0, 1),
    "talks of four turns": (0.8, 9000, False, 0, 4),
}

UNLIMITED = {"talks of four turns"}


def traffic_of(count: int, load: float, alike: bool, shared: int, turns: int) -> Traffic:
    """`count` requests of 500 tokens each; the turns of a talk come one after the other and share what was said."""
    draw = random.Random(1)
    clock = 0.0
    arrivals, prompts, outputs = array("d"), array("q"), array("q")
    streams, follows = array("q"), array("q")
    for index in range(count):
        turn = index % turns
        if turn:
            arrivals.append(draw.expovariate(0.2))
            prompts.append(prompts[-1] + outputs[-1] + 20)
            outputs.append(TOKENS // turns - 20)
        else:
            clock += draw.expovariate(load * _CAPACITY / turns)
            arrivals.append(clock)
            prompts.append((250 if alike else draw.randint(50, 450)) // turns)
            outputs.append((TOKENS - prompts[-1]) // turns)
        streams.append(index // turns if turns > 1 else -1)
        follows.append(index - 1 if turn else -1)
    return Traffic(
        arrivals=arrivals,
        prompt_tokens=prompts,
        output_tokens=outputs,
        prefixes=(((1, shared),),) if shared else (),
        prefix_of=array("q", [0]) * count if shared else None,
        stream_of=streams,
        follows=follows if turns > 1 else None,
    )


def timed(name: str, requests: int, *, stepwise: bool = False) -> dict[str, float]:
    """CPU seconds of one case."""
    load, blocks, alike, shared, turns = CASES[name]
    traffic = traffic_of(requests, load, alike, shared, turns)
    settings = SimulationSettings(
        num_blocks=blocks,
        context_tokens=4096,
        max_num_seqs=256,
        max_num_batched_tokens=2048,
        async_scheduling=True,
        steps=STEPS,
    )
    start = time.process_time()
    result = simulate(settings, traffic, stepwise=stepwise)
    seconds = time.process_time() - start
    counts = result.counts
    assert counts.unfinished == 0
    return {"seconds": seconds, "steps": counts.steps, "preemptions": counts.preemptions}


def main() -> int:
    """Print the table; exit 1 when a case takes longer than its limit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rows = {}
    for name in CASES:
        row = timed(name, arguments.requests)
        few = max(200, arguments.requests // 200)
        stepped, same = timed(name, few, stepwise=True), timed(name, few)
        row["times_faster_than_stepwise"] = stepped["seconds"] / same["seconds"]
        rows[name] = {key: round(value, 1) for key, value in row.items()}
        if not arguments.json:
            print(
                f"{name:22} {row['seconds']:6.1f} s  {row['steps']:11,.0f} steps  {row['preemptions']:9,.0f} gave way  "
                f"{row['times_faster_than_stepwise']:5.1f} times faster than stepwise",
                flush=True,
            )
    if arguments.json:
        print(json.dumps({"requests": arguments.requests, "tokens_each": TOKENS, "cases": rows}, indent=1))
    limit = LIMIT_S * arguments.requests / 1_000_000
    return int(any(row["seconds"] > limit for name, row in rows.items() if name not in UNLIMITED))


if __name__ == "__main__":
    raise SystemExit(main())
