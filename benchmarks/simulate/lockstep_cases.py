"""The traffic and settings that are put before vLLM's scheduler: small pools, so that requests give way."""

from __future__ import annotations

import random
from typing import Any

# What the CPU's attention takes: blocks of 32 tokens. The scheduler alone takes any.
_ENGINE_BLOCK = 32
# Name, shape of the model, blocks, prefix caching; what differs of the scheduler and of the traffic.
_ROWS: list[tuple[str, str, int, bool, dict[str, Any], dict[str, Any]]] = [
    ("plain", "grouped-query", 120, False, {}, {}),
    ("prefix caching", "grouped-query", 120, True, {}, {}),
    ("small steps", "grouped-query", 120, True, {"max_num_batched_tokens": 64}, {}),
    ("capped chunks", "grouped-query", 120, True, {"long_prefill_token_threshold": 48}, {}),
    ("watermark", "grouped-query", 120, True, {"watermark": 0.1}, {}),
    ("first chunk only", "grouped-query", 120, True, {"scheduler_reserve_full_isl": False}, {}),
    ("overload", "grouped-query", 80, True, {"max_num_seqs": 24}, {"every": 1.0, "times": 2}),
    ("overload, no caching", "grouped-query", 80, False, {"max_num_seqs": 24}, {"every": 1.0, "times": 2}),
    ("window", "sliding", 140, True, {}, {"longest": 1500}),
    ("window, no caching", "sliding", 140, False, {}, {"longest": 1500}),
    ("hybrid", "hybrid-sliding", 420, True, {}, {"longest": 1500}),
    ("hybrid, no caching", "hybrid-sliding", 420, False, {}, {"longest": 1500}),
    ("hybrid, small steps", "hybrid-sliding", 300, True, {"max_num_batched_tokens": 96}, {"longest": 1000}),
    ("talks", "grouped-query", 150, True, {}, {"talks": 40, "every": 6.0}),
]
_WIDER = {420: 520}


def cases() -> list[dict[str, Any]]:
    """Every case, those of one engine after the other."""
    return [*whole_engine_cases(), *scheduler_cases(), *asynchronous_cases()]


def whole_engine_cases() -> list[dict[str, Any]]:
    """vLLM's LLMEngine with a small model, token by token."""
    shapes = {"grouped-query": 30, "sliding": 40, "hybrid-sliding": 150}
    found = []
    for shape, blocks in shapes.items():
        for caching in (True, False):
            seed = f"engine {shape}"
            longest = 420 if shape == "grouped-query" else 900
            found.append(
                {
                    "name": f"engine, {shape}, {'prefix caching' if caching else 'no prefix caching'}",
                    "mode": "engine",
                    "shape": shape,
                    "engine": {
                        "max_model_len": 1024 if shape != "grouped-query" else 512,
                        "block_size": _ENGINE_BLOCK,
                        "max_num_batched_tokens": 256,
                        "max_num_seqs": 8,
                        "async_scheduling": False,
                        "enable_prefix_caching": caching,
                    },
                    "pool_blocks": blocks,
                    "prefix_caching": caching,
                    "traffic": mixed(seed, 40, longest, every=9.0, talks=8),
                }
            )
    return found


def scheduler_cases() -> list[dict[str, Any]]:
    """vLLM's scheduler alone: more requests, and what cannot be set on the CPU."""
    return [scheduler_case(f"scheduler, {name}", *rest, count=150) for name, *rest in _ROWS]


def asynchronous_cases() -> list[dict[str, Any]]:
    """The same under asynchronous scheduling, fewer requests of each. A request with windows counts with the tokens of
    two steps when it is taken in: what has room in 420 blocks otherwise would wait forever there.
    """
    found = [scheduler_case(f"asynchronous, {name}", *rest, count=80) for name, *rest in _ROWS]
    return [
        {**case, "asynchronous": True, "pool_blocks": _WIDER.get(case["pool_blocks"], case["pool_blocks"])}
        for case in found
    ]


def scheduler_case(
    name: str, shape: str, blocks: int, caching: bool, scheduler: dict[str, Any], load: dict[str, Any], *, count: int
) -> dict[str, Any]:
    """One case: `scheduler` are settings that differ, `load` what differs of the traffic, of `count` requests."""
    return {
        "name": name,
        "mode": "scheduler",
        "shape": shape,
        "engine": {
            "max_model_len": 2048,
            "block_size": _ENGINE_BLOCK,
            "max_num_batched_tokens": 2048,
            "max_num_seqs": 32,
            "async_scheduling": False,
        },
        "scheduler": {"max_num_batched_tokens": 512, "max_num_seqs": 16, **scheduler},
        "block_tokens": 16,
        "pool_blocks": blocks,
        "prefix_caching": caching,
        "traffic": mixed(
            name.replace(",", "", 1),
            count * load.get("times", 1),
            load.get("longest", 800),
            every=load.get("every", 4.0),
            talks=load.get("talks", 10),
        ),
    }


def mixed(seed: str, count: int, longest: int, *, every: float, talks: int) -> dict[str, Any]:
    """`count` single requests, a third of them with one of three prompts before them, and `talks` talks of three turns.

    A request has up to `longest` tokens, `every` steps one arrives on average.
    """
    draw = random.Random(seed)
    columns: dict[str, list[int]] = {
        name: [] for name in ("arrivals", "prompt_tokens", "output_tokens", "prefix_of", "stream_of", "follows")
    }
    prefixes = [[[1, longest // 4]], [[1, longest // 8], [2, longest // 6]], [[3, longest // 3]]]

    def add(arrival: int, prompt: int, output: int, prefix: int = -1, stream: int = -1, follows: int = -1) -> int:
        row = (arrival, prompt, output, prefix, stream, follows)
        for values, value in zip(columns.values(), row, strict=True):
            values.append(value)
        return len(columns["arrivals"]) - 1

    clock = 0.0
    kinds = ["single"] * count + ["talk"] * talks
    draw.shuffle(kinds)
    for number, kind in enumerate(kinds):
        clock += draw.expovariate(1 / every)
        prefix = draw.randrange(3) if draw.random() < 0.34 else -1
        before = sum(tokens for _, tokens in prefixes[prefix]) if prefix >= 0 else 0
        prompt = before + draw.randint(1, longest // 2)
        output = min(longest, prompt + draw.randint(1, longest // 3)) - prompt
        if kind == "single" or output < 1:
            add(int(clock), prompt, max(1, output), prefix)
            continue
        prompt, output = before + draw.randint(5, longest // 8), draw.randint(5, longest // 12)
        last = add(int(clock), prompt, output, prefix, number)
        for _ in range(2):
            prompt += output + draw.randint(5, longest // 10)
            output = draw.randint(5, longest // 12)
            last = add(draw.randint(0, 30), prompt, output, prefix, number, last)
    return {**columns, "prefixes": prefixes}
