"""`plan` takes the quality that `quantize` measured before what tables say of a scheme."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from memplan.catalog.quality import quality_measured, with_cache
from memplan.cli.measured_quality import measured_quality
from memplan.cli.state import QuantizedOutput, remember_quantized
from memplan.introspect.resolve import resolve_model


def report(folder: Path, rise: float) -> None:
    """A checkpoint's folder with what a plan reads of its report."""
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    quality = {"overall": {"difference": {"perplexity_increase": rise}}, "text": {"set": "builtin"}}
    (folder / "quantization_report.json").write_text(json.dumps({"quality": quality}))


def test_a_checkpoint_and_what_was_made_here_are_known_by_their_measurement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    spec = resolve_model("llama-8b", offline=True)
    assert measured_quality({"model": "llama-8b"}, spec) == ()
    report(tmp_path / "made", 0.013)
    (own,) = measured_quality({"model": str(tmp_path / "made")}, spec)
    assert own[0] is None
    assert (own[1].perplexity_increase, own[1].provenance) == (0.013, "measured")
    remember_quantized(QuantizedOutput(model=spec.name, output=tmp_path / "made", scheme="awq-int4-g128"))
    (made,) = measured_quality({"model": "llama-8b"}, spec)
    assert (made[0], made[1].perplexity_increase) == ("awq-int4-g128", 0.013)


def test_a_report_that_does_not_read_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    report(tmp_path / "made", 0.013)
    (tmp_path / "made" / "quantization_report.json").write_text("{")
    assert measured_quality({"model": str(tmp_path / "made")}, resolve_model("llama-8b", offline=True)) == ()


def test_a_rounded_cache_comes_on_top_of_measured_weights() -> None:
    weights = quality_measured(0.01, "here")
    assert with_cache(weights, None, 8_000_000_000) == weights
    rounded = with_cache(weights, "fp8", 8_000_000_000)
    assert rounded.perplexity_increase >= 0.01
