"""Remembered profiles: found by config, step and packages, and never believed further than they can be read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from memplan.domain.training_profile import ProfiledHeld, ProfiledPhase, ProfiledStep, TrainingProfile
from memplan.engines.training.profile_cache import find_profile, keep_profile
from memplan.records import replace

CONFIG = {"model_type": "vit", "hidden_size": 64}
HERE = {"torch": "2.13.0", "transformers": "5.23.0"}
STEP = ProfiledStep(
    batch=2,
    tokens=197,
    resolution=224,
    images=0,
    dtype="bfloat16",
    computed_in=None,
    attention="auto",
    optimizer="adamw-fused",
    checkpointing=False,
    lora_rank=8,
    lora_targets=("q_proj",),
    sharing="none",
    num_ranks=1,
    compute_capability=(8, 0),
)
PROFILE = TrainingProfile(
    step=STEP,
    architecture="ViTModel",
    parameters=1000,
    trained_parameters=10,
    versions=HERE,
    phases=tuple(
        ProfiledPhase(
            name=name,
            peak_bytes=512,
            after_bytes=0,
            reserved_bytes=2 << 20,
            held=(ProfiledHeld(category="activations", name="layers.*", size_bytes=512),),
        )
        for name in ("load", "forward", "backward", "optimizer")
    ),
    notes=("a note",),
)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "memplan" / "training"


def test_what_is_kept_is_found_again() -> None:
    assert find_profile(CONFIG, STEP, HERE) is None
    keep_profile(CONFIG, PROFILE)
    assert find_profile(CONFIG, STEP, HERE) == PROFILE


@pytest.mark.parametrize(
    ("config", "step", "versions"),
    [
        ({**CONFIG, "hidden_size": 128}, STEP, HERE),
        (CONFIG, replace(STEP, resolution=448), HERE),
        (CONFIG, replace(STEP, lora_targets=()), HERE),
        (CONFIG, STEP, {**HERE, "torch": "2.14.0"}),
    ],
)
def test_another_model_step_or_release_is_another_profile(config: Any, step: ProfiledStep, versions: Any) -> None:
    keep_profile(CONFIG, PROFILE)
    assert find_profile(config, step, versions) is None


def test_where_nothing_is_installed_the_newest_of_any_release_answers() -> None:
    keep_profile(CONFIG, PROFILE)
    assert find_profile(CONFIG, STEP, {}) == PROFILE


def damaged() -> list[Any]:
    """Contents that no profile has."""
    whole = {"schema": "memplan.training-profile/1", "step": None}
    return ["", "[]", "{", json.dumps(whole), "[" * 100_000, "\x00", '"' + "x" * (2 << 20) + '"']


@pytest.mark.parametrize("content", damaged(), ids=range(7))
def test_a_file_that_is_no_profile_is_as_if_it_were_not_there(content: str) -> None:
    keep_profile(CONFIG, PROFILE).write_text(content, encoding="utf-8")
    assert find_profile(CONFIG, STEP, HERE) is None


@pytest.mark.parametrize(
    "change",
    [
        {"parameters": -1},
        {"parameters": 1 << 60},
        {"parameters": True},
        {"architecture": "a\nb"},
        {"phases": []},
        {"notes": [3]},
        {"versions": []},
    ],
)
def test_a_profile_with_a_value_that_cannot_be_is_not_believed(change: dict[str, Any]) -> None:
    path = keep_profile(CONFIG, PROFILE)
    content = {**json.loads(path.read_text(encoding="utf-8")), **change}
    path.write_text(json.dumps(content), encoding="utf-8")
    assert find_profile(CONFIG, STEP, HERE) is None
