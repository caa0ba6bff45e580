"""The gate: whether a model lost less quality than was allowed, per domain, and how sure that is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from memplan.domain.quality import DomainQuality, QualityReport
from memplan.errors import UsageError
from memplan.records import dataclass

Verdict = Literal["passed", "missed"]

DEFAULT_LIMIT_FRACTION = 0.02
# A measured rise within this many standard errors of its limit could be on either side of it.
SURE_STANDARD_ERRORS = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DomainVerdict:
    """Whether one domain kept its limit.

    `distance_standard_errors` is how far the rise is below its limit (negative: above), in standard errors of the
    rise; under 2 in size, other text of the kind might have said the opposite. `rise_standard_errors` is how far it is
    from none at all.
    """

    domain: str
    increase_fraction: float
    standard_error_fraction: float
    limit_fraction: float
    verdict: Verdict
    distance_standard_errors: float
    rise_standard_errors: float

    @property
    def is_sure(self) -> bool:
        """Whether the verdict is clear of the noise."""
        return abs(self.distance_standard_errors) >= SURE_STANDARD_ERRORS


@dataclass(frozen=True, slots=True, kw_only=True)
class GateResult:
    """The verdict on every domain; missed as soon as one is."""

    domains: tuple[DomainVerdict, ...]

    @property
    def verdict(self) -> Verdict:
        """Passed when every domain passed."""
        return "missed" if any(each.verdict == "missed" for each in self.domains) else "passed"

    @property
    def worst(self) -> DomainVerdict:
        """The domain with the least left to its limit."""
        return min(self.domains, key=lambda each: each.limit_fraction - each.increase_fraction)


def judge(
    report: QualityReport, limit_fraction: float, *, limits_by_domain: Mapping[str, float] | None = None
) -> GateResult:
    """Judge the rise of perplexity over the base in every domain against its limit.

    The measured rise itself is judged, not a bound of its interval: who wants to be surer asks for more text.
    Raises: UsageError for a report without a base, and for a limit of a domain that was not measured.
    """
    limits = dict(limits_by_domain or {})
    if unknown := set(limits) - {each.domain for each in report.domains}:
        raise UsageError(
            f"a limit for a domain that was not measured: `{min(unknown)}`",
            hint=f"measured are {', '.join(each.domain for each in report.domains)}",
        )
    verdicts = tuple(_judge_one(each, limits.get(each.domain, limit_fraction)) for each in report.domains)
    return GateResult(domains=verdicts)


def _judge_one(quality: DomainQuality, limit: float) -> DomainVerdict:
    difference = quality.difference
    if difference is None:
        raise UsageError("nothing to judge against: no base was measured", hint="name the 16-bit model with --against")
    rise, error = difference.perplexity_increase, difference.perplexity_increase_standard_error
    return DomainVerdict(
        domain=quality.domain,
        increase_fraction=rise,
        standard_error_fraction=error,
        limit_fraction=limit,
        verdict="passed" if rise <= limit else "missed",
        distance_standard_errors=_ratio(limit - rise, error),
        rise_standard_errors=_ratio(rise, error),
    )


def _ratio(value: float, error: float) -> float:
    """In standard errors; a huge but finite number where the error is nothing, so that it can be written as JSON."""
    if error > 0:
        return max(-1e6, min(1e6, value / error))
    return 0.0 if value == 0 else (1e6 if value > 0 else -1e6)
