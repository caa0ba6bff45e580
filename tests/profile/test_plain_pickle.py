"""Only plain containers come out of a pickle, whatever is in it."""

from __future__ import annotations

import os
import pickle
import struct
from collections import OrderedDict
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memplan.errors import CorruptFile, SourceNotFound
from memplan.profile.plain_pickle import load_plain, read_plain

NUMBERS = st.integers(-(1 << 62), 1 << 62)
PLAIN = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.floats(allow_nan=False) | st.text(max_size=400),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=12), inner, max_size=6),
    max_leaves=60,
)
TUPLES = st.tuples() | st.tuples(NUMBERS) | st.tuples(NUMBERS, NUMBERS) | st.tuples(NUMBERS, NUMBERS, NUMBERS)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@given(value=st.lists(PLAIN | TUPLES, max_size=40))
@settings(max_examples=150)
def test_plain_containers_are_read_as_they_were(protocol: int, value: list[Any]) -> None:
    assert load_plain(pickle.dumps({"value": value, "again": value}, protocol)) == {"value": value, "again": value}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_many_values_and_long_text_are_read(protocol: int) -> None:
    value = {"text": "x" * 70_000, "numbers": list(range(-5000, 5000)), "keys": {f"k{i}": [i] for i in range(3000)}}
    assert load_plain(pickle.dumps(value, protocol)) == value


class Runs:
    """Unpickling it would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_a_pickle_that_would_run_something_runs_nothing(tmp_path: Path, protocol: int) -> None:
    for value in (Runs(tmp_path / "made"), {"segments": [Runs(tmp_path / "made")]}):
        with pytest.raises(CorruptFile):
            load_plain(pickle.dumps(value, protocol))
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("value", [OrderedDict(a=1), Fraction(1, 2), {1, 2}, b"bytes", bytearray(3), 1j, len, int])
def test_other_objects_are_refused_by_what_they_are(value: object) -> None:
    with pytest.raises(CorruptFile, match="not plain data"):
        load_plain(pickle.dumps({"segments": [value]}, 4))


HEAD = b"\x80\x04"
HOSTILE = {
    "a number that would need a table of gigabytes": HEAD + b"]r\xff\xff\xff\x7f.",
    "numbers out of turn": HEAD + b"]q\x07.",
    "tuples in tuples in tuples": HEAD + b"}N" + b"\x85" * 200_000 + b"Ns.",
    "lists in lists without end": HEAD + b"]" * 300_000 + b"a" * 299_999 + b".",
    "nothing but dictionaries": HEAD + b"(" + b"}" * 300_000 + b"l.",
    "text longer than the file": HEAD + b"X\xff\xff\xff\xff" + b"short.",
    "a byte array of terabytes": HEAD + b"\x96" + struct.pack("<Q", 1 << 42) + b".",
    "an import by name": HEAD + b"\x8c\x02os\x8c\x06system\x93.",
    "an import of the old kind": HEAD + b"cos\nsystem\n(S'true'\ntR.",
    "an object by its class": HEAD + b"(ios\nsystem\n.",
    "an extension": HEAD + b"\x82\x01.",
    "an outside reference": HEAD + b"\x8c\x01a" + b"Q.",
    "an old protocol": b"\x80\x01].",
    "a newer protocol": b"\x80\x09].",
    "no end": HEAD + b"]",
    "nothing at all": b"",
    "text": b"segments: []\n",
    "a list as a key": HEAD + b"}]Ns.",
    "a stack that is empty": HEAD + b"su.",
    "a repeat of nothing": HEAD + b"h\x05.",
    "an unfinished number": HEAD + b"J\x01.",
    "text that is no text": HEAD + b"\x8c\x02\xff\xfe.",
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE.keys())
def test_damaged_and_hostile_bytes_are_one_clear_error(data: bytes) -> None:
    with pytest.raises(CorruptFile) as caught:
        load_plain(data)
    assert "\n" not in caught.value.message


GOOD = pickle.dumps({"segments": [{"address": 1 << 40, "blocks": [], "pool": (0, 0)}], "device_traces": [[]]}, 4)


@given(st.lists(st.tuples(st.integers(2, len(GOOD) - 1), st.integers(0, 255)), max_size=6), st.integers(2, len(GOOD)))
@settings(max_examples=400)
def test_whatever_happens_to_the_bytes_only_our_error_comes(changes: list[tuple[int, int]], length: int) -> None:
    data = bytearray(GOOD)
    for position, value in changes:
        data[position] = value
    with suppress(CorruptFile):
        assert type(load_plain(bytes(data[:length]))) in (dict, list, tuple, str, int, float, bool, type(None))


def test_a_file_that_is_not_there_or_too_large_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(SourceNotFound):
        read_plain(tmp_path / "none.pickle")
    with pytest.raises(SourceNotFound):
        read_plain(tmp_path)
    (tmp_path / "some.pickle").write_bytes(GOOD)
    assert read_plain(tmp_path / "some.pickle") == pickle.loads(GOOD)
    with pytest.raises(CorruptFile, match="too large"):
        read_plain(tmp_path / "some.pickle", limit_bytes=10)
