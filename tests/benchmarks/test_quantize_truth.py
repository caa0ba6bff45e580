"""What quantizing takes beside its forecast, without a GPU: the cases, a rehearsal of the sweep, its score."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers", minversion="5.0")
pytest.importorskip("compressed_tensors")

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "gpu"))
import quantize_truth


def test_a_whole_model_and_a_wide_one_within_a_limit() -> None:
    every = list(quantize_truth.cases(is_rehearsal=False))
    assert {case.model.layers for case in every} == {None, 2}
    assert all("24GiB" in case.options for case in every if case.model.layers)
    assert {case.method for case in every} >= {"gptq", "awq", "int8"}


def test_a_rehearsal_makes_a_model_quantizes_it_and_is_not_run_twice(tmp_path: Path) -> None:
    options = Namespace(python=sys.executable, device="cpu", into=tmp_path / "into", budget_s=300, only=None)
    assert quantize_truth.sweep(options, tmp_path) == 0
    (line,) = (tmp_path / "into" / quantize_truth.RUNS).read_text().splitlines()
    record = json.loads(line)
    assert record["machine"]["gpu"] is None
    assert not record["was_resumed"]
    assert record["peak_bytes"] == max(record["host_peaks"].values())
    assert 0.7 < record["forecast"]["host_bytes"] / record["peak_bytes"] < 1.5
    assert not list(tmp_path.glob("made-*"))
    options.budget_s = 60
    assert quantize_truth.sweep(options, tmp_path) == 0
    assert (tmp_path / "into" / quantize_truth.RUNS).read_text().splitlines() == [line]


@pytest.mark.parametrize(("peak_bytes", "code"), [(1040, 0), (1200, 1)])
def test_a_score_says_how_far_off_a_forecast_is(
    peak_bytes: int, code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    forecast = {"host_bytes": 900, "device_bytes": 1000, "seconds": None, "steps": [], "disk_bytes": 0}
    record = {"case": "small/rtn", "forecast": forecast, "peak_bytes": peak_bytes, "seconds": 3.0, "was_resumed": False}
    (tmp_path / "runs.jsonl").write_text(json.dumps(record) + "\n")
    assert quantize_truth.score([tmp_path / "runs.jsonl"]) == code
    assert f"{1000 / peak_bytes:.2f}" in capsys.readouterr().out
