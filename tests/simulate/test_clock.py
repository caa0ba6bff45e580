"""Step times come down to straight lines, in whole picoseconds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memplan.domain.simulation import EqualSteps, MeasuredSteps, ModelledSteps
from memplan.errors import UsageError
from memplan.simulate.clock import TICKS_PER_S, Clock, Curve

_MEASURED = MeasuredSteps(
    decode_points=((1, 0, 0.010), (1, 1000, 0.012), (8, 0, 0.012), (8, 1000, 0.028)),
    prefill_points=((512, 0.05), (2048, 0.2)),
)
_MODELLED = ModelledSteps(
    tokens=(1, 100, 1000),
    pass_s=(0.01, 0.02, 0.11),
    positions=(0, 1000, 3000),
    decode_s=(0.0, 1e-5, 4e-5),
    prompt_s=(0.0, 0.001, 0.008),
    sequence_s=1e-5,
)


def seconds(ticks: int) -> float:
    return ticks / TICKS_PER_S


@pytest.mark.parametrize(
    ("batch", "mean", "expected"), [(1, 0, 0.010), (1, 500, 0.011), (8, 1000, 0.028), (8, 2000, 0.044), (4, 0, 0.01086)]
)
def test_measured_steps_lie_on_lines_through_the_measurements(batch: int, mean: int, expected: float) -> None:
    assert seconds(Clock(_MEASURED).step(batch, batch * mean, ())) == pytest.approx(expected, rel=1e-3)


def test_a_measured_step_of_both_kinds_reads_the_weights_once() -> None:
    clock = Clock(_MEASURED)
    assert seconds(clock.step(0, 0, [(0, 512)])) == pytest.approx(0.05)
    assert seconds(clock.step(8, 8000, [(0, 512)])) == pytest.approx(0.05 + 0.028 - 0.010, rel=1e-3)


def test_a_modelled_step_adds_the_pass_the_contexts_and_the_chunks() -> None:
    clock = Clock(_MODELLED)
    decode = 0.02 + 100 * (1e-5 + 1e-5)
    assert seconds(clock.step(100, 100 * 1000, ())) == pytest.approx(decode)
    both = 0.11 + 101 * 1e-5 + 100 * 1e-5 + 0.9 * 0.001
    assert seconds(clock.step(100, 100 * 1000, [(0, 900)])) == pytest.approx(both)
    later = 0.02 + 1e-5 + 99 * (0.008 - 0.001) / 2000
    assert seconds(clock.step(0, 0, [(1000, 1099)])) == pytest.approx(later - (0.02 - 0.01) / 99, rel=1e-3)


@given(st.integers(1, 64), st.integers(0, 5000), st.sampled_from([_MODELLED, _MEASURED, EqualSteps(step_s=0.5)]))
def test_a_stretch_of_decode_steps_is_a_line(decodes: int, mean: int, steps: object) -> None:
    clock = Clock(steps)  # type: ignore[arg-type]
    context = decodes * mean + decodes // 2
    first, slope, count = clock.line(decodes, context)
    for step in range(min(count, 40)):
        there = context + step * decodes
        assert clock.step(decodes, there, ()) == first + slope * there


def test_noise_in_measurements_never_makes_a_step_shorter_with_more_context() -> None:
    noisy = MeasuredSteps(decode_points=((1, 0, 0.02), (1, 1000, 0.01)), prefill_points=((16, 0.02),))
    clock = Clock(noisy)
    assert clock.step(1, 0, ()) == clock.step(1, 100_000, ()) > 0


@pytest.mark.parametrize(
    ("decode", "prefill"), [((), ((16, 0.1),)), (((1, 10, 0.01),), ()), (((0, 10, 0.01),), ((16, 0.1),))]
)
def test_measurements_that_are_none_are_refused(decode: object, prefill: object) -> None:
    with pytest.raises(UsageError):
        Clock(MeasuredSteps(decode_points=decode, prefill_points=prefill))  # type: ignore[arg-type]


def test_points_that_do_not_rise_are_refused() -> None:
    with pytest.raises(UsageError):
        Curve((1, 1), (0.1, 0.2))
