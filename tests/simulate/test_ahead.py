"""Asynchronous scheduling: what a step that is scheduled before the last one's tokens are there costs, and whom."""

from __future__ import annotations

from array import array

import pytest

from memplan.domain.simulation import ModelledSteps, SimulationResult, SimulationSettings, Traffic
from memplan.errors import UsageError
from memplan.simulate.run import simulate

STEP_S = 0.010
STEPS = ModelledSteps(tokens=(1,), pass_s=(STEP_S,), positions=(0,), decode_s=(0.0,), prompt_s=(0.0,))


def served(arrivals: list[float], *, is_async: bool, output: int = 4, num_blocks: int = 100) -> SimulationResult:
    traffic = Traffic(
        arrivals=array("d", arrivals),
        prompt_tokens=array("q", [20] * len(arrivals)),
        output_tokens=array("q", [output] * len(arrivals)),
    )
    settings = SimulationSettings(num_blocks=num_blocks, steps=STEPS, async_scheduling=is_async)
    return simulate(settings, traffic)


def test_alone_a_request_is_served_as_fast() -> None:
    ahead, plain = served([0.0], is_async=True), served([0.0], is_async=False)
    assert ahead.first_token_s == plain.first_token_s
    assert list(ahead.finished_s) == list(plain.finished_s) == pytest.approx([4 * STEP_S])
    assert ahead.busy_s == plain.busy_s


def test_who_comes_during_a_step_waits_for_the_one_that_is_scheduled_already() -> None:
    ahead, plain = served([0.0, 0.005], is_async=True), served([0.0, 0.005], is_async=False)
    assert plain.first_token_s[1] == pytest.approx(2 * STEP_S)
    assert ahead.first_token_s[1] == pytest.approx(3 * STEP_S)
    assert ahead.finished_s[0] == plain.finished_s[0]


def test_blocks_of_who_is_done_are_free_a_step_later() -> None:
    """Four blocks hold two requests of 23 tokens: the third waits for the first two."""
    ahead = served([0.0, 0.0, 0.0], is_async=True, num_blocks=4)
    plain = served([0.0, 0.0, 0.0], is_async=False, num_blocks=4)
    assert plain.scheduled_s[2] == pytest.approx(4 * STEP_S)
    assert ahead.scheduled_s[2] == pytest.approx(4 * STEP_S)  # with the result; the step scheduled before has nothing
    assert (ahead.counts.steps, plain.counts.steps) == (10, 8)
    assert ahead.finished_s[2] == plain.finished_s[2] == pytest.approx(8 * STEP_S)


def test_only_vllm_s_own_ways_are_scheduled_ahead() -> None:
    settings = SimulationSettings(num_blocks=10, async_scheduling=True, batching="static")
    traffic = Traffic(arrivals=array("d", [0.0]), prompt_tokens=array("q", [5]), output_tokens=array("q", [5]))
    with pytest.raises(UsageError, match="asynchronous scheduling"):
        simulate(settings, traffic)
