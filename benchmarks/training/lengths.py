"""Samples of different lengths, for records whose source says how its samples are spread.

ms-swift's page of benchmarks (docs/source_en/LLM/Benchmark.md) prints the tokens of its samples, 3234.4 +- 2547.5 and
at least 91, and its default leaves those out that are longer than the cap (swift/llm/utils/argument.py,
truncation_strategy). A log-normal distribution with that mean and deviation is drawn from here. Its runs are repeated
with another accumulation and another rank and print the same within 0.1 GiB: the order of samples decides.
"""

from __future__ import annotations

import math
import random
from statistics import median

from records import Question, Record

from memplan.budget.training.reserved import reserved_over_lengths

_MEAN, _DEVIATION, _SHORTEST = 3234.4, 2547.5, 91
_STEPS, _ORDERS = 48, 3


def varies(record: Record) -> bool:
    """Whether the samples are known to differ in length."""
    return "ms-swift docs/source_en/LLM/Benchmark.md" in record["source"]


def reserved_over_samples(asked: Question, capacity_bytes: int) -> float:
    """What is reserved after some steps, at the median of some orders of samples."""
    cap, batch = asked.training.sequence_tokens, asked.training.micro_batch
    return median(
        reserved_over_lengths(asked.spec, asked.training, _drawn(cap, batch, seed), capacity_bytes=capacity_bytes)
        for seed in range(_ORDERS)
    )


def _drawn(cap: int, batch: int, seed: int) -> list[int]:
    """The longest sample of each batch."""
    generator = random.Random(seed)
    variance = math.log(1 + (_DEVIATION / _MEAN) ** 2)
    middle = math.log(_MEAN) - variance / 2
    found: list[int] = []
    while len(found) < _STEPS * batch:
        tokens = max(_SHORTEST, round(generator.lognormvariate(middle, math.sqrt(variance))))
        if tokens <= cap:
            found.append(tokens)
    return [max(found[start : start + batch]) for start in range(0, len(found), batch)]
