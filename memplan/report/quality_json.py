"""An evaluation as JSON, in the contract of docs/schemas/memplan.quality.json, and read back from it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from memplan.domain.quality import Difference, DomainQuality, Figure, QualityReport, TaskScore
from memplan.errors import CorruptFile
from memplan.quantize.gate import GateResult
from memplan.report.json_report import dump

SCHEMA = "memplan.quality/1"


def quality_json(
    report: QualityReport,
    gate: GateResult | None = None,
    kv_scales: Mapping[int, Mapping[str, float]] | None = None,
    tasks: Sequence[TaskScore] = (),
) -> str:
    """Return a report as JSON; `gate` where a limit was given, the scales of a rounded cache where there is one."""
    content = quality_object(report, gate, kv_scales)
    return dump({**content, "tasks": [_task(each) for each in tasks]} if tasks else content)


def quality_object(
    report: QualityReport, gate: GateResult | None = None, kv_scales: Mapping[int, Mapping[str, float]] | None = None
) -> dict[str, object]:
    """Return a report as plain values."""
    return {
        "schema": SCHEMA,
        "model": report.model,
        "base": report.base,
        "text": {"set": report.text_set, "digest": report.text_digest},
        "window_tokens": report.window_tokens,
        "stride_tokens": report.stride_tokens,
        "kv_dtype": report.kv_dtype or None,
        "kv_scales": [{"layer": layer, **scales} for layer, scales in sorted((kv_scales or {}).items())],
        "domains": [_domain(each) for each in report.domains],
        "overall": _domain(report.overall),
        "gate": None if gate is None else _gate(gate),
        "notes": list(report.notes),
    }


def read_quality(text: str, origin: str) -> QualityReport:
    """Read a report back. Raises: CorruptFile for a text that is none."""
    try:
        content = json.loads(text)
        if content["schema"] != SCHEMA:
            raise ValueError(f"its schema is {content['schema']}")
        return QualityReport(
            model=content["model"],
            base=content["base"],
            text_set=content["text"]["set"],
            text_digest=content["text"]["digest"],
            window_tokens=content["window_tokens"],
            stride_tokens=content["stride_tokens"],
            kv_dtype=content["kv_dtype"] or "",
            domains=tuple(_read_domain(each) for each in content["domains"]),
            overall=_read_domain(content["overall"]),
            notes=tuple(content["notes"]),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptFile(f"no quality report in {origin}: {error}") from error


def _domain(quality: DomainQuality) -> dict[str, object]:
    difference = quality.difference
    return {
        "domain": quality.domain,
        "tokens": quality.tokens,
        "text_bytes": quality.text_bytes,
        "perplexity": quality.perplexity,
        "perplexity_standard_error": quality.perplexity_standard_error,
        "bits_per_byte": quality.bits_per_byte,
        "loss": _figure(quality.loss),
        "difference": None
        if difference is None
        else {
            "base_perplexity": difference.base_perplexity,
            "perplexity_increase": difference.perplexity_increase,
            "perplexity_increase_standard_error": difference.perplexity_increase_standard_error,
            "base_loss": _figure(difference.base_loss),
            "loss_increase": _figure(difference.loss_increase),
            "kl_divergence": _figure(difference.kl_divergence),
            "top1_agreement": _figure(difference.top1_agreement),
        },
    }


def _figure(figure: Figure) -> dict[str, float]:
    return {"mean": figure.mean, "standard_error": figure.standard_error}


def _task(task: TaskScore) -> dict[str, object]:
    return {
        "task": task.task,
        "metric": task.metric,
        "filter": task.filter,
        "documents": task.documents,
        "score": _figure(task.score),
        "base": None if task.base is None else _figure(task.base),
    }


def _gate(gate: GateResult) -> dict[str, object]:
    return {
        "verdict": gate.verdict,
        "domains": [
            {
                "domain": each.domain,
                "verdict": each.verdict,
                "is_sure": each.is_sure,
                "increase_fraction": each.increase_fraction,
                "standard_error_fraction": each.standard_error_fraction,
                "limit_fraction": each.limit_fraction,
                "distance_standard_errors": each.distance_standard_errors,
                "rise_standard_errors": each.rise_standard_errors,
            }
            for each in gate.domains
        ],
    }


def _read_domain(content: Mapping[str, Any]) -> DomainQuality:
    found = content["difference"]
    difference = None
    if found is not None:
        difference = Difference(
            base_loss=_read_figure(found["base_loss"]),
            loss_increase=_read_figure(found["loss_increase"]),
            kl_divergence=_read_figure(found["kl_divergence"]),
            top1_agreement=_read_figure(found["top1_agreement"]),
        )
    return DomainQuality(
        domain=content["domain"],
        tokens=content["tokens"],
        text_bytes=content["text_bytes"],
        loss=_read_figure(content["loss"]),
        difference=difference,
    )


def _read_figure(content: Mapping[str, Any]) -> Figure:
    error = content["standard_error"]
    return Figure(mean=content["mean"], standard_error=float("nan") if error is None else error)
