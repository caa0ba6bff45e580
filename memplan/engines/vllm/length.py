"""`max-model-len: auto`: the longest request that the cache of every rank holds once a step of the longest was
profiled.

Source: _auto_fit_max_model_len, vllm/v1/core/kv_cache_utils.py from 0.14 on, kv_cache_planning.py from 0.28 on.
"""

from __future__ import annotations

from collections.abc import Iterable

from memplan.catalog.rules import Rules
from memplan.domain.serving import ServingSettings
from memplan.engines.vllm.rank import RankPlan
from memplan.engines.vllm.settings import VllmSettings
from memplan.records import replace


def with_fitted_length(
    asked: ServingSettings, settings: VllmSettings, rules: Rules, plans: Iterable[RankPlan]
) -> VllmSettings:
    """The settings with the longest request that fits, up to the length that was profiled.

    A cache that holds no token leaves them as they are: vLLM refuses to start.
    """
    profiled, held_back = settings.context_tokens, held_back_blocks(settings, rules)
    longest = min(
        (
            asked.longest_kept(plan.groups.max_tokens(max(0, plan.blocks - held_back), profiled), profiled)
            for plan in plans
            if plan.groups is not None
        ),
        default=profiled,
    )
    return replace(settings, context_tokens=longest, fitted_length=True) if longest else settings


def held_back_blocks(settings: VllmSettings, rules: Rules) -> int:
    """V1 keeps one null block out of use, which not every release thinks of when it starts."""
    return 1 if settings.generation == "v1" and rules["reserves_null_block"] else 0
