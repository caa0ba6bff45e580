"""Public sets: read by the real library, here from files of this disk, as a spec says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("datasets")

from memplan.errors import SourceError
from memplan.quantize.public_sets import PublicPart, PublicSet, read_documents

pytestmark = pytest.mark.filterwarnings("ignore")  # of the library and of what it imports


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PublicSet:
    """A set of 400 rows, of which those with an even number are long; its second part begins after 300 of them."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows = [{"text": f"row {number} " + "long " * (20 if number % 2 == 0 else 1)} for number in range(400)]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return PublicSet(
        name="mine",
        title="rows",
        domain="rows",
        licence="none",
        repository=str(tmp_path / "data"),
        column="text",
        min_chars=50,
        parts={
            "calibrate": PublicPart(split="train", documents=30),
            "validate": PublicPart(split="train", documents=30, skip=300),
        },
    )


def numbers(documents: list) -> list[int]:
    return [int(document.text.split()[1]) for document in documents]


def test_long_rows_are_drawn_by_a_seed_and_skipped_ones_never(spec: PublicSet) -> None:
    first, again, other = (numbers(read_documents(spec, "calibrate", max_documents=0, seed=seed)) for seed in (1, 1, 2))
    assert first == again != other
    assert len(first) == 30
    assert all(number % 2 == 0 and number < 300 for number in (*first, *other))
    assert all(number >= 300 for number in numbers(read_documents(spec, "validate", max_documents=5, seed=1)))


def test_a_joined_part_is_the_whole_split_in_its_order(spec: PublicSet) -> None:
    parts = {"validate": PublicPart(split="train", joined=True)}
    whole = PublicSet(**{name: getattr(spec, name) for name in spec.__slots__} | {"parts": parts})
    (document,) = read_documents(whole, "validate", max_documents=0, seed=3)
    assert document.text.startswith("row 0 ")
    assert document.text.count("\n\n") == 399


def test_a_repository_that_is_not_there_is_one_line(spec: PublicSet, tmp_path: Path) -> None:
    gone = PublicSet(**{name: getattr(spec, name) for name in spec.__slots__} | {"repository": str(tmp_path / "gone")})
    with pytest.raises(SourceError, match="cannot read the text set `mine`"):
        read_documents(gone, "calibrate", max_documents=0, seed=0)
