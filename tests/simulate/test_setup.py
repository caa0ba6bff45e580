"""From a budget to a deployment: blocks, groups and limits of every engine that has a scheduler."""

from __future__ import annotations

import pytest

from memplan.catalog.efficiency import efficiency_for
from memplan.catalog.gpus import find_gpu
from memplan.domain.budget import MemoryBudget
from memplan.domain.serving import ParallelLayout, ServingSettings, Workload
from memplan.domain.simulation import EqualSteps, SimulationSettings
from memplan.errors import DoesNotFit, UsageError
from memplan.pipeline import Question, answer, load_model
from memplan.simulate.setup import Scheduling, simulation_settings


def budget_of(model: str, gpu: str, engine: str = "vllm", context: int = 8192) -> tuple[MemoryBudget, Question]:
    spec = load_model(model, revision=None, offline=True, introspect="auto")
    question = Question(
        spec=spec,
        base_spec=spec,
        gpu=find_gpu(gpu),
        settings=ServingSettings(workload=Workload(context_tokens=context)),
        engine=engine,
        version=None,
        with_remedies=False,
    )
    return answer(question), question


def deployed(
    model: str, gpu: str, engine: str = "vllm", asked: Scheduling | None = None, context: int = 8192
) -> tuple[SimulationSettings, MemoryBudget]:
    budget, question = budget_of(model, gpu, engine, context)
    settings = simulation_settings(
        budget,
        question.spec,
        question.gpu,
        ParallelLayout(),
        efficiency_for(engine, question.gpu),
        EqualSteps(),
        asked or Scheduling(),
    )
    return settings, budget


def test_vllm_hands_out_all_blocks_but_the_null_block() -> None:
    settings, budget = deployed("llama-8b", "l40s")
    assert settings.num_blocks == (budget.kv.blocks or 0) - 1
    assert [group.block_tokens for group in settings.groups] == [16]
    assert settings.max_num_seqs == budget.settings["max_num_seqs"]
    assert settings.context_tokens == 8192
    assert settings.prefix_caching


def test_windows_of_a_hybrid_model_are_groups_of_their_own() -> None:
    settings, _ = deployed("gemma-3-27b", "h100", context=32768)
    windows = [group.window_tokens for group in settings.groups]
    assert windows.count(None) == 1
    assert windows.count(1024) == len(windows) - 1 > 1


@pytest.mark.parametrize(("engine", "block_tokens"), [("sglang", 1), ("tensorrt-llm", 32), ("llama.cpp", 1)])
def test_other_engines_have_their_own_pages(engine: str, block_tokens: int) -> None:
    settings, budget = deployed("llama-8b", "l40s", engine)
    assert [group.block_tokens for group in settings.groups] == [block_tokens]
    assert settings.num_blocks * block_tokens == budget.kv.capacity_tokens


def test_an_engine_without_a_scheduler_is_refused() -> None:
    with pytest.raises(UsageError, match="no scheduler to simulate"):
        deployed("llama-8b", "l40s", "transformers")


def test_a_model_without_room_for_a_block_does_not_fit() -> None:
    with pytest.raises(DoesNotFit):
        deployed("llama-70b", "l40s")


def test_swapping_has_blocks_on_the_host_and_takes_the_bus_s_time() -> None:
    settings, budget = deployed("llama-8b", "l40s", asked=Scheduling(preemption="swap", swap_bytes=4 << 30))
    assert settings.host_blocks == pytest.approx((4 << 30) / (16 * budget.kv.bytes_per_token), rel=0.01)
    assert 1e-5 < settings.swap_s < 1e-3


def test_replicas_that_read_prompts_send_a_token_s_cache_over_the_link() -> None:
    settings, budget = deployed("llama-8b", "h100", asked=Scheduling(prefill_replicas=2))
    assert settings.prefill_replicas == 2
    rate = budget.kv.bytes_per_token / settings.transfer_s
    assert 50e9 < rate < 900e9


@pytest.mark.parametrize(
    ("asked", "is_async"),
    [(Scheduling(), True), (Scheduling(batching="static"), False), (Scheduling(preemption="swap"), False)],
)
def test_a_step_ahead_as_the_release_has_it_where_the_rest_is_vllm_s(asked: Scheduling, is_async: bool) -> None:
    settings, budget = deployed("llama-8b", "l40s", asked=asked)
    assert budget.settings["async_scheduling"] is True
    assert settings.async_scheduling is is_async


def test_other_engines_are_not_scheduled_ahead() -> None:
    settings, _ = deployed("llama-8b", "l40s", "sglang")
    assert settings.async_scheduling is False
