"""Versioned rule tables."""

import pytest

from memplan.catalog.rules import load_rules, parse_release
from memplan.errors import UsageError


@pytest.mark.parametrize(
    ("text", "release"),
    [("0.10.2", (0, 10, 2)), ("v0.22", (0, 22, 0)), ("0.29.1rc1.dev339+gda98", (0, 29, 1)), ("0.6.3.post1", (0, 6, 3))],
)
def test_versions_are_read_as_people_and_wheels_write_them(text: str, release: tuple[int, ...]) -> None:
    assert parse_release(text) == release


def test_a_version_that_is_none_is_refused() -> None:
    with pytest.raises(UsageError):
        parse_release("latest")


@pytest.mark.parametrize(
    ("version", "utilization", "graphs"),
    [("0.2.0", 0.90, False), ("0.19.1", 0.90, False), ("0.20.0", 0.92, True), ("0.33.0", 0.92, True)],
)
def test_vllm_changed_its_budget_in_0_20(version: str, utilization: float, graphs: bool) -> None:
    rules = load_rules("vllm", version)
    assert rules["utilization"] == utilization
    assert rules["graphs_in_budget"] is graphs


def test_a_release_newer_than_the_table_takes_the_newest_rules_and_says_so() -> None:
    assert load_rules("vllm", "0.33.2").is_known
    newer = load_rules("vllm", "0.40.0")
    assert not newer.is_known
    assert newer["utilization"] == load_rules("vllm", None)["utilization"]


def test_every_rule_has_a_source_and_a_value_at_the_newest_release() -> None:
    rules = load_rules("vllm", None)
    for name, value in rules.values.items():
        assert value is not None, name
        assert rules.source(name), name
