"""Corrections: the mean of what profiles found, in an interval that shrinks with them and never leaves one out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memplan.domain.correction import Correction

FACTORS = st.lists(st.floats(min_value=0.1, max_value=10), min_size=1, max_size=20)


def correction(*factors: float) -> Correction:
    return Correction(term="activations", phase="prefill", attention="sdpa", factors=factors, is_measured=True)


@given(factors=FACTORS, share=st.floats(min_value=0, max_value=1))
def test_every_profile_lies_in_the_interval(factors: list[float], share: float) -> None:
    found = correction(*factors)
    half = found.half_width(share) * found.factor
    assert all(found.factor - half - 1e-9 <= each <= found.factor + half + 1e-9 for each in factors)


def test_one_profile_narrows_the_estimates_own_interval_and_more_narrow_it_further() -> None:
    widths = [correction(*[1.2] * number).half_width(0.05) for number in (1, 3, 8)]
    assert widths == pytest.approx([0.05 / 2**0.5, 0.025, 0.05 / 3])
    assert correction(1.0, 1.2).factor == pytest.approx(1.1)
