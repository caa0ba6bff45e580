"""Slices of a catalogue file: an entry reads alone as it does in the whole file, and names are found before parsing."""

from __future__ import annotations

from pathlib import Path

import pytest

from memplan.catalog.slices import Slices, read_slices
from memplan.catalog.tables import parse_yaml
from memplan.errors import UsageError

TEXT = """\
# a comment before everything
org/First-Model_1:
  aliases: [first, first-1b]
  note: "a: colon, [brackets], first-2b"
  facts:
    nested: {a: 1, b: [1, 2]}
# a comment between
second:
  aliases: [deux]
  bare: [two]
org/First-Model_10:
  aliases: [ten]
"""


@pytest.fixture
def slices() -> Slices:
    return Slices(TEXT.encode(), "text")


def test_every_slice_equals_the_whole_parse(slices: Slices) -> None:
    whole = parse_yaml(TEXT, "text")
    assert slices.entry_keys() == list(whole)
    assert {key: slices.entry(key) for key in whole} == whole


def test_a_key_that_begins_another_is_not_mistaken_for_it(slices: Slices) -> None:
    entry = slices.entry("org/First-Model_1")
    assert entry is not None
    assert entry["aliases"] == ["first", "first-1b"]
    assert slices.entry("org/First-Model") is None


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("org/first-model_1", ("org/First-Model_1", "key")),
        ("ORG/FIRST-MODEL-1", ("org/First-Model_1", "key")),
        ("First Model 1", ("org/First-Model_1", "tail")),
        ("first-1B", ("org/First-Model_1", "aliases")),
        ("deux", ("second", "aliases")),
        ("two", ("second", "bare")),
        ("ten", ("org/First-Model_10", "aliases")),
        ("first-2b", None),
        ("nested", None),
        ("", None),
        ("aliases", None),
        ("née", None),
    ],
)
def test_a_name_is_found_only_where_names_stand(slices: Slices, name: str, found: tuple[str, str] | None) -> None:
    assert slices.find_name(name) == found


def test_ignored_characters_do_not_tell_names_apart() -> None:
    loose = Slices(TEXT.encode(), "text", ignored=b"-_/")
    assert loose.find_name("first1b") == ("org/First-Model_1", "aliases")
    assert loose.find_name("org First Model 1") == ("org/First-Model_1", "key")


def test_all_names_are_listed_with_their_entry(slices: Slices) -> None:
    assert ("second", "bare", "two") in set(slices.names())
    assert ("second", "key", "second") in set(slices.names())


def test_a_file_that_is_no_mapping_is_refused_by_name(tmp_path: Path) -> None:
    for text in ("- a list\n", "key: [unclosed\n"):
        with pytest.raises(UsageError, match=r"broken\.yaml"):
            parse_yaml(text, "broken.yaml")


def test_a_file_is_read_once(tmp_path: Path) -> None:
    path = tmp_path / "one.yaml"
    path.write_text(TEXT)
    assert read_slices(path) is read_slices(path)
