"""Published comparisons, simulated in their settings: the benchmarks' own functions on fewer requests."""

from __future__ import annotations

import sys
from array import array
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks" / "simulate"))

from continuous_batching import anyscale, ways
from paged_attention import FULL_RATES, PUBLISHED_HELD, held_part, served

from memplan.domain.simulation import Traffic
from memplan.simulate.run import simulate


@pytest.mark.parametrize("way", ["longest", "power", "exact"])
def test_contiguous_caches_waste_60_to_80_percent_as_published(way: str) -> None:
    held = held_part(served(way, "ShareGPT", FULL_RATES["ShareGPT"], 300))
    assert held == pytest.approx(PUBLISHED_HELD[way] / 100, abs=0.05)


def test_pages_waste_less_than_4_percent() -> None:
    assert held_part(served("paged", "ShareGPT", FULL_RATES["ShareGPT"], 300)) > 0.96


def test_continuous_batching_serves_twice_what_static_batching_does() -> None:
    whole = anyscale(1536)
    traffic = Traffic(
        arrivals=array("d", whole.arrivals[:300]),
        prompt_tokens=whole.prompt_tokens[:300],
        output_tokens=whole.output_tokens[:300],
    )
    found = {way: simulate(settings, traffic).output_tokens_per_s for way, settings in ways().items()}
    assert found["continuous"] > 2 * found["static"]
    assert found["paged"] > 4 * found["static"]
