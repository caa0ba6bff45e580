"""The published measurements, and how far the speed model is from them."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks" / "serving_speed"))

from measurements import PUBLISHED, Measurement, read_measurements
from speed_errors import IN_PAGE, PAGE, page_table, row_of, summary_of

from memplan.catalog.gpus import find_gpu
from memplan.catalog.tables import load_table

ROWS = [json.loads(line) for line in PUBLISHED.read_text(encoding="utf-8").splitlines()]
TABLE = load_table(Path("efficiency.yaml"))


@pytest.fixture(scope="module")
def measurements() -> list[Measurement]:
    return read_measurements()


def test_every_row_names_its_source_its_setting_and_a_known_gpu() -> None:
    assert len(ROWS) >= 30
    assert len({row["id"] for row in ROWS}) == len(ROWS)
    for row in ROWS:
        assert re.match(r"https://\S+$", row["source"])
        assert min(row[name] for name in ("value", "prompt_tokens", "output_tokens", "concurrency", "tensor")) > 0
        assert find_gpu(row["gpu"]).name == row["gpu"]


def test_measurements_come_from_many_engines_gpus_models_and_sources() -> None:
    kinds = {name: Counter(row[name] for row in ROWS) for name in ("engine", "gpu", "model", "source", "quant")}
    assert {name: len(found) >= 5 for name, found in kinds.items()} == dict.fromkeys(kinds, True)


def test_half_of_the_predictions_are_within_an_eighth_and_nine_tenths_within_two_fifths(
    measurements: list[Measurement],
) -> None:
    """Kept as a bound: a change of a formula that worsens the model fails here."""
    summary = summary_of([row_of(each, TABLE) for each in measurements])
    assert summary["all"]["median"] < 0.125
    assert summary["all"]["factor"] < 1.4
    assert summary["phases"]["decode"]["median"] < 0.08
    assert abs(summary["all"]["bias"]) < 0.03


def test_every_entry_of_the_catalogue_counts_the_rows_behind_it() -> None:
    assert {name: entry["rows"] for name, entry in TABLE["engines"].items()} == Counter(row["engine"] for row in ROWS)
    assert sum(entry["rows"] for entry in TABLE["classes"].values()) == len(ROWS)


def test_the_page_shows_the_errors_that_the_scorer_finds(measurements: list[Measurement]) -> None:
    summary = summary_of([row_of(each, TABLE) for each in measurements])
    found = IN_PAGE.search(PAGE.read_text(encoding="utf-8"))
    assert found, "docs/speed-model.md has no place for the errors"
    shown = found[0].removeprefix(found[1]).removesuffix(found[2])
    assert shown == page_table(summary), "write it anew with: python benchmarks/serving_speed/score.py --write-page"
