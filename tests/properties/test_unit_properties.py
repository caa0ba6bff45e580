"""Sizes and counts survive being written and read again."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from memplan.errors import UsageError
from memplan.units import GIB, KIB, ceil_div, format_count, format_gib, parse_count, parse_size_bytes, round_up

UNITS = {"B": 1, "KiB": KIB, "MiB": KIB**2, "GiB": KIB**3, "kB": 1000, "MB": 1000**2, "GB": 1000**3, "TB": 1000**4}
SIZES = st.integers(1 << 20, (1 << 60) - 1)


@given(SIZES)
def test_a_number_of_bytes_is_read_as_it_is(size_bytes: int) -> None:
    assert parse_size_bytes(f"{size_bytes}B") == size_bytes


@given(st.integers(1, 1_000_000), st.sampled_from(sorted(UNITS)), st.sampled_from(["", " ", "  "]))
def test_a_whole_number_of_a_unit_is_exact(number: int, unit: str, space: str) -> None:
    assert parse_size_bytes(f"{number}{space}{unit}") == number * UNITS[unit]
    assert parse_size_bytes(f"{number:,}{space}{unit.lower()}") == number * UNITS[unit]


@given(st.integers(GIB // 4, 1 << 50))
def test_a_size_that_is_printed_reads_back_to_two_digits(size_bytes: int) -> None:
    assert abs(parse_size_bytes(format_gib(size_bytes)) - size_bytes) <= 0.0051 * GIB


@given(st.integers(KIB**2, 1 << 50))
def test_a_size_that_is_printed_reads_back_to_one_part_in_twenty(size_bytes: int) -> None:
    assert abs(parse_size_bytes(format_gib(size_bytes)) - size_bytes) <= 0.05 * size_bytes


@given(st.integers(1, 1 << 50))
def test_a_count_is_read_as_it_is_written(number: int) -> None:
    assert parse_count(str(number)) == parse_count(f"{number:,}") == parse_count(f"{number:_}") == number


@given(st.integers(1, 1_000_000))
def test_small_letters_count_in_thousands_and_large_ones_in_1024s(number: int) -> None:
    assert parse_count(f"{number}k") == number * 1000
    assert parse_count(f"{number}K") == number * 1024
    assert parse_count(f"{number}m") == number * 1000**2
    assert parse_count(f"{number}M") == number * 1024**2


@given(st.text(max_size=20))
def test_any_text_is_a_size_or_refused_with_a_hint(text: str) -> None:
    for parse in (parse_size_bytes, parse_count):
        try:
            assert 0 < parse(text) < 1 << 60
        except UsageError as error:
            if not error.hint:
                raise


@given(st.integers(0, 1 << 50), st.integers(1, 1 << 20))
def test_rounding_up_is_the_next_multiple(number: int, multiple: int) -> None:
    rounded = round_up(number, multiple)
    assert rounded % multiple == 0
    assert number <= rounded < number + multiple
    assert rounded == multiple * ceil_div(number, multiple)


@given(st.integers(0, 1 << 50))
def test_a_count_that_is_printed_names_its_size(number: int) -> None:
    value, _, unit = format_count(number).partition(" ")
    assert abs(float(value.replace(",", "")) * {"": 1, "M": 1e6, "B": 1e9, "T": 1e12}[unit] - number) <= 0.006 * number
