"""Every recipe of a plan is a memplan.yaml that a person can copy, and still has the winner that it says it has."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from memplan.cli.plan_recipes import read_recipe, surprises_of
from memplan.cli.plan_request import plan_request
from memplan.pipeline import load_model
from memplan.plan.search import search

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
FILES = sorted((RECIPES / "plan").glob("*.yaml"))
MATRIX = {
    "low latency, strict accuracy",
    "high throughput, low cost",
    "one 24 GB consumer GPU",
    "context over 32K",
    "many tenants",
    "CPU or edge",
    "prefill and decode apart",
    "weights in host memory",
}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_plan_recipe_finds_what_it_expects(path: Path) -> None:
    expected, scenario = read_recipe(path)
    spec = load_model(scenario["model"], revision=None, offline=True, introspect="auto")
    answer = search(spec, plan_request(scenario, spec), with_nearest=False)
    assert surprises_of(expected, answer) == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_plan_recipe_says_what_it_is(path: Path) -> None:
    recipe = yaml.safe_load(path.read_text())["recipe"]
    assert recipe.keys() == {"title", "when", "expect"}
    assert recipe["expect"]


def test_the_recipes_cover_the_decision_matrix_of_the_field() -> None:
    assert {yaml.safe_load(path.read_text())["recipe"]["when"] for path in FILES} >= MATRIX


def test_an_expectation_that_is_wrong_is_told() -> None:
    expected, scenario = read_recipe(RECIPES / "plan" / "consumer-card-24gb.yaml")
    spec = load_model(scenario["model"], revision=None, offline=True, introspect="auto")
    answer = search(spec, plan_request(scenario, spec))
    wrong = type(expected)(title="", facts={"engine": "vllm", "weight-bits": 16, "min-tp": 8})
    assert [line.split(":")[0] for line in surprises_of(wrong, answer)] == ["engine", "weight-bits", "min-tp"]
    assert surprises_of(type(expected)(title="", facts={"plan": False}), answer)
