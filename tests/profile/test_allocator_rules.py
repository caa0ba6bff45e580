"""The rules of the caching allocator, one by one, with sizes worked out by hand from the published rules."""

from __future__ import annotations

import pytest

from memplan.budget.caching_allocator.blocks import Block, DeviceFull
from memplan.budget.caching_allocator.kinds import make_allocator
from memplan.budget.caching_allocator.settings import parse_settings
from memplan.budget.caching_allocator.simulator import CachingAllocator

MIB = 1 << 20
GIB = 1 << 30


def made(text: str = "", capacity: int | None = None, outside: int = 0) -> CachingAllocator:
    return make_allocator(parse_settings(text), capacity_bytes=capacity, outside_bytes=outside)


@pytest.mark.parametrize(
    ("request_bytes", "block", "segment"),
    [
        (1, 512, 2 * MIB),
        (513, 1024, 2 * MIB),
        (MIB, MIB, 2 * MIB),
        (MIB + 1, MIB + 512, 20 * MIB),
        (10 * MIB - 512, 10 * MIB - 512, 20 * MIB),
        (10 * MIB, 10 * MIB, 10 * MIB),
        # Up to 1 MiB that is left of a large segment stays in its block.
        (10 * MIB + 1, 10 * MIB + 512, 12 * MIB),
        (11 * MIB, 12 * MIB, 12 * MIB),
        (100 * MIB + 1, 100 * MIB + 512, 102 * MIB),
    ],
)
def test_a_request_on_an_empty_device_gets_a_block_in_a_segment_of_its_kind(
    request_bytes: int, block: int, segment: int
) -> None:
    allocator = made()
    assert allocator.allocate(request_bytes).size == block
    assert (allocator.allocated_bytes, allocator.reserved_bytes) == (block, segment)
    assert allocator.inactive_split_bytes == segment - block


@pytest.mark.parametrize(
    ("divisions", "request_bytes", "rounded"),
    [
        (4, 1200 * 1024, 1280 * 1024),  # between 1 and 2 MiB in steps of 256 KiB
        (4, 2048 * 1024, 2048 * 1024),
        (4, 2048, 2048),  # not larger than 512 x 4: steps would be below 512
        (4, 2049, 2560),
        (2, 65 * MIB, 96 * MIB),
        (1, 65 * MIB + 1, 65 * MIB + 512),
    ],
)
def test_requests_are_rounded_to_steps_of_their_power_of_two(divisions: int, request_bytes: int, rounded: int) -> None:
    block = made(f"roundup_power2_divisions:{divisions},expandable_segments:True").allocate(request_bytes)
    assert block.size == rounded


def test_divisions_follow_the_size_of_the_request() -> None:
    allocator = made("roundup_power2_divisions:[64:2,128:4,>:1],expandable_segments:True")
    assert allocator.allocate(65 * MIB).size == 96 * MIB
    assert allocator.allocate(130 * MIB).size == 160 * MIB
    assert allocator.allocate(257 * MIB).size == 257 * MIB


def test_the_smallest_free_block_that_fits_is_used_and_of_equal_ones_the_lowest() -> None:
    allocator = made()
    blocks = [allocator.allocate(size * MIB) for size in (64, 32, 32, 48)]
    keep = [allocator.allocate(100 * MIB)]
    for block in blocks:
        allocator.free(block)
    assert allocator.allocate(31 * MIB).start == blocks[1].start
    assert allocator.allocate(32 * MIB).start == blocks[2].start
    assert allocator.allocate(33 * MIB).start == blocks[3].start
    assert keep[0].size == 100 * MIB
    assert allocator.reserved_bytes == 276 * MIB


def test_small_and_large_requests_never_share_a_segment() -> None:
    allocator = made()
    large = allocator.allocate(18 * MIB)
    allocator.free(large)
    allocator.allocate(512)
    assert allocator.reserved_bytes == 20 * MIB


def test_streams_do_not_use_each_others_free_blocks() -> None:
    allocator = made()
    allocator.free(allocator.allocate(64 * MIB, stream=0))
    allocator.allocate(64 * MIB, stream=1)
    assert allocator.reserved_bytes == 128 * MIB
    allocator.allocate(64 * MIB, stream=0)
    assert allocator.reserved_bytes == 128 * MIB


