"""Whatever is asked of the simulated allocator, in whatever order, under whatever settings."""

from __future__ import annotations

from typing import Any

import pytest
from allocator_checks import check
from hypothesis import given, settings
from hypothesis import strategies as st

from memplan.budget.allocator import allocate
from memplan.budget.caching import CachingAllocator as PlainAllocator
from memplan.budget.caching_allocator.blocks import Block, DeviceFull
from memplan.budget.caching_allocator.kinds import make_allocator
from memplan.budget.caching_allocator.settings import parse_settings
from memplan.budget.caching_allocator.simulator import CachingAllocator

MIB = 1 << 20
SIZES = st.one_of(
    st.integers(1, 4096),
    st.integers(1, 2 * MIB),
    st.integers(1 * MIB, 24 * MIB),
    st.integers(1, 300 * MIB),
    st.sampled_from([512, 513, MIB, MIB + 1, 10 * MIB - 512, 10 * MIB, 20 * MIB, 64 * MIB, 128 * MIB]),
)
# What to do: allocate so much, free the block so far back among the live ones, or (0) empty the cache.
STEPS = st.lists(st.one_of(SIZES, SIZES, st.integers(-60, -1), st.integers(-4, 0)), max_size=120)
SETTINGS = st.sampled_from(
    [
        "",
        "expandable_segments:True",
        "max_split_size_mb:32",
        "max_split_size_mb:64,max_non_split_rounding_mb:40",
        "roundup_power2_divisions:4",
        "roundup_power2_divisions:[1:8,64:2,>:1]",
        "garbage_collection_threshold:0.5,per_process_memory_fraction:0.9",
        "expandable_segments:True,max_split_size_mb:32,roundup_power2_divisions:8",
        "large_segment_size_mb:40",
    ]
)


def run(allocator: CachingAllocator, steps: list[int], *, checked: bool = True) -> list[Block]:
    """Do the steps, checking after each; a request that finds the device full is left out."""
    live: list[Block] = []
    for step in steps:
        if step < 0 and live:
            allocator.free(live.pop(max(len(live) + step, 0)))
        elif step > 0:
            try:
                live.append(allocator.allocate(step))
            except DeviceFull:
                continue
        elif step == 0:
            allocator.empty_cache()
        if checked:
            check(allocator, live)
    return live


@given(STEPS, SETTINGS, st.sampled_from([None, 1 << 30, 300 * MIB]))
@settings(max_examples=250)
def test_blocks_never_overlap_and_levels_are_the_sums_of_their_blocks(
    steps: list[int], text: str, capacity: int | None
) -> None:
    if "large_segment" in text and capacity is not None:
        capacity = 2 << 30
    run(make_allocator(parse_settings(text), capacity_bytes=capacity), steps)


@given(STEPS, SETTINGS)
@settings(max_examples=120)
def test_freeing_everything_merges_every_segment_and_emptying_the_cache_returns_it(steps: list[int], text: str) -> None:
    allocator = make_allocator(parse_settings(text), capacity_bytes=1 << 34)
    for block in run(allocator, steps, checked=False):
        allocator.free(block)
    check(allocator, [])
    assert all(len(segment) == 1 for segment in allocator.segments())
    assert allocator.inactive_split_bytes == 0
    allocator.empty_cache()
    assert (allocator.reserved_bytes, allocator.num_segments, list(allocator.segments())) == (0, 0, [])


@given(STEPS, SETTINGS)
@settings(max_examples=60)
def test_the_same_requests_get_the_same_answer(steps: list[int], text: str) -> None:
    def addresses() -> list[tuple[int, int]]:
        allocator = make_allocator(parse_settings(text), capacity_bytes=1 << 32)
        return [(block.start, block.size) for block in run(allocator, steps, checked=False)]

    assert addresses() == addresses()


