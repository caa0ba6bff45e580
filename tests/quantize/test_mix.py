"""The mix of widths: never over the size that was asked, never beaten by another mix of its own hulls."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memplan.errors import DoesNotFit
from memplan.quantize.mix import Unit, choose, fitting, smallest
from memplan.quantize.width import Width

WIDTHS = (Width(4, 128), Width(4, 32), Width(8, 0), Width(16))


def unit(number: int, num_out: int, damage: tuple[float, ...]) -> Unit:
    """A unit of one layer, whose damage falls from width to width."""
    parts = sorted(damage, reverse=True)
    return Unit(
        modules=(f"blocks.{number}.layer",),
        shapes=((num_out, 256),),
        damage=dict(zip(WIDTHS, (*parts, 0.0), strict=True)),
    )


UNITS = st.lists(
    st.tuples(st.sampled_from([128, 256, 1024]), st.tuples(*[st.floats(1e-6, 1.0)] * 3)), min_size=1, max_size=4
).map(lambda found: [unit(number, *each) for number, each in enumerate(found)])


def taken(units: list[Unit], widths: list[Width]) -> int:
    return sum(width.stored_bytes(each.shapes) for each, width in zip(units, widths, strict=True))


def harm(units: list[Unit], widths: list[Width]) -> float:
    return sum(each.damage[width] for each, width in zip(units, widths, strict=True))


@settings(max_examples=60)
@given(units=UNITS, part=st.floats(0, 1.1))
def test_a_mix_keeps_to_its_bytes_and_is_off_the_best_by_one_upgrade_at_most(units: list[Unit], part: float) -> None:
    least, most = taken(units, smallest(units)), taken(units, [Width(16)] * len(units))
    spare = int(part * (most - least))
    found = choose(units, spare)
    assert taken(units, found) - least <= spare
    every = [list(widths) for widths in product(WIDTHS, repeat=len(units))]
    best = min(harm(units, widths) for widths in every if taken(units, widths) - least <= spare)
    largest_step = max(each.damage[width] for each in units for width in WIDTHS)
    assert best <= harm(units, found) <= best + largest_step + 1e-9


def test_room_for_everything_leaves_everything_alone() -> None:
    units = [unit(number, 128, (0.5, 0.1, 0.01)) for number in range(3)]
    assert choose(units, 1 << 40) == [Width(16)] * 3
    assert choose(units, 0) == smallest(units) == [Width(4, 128)] * 3


def test_what_suffers_most_gets_more_bits_first() -> None:
    units = [unit(0, 128, (0.01, 0.005, 0.0001)), unit(1, 128, (0.5, 0.2, 0.001))]
    spare = Width(8).stored_bytes(units[1].shapes) - Width(4, 128).stored_bytes(units[1].shapes)
    assert choose(units, spare) == [Width(4, 128), Width(8)]


def test_the_planners_figure_is_kept_though_it_is_larger_than_the_files() -> None:
    units = [unit(number, 128, (0.5, 0.1, 0.01)) for number in range(4)]

    def loaded(widths: object) -> int:
        return 10_000 + int(1.1 * taken(units, widths))  # type: ignore[arg-type]

    target = (loaded(smallest(units)) + loaded([Width(16)] * 4)) // 2
    widths = fitting(units, target, loaded)
    assert loaded(widths) <= target
    assert harm(units, widths) < harm(units, smallest(units))
    with pytest.raises(DoesNotFit, match="smallest mix"):
        fitting(units, 10_000, loaded)
