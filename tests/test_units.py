"""Sizes and counts as people write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memplan.errors import UsageError
from memplan.units import GIB, ceil_div, format_count, format_gib, parse_count, parse_size_bytes, round_up


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("80GB", 80 * 10**9),
        ("80G", 80 * 10**9),
        ("80GiB", 80 * GIB),
        ("80Gi", 80 * GIB),
        ("79.2GiB", int(79.2 * GIB)),
        ("512 MiB", 512 * 1024**2),
        ("85899345920", 85899345920),
        ("1_000mb", 10**9),
    ],
)
def test_decimal_and_binary_units_are_kept_apart(text: str, size_bytes: int) -> None:
    assert parse_size_bytes(text) == size_bytes


@pytest.mark.parametrize("text", ["", "GiB", "-1GiB", "0GB", "12 parsecs", "1e5GB", "nan", "20", "999999999TiB"])
def test_a_size_that_is_none_is_refused_with_a_remedy(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_size_bytes(text, what="--gpu-memory")
    assert "--gpu-memory" in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(
    ("text", "count"), [("8k", 8000), ("8K", 8192), ("8192", 8192), ("1m", 10**6), ("1M", 1 << 20), ("1.5k", 1500)]
)
def test_counts_follow_vllm(text: str, count: int) -> None:
    assert parse_count(text) == count


@pytest.mark.parametrize("text", ["0", "-5", "1.5", "8kk", "k", "", "8 GB"])
def test_a_count_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_count(text)


@given(st.integers(min_value=0, max_value=1 << 60), st.integers(min_value=1, max_value=1 << 30))
def test_rounding_up_reaches_the_next_multiple(number: int, multiple: int) -> None:
    rounded = round_up(number, multiple)
    assert rounded % multiple == 0
    assert 0 <= rounded - number < multiple
    assert ceil_div(number, multiple) * multiple == rounded


def test_sizes_and_counts_are_said_with_their_unit() -> None:
    assert format_gib(GIB * 5 // 4) == "1.25 GiB"
    assert format_gib(300 * 1024) == "0.3 MiB"
    assert format_count(8_030_261_248) == "8.03 B"
    assert format_count(124_439_808) == "124.4 M"
    assert format_count(131_072) == "131,072"