@given(STEPS)
@settings(max_examples=150)
def test_with_default_settings_it_agrees_with_the_allocator_that_estimates_use(steps: list[int]) -> None:
    full, plain = make_allocator(parse_settings("")), PlainAllocator()
    live: list[tuple[Block, Any]] = []
    for step in steps:
        if step < 0 and live:
            mine, other = live.pop(max(len(live) + step, 0))
            full.free(mine)
            plain.free(other)
        elif step > 0:
            live.append((full.allocate(step), plain.allocate(step)))
        # The other one has no way to empty its cache: such steps are left out here.
        assert (full.allocated_bytes, full.reserved_bytes) == (plain.allocated_bytes, plain.reserved_bytes)


@given(st.lists(SIZES, max_size=60))
@settings(max_examples=100)
def test_what_is_never_freed_is_laid_out_as_weights_are_in_an_estimate(sizes: list[int]) -> None:
    allocator = make_allocator(parse_settings(""))
    run(allocator, sizes, checked=False)
    expected = allocate(tuple(sizes))
    assert (allocator.allocated_bytes, allocator.reserved_bytes) == (
        expected.allocated_bytes,
        expected.reserved_bytes,
    )


@given(STEPS)
@settings(max_examples=120)
def test_expandable_segments_hold_only_pages_with_something_in_them_once_emptied(steps: list[int]) -> None:
    allocator = make_allocator(parse_settings("expandable_segments:True"))
    live = run(allocator, steps, checked=False)
    allocator.empty_cache()
    check(allocator, live)
    pages = sum(block.size + 2 * (2 if block.pool.is_small else 20) * MIB for block in live)
    assert allocator.reserved_bytes <= pages
    assert allocator.reserved_bytes - allocator.allocated_bytes == allocator.inactive_split_bytes


@given(st.lists(st.sampled_from([20 * MIB, 30 * MIB, 50 * MIB, MIB, -1, -2, -3, 0, 0]), max_size=40))
@settings(max_examples=150)
def test_pages_come_and_go_without_a_trace(steps: list[int]) -> None:
    allocator = make_allocator(parse_settings("expandable_segments:True"), capacity_bytes=200 * MIB)
    live = run(allocator, steps)
    for block in live:
        allocator.free(block)
    allocator.empty_cache()
    assert (allocator.reserved_bytes, allocator.num_segments) == (0, 0)
    whole = allocator.allocate(200 * MIB)
    check(allocator, [whole])


@given(st.lists(SIZES, max_size=60))
@settings(max_examples=80)
def test_expandable_segments_waste_less_than_a_page_of_each_pool_while_nothing_is_freed(sizes: list[int]) -> None:
    allocator = make_allocator(parse_settings("expandable_segments:True"))
    run(allocator, sizes)
    assert allocator.reserved_bytes - allocator.allocated_bytes < 22 * MIB
    assert allocator.reserved_bytes <= allocate(tuple(sizes)).reserved_bytes + 20 * MIB


@given(STEPS, st.sampled_from(["", "expandable_segments:True", "max_split_size_mb:32"]))
@settings(max_examples=60)
def test_a_device_with_less_room_never_reserves_more(steps: list[int], text: str) -> None:
    allocator = make_allocator(parse_settings(text), capacity_bytes=300 * MIB, outside_bytes=100 * MIB)
    run(allocator, steps)
    assert allocator.peak_reserved_bytes <= 200 * MIB


@pytest.mark.parametrize("text", ["", "expandable_segments:True"])
@given(steps=st.lists(st.tuples(SIZES, st.integers(0, 2), st.integers(0, 8), st.booleans()), max_size=60))
@settings(max_examples=60)
def test_blocks_that_other_streams_still_use_are_neither_live_nor_free(
    text: str, steps: list[tuple[int, int, int, bool]]
) -> None:
    allocator = make_allocator(parse_settings(text), capacity_bytes=1 << 40)
    live: list[Block] = []
    waiting: list[tuple[int, Block]] = []
    for now, (size, stream, delay, frees) in enumerate(steps):
        allocator.advance(now)
        waiting = [entry for entry in waiting if entry[0] > now]
        if frees and live:
            block = live.pop(0)
            if delay:
                allocator.free_later(block, now + delay)
                waiting.append((now + delay, block))
            else:
                allocator.free(block)
        else:
            block = allocator.allocate(size, stream)
            assert block.pool.stream == stream
            live.append(block)
        check(allocator, live, [block for _, block in waiting])
