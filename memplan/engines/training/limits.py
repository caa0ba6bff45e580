"""The largest micro-batch, and the longest sequence, that fit."""

from __future__ import annotations

from collections.abc import Callable

from memplan.domain.gpu import GpuSpec
from memplan.domain.model import ModelSpec
from memplan.domain.training_budget import TrainingLimits
from memplan.engines.training.measure import Measured, measure
from memplan.records import replace

_TOKENS = 256  # lengths are multiples of this
_MOST_MICRO_BATCH = 1024
_LONGEST = 1 << 20
_TRIES = 8

Need = Callable[[int], tuple[int, int]]


def find_limits(spec: ModelSpec, gpu: GpuSpec, measured: Measured, free_bytes: int | None) -> TrainingLimits:
    """Both limits, each with everything else as it was asked for."""
    training = measured.training

    def of_batch(number: int) -> Measured:
        return measure(spec, replace(training, micro_batch=number), gpu, free_bytes)

    def of_tokens(number: int) -> Measured:
        return measure(spec, replace(training, sequence_tokens=number * _TOKENS), gpu, free_bytes)

    load = measured.step.phases[0]
    if load.peak_bytes > measured.room_bytes:
        return TrainingLimits(micro_batch=0, sequence_tokens=0)  # weights and states alone have no room
    longest = min(max(spec.max_context_tokens, training.sequence_tokens) or _LONGEST, _LONGEST) // _TOKENS
    tokens = _largest_run(of_tokens, max(training.sequence_tokens // _TOKENS, 1), measured, max(longest, 1))
    return TrainingLimits(
        micro_batch=_largest_run(of_batch, training.micro_batch, measured, _MOST_MICRO_BATCH),
        sequence_tokens=tokens * _TOKENS,
    )


def _largest_run(run: Callable[[int], Measured], known: int, measured: Measured, most: int) -> int:
    """The largest number up to `most` whose step fits, of steps of which `known` is measured.

    What is reserved takes as long to find as the step, and rarely decides: it is looked at where all else has room.
    """
    runs = {known: measured}

    def made(number: int) -> Measured:
        if number not in runs:
            runs[number] = run(number)
        return runs[number]

    def allocated(number: int) -> tuple[int, int]:
        return made(number).high_bytes, measured.room_bytes

    def reserved(number: int) -> tuple[int, int]:
        return max(made(number).high_bytes, made(number).reserved_bytes), measured.room_bytes

    found = largest(allocated, known, allocated(known), most)
    if found == 0 or made(found).reserved_bytes <= measured.room_bytes:
        return found
    return largest(reserved, found, reserved(found), found)


def largest(need: Need, known: int, at_known: tuple[int, int], most: int) -> int:
    """The largest number up to `most` whose need has room; 0 where not even 1 has.

    Memory grows almost in proportion, so the next number tried is where a line through the last two would end.
    """
    fits, misses = 0, most + 1
    slope = 0.0
    number, (needed, room) = known, at_known
    if number > most:
        number, (needed, room) = most, need(most)
    for _ in range(_TRIES):
        if needed <= room:
            fits = max(fits, number)
        else:
            misses = min(misses, number)
        if misses - fits <= 1:
            break
        before, needed_before = number, needed
        guess = number + int((room - needed) // slope) if slope > 0 else (number * 2 if needed <= room else 1)
        number = min(max(guess, fits + 1), misses - 1)
        needed, room = need(number)
        if number != before and (needed - needed_before) * (number - before) > 0:
            slope = (needed - needed_before) / (number - before)
    return fits
