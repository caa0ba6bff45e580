"""A trace through the simulated allocator, phase by phase."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from traces import traces

from memplan.budget.caching_allocator.kinds import make_allocator
from memplan.budget.caching_allocator.settings import AllocatorSettings, parse_settings
from memplan.domain.timeline import PhaseMemory, Work
from memplan.errors import CorruptFile
from memplan.profile.events import EventLog, Label
from memplan.profile.replay import PhaseWork, Replay, replay, timeline_from

MIB = 1 << 20
DEFAULT = AllocatorSettings()


def label(module: str = "", operator: str = "") -> Label:
    return Label(module=module, operator=operator)


def inference() -> EventLog:
    """Weights, a prefill with a spike, and a decode that leaves its output behind."""
    log = EventLog()
    log.begin("load")
    for layer in range(2):
        log.allocate(100 * MIB, label(f"model.layers.{layer}.mlp", "load"), "weights")
    log.begin("prefill")
    log.allocate(20 * MIB, label("model.layers.0.attn", "cache"), "kv_cache")
    spike = [log.allocate(60 * MIB, label(f"model.layers.{layer}.mlp", "mm"), "activations") for layer in range(2)]
    for number in spike:
        log.free(number)
    log.begin("decode")
    log.allocate(30 * MIB, label("lm_head", "mm"), "activations")
    return log


def phases(result: Replay) -> dict[str, PhaseMemory]:
    return {phase.phase: phase for phase in result.phases}


def test_each_phase_has_its_level_before_at_its_peak_and_after() -> None:
    prefill = phases(replay(inference(), DEFAULT))["prefill"]
    assert prefill.before.allocated_bytes == 200 * MIB
    assert prefill.peak.allocated_bytes == prefill.peak.reserved_bytes == 340 * MIB
    assert prefill.after.allocated_bytes == 220 * MIB
    assert prefill.after.reserved_bytes == 340 * MIB
    assert prefill.num_allocations == 3


def test_the_peak_is_split_by_category_and_by_module_to_the_byte() -> None:
    for phase in replay(inference(), DEFAULT, module_depth=2).phases:
        assert sum(phase.by_category.values()) == phase.peak.allocated_bytes
        assert sum(phase.by_module.values()) == phase.peak.allocated_bytes
    prefill = phases(replay(inference(), DEFAULT))["prefill"]
    assert prefill.by_category == {"weights": 200 * MIB, "kv_cache": 20 * MIB, "activations": 120 * MIB}
    assert prefill.by_module["model.layers.0"] == 180 * MIB


def test_equal_layers_are_one_of_the_largest_tensors() -> None:
    largest = phases(replay(inference(), DEFAULT))["prefill"].largest
    assert [(tensor.module, tensor.count, tensor.size_bytes // MIB) for tensor in largest] == [
        ("model.layers.*.mlp", 2, 200),
        ("model.layers.*.mlp", 2, 120),
        ("model.layers.0.attn", 1, 20),
    ]


def test_what_a_phase_leaves_behind_is_counted_unless_it_is_meant_to_stay() -> None:
    found = phases(replay(inference(), DEFAULT))
    assert {name: phase.left_bytes // MIB for name, phase in found.items()} == {"load": 0, "prefill": 0, "decode": 30}


def test_what_came_before_the_first_phase_is_there_before_it() -> None:
    log = EventLog()
    log.allocate(64 * MIB, label(), "weights")
    log.begin("decode")
    (phase,) = replay(log, DEFAULT).phases
    assert (phase.before.allocated_bytes, phase.peak.allocated_bytes, phase.num_allocations) == (64 * MIB, 64 * MIB, 0)


def test_iterations_of_a_phase_are_phases_of_their_own() -> None:
    log = EventLog()
    for iteration in range(3):
        log.begin("decode", iteration)
        log.free(log.allocate(MIB, label()))
    assert [phase.iteration for phase in replay(log, DEFAULT).phases] == [0, 1, 2]


def test_a_category_learnt_later_counts_from_the_start() -> None:
    log = inference()
    log.classify(2, "workspace")
    assert phases(replay(log, DEFAULT))["prefill"].by_category["workspace"] == 20 * MIB


def test_running_out_of_memory_is_the_last_phase_and_names_the_tensor() -> None:
    result = replay(inference(), DEFAULT, capacity_bytes=310 * MIB, outside_bytes=10 * MIB)
    assert [phase.phase for phase in result.phases] == ["load", "prefill"]
    out = result.out_of_memory
    assert out is not None
    assert out.phase == "prefill"
    assert (out.wanted_bytes, out.free_bytes, out.capacity_bytes) == (60 * MIB, 20 * MIB, 310 * MIB)
    assert (out.allocated_bytes, out.reserved_bytes) == (280 * MIB, 280 * MIB)
    assert out.tensor is not None
    assert (out.tensor.module, out.tensor.size_bytes) == ("model.layers.1.mlp", 60 * MIB)
    assert result.phases[-1].peak.allocated_bytes == result.phases[-1].after.allocated_bytes == 280 * MIB


def test_a_device_without_a_cache_holds_what_was_asked_for() -> None:
    result = replay(inference(), None)
    log = EventLog()
    log.begin("decode")
    log.free(log.allocate(1000, label()))
    (phase,) = replay(log, None).phases
    assert (phase.peak.allocated_bytes, phase.peak.reserved_bytes, phase.after.reserved_bytes) == (1000, 1000, 0)
    assert all(sample.reserved_bytes == sample.allocated_bytes for sample in result.samples)
    full = replay(inference(), None, capacity_bytes=250 * MIB).out_of_memory
    assert full is not None
    assert full.free_bytes == 30 * MIB


def test_emptying_the_cache_returns_what_a_phase_reserved() -> None:
    log = inference()
    log.empty_cache()
    log.begin("generate")
    log.allocate(512, label())
    assert phases(replay(log, DEFAULT))["generate"].peak.reserved_bytes == (200 + 20 + 60 + 2) * MIB


def test_a_captured_graph_has_memory_of_its_own() -> None:
    log = inference()
    log.begin("capture")
    log.free(log.allocate(60 * MIB, label()))
    log.begin("capture", 1)
    log.free(log.allocate(60 * MIB, label()))
    shared, own = replay(log, DEFAULT), replay(log, DEFAULT, shares_pools=False)
    assert shared.peak_reserved_bytes == (340 + 60) * MIB
    assert own.peak_reserved_bytes == (340 + 120) * MIB


def test_a_tensor_that_another_stream_uses_is_not_used_again_before_that_one_is_done() -> None:
    def log(until: int) -> EventLog:
        made = EventLog()
        made.begin("backward")
        first = made.allocate(64 * MIB, label())
        made.used_until(first, until)
        made.free(first)
        made.allocate(64 * MIB, label())
        return made

    assert replay(log(2), DEFAULT).peak_reserved_bytes == 64 * MIB
    assert replay(log(3), DEFAULT).peak_reserved_bytes == 128 * MIB


def test_work_is_put_beside_the_phase_that_it_was_counted_in() -> None:
    work = Work(flops=10, moved_bytes=5)
    made = timeline_from(inference(), DEFAULT, work={1: PhaseWork(total=work, by_module={"model": work})})
    assert [phase.work for phase in made] == [None, work, None]
    assert made[1].work_by_module == {"model": work}


@pytest.mark.parametrize(
    "spoil",
    [
        lambda log: log.free(0) or log.free(0),
        lambda log: log.order.append(99),
        lambda log: log.order.append(-99),
        lambda log: log.order.insert(0, -1),
    ],
)
def test_a_trace_that_cannot_have_been_is_refused(spoil: Callable[[EventLog], object]) -> None:
    log = inference()
    spoil(log)
    with pytest.raises(CorruptFile):
        replay(log, DEFAULT)


def long_trace(num_phases: int, num_steps: int) -> EventLog:
    log = EventLog()
    for iteration in range(num_phases):
        log.begin("decode", iteration)
        for step in range(num_steps):
            number = log.allocate(
                (1 + (step * 7919 + iteration) % 977) * 4096, label(f"layers.{step % 9}"), "activations"
            )
            if (step + iteration) % 5:
                log.free(number)
    return log


def test_the_curve_is_short_in_order_and_has_every_peak() -> None:
    result = replay(long_trace(20, 500), DEFAULT, num_samples=300)
    assert 100 < len(result.samples) <= 300
    steps = [sample.step for sample in result.samples]
    assert steps == sorted(set(steps))
    heights = {sample.allocated_bytes for sample in result.samples}
    assert all(phase.peak.allocated_bytes in heights for phase in result.phases)
    assert all(sum(sample.by_category.values()) == sample.allocated_bytes for sample in result.samples)
    assert max(sample.reserved_bytes for sample in result.samples) == result.peak_reserved_bytes
    assert replay(long_trace(2, 9), DEFAULT, num_samples=0).samples == ()


@given(
    traces(), st.sampled_from(["", "expandable_segments:True", "max_split_size_mb:40"]), st.sampled_from([None, 300])
)
@settings(max_examples=200)
def test_whatever_the_trace_the_sums_hold(log: EventLog, text: str, capacity: int | None) -> None:
    capacity_bytes = None if capacity is None else capacity * MIB
    result = replay(log, parse_settings(text), capacity_bytes=capacity_bytes)
    for before, after in zip(result.phases, result.phases[1:], strict=False):
        assert before.after == after.before
    for phase in result.phases:
        levels = (phase.before, phase.peak, phase.after)
        assert phase.peak.allocated_bytes == max(level.allocated_bytes for level in levels)
        assert all(level.allocated_bytes <= level.reserved_bytes <= phase.peak_reserved_bytes for level in levels)
        assert all(level.requested_bytes <= level.reserved_bytes for level in levels)
        assert sum(phase.by_category.values()) == sum(phase.by_module.values()) == phase.peak.allocated_bytes
        if capacity_bytes is not None:
            assert phase.peak_reserved_bytes <= capacity_bytes
    assert replay(log, parse_settings(text), capacity_bytes=capacity_bytes) == result


@given(traces())
@settings(max_examples=60)
def test_the_levels_are_those_of_the_allocator_alone(log: EventLog) -> None:
    log.ready_at.clear()
    log.emptied.clear()
    log.marks = [mark for mark in log.marks if mark.phase != "capture"]
    allocator = make_allocator(DEFAULT)
    blocks = []
    for event in log.order:
        if event > 0:
            blocks.append(allocator.allocate(log.sizes[event - 1], log.stream_of[event - 1]))
        else:
            allocator.free(blocks[~event])
    result = replay(log, DEFAULT)
    if result.phases:
        last = result.phases[-1].after
        assert last.allocated_bytes == allocator.allocated_bytes
        assert last.inactive_split_bytes == allocator.inactive_split_bytes
        assert last.reserved_bytes == allocator.reserved_bytes
