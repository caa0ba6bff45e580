"""YAML that every parser reads as it was meant, whatever a value holds."""

from __future__ import annotations

import yaml
from hypothesis import given
from hypothesis import strategies as st

from memplan.emit.yaml_text import Entry, comment, scalar, yaml_text

VALUES = st.one_of(
    st.booleans(),
    st.integers(-(10**15), 10**15),
    st.floats(min_value=1e-9, max_value=1e9, allow_nan=False),
    st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc", "Zl", "Zp", "Co", "Cn")), max_size=30),
    st.sampled_from(["true", "No", "on", "1e5", "0x10", "1_000", "null", "~", "a: b", "# c", "-", "", "2024-01-01"]),
)


@given(VALUES)
def test_a_value_is_read_back_as_it_is(value: object) -> None:
    found = yaml.safe_load(f"key: {scalar(value)}")["key"]
    assert found == value if not isinstance(value, float) else abs(found - value) <= 1e-9 * abs(value) + 1e-12
    assert type(found) is type(value) or isinstance(value, float)


@given(st.lists(st.text(max_size=200), max_size=4), st.text(max_size=300))
def test_no_comment_reaches_a_line_of_its_own(paragraphs: list[str], why: str) -> None:
    text = yaml_text(paragraphs, [Entry(key="model", value="a/b", why=why)])
    assert yaml.safe_load(text) == {"model": "a/b"}
    assert all(line.startswith("#") for line in comment(paragraphs))


def test_nested_values_and_lists_come_back() -> None:
    value = {"model": "a/b", "sizes": [1, 2], "deep": {"flag": True, "none": None}}
    assert yaml.safe_load(yaml_text([], [Entry(key="config", value=value)])) == {"config": value}
