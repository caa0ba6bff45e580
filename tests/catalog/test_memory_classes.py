"""A size of memory and the card that it means."""

import pytest

from memplan.catalog.gpus import find_gpu
from memplan.catalog.memory_classes import _CLASSES, likely_card
from memplan.units import GIB


@pytest.mark.parametrize(("low", "high", "name"), _CLASSES)
def test_a_class_holds_totals_that_were_seen_of_its_card(low: float, high: float, name: str) -> None:
    gpu = find_gpu(name)
    # Some cards share their usual total with a commoner one: the class is then the part that is theirs alone.
    assert low * GIB <= gpu.visible_high_bytes
    assert high * GIB >= gpu.visible_low_bytes


def test_a_total_that_no_card_has_means_none() -> None:
    assert likely_card(1000 * GIB) is None
    assert likely_card(int(79.1 * GIB)) == "h100"
    assert likely_card(int(139.72 * GIB)) == "h200"
