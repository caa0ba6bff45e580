"""The gate: every domain against its limit, in percent and in standard errors."""

from __future__ import annotations

from math import log

import pytest

from memplan.domain.quality import OVERALL, Difference, DomainQuality, Figure, QualityReport
from memplan.errors import UsageError
from memplan.quantize.gate import judge


def domain(name: str, rise: float, error: float, *, with_base: bool = True) -> DomainQuality:
    difference = Difference(
        base_loss=Figure(mean=2.0, standard_error=0.1),
        loss_increase=Figure(mean=log(1 + rise), standard_error=error / (1 + rise)),
        kl_divergence=Figure(mean=0.01, standard_error=0.001),
        top1_agreement=Figure(mean=0.95, standard_error=0.01),
    )
    return DomainQuality(
        domain=name,
        tokens=1000,
        text_bytes=4000,
        loss=Figure(mean=2.0 + log(1 + rise), standard_error=0.1),
        difference=difference if with_base else None,
    )


def report(*domains: DomainQuality) -> QualityReport:
    return QualityReport(
        model="small",
        base="large",
        text_set="builtin",
        text_digest="0" * 16,
        window_tokens=2048,
        stride_tokens=2048,
        domains=domains,
        overall=DomainQuality(domain=OVERALL, tokens=1, text_bytes=1, loss=domains[0].loss),
    )


def test_one_domain_over_its_limit_misses_the_gate() -> None:
    result = judge(report(domain("general", 0.010, 0.001), domain("code", 0.031, 0.002)), 0.02)
    assert [each.verdict for each in result.domains] == ["passed", "missed"]
    assert result.verdict == "missed"
    assert result.worst.domain == "code"
    assert result.domains[0].distance_standard_errors == pytest.approx(10.0, rel=0.01)
    assert result.domains[1].distance_standard_errors == pytest.approx(-5.5, rel=0.01)
    assert result.domains[1].rise_standard_errors == pytest.approx(15.5, rel=0.01)
    assert all(each.is_sure for each in result.domains)


def test_a_rise_near_its_limit_is_judged_and_said_to_be_unsure() -> None:
    result = judge(report(domain("math", 0.0195, 0.001)), 0.02)
    assert result.verdict == "passed"
    assert not result.domains[0].is_sure


def test_a_rise_that_equals_the_limit_passes_and_a_limit_of_zero_wants_no_loss_at_all() -> None:
    assert judge(report(domain("math", 0.0, 0.0)), 0.0).verdict == "passed"
    assert judge(report(domain("math", 1e-6, 0.0)), 0.0).verdict == "missed"
    assert judge(report(domain("math", -0.003, 0.001)), 0.0).verdict == "passed"


def test_a_domain_may_have_a_limit_of_its_own() -> None:
    found = report(domain("general", 0.015, 0.001), domain("code", 0.015, 0.001))
    assert judge(found, 0.02, limits_by_domain={"code": 0.01}).domains[1].verdict == "missed"
    with pytest.raises(UsageError, match="a domain that was not measured: `law`"):
        judge(found, 0.02, limits_by_domain={"law": 0.01})


def test_without_a_base_there_is_nothing_to_judge() -> None:
    with pytest.raises(UsageError, match="no base was measured"):
        judge(report(domain("code", 0.0, 0.0, with_base=False)), 0.02)
