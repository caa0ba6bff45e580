"""What must hold of every search: looser limits never find less, budgets are those of an estimate, all of it starts."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memplan.catalog.servable import support
from memplan.cli.plan import as_options
from memplan.cli.plan_request import plan_request
from memplan.cli.questions import ask
from memplan.domain.model import ModelSpec
from memplan.domain.plan import GOALS, PlanAnswer, ServingPlan
from memplan.pipeline import answer, load_model
from memplan.plan.goals import point_of, score
from memplan.plan.search import search

MODELS = ("llama-8b", "mixtral-8x7b", "llama-70b")
QUICK = settings(max_examples=12)


@cache
def model(name: str) -> ModelSpec:
    return load_model(name, revision=None, offline=True, introspect="auto")


def plan(name: str, options: Mapping[str, object]) -> PlanAnswer:
    return search(model(name), plan_request({"engine": "vllm", **options}, model(name)), with_nearest=False)


loads = st.fixed_dictionaries(
    {
        "gpu": st.sampled_from(("h100x4", "l40s", "rtx-4090x2", "a100-80gx2")),
        "context": st.sampled_from(("4096", "16384")),
        "concurrency": st.sampled_from(("1", "8", "48")),
        "goal": st.sampled_from(("cost", "throughput", "latency")),
    }
)


class _Seen:
    """A plan as a goal sees it."""

    def __init__(self, found: ServingPlan, request_tokens: int) -> None:
        self.cost = found.usd_per_hour or found.num_gpus * found.gpu.memory_bytes / 1e9
        self.output_tokens_per_s = found.output_tokens_per_s
        self.latency_s = found.speed.ttft_s + (request_tokens - 1) * found.speed.tpot_s
        self.rise = found.quality.perplexity_increase
        self.room = float(found.concurrency)
        self.doubt = 0.0


def best_score(found: PlanAnswer) -> float | None:
    """The first figure that the goal looks at; None without a plan."""
    if found.winner is None:
        return None
    seen = _Seen(found.winner, found.request.traffic.output_tokens)
    return score(point_of(seen, found.request, found.winner.concurrency), found.request)[0]


@QUICK
@given(
    name=st.sampled_from(MODELS),
    load=loads,
    limit=st.sampled_from(
        (
            {"max_ttft": ("500ms", "3s")},
            {"max_tpot": ("30ms", "150ms")},
            {"max_perplexity_increase": ("0.5%", "15%")},
            {"precision": ("16", "16,8,4")},
            {"budget": ("6/h", "30/h")},
        )
    ),
)
def test_relaxing_a_limit_never_makes_the_best_plan_worse(
    name: str, load: dict[str, str], limit: dict[str, tuple[str, str]]
) -> None:
    ((option, (tight, loose)),) = limit.items()
    if option == "budget":  # what is owned costs nothing
        load = {
            **load,
            "gpu": "h100" if load["gpu"].startswith("rtx") else load["gpu"].removesuffix("x4").removesuffix("x2"),
        }
    first, second = (best_score(plan(name, {**load, option: value})) for value in (tight, loose))
    if first is not None:
        assert second is not None
        assert second <= first * 1.0000001 if first > 0 else second <= first * 0.9999999


@QUICK
@given(name=st.sampled_from(MODELS), load=loads)
def test_the_budget_of_the_winner_is_that_of_a_fresh_estimate(name: str, load: dict[str, str]) -> None:
    winner = plan(name, load).winner
    if winner is None:
        return
    asked = ask({"model": name, "offline": True, "quiet": True, **as_options(winner)})
    (again,) = (answer(question) for question in asked.questions())
    assert again == winner.budget
    assert again.verdict == "fits"


@QUICK
@given(name=st.sampled_from(MODELS), load=loads, goal=st.sampled_from(GOALS))
def test_every_plan_that_is_shown_starts_and_keeps_the_limits(name: str, load: dict[str, str], goal: str) -> None:
    found = search(
        model(name),
        plan_request({**load, "goal": goal, "max_ttft": "20s", "max_perplexity_increase": "9%"}, model(name)),
        with_nearest=False,
    )
    for shown in found.front:
        kept = support(model(name), shown.scheme, shown.kv_dtype, shown.gpu, shown.layout, shown.engine, shown.version)
        assert kept.runs, (shown.engine, shown.scheme, shown.gpu.name, kept.reason)
        assert shown.budget.verdict == "fits"
        assert shown.budget.kv.needed_tokens == shown.concurrency * found.request.traffic.context_tokens
        assert shown.speed.ttft_s <= 20
        assert shown.speed.tpot_s <= 0.2
        assert shown.quality.perplexity_increase <= 0.09
        assert shown.num_gpus == shown.layout.num_ranks


@pytest.mark.parametrize("goal", GOALS)
def test_no_plan_of_the_front_beats_another_on_every_axis(goal: str) -> None:
    front = plan("llama-8b", {"gpu": "l40s", "context": "8192", "concurrency": "16", "goal": goal}).front
    assert front
    seen = [(_Seen(each, 1024), each.headroom_fraction) for each in front]
    for one, one_room in seen:
        for other, other_room in seen:
            if one is not other:
                assert not (
                    one.cost < other.cost
                    and one.output_tokens_per_s > other.output_tokens_per_s
                    and one.latency_s < other.latency_s
                    and one.rise < other.rise
                    and one_room > other_room
                )


def test_pruning_finds_the_winner_of_the_whole_space(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without leaving any draft for being beaten, the same plan wins."""
    options = {"gpu": "h100x4", "context": "8192", "concurrency": "32"}
    for goal in ("cost", "throughput", "latency", "multi-tenant"):
        quick = plan("llama-70b", {**options, "goal": goal}).winner
        with monkeypatch.context() as patch:
            patch.setattr("memplan.plan.search.is_dominated", lambda *_: False)
            whole = plan("llama-70b", {**options, "goal": goal}).winner
        assert quick is not None
        assert whole is not None
        assert (quick.layout, quick.scheme, quick.kv_dtype) == (whole.layout, whole.scheme, whole.kv_dtype)


def test_a_kept_part_of_the_cache_makes_room_that_the_bounds_let_through() -> None:
    load = {
        "gpu": "l4x1",
        "context": "32768",
        "concurrency": "8",
        "kv_dtype": "auto",
        "quant": "none",
        "max_tpot": "9s",
    }
    assert plan("llama-8b", load).winner is None
    assert plan("llama-8b", {**load, "kv_keep": 0.05}).winner is not None


def test_what_is_free_on_a_shared_card_is_all_that_a_plan_takes() -> None:
    found = plan("llama-8b", {"gpu": "h100x1", "gpu_free": "30GiB", "context": "8192", "concurrency": "4"})
    assert found.winner is None or found.winner.budget.used_bytes <= 30 << 30
