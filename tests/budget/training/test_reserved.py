"""What steps reserve: over samples of different lengths, and with segments that grow."""

from __future__ import annotations

from memplan.budget.training.reserved import reserved_bytes, reserved_over_lengths
from memplan.budget.training.step import Step
from memplan.domain.training import TrainingSpec
from memplan.pipeline import load_model
from memplan.records import replace
from memplan.units import GIB

MODEL = load_model("qwen2.5-0.5b", revision=None, offline=True, introspect="auto")
STEP = TrainingSpec(sequence_tokens=1024, checkpointing="full", method="lora", lora_targets=("all-linear",))


def of_one_step() -> int:
    step = Step(MODEL, STEP)
    step.perform()
    return reserved_bytes(step)


def test_steps_of_one_length_reserve_what_one_step_does():
    once = of_one_step()
    assert reserved_over_lengths(MODEL, STEP, [1024]) == once
    assert once <= reserved_over_lengths(MODEL, STEP, [1024] * 3) <= once * 1.02


def test_longer_samples_after_shorter_ones_reserve_more_than_the_longest_alone():
    rising = reserved_over_lengths(MODEL, STEP, [400, 520, 640, 810, 1024])
    assert rising > 1.2 * of_one_step()


def test_a_card_that_is_full_returns_its_cache_before_more_is_reserved():
    rising = [400, 520, 640, 810, 1024]
    room = round(1.1 * of_one_step())
    assert reserved_over_lengths(MODEL, STEP, rising, capacity_bytes=room) <= room
    assert reserved_over_lengths(MODEL, STEP, rising, capacity_bytes=GIB) <= GIB


def test_segments_that_grow_reserve_less():
    rising = [400, 520, 640, 810, 1024]
    growing = reserved_over_lengths(MODEL, replace(STEP, expandable_segments=True), rising)
    assert growing < reserved_over_lengths(MODEL, STEP, rising)
