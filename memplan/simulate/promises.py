"""What was promised, held against what was served: goodput, and the fewest replicas that keep it."""

from __future__ import annotations

from collections.abc import Callable

from memplan.domain.simulated import Goodput, Promise
from memplan.domain.simulation import OUTCOMES, SimulationResult, Traffic

MAX_REPLICAS = 64
_FINISHED = OUTCOMES.index("finished")


def goodput_of(result: SimulationResult, traffic: Traffic, promise: Promise) -> Goodput:
    """Return how many requests were served as promised. One that was turned away, or never ended, was not."""
    ttft = promise.max_ttft_s if promise.max_ttft_s is not None else float("inf")
    tpot = promise.max_tpot_s if promise.max_tpot_s is not None else float("inf")
    kept = 0
    for outcome, arrived, first, finished, tokens in zip(
        result.outcomes,
        result.arrived_s,
        result.first_token_s,
        result.finished_s,
        traffic.output_tokens,
        strict=True,
    ):
        if outcome == _FINISHED and first - arrived <= ttft and finished - first <= tpot * (tokens - 1):
            kept += 1
    share = kept / max(1, traffic.num_requests)
    return Goodput(requests_per_s=kept / result.duration_s if result.duration_s > 0 else 0.0, share=share)


def keeps(goodput: Goodput, promise: Promise) -> bool | None:
    """Whether a setup keeps the promise; None where nothing was promised."""
    return goodput.share >= promise.share if promise.is_made else None


def fewest_replicas(does: Callable[[int], bool], most: int) -> int | None:
    """The smallest number of replicas, up to `most`, for which `does` holds; None when it never does.

    More replicas are taken to serve no worse: the number is doubled until it holds, then halved down.
    """
    high = 1
    while not does(high):
        if high >= most:
            return None
        high = min(most, high * 2)
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if does(middle) else (middle, high)
    return high
