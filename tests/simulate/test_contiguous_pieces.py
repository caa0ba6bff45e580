"""Pieces of a contiguous cache: as large as is reserved, rounded and placed as a buddy allocator has them."""

from __future__ import annotations

from array import array

import pytest

from memplan.domain.simulation import CacheGroup, SimulationResult, SimulationSettings, Traffic
from memplan.records import replace
from memplan.simulate.run import simulate

SETTINGS = SimulationSettings(
    num_blocks=64,
    groups=(CacheGroup(block_tokens=16),),
    context_tokens=512,
    allocation="contiguous",
    prefix_caching=False,
    max_num_seqs=16,
)


def served(settings: SimulationSettings) -> SimulationResult:
    """Twelve requests of 100 tokens and 60 more, all there at once."""
    traffic = Traffic(
        arrivals=array("d", bytes(8 * 12)), prompt_tokens=array("q", [100] * 12), output_tokens=array("q", [60] * 12)
    )
    return simulate(settings, traffic)


@pytest.mark.parametrize(
    ("reserve", "pieces", "at_once"),
    [
        ("longest", "first-fit", 2),  # 512 of 1,024
        ("power", "first-fit", 6),  # 100 + 64
        ("exact", "first-fit", 6),  # 100 + 60
        ("power", "buddy", 4),  # 164 rounded up to 256
        ("exact", "buddy", 4),  # 160 likewise
    ],
)
def test_as_many_requests_run_at_once_as_pieces_have_room(reserve: str, pieces: str, at_once: int) -> None:
    result = served(replace(SETTINGS, reserve=reserve, pieces=pieces))  # type: ignore[arg-type]
    assert result.counts.most_running == at_once
    assert result.counts.finished == 12


def test_pages_hold_more_requests_and_waste_less_than_any_contiguous_cache() -> None:
    paged = served(replace(SETTINGS, allocation="paged"))
    exact = served(replace(SETTINGS, reserve="exact"))
    assert paged.counts.most_running > exact.counts.most_running
    assert paged.waste.internal + paged.waste.reserved < exact.waste.internal + exact.waste.reserved
