"""Jumping over equal steps gives what taking them one by one gives, to the last picosecond."""

from __future__ import annotations

from dataclasses import fields

from hypothesis import given
from hypothesis import settings as trials
from traffics import settings, traffics

from memplan.domain.simulation import SimulationSettings, Traffic
from memplan.simulate.run import simulate


@trials(max_examples=300)
@given(settings(plain=True), traffics())
def test_jumping_gives_the_same_as_every_step_one_by_one(settings: SimulationSettings, traffic: Traffic) -> None:
    jumped, stepped = simulate(settings, traffic), simulate(settings, traffic, stepwise=True)
    for each in fields(stepped):
        assert getattr(jumped, each.name) == getattr(stepped, each.name), each.name
