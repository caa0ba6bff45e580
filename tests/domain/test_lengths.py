"""How long requests are: the grammar of an option, and distributions whose moments and quantiles agree."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memplan.domain.lengths import (
    FixedLength,
    Lengths,
    LogNormalLengths,
    ObservedLengths,
    UniformLengths,
    observed,
    parse_lengths,
    scaled,
    spread_of,
    strata_of,
)
from memplan.errors import UsageError

LONGEST = 131_072


def read(text: str, longest: int = LONGEST) -> Lengths:
    return parse_lengths(text, longest=longest, what="--prompt-tokens")


def test_a_number_is_all_alike() -> None:
    assert read("8K") == FixedLength(tokens=8192)
    assert spread_of(read("8K")) == 1.0


def test_a_range_is_uniform() -> None:
    found = read("200..2000")
    assert found == UniformLengths(low=200, high=2000)
    assert (found.mean, found.quantile(0.5), found.longest) == (1100, 1100, 2000)


@pytest.mark.parametrize(
    ("text", "mean", "part", "tokens"),
    [
        ("mean:1200,p95:4000", 1200, 0.95, 4000),
        ("p95=4k, mean=1.2k", 1200, 0.95, 4000),
        ("mean:1200,p95:6000,max:16K", 1200, 0.95, 6000),
        ("mean:50,p90:80,min:10,max:100", 50, 0.9, 80),
        ("MEAN:500,P50:400", 500, 0.5, 400),
    ],
)
def test_a_mean_and_a_quantile_are_both_kept(text: str, mean: float, part: float, tokens: float) -> None:
    found = read(text)
    assert found.mean == pytest.approx(mean, rel=1e-6)
    assert found.quantile(part) == pytest.approx(tokens, rel=1e-6)


def test_two_quantiles_are_both_kept() -> None:
    found = read("p50:800,p99.9:9000")
    assert found.quantile(0.5) == pytest.approx(800)
    assert found.quantile(0.999) == pytest.approx(9000)


def test_a_mean_and_a_standard_deviation_are_both_kept() -> None:
    found = read("mean:500,std:400")
    assert found.mean == pytest.approx(500, rel=1e-3)
    assert math.sqrt(found.square_mean - found.mean**2) == pytest.approx(400, rel=1e-2)


def test_nothing_is_longer_than_a_request_may_be() -> None:
    assert read("mean:1200,p95:4000", longest=8192).longest == 8192
    assert read("200..20000", longest=8192) == UniformLengths(low=200, high=8192)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a --prompt-tokens"),
        ("many", "not a --prompt-tokens"),
        ("mean:1200", "states 1 of the two"),
        ("mean:1200,p95:4000,p99:9000", "states 3 of the two"),
        ("mean:1200,p95:6000", "no log-normal up to 131,072 tokens"),
        ("std:3,p95:6000", "a std without a mean"),
        ("p50:900,p95:100", "quantiles fall"),
        ("p0:900,p95:100", "not a quantile"),
        ("mean:1200,mean:1300", "not a --prompt-tokens"),
        ("median:1200,p95:4000", "not a --prompt-tokens"),
        ("2000..200", "from 2,000 to 200"),
        ("mean:100,p95:200,min:90,max:10", "from 90 to 10"),
        ("mean:1.5,p95:200", "not a whole"),
    ],
)
def test_what_does_not_read_is_one_clear_line(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as found:
        read(text)
    assert found.value.hint
    assert "\n" not in str(found.value.message)


def test_observed_lengths_are_cut_and_sorted() -> None:
    found = observed([300, 0, 100, 9000, 200], longest=1000)
    assert found == ObservedLengths(tokens=(100, 200, 300, 1000))
    assert (found.mean, found.quantile(0.5), found.quantile(0.95)) == (400, 200, 1000)
    with pytest.raises(UsageError, match="no length above zero"):
        observed([0, -3], longest=10)


SHAPES = st.one_of(
    st.builds(FixedLength, tokens=st.integers(1, 9000)),
    st.builds(lambda low, more: UniformLengths(low=low, high=low + more), st.integers(1, 900), st.integers(0, 9000)),
    st.builds(
        lambda mean, std: LogNormalLengths(log_mean=mean, log_std=std, low=1, high=32_768),
        st.floats(2, 9),
        st.floats(0, 2),
    ),
    st.builds(lambda seen: observed(seen, longest=32_768), st.lists(st.integers(1, 40_000), min_size=1, max_size=40)),
)


@settings(max_examples=200)
@given(lengths=SHAPES, count=st.integers(1, 12))
def test_strata_have_the_mean_of_all(lengths: Lengths, count: int) -> None:
    strata = strata_of(lengths, count)
    if not isinstance(lengths, ObservedLengths) or len(lengths.tokens) % count == 0:
        assert sum(strata) / len(strata) == pytest.approx(lengths.mean, rel=1e-6)
    assert list(strata) == sorted(strata)


@settings(max_examples=200)
@given(lengths=SHAPES, part=st.floats(0.01, 0.98))
def test_quantiles_rise_and_moments_agree_with_them(lengths: Lengths, part: float) -> None:
    assert lengths.quantile(part) <= lengths.quantile(part + 0.01) <= lengths.longest
    assert spread_of(lengths) >= 1 - 1e-9
    drawn = [lengths.quantile((place + 0.5) / 2000) for place in range(2000)]
    assert sum(drawn) / 2000 == pytest.approx(lengths.mean, rel=0.05, abs=1)


def test_scaled_lengths_keep_their_shape() -> None:
    for text in ("8K", "200..2000", "mean:1200,p95:4000"):
        lengths = read(text)
        assert scaled(lengths, 0.5).mean == pytest.approx(lengths.mean / 2, rel=0.01)
    assert scaled(observed([10, 20], longest=99), 0.5) == ObservedLengths(tokens=(5, 10))
