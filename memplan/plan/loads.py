"""What a load asks of the cache and of the speed model: requests at the length they have, not the longest they may.

Paged engines give a request pages as it grows. Where lengths are spread, C requests take C times the mean of what one
keeps in the end, and, in all but 1 in 100 moments, no more than 2.33 standard deviations of their sum on top. Counted
in requests of the longest length, that is what an engine is asked to hold beside one request that is that long.
"""

from __future__ import annotations

from functools import lru_cache
from math import ceil, sqrt

from memplan.domain.lengths import Lengths, spread_of, strata_of
from memplan.domain.model import ModelSpec
from memplan.domain.plan import Traffic
from memplan.domain.speed import SpeedWorkload
from memplan.plan.bounds import request_bytes
from memplan.plan.space import LAYER_SPLIT
from memplan.records import Same, dataclass

# Standard deviations of a normal distribution that 99 % stay under.
_SURE = 2.33
_STRATA = 5
_LONG = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Fullness:
    """What a request keeps in the cache, in parts of the longest one: the mean, and one standard deviation."""

    mean: float = 1.0
    deviation: float = 0.0

    def full_requests(self, concurrency: int, replicas: int = 1) -> int:
        """How many requests of the longest length take as much as `concurrency` of the load, spread over replicas."""
        if self.mean == 1.0:
            return concurrency
        each = concurrency / replicas
        needed = replicas * (each * self.mean + _SURE * sqrt(each) * self.deviation)
        return max(min(replicas, concurrency), min(concurrency, ceil(needed)))


FULL = Fullness()


def fullness_of(spec: ModelSpec, kv_dtype: str | None, engine: str, traffic: Traffic) -> Fullness:
    """What the requests of a load keep under an engine. Slots of contiguous caches keep their whole length."""
    if not traffic.is_spread or engine in LAYER_SPLIT:
        return FULL
    sides = [side for side in (traffic.prompt, traffic.output) if side is not None]
    mean = min(traffic.context_tokens, traffic.prompt_tokens + traffic.output_tokens)
    variance = sum(max(0.0, side.square_mean - side.mean**2) for side in sides)
    whole = request_bytes(spec, kv_dtype, traffic.context_tokens)
    if whole <= 0 or mean >= traffic.context_tokens:
        return FULL
    kept = request_bytes(spec, kv_dtype, mean)
    per_token = (whole - kept) / (traffic.context_tokens - mean)
    return Fullness(mean=kept / whole, deviation=sqrt(variance) * per_token / whole)


def speed_workload(traffic: Traffic) -> SpeedWorkload:
    """The lengths of a load as the speed model takes them, one request at a time."""
    return _workload(Same(traffic))


@lru_cache(maxsize=16)
def _workload(same: Same) -> SpeedWorkload:
    traffic = same.record
    assert isinstance(traffic, Traffic)
    prompts: Lengths | None = traffic.prompt if traffic.is_spread else None
    return SpeedWorkload(
        prompt_tokens=traffic.prompt_tokens,
        output_tokens=traffic.output_tokens,
        shared_prefix_tokens=traffic.shared_prefix_tokens,
        prompt_strata=strata_of(prompts, _STRATA) if prompts is not None else (),
        long_prompt_tokens=round(prompts.quantile(_LONG)) if prompts is not None else None,
        output_spread=spread_of(traffic.output) if traffic.is_spread and traffic.output is not None else 1.0,
    )