def test_a_live_block_keeps_its_segment_and_what_is_free_beside_it_is_inactive_split() -> None:
    allocator = made()
    first, second = allocator.allocate(4 * MIB), allocator.allocate(4 * MIB)
    allocator.free(first)
    allocator.empty_cache()
    assert (allocator.reserved_bytes, allocator.inactive_split_bytes) == (20 * MIB, 16 * MIB)
    allocator.free(second)
    assert allocator.inactive_split_bytes == 0
    allocator.empty_cache()
    assert allocator.reserved_bytes == 0


def test_oversize_blocks_are_kept_for_requests_of_their_own_kind() -> None:
    allocator = made("max_split_size_mb:64")
    allocator.free(allocator.allocate(100 * MIB))
    allocator.allocate(50 * MIB)
    assert allocator.reserved_bytes == 150 * MIB
    # Not more than 20 MiB of an oversize block may be given away.
    allocator.allocate(80 * MIB)
    assert allocator.reserved_bytes == 230 * MIB
    assert allocator.allocate(82 * MIB).size == 100 * MIB
    assert allocator.reserved_bytes == 230 * MIB


def test_an_oversize_block_goes_back_to_the_device_before_the_rest_of_the_cache_does() -> None:
    allocator = made("max_split_size_mb:64", capacity=300 * MIB)
    sizes = (40, 70, 100)
    for block in [allocator.allocate(size * MIB) for size in sizes]:
        allocator.free(block)
    allocator.allocate(150 * MIB)
    # The two oversize blocks hold 170 MiB together, which is enough; the small one stays cached.
    assert allocator.reserved_bytes == 190 * MIB
    assert allocator.num_retries == 0


def test_a_full_device_returns_every_unused_segment_before_it_gives_up() -> None:
    allocator = made(capacity=100 * MIB)
    kept, unused = allocator.allocate(30 * MIB), allocator.allocate(60 * MIB)
    allocator.free(unused)
    allocator.allocate(64 * MIB)
    assert allocator.num_retries == 1
    assert allocator.reserved_bytes == 94 * MIB
    assert kept.size == 30 * MIB


def test_out_of_memory_has_the_figures_of_pytorchs_message() -> None:
    allocator = made(capacity=100 * MIB, outside=10 * MIB)
    allocator.allocate(30 * MIB)
    split, beside = allocator.allocate(4 * MIB), allocator.allocate(4 * MIB)
    allocator.free(split)
    with pytest.raises(DeviceFull) as caught:
        allocator.allocate(60 * MIB + 1)
    full = caught.value
    assert beside.size == 4 * MIB
    assert full.wanted_bytes == 62 * MIB  # the segment, not the request
    assert full.free_bytes == 40 * MIB
    assert full.capacity_bytes == 100 * MIB
    assert (full.allocated_bytes, full.reserved_bytes) == (34 * MIB, 50 * MIB)


def test_a_process_may_hold_no_more_than_its_fraction() -> None:
    allocator = made("per_process_memory_fraction:0.5", capacity=100 * MIB)
    allocator.allocate(40 * MIB)
    with pytest.raises(DeviceFull):
        allocator.allocate(20 * MIB)


def test_old_segments_are_collected_above_the_threshold_and_young_ones_stay() -> None:
    settings = "garbage_collection_threshold:0.625,per_process_memory_fraction:0.8"
    allocator = made(settings, capacity=200 * MIB)
    old = allocator.allocate(60 * MIB)
    allocator.free(old)
    for _ in range(8):
        allocator.free(allocator.allocate(22 * MIB))  # each search makes what waits a step older
    young = allocator.allocate(70 * MIB)
    allocator.free(young)
    assert allocator.reserved_bytes == 130 * MIB
    allocator.allocate(80 * MIB)
    # 130 MiB are 30 above the threshold: the mean age is between the two, and only the old one goes.
    assert allocator.reserved_bytes == 150 * MIB


@pytest.mark.parametrize("fraction", ["", ",per_process_memory_fraction:1.0"])
def test_where_a_process_may_hold_everything_nothing_is_collected_as_in_pytorch(fraction: str) -> None:
    allocator = made("garbage_collection_threshold:0.1" + fraction, capacity=200 * MIB)
    allocator.free(allocator.allocate(60 * MIB))
    allocator.allocate(80 * MIB)
    assert allocator.reserved_bytes == 140 * MIB


