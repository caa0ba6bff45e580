"""Every recipe is a memplan.yaml that a person can copy, and still has the answer that it says it has."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from memplan.cli.estimate_training import answerer
from memplan.cli.questions import ask
from memplan.cli.serving_options import parse_devices
from memplan.cli.state import read_project
from memplan.cli.training_options import training_question
from memplan.engines.training.answer import TrainingAsked
from memplan.engines.training.holders import find_training_holders
from memplan.pipeline import answer, load_model

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
FILES = sorted([*RECIPES.glob("*.yaml"), *RECIPES.glob("*/memplan.yaml"), *RECIPES.glob("training/*.yaml")])
VERDICTS = {"fits", "tight", "does_not_fit"}


def said(path: Path) -> dict[str, object]:
    recipe: dict[str, object] = yaml.safe_load(path.read_text())["recipe"]
    return recipe


def expected(path: Path) -> list[str]:
    verdicts = said(path)["expect"]
    return [verdicts] if isinstance(verdicts, str) else list(verdicts)  # type: ignore[call-overload]


def training_verdicts(given: dict[str, Any]) -> list[str]:
    """The verdict on every GPU that is named; none where none is, but then some have to hold it."""
    spec = load_model(given["model"], revision=None, offline=True, introspect="auto")
    devices = parse_devices(given.get("gpu"), memory=None, free=None)
    if not devices:
        assert find_training_holders(spec, training_question(given, num_gpus=None))[0]
    asked = [
        TrainingAsked(
            spec=spec, gpu=one.gpu, question=training_question(given, num_gpus=one.count), with_remedies=False
        )
        for one in devices
    ]
    return [answerer(given)(each).verdict for each in asked]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(RECIPES)))
def test_a_recipe_has_the_verdict_that_it_expects(path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(path.parent)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    if "with-a-profile" in path.name:
        pytest.importorskip("torch")
        pytest.importorskip("transformers")
    given = {**read_project(path), "offline": True, "quiet": True}
    if "train" in given:
        assert training_verdicts(given) == expected(path)
        return
    asked = ask(given)
    if not asked.devices:
        assert expected(path) == []
        assert asked.holders().budgets
        return
    assert [answer(question).verdict for question in asked.questions()] == expected(path)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(RECIPES)))
def test_a_recipe_says_what_it_is(path: Path) -> None:
    recipe = said(path)
    assert recipe.keys() == {"title", "expect"}
    assert isinstance(recipe["title"], str)
    assert set(expected(path)) <= VERDICTS


def test_the_list_of_recipes_names_every_file_and_no_other() -> None:
    linked = re.findall(r"\]\(([^)]+\.yaml)\)", (RECIPES / "README.md").read_text())
    assert sorted(linked) == sorted(str(path.relative_to(RECIPES)) for path in FILES)
