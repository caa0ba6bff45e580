"""An evaluation as JSON and as text: by its schema, read back as it was, with nothing said that was not measured."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest

from memplan.domain.quality import OVERALL, Difference, DomainQuality, Figure, QualityReport, TaskScore
from memplan.errors import CorruptFile
from memplan.quantize.gate import judge
from memplan.report.layout import Style
from memplan.report.quality_json import quality_json, read_quality
from memplan.report.quality_text import render_quality

SCHEMA = jsonschema.Draft202012Validator(
    json.loads((Path(__file__).resolve().parents[2] / "docs" / "schemas" / "memplan.quality.json").read_text())
)


def figure(mean: float, error: float = 0.001) -> Figure:
    return Figure(mean=mean, standard_error=error)


def domain(name: str, *, compares: bool) -> DomainQuality:
    difference = Difference(
        base_loss=figure(2.1, 0.05),
        loss_increase=figure(0.0123, 0.0011),
        kl_divergence=figure(0.0145),
        top1_agreement=figure(0.947),
    )
    return DomainQuality(
        domain=name,
        tokens=5140,
        text_bytes=16000,
        loss=figure(2.1123, 0.05),
        difference=difference if compares else None,
    )


def report(*, compares: bool = True, kv_dtype: str = "") -> QualityReport:
    return QualityReport(
        model="out/demo-rtn",
        base="demo" if compares else None,
        text_set="general,code",
        text_digest="0123456789abcdef",
        window_tokens=2048,
        stride_tokens=512,
        kv_dtype=kv_dtype,
        domains=(domain("general", compares=compares), domain("code", compares=compares)),
        overall=domain(OVERALL, compares=compares),
        notes=("few tokens",),
    )


@pytest.mark.parametrize("compares", [True, False])
def test_a_report_follows_its_schema_and_is_read_back_as_it_was(compares: bool) -> None:
    made = report(compares=compares)
    text = quality_json(made, judge(made, 0.02) if compares else None)
    SCHEMA.validate(json.loads(text))
    assert read_quality(text, "a.json") == made


def test_the_scales_of_a_rounded_cache_are_written_by_layer() -> None:
    scales = {1: {"k_scale": 0.02, "v_scale": 0.01}, 0: {"k_scale": 0.03, "v_scale": 0.04}}
    content = json.loads(quality_json(report(kv_dtype="fp8"), None, scales))
    SCHEMA.validate(content)
    assert [each["layer"] for each in content["kv_scales"]] == [0, 1]


def test_a_single_run_of_tokens_has_no_standard_error_and_json_says_null() -> None:
    lonely = DomainQuality(domain="a", tokens=9, text_bytes=30, loss=figure(1.0, float("nan")))
    made = QualityReport(
        model="m",
        base=None,
        text_set="t",
        text_digest="0",
        window_tokens=10,
        stride_tokens=10,
        domains=(lonely,),
        overall=lonely,
    )
    content = json.loads(quality_json(made))
    SCHEMA.validate(content)
    assert content["overall"]["loss"]["standard_error"] is None


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", '{"schema": "memplan.estimate/1"}', '{"schema": "memplan.quality/1"}']
)
def test_what_is_no_report_is_refused(text: str) -> None:
    with pytest.raises(CorruptFile, match=r"no quality report in a\.json"):
        read_quality(text, "a.json")


def test_the_page_has_a_line_for_every_domain_and_the_verdict_last() -> None:
    made = report()
    lines = render_quality(made, Style(), judge(made, 0.012)).splitlines()
    assert lines[0] == "out/demo-rtn against demo"
    assert lines[1] == "text: general,code (5,140 tokens scored); windows of 2,048 tokens, 512 apart"
    assert lines[3].split()[:5] == ["domain", "tokens", "perplexity", "±", "bits/byte"]
    general = next(line for line in lines if line.startswith("general")).split()
    assert general == ["general", "5,140", "8.267", "0.413", "0.979", "8.166", "+1.24%", "0.11%", "0.01450", "94.7%"]
    assert lines[-2].startswith("missed  code: +1.24% ± 0.11%, 1.20% allowed; within 0.3 standard errors of the limit")
    assert lines[-1].endswith("quality missed\x1b[0m") or lines[-1] == "quality missed"


def test_without_a_base_the_page_speaks_of_no_rise() -> None:
    text = render_quality(report(compares=False), Style())
    assert "rise" not in text
    assert "against" not in text


def test_tasks_are_in_the_json_and_on_the_page_and_an_unknown_error_is_left_blank() -> None:
    score = TaskScore(
        task="endings", metric="acc_norm", filter="none", documents=1200, score=figure(0.5, 0.0144), base=figure(0.625)
    )
    lonely = TaskScore(task="sums", metric="exact", filter="strict", documents=1, score=figure(1.0, float("nan")))
    content = json.loads(quality_json(report(), tasks=(score, lonely)))
    SCHEMA.validate(content)
    assert content["tasks"][0]["base"]["mean"] == 0.625
    assert (content["tasks"][1]["score"]["standard_error"], content["tasks"][1]["base"]) == (None, None)
    assert "tasks" not in json.loads(quality_json(report()))
    lines = render_quality(report(), Style(), tasks=(score,)).splitlines()
    assert next(line for line in lines if line.startswith("endings")).split() == [
        "endings", "acc_norm", "1,200", "0.5000", "0.0144", "0.6250", "0.0010"
    ]  # fmt: skip
    alone = next(line for line in render_quality(report(), Style(), tasks=(lonely,)).splitlines() if "sums" in line)
    assert alone.split() == ["sums", "exact", "(strict)", "1", "1.0000"]