def test_a_captured_graph_keeps_its_pool_to_itself_until_it_is_gone() -> None:
    allocator = made(capacity=GIB)
    allocator.free(allocator.allocate(64 * MIB))
    allocator.begin_pool(7)
    captured = allocator.allocate(64 * MIB)
    assert allocator.reserved_bytes == 128 * MIB
    allocator.free(captured)
    allocator.end_pool()
    allocator.allocate(64 * MIB)
    allocator.empty_cache()
    assert allocator.reserved_bytes == 128 * MIB
    allocator.release_pool(7)
    allocator.empty_cache()
    assert allocator.reserved_bytes == 64 * MIB


def test_two_captures_share_a_pool_of_one_number() -> None:
    allocator = made()
    for _ in range(2):
        allocator.begin_pool(1)
        allocator.free(allocator.allocate(64 * MIB))
        allocator.end_pool()
    assert allocator.reserved_bytes == 64 * MIB


def test_a_block_that_another_stream_uses_waits_and_is_fetched_when_memory_is_short() -> None:
    allocator = made(capacity=100 * MIB)
    waiting = allocator.allocate(60 * MIB)
    allocator.free_later(waiting, ready=50)
    assert (allocator.allocated_bytes, allocator.reserved_bytes) == (0, 60 * MIB)
    allocator.advance(10)
    allocator.allocate(30 * MIB)
    assert allocator.reserved_bytes == 90 * MIB
    # Nothing else is left: the allocator waits for the stream, and the segment can go.
    allocator.allocate(50 * MIB)
    assert allocator.reserved_bytes == 80 * MIB


def test_during_a_capture_nothing_is_asked_of_other_streams() -> None:
    allocator = made()
    allocator.free_later(allocator.allocate(60 * MIB), ready=1)
    allocator.begin_pool(0)
    allocator.advance(5)
    assert len(waiting_blocks(allocator)) == 1
    allocator.end_pool()
    allocator.advance(6)
    assert waiting_blocks(allocator) == []


def waiting_blocks(allocator: CachingAllocator) -> list[Block]:
    return [block for segment in allocator.segments() for block in segment if not block.is_free]


def test_expandable_segments_grow_by_pages_behind_what_is_there() -> None:
    allocator = made("expandable_segments:True", capacity=GIB)
    first, second = allocator.allocate(30 * MIB), allocator.allocate(30 * MIB)
    assert (allocator.reserved_bytes, allocator.num_segments) == (60 * MIB, 1)
    assert second.start == first.start + 30 * MIB
    allocator.allocate(512)
    assert (allocator.reserved_bytes, allocator.num_segments) == (62 * MIB, 2)


def test_expandable_segments_give_no_block_away_whole() -> None:
    assert made("expandable_segments:True").allocate(11 * MIB).size == 11 * MIB


def test_a_slightly_larger_request_grows_the_end_of_an_expandable_segment() -> None:
    plain, growing = made(), made("expandable_segments:True")
    for allocator in (plain, growing):
        for size in range(100, 200, 10):
            allocator.free(allocator.allocate(size * MIB))
    assert plain.reserved_bytes == sum(range(100, 200, 10)) * MIB
    assert growing.reserved_bytes == 200 * MIB


def test_pages_that_hold_nothing_are_unmapped_beside_live_ones() -> None:
    allocator = made("expandable_segments:True", capacity=200 * MIB)
    blocks = [allocator.allocate(40 * MIB) for _ in range(4)]
    allocator.free(blocks[1])
    allocator.allocate(70 * MIB)  # two pages of the hole move behind the end
    assert allocator.reserved_bytes == 200 * MIB
    assert allocator.num_retries == 1
    assert allocator.allocated_bytes == 190 * MIB


def test_free_parts_of_shared_pages_are_the_fragmentation_of_expandable_segments() -> None:
    allocator = made("expandable_segments:True")
    blocks = [allocator.allocate(5 * MIB) for _ in range(8)]
    for block in blocks[1:4]:
        allocator.free(block)
    assert allocator.inactive_split_bytes == 15 * MIB
    for block in blocks[4:]:
        allocator.free(block)
    # The second page is empty now and can be returned; the first is held by the first block.
    assert allocator.inactive_split_bytes == 15 * MIB
    allocator.empty_cache()
    assert allocator.reserved_bytes == 20 * MIB


def test_a_request_that_no_page_is_left_for_leaves_no_segment_behind() -> None:
    allocator = made("expandable_segments:True", capacity=200 * MIB)
    for _ in range(10):
        allocator.allocate(20 * MIB)
    with pytest.raises(DeviceFull):
        allocator.allocate(50 * MIB)
    assert (allocator.num_segments, allocator.reserved_bytes) == (1, 200 * MIB)
