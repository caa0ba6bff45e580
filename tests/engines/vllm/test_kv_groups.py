"""Cache groups against what vLLM's own planner said: blocks, tokens, concurrency, the longest request, the groups.

kv_groups_recorded.json holds the planner's answers, made by benchmarks/vllm/kv_oracle.py with CUDA pretended (an H100
or a B200) and condensed by benchmarks/vllm/record_kv_oracle.py; the models are the catalogue's.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from vllm_start import Start, model, start

from memplan.engines.vllm.kv_groups import CacheGroups, cache_groups
from memplan.units import GIB

RECORDED = json.loads(Path(__file__).with_name("kv_groups_recorded.json").read_text(encoding="utf-8"))
CASES = [
    pytest.param(*where.split(), name, points, id=f"{where}-{name}")
    for where, models in RECORDED["releases"].items()
    for name, points in models.items()
]
V4 = "deepseek-ai/DeepSeek-V4-Flash"


def started(release: str, gpu: str, name: str, setting: str, context: int) -> Start:
    """The start-up that a recorded setting names: `tp2 fp8 no-prefix block64 mtp1 no-hybrid`."""
    words = setting.split()
    numbers = {match[1]: int(match[2]) for word in words if (match := re.fullmatch(r"(tp|block|mtp)(\d+)", word))}
    asked: dict[str, Any] = {
        "tp": numbers["tp"],
        "context": context,
        "kv_dtype": None if words[1] == "auto" else words[1],
        "kv_cache_memory_bytes": RECORDED["memory_gib"] * GIB,
        "max_num_seqs": 256,
        "max_num_batched_tokens": 8192,
        "prefix_caching": False if "no-prefix" in words else None,
        "block_size": numbers.get("block"),
        "engine_options": {"disable_hybrid_kv_cache_manager": True} if "no-hybrid" in words else {},
    }
    if "mtp" in numbers:
        asked |= {"draft": model(name).predictor(), "num_speculative_tokens": numbers["mtp"]}
    return start(release, gpu, name, **asked)


def groups_of(at: Start) -> CacheGroups:
    """The groups of a start-up on one pipeline stage."""
    draft = at.asked.draft.layers if at.asked.draft else ()
    groups = cache_groups((*at.spec.layers, *draft), at.settings, at.rules)
    assert groups is not None
    return groups


@pytest.mark.parametrize(("release", "gpu", "name", "points"), CASES)
def test_the_cache_is_planned_as_vllms_own_planner_plans_it(
    release: str, gpu: str, name: str, points: list[list[Any]]
) -> None:
    for setting, context, blocks, tokens, concurrency, longest, num_groups, block_sizes in points:
        at = started(release, gpu, name, setting, context)
        groups = groups_of(at)
        kv = at.budget.kv
        sizes = sorted(group.page.block_size for group in groups.groups if group.page.kind != "state")
        assert (setting, len(groups.groups), sizes) == (setting, num_groups, block_sizes)
        assert (setting, kv.blocks, kv.capacity_tokens) == (setting, blocks, tokens)
        assert kv.max_concurrency == pytest.approx(concurrency, abs=0.006), setting
        if longest is not None:
            assert (setting, kv.max_context_tokens) == (setting, longest)


def test_the_record_covers_several_releases_and_every_kind_of_cache() -> None:
    points = sum(len(points) for models in RECORDED["releases"].values() for points in models.values())
    assert points >= 150
    assert len(RECORDED["releases"]) >= 10


def test_a_request_of_deepseek_v4_needs_what_a_refusal_printed() -> None:
    """Issue 44376 of vLLM: 30,000 tokens need 6.66 GiB, and 5.44 GiB hold 13,528, in steps of 16,384 tokens."""
    at = start("0.22.0", "gh200", V4, tp=2, context=30_000, kv_dtype="fp8", block_size=256, offline_batch=True)
    groups = groups_of(at)
    assert round(groups.blocks_of(30_000) * groups.block_bytes / GIB, 2) == 6.66
    assert groups.max_tokens(int(5.4405 * GIB) // groups.block_bytes, 30_000) == 13_528


def test_a_window_beside_full_attention_is_kept_whole_without_the_hybrid_manager() -> None:
    apart = groups_of(start("0.32.0", "h100", "openai/gpt-oss-20b", context=65_536))
    alone = groups_of(
        start(
            "0.32.0",
            "h100",
            "openai/gpt-oss-20b",
            context=65_536,
            engine_options={"disable_hybrid_kv_cache_manager": True},
        )
    )
    assert len(apart.groups) == 2
    assert len(alone.groups) == 1
    assert alone.blocks_of(65_536) * alone.block_bytes > apart.blocks_of(65_536) * apart.block_bytes
