"""What a candidate is made of: spread lengths, drafts, pools, offload, pruned caches; and how ties are broken."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import pytest

from memplan.cli.plan_request import plan_request
from memplan.domain.model import ModelSpec
from memplan.domain.plan import PlanAnswer, ServingPlan
from memplan.errors import UsageError
from memplan.pipeline import load_model
from memplan.plan.goals import winner_of
from memplan.plan.pareto import Point
from memplan.plan.search import search


@cache
def model(name: str) -> ModelSpec:
    return load_model(name, revision=None, offline=True, introspect="auto")


def plan(name: str, **options: object) -> PlanAnswer:
    given: Mapping[str, object] = {"engine": "vllm", **options}
    return search(model(name), plan_request(given, model(name)), with_nearest=False)


def winner(name: str, **options: object) -> ServingPlan:
    found = plan(name, **options).winner
    assert found is not None
    return found


LOAD = {"gpu": "l40sx1", "context": "16384", "concurrency": "48", "quant": "fp8", "kv_dtype": "fp8"}


class TestLengths:
    def test_the_cache_holds_the_mean_of_what_differs_and_one_request_at_its_longest(self) -> None:
        found = winner("llama-8b", **LOAD, prompt_tokens="mean:1200,p95:4000", output_tokens="200..600")
        full = found.settings.workload.concurrency
        assert found.concurrency == 48
        assert found.settings.max_num_seqs == 48
        mean_part = (1200 + 400) / 16384
        assert 48 * mean_part < full < 2 * 48 * mean_part
        assert found.budget.kv.needed_tokens == full * 16384

    def test_requests_that_are_all_alike_are_held_at_the_context_that_was_asked(self) -> None:
        found = plan("llama-8b", **LOAD, prompt_tokens="1200", output_tokens="400")
        assert found.winner is None
        assert found.binding == ("memory",)

    def test_more_spread_never_takes_less_room(self) -> None:
        fulls = [
            winner("llama-8b", **LOAD, prompt_tokens=prompts, output_tokens="300").settings.workload.concurrency
            for prompts in ("1000..1400", "400..2000", "mean:1200,p95:4000")
        ]
        assert fulls == sorted(fulls)
        assert fulls[0] < fulls[-1]

    def test_a_limit_on_the_first_token_is_that_of_a_long_prompt(self) -> None:
        load = {**LOAD, "concurrency": "4", "output_tokens": "300"}
        alike, spread = (winner("llama-8b", **load, prompt_tokens=text) for text in ("2000", "mean:2000,p95:7000"))
        assert alike.speed.long_ttft_s == alike.speed.ttft_s
        assert spread.speed.long_ttft_s > 2 * spread.speed.ttft_s
        between = f"{round((spread.speed.ttft_s + spread.speed.long_ttft_s) * 500)}ms"
        assert plan("llama-8b", **load, prompt_tokens="mean:2000,p95:7000", max_ttft=between).winner is None
        assert winner("llama-8b", **load, prompt_tokens="2000", max_ttft=between)

    def test_long_answers_are_met_more_often_than_short_ones(self) -> None:
        load = {**LOAD, "concurrency": "32", "prompt_tokens": "400"}
        alike, spread = (winner("llama-8b", **load, output_tokens=text) for text in ("400..400", "mean:400,p95:1200"))
        assert spread.speed.step_s > alike.speed.step_s

    def test_without_a_context_a_thousandth_of_requests_may_be_longer(self) -> None:
        spec = model("llama-8b")
        asked = plan_request({"gpu": "l40s", "prompt_tokens": "p50:500,p95:2000", "output_tokens": "100..300"}, spec)
        assert 300 + 5000 < asked.traffic.context_tokens < 300 + 8000


def test_a_rate_has_places_for_more_than_the_mean_in_flight() -> None:
    found = winner("llama-8b", gpu="l40sx1", context="4096", prompt_tokens="800", output_tokens="200", request_rate=3.0)
    in_flight = 3.0 * (found.speed.ttft_s + 199 * found.speed.tpot_s)
    assert found.speed.request_per_s > 3.0
    assert in_flight * 0.9 < found.concurrency < 3 * in_flight + 10


def test_replicas_without_a_request_write_nothing() -> None:
    one = winner("llama-8b", gpu="l40s", context="4096", concurrency="1", dp=4)
    assert one.output_tokens_per_s < 1.01 / one.speed.tpot_s


class TestTies:
    @staticmethod
    def first(*points: Point, goal: str = "cost") -> int:
        request = plan_request({"gpu": "l40s", "goal": goal, "concurrency": "8", "context": "4096"}, model("llama-8b"))
        return winner_of(points, request)

    def test_of_equal_costs_one_with_hardly_any_room_does_not_win(self) -> None:
        cramped = Point(cost=4.23, throughput=-900.0, latency=5.0, headroom=-1.01, quality=0.0)
        roomy = Point(cost=4.25, throughput=-850.0, latency=5.2, headroom=-1.8, quality=0.01)
        assert self.first(cramped, roomy) == 1
        dearer = Point(cost=4.4, throughput=-850.0, latency=5.2, headroom=-1.8, quality=0.01)
        assert self.first(cramped, dearer) == 0

    def test_a_lower_risk_comes_before_a_speed_that_the_model_cannot_tell(self) -> None:
        quick = Point(cost=4.23, throughput=-900.0, latency=5.0, headroom=-2.0, quality=0.128)
        sound = Point(cost=4.23, throughput=-890.0, latency=5.1, headroom=-2.0, quality=0.079)
        assert self.first(quick, sound) == 1
        assert self.first(quick, sound, goal="throughput") == 1

    def test_much_speed_comes_before_a_little_risk(self) -> None:
        slow = Point(cost=4.23, throughput=-500.0, latency=9.0, headroom=-2.0, quality=0.0)
        quick = Point(cost=4.23, throughput=-900.0, latency=5.0, headroom=-2.0, quality=0.015)
        assert self.first(slow, quick) == 1


class TestDrafts:
    def test_a_latency_goal_drafts_with_the_models_own_predictors(self) -> None:
        asked = {"gpu": "h200x8", "goal": "latency", "context": "8192", "kv_dtype": "auto"}
        found = winner("deepseek-v3", **asked)
        assert found.speculation
        assert found.speculation.name == "mtp"
        assert 0.8 < found.speculation.acceptance < 0.95
        assert "2412.19437" in found.speculation.source
        assert any("draft" in line.name for line in found.budget.lines)
        plain = winner("deepseek-v3", **asked, draft_model="none")
        assert plain.speculation is None
        assert found.speed.tpot_s < plain.speed.tpot_s

    def test_a_draft_that_is_named_is_in_every_plan(self) -> None:
        found = plan("llama-70b", gpu="h100x4", context="8192", concurrency="4", draft_model="llama-3.2-1b")
        assert found.front
        assert all(each.speculation and each.settings.draft for each in found.front)

    def test_acceptance_that_is_given_is_what_counts(self) -> None:
        asked = {"gpu": "h100x4", "context": "8192", "draft_model": "llama-3.2-1b", "num_speculative_tokens": 4}
        low, high = (winner("llama-70b", **asked, goal="latency", draft_acceptance=part) for part in (0.3, 0.9))
        assert high.speed.tpot_s < low.speed.tpot_s
        assert high.speculation
        assert high.speculation.num_tokens == 4

    def test_a_release_that_does_not_draft_so_is_ruled_out(self) -> None:
        asked = {"gpu": "h100x4", "context": "8192", "draft_model": "llama-3.2-1b", "quant": "none"}
        found = plan("llama-70b", **asked, engine="vllm@0.12.0")
        assert found.winner is None
        assert any("vllm 0.12.0 is not known to draft" in entry.reason for entry in found.rejections)

    def test_a_draft_of_another_tokenizer_is_refused(self) -> None:
        with pytest.raises(UsageError, match="another vocabulary"):
            plan("llama-70b", gpu="h100x4", draft_model="qwen3-0.6b")


POOLED = {"gpu": "h100x8", "context": "16384", "prompt_tokens": "12000", "output_tokens": "400", "quant": "fp8"}


class TestPools:
    def test_pools_win_where_every_token_must_come_soon_and_prompts_are_long(self) -> None:
        found = winner("llama-70b", **POOLED, request_rate=1.0, max_tpot="15ms", max_ttft="5s")
        assert found.prefill
        assert found.num_gpus == found.layout.num_ranks + found.prefill.layout.num_ranks == 8
        assert found.prefill.shared_tpot_s > 0.015
        assert found.prefill.budget.verdict == found.budget.verdict == "fits"
        assert found.prefill.transfer_s < 0.05
        assert found.prefill.busy_fraction <= 0.85 + 1e-9

    def test_one_pool_wins_where_nobody_set_a_pace(self) -> None:
        found = plan("llama-70b", **POOLED, request_rate=1.0)
        assert all(each.prefill is None for each in found.front)

    def test_pools_can_be_asked_for_and_left_out(self) -> None:
        asked = {**POOLED, "concurrency": "8", "max_tpot": "60ms"}
        assert all(each.prefill for each in plan("llama-70b", **asked, disaggregated=True).front)
        assert all(each.prefill is None for each in plan("llama-70b", **asked, disaggregated=False).front)


TOO_LARGE = {"gpu": "rtx-4090x1", "context": "2048", "concurrency": "1", "quant": "none"}


class TestOffload:
    def test_weights_lie_in_host_memory_for_batch_jobs_alone(self) -> None:
        assert plan("llama-70b", **TOO_LARGE).winner is None
        found = winner("llama-70b", **TOO_LARGE, offline_batch=True)
        assert found.settings.weight_offload_bytes > 100 * 1024**3
        assert found.speed.bound["decode"] == "offload"
        assert found.speed.tpot_s > 1

    def test_the_nearest_plan_is_a_batch_job(self) -> None:
        spec = model("llama-70b")
        found = search(spec, plan_request({"engine": "vllm", **TOO_LARGE}, spec))
        assert "--offline-batch" in {near.change for near in found.nearest}


PRUNED = {"gpu": "l40sx1", "context": "32768", "concurrency": "8", "quant": "fp8", "kv_dtype": "fp8"}


class TestPruning:
    def test_a_pruned_cache_takes_less_room_and_time_and_costs_quality(self) -> None:
        whole, half = winner("llama-8b", **PRUNED), winner("llama-8b", **PRUNED, kv_keep=0.5)
        assert half.budget.kv.needed_bytes == pytest.approx(whole.budget.kv.needed_bytes / 2, rel=0.01)
        assert half.speed.step_s < whole.speed.step_s
        added = half.quality.perplexity_increase - whole.quality.perplexity_increase
        assert added == pytest.approx(0.0259 * 5 / 7, rel=0.01)
        assert "eviction" in half.quality.source

    def test_a_limit_on_perplexity_counts_what_pruning_costs(self) -> None:
        limit = {"max_perplexity_increase": "2.5%"}
        assert winner("llama-8b", **PRUNED, **limit)
        found = plan("llama-8b", **PRUNED, **limit, kv_keep=0.3)
        assert found.winner is None
        assert found.binding == ("quality",)
