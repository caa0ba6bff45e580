"""How far a profile is: layer by layer, phase by phase, never back and never beyond its end."""

from __future__ import annotations

from itertools import pairwise

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers", minversion="5.0")

from memplan.profile.device_memory import RehearsedMemory
from memplan.profile.measured import measure
from memplan.profile.pace import Pace
from memplan.profile.request import INFERENCE, TRAINING, ProfileRequest
from memplan.profile.run import profile_model

Told = list[tuple[int, int, str]]


def request(**options: object) -> ProfileRequest:
    asked = {"model": "demo", "prompt_tokens": 32, "output_tokens": 12, "offline": True}
    return ProfileRequest(**{**asked, **options})  # type: ignore[arg-type]


def told_of(asked: ProfileRequest) -> Told:
    told: Told = []
    pace = Pace(asked, lambda done, total, name: told.append((done, total, name)))
    if asked.device == "cuda":
        measure(asked, RehearsedMemory(), pace)
    else:
        profile_model(asked, pace)
    pace.look()
    return told


@pytest.mark.parametrize("device", ["simulated", "cpu", "cuda"])
@pytest.mark.parametrize("phases", [INFERENCE, TRAINING])
def test_every_phase_is_told_on_the_way_from_nothing_to_all(device: str, phases: tuple[str, ...]) -> None:
    told = told_of(request(device=device, phases=phases, iterations=2))
    names = dict.fromkeys(name for _, _, name in told)
    assert [name for name in names if name in phases] == list(phases[1:])
    assert "findings" in names
    assert told[0][0] == 0
    assert all(before <= after for (before, _, _), (after, _, _) in pairwise(told))
    assert all(done <= total for done, total, _ in told)
    assert len({total for _, total, _ in told}) == 1
    assert told[-1][0] >= 0.6 * told[-1][1]


def test_layers_are_counted_as_they_are_gone_through() -> None:
    told = told_of(request(device="cpu", phases=("prefill",)))
    assert [done for done, _, name in told if name == "prefill"] == list(range(7))


def test_a_graph_and_checkpointing_stay_within_the_whole() -> None:
    for options in ({"execution": "graph", "cache": "static"}, {"phases": TRAINING, "checkpointing": True}):
        told = told_of(request(device="simulated", iterations=2, **options))
        assert all(0 <= done <= total for done, total, _ in told)
