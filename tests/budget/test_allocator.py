"""The allocator's rounding, against what vLLM printed for real models and against PyTorch's published rules."""

from hypothesis import given
from hypothesis import strategies as st

from memplan.budget.allocator import allocate, allocated_bytes
from memplan.units import GIB, MIB

QWEN25_7B_LAYER = [4608 * 3584 * 2, 4608 * 2, 3584 * 3584 * 2, 2 * 18944 * 3584 * 2, 18944 * 3584 * 2, 7168, 7168]


def test_qwen25_7b_weighs_what_vllm_printed() -> None:
    table = 152064 * 3584 * 2
    rotary = 32768 * 128 * 2
    requests = [table, *QWEN25_7B_LAYER * 28, 3584 * 2, table, rotary]
    assert round(allocated_bytes(requests) / GIB, 4) == 14.2487


def test_a_tensor_of_whole_segments_costs_nothing_extra() -> None:
    assert allocated_bytes([224 * MIB, 48 * MIB, 32 * MIB]) == 304 * MIB


def test_a_large_block_keeps_a_remainder_of_up_to_one_mebibyte() -> None:
    assert allocated_bytes([12 * MIB + MIB // 2]) == 12 * MIB + MIB // 2
    assert allocated_bytes([13 * MIB]) == 14 * MIB
    assert allocated_bytes([13 * MIB - 512]) == 13 * MIB - 512


def test_a_split_limit_keeps_large_blocks_whole() -> None:
    assert allocated_bytes([25 * MIB - 2 * MIB + 512], max_split_bytes=20 * MIB) == 24 * MIB


def test_small_requests_are_rounded_to_512_bytes() -> None:
    assert allocated_bytes([1, 513, 0]) == 512 + 1024


@given(st.lists(st.integers(min_value=0, max_value=64 * MIB), max_size=60))
def test_the_allocator_never_gives_less_than_asked_and_wastes_at_most_a_mebibyte_per_block(sizes: list[int]) -> None:
    total = allocated_bytes(sizes)
    assert sum(sizes) <= total <= sum(sizes) + len(sizes) * (MIB + 512)


def test_the_device_is_short_of_whole_segments() -> None:
    held = allocate((8 * MIB, 8 * MIB, 4 * MIB, 13 * MIB, 512))
    assert held.allocated_bytes == 34 * MIB + 512
    assert held.reserved_bytes == 20 * MIB + 14 * MIB + 2 * MIB


@given(st.lists(st.integers(min_value=0, max_value=64 * MIB), max_size=60))
def test_segments_hold_what_is_allocated(sizes: list[int]) -> None:
    held = allocate(tuple(sizes))
    assert held.reserved_bytes >= held.allocated_bytes
