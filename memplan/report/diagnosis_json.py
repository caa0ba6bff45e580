"""A diagnosis as one JSON object: docs/schemas/memplan.diagnosis.json."""

from __future__ import annotations

import json
from typing import Any

from memplan.domain.diagnosis import Diagnosis, DoctorReport

SCHEMA = "memplan.diagnosis/1"


def diagnosis_json(report: DoctorReport) -> str:
    """Return the report as JSON, the main diagnosis first."""
    return json.dumps(diagnosis_object(report), indent=2, ensure_ascii=False) + "\n"


def diagnosis_object(report: DoctorReport) -> dict[str, Any]:
    """The same as an object."""
    it = report.recognised
    return {
        "schema": SCHEMA,
        "recognised": {
            "kind": it.kind,
            "name": it.name,
            "engine": it.engine,
            "version": it.version,
            "generation": it.generation,
            "lines": it.num_lines,
            "bytes": it.size_bytes,
            "signs": list(it.signs),
        },
        "cause": report.main.cause if report.main else None,
        "diagnoses": [_diagnosis(each) for each in report.diagnoses],
        "settings": {name: _plain(value) for name, value in report.settings.items()},
        "budget_of": report.budget_of or None,
        "needs": list(report.needs),
        "notes": list(report.notes),
    }


def _diagnosis(each: Diagnosis) -> dict[str, Any]:
    return {
        "cause": each.cause,
        "severity": each.severity,
        "certain": each.is_certain,
        "sentence": each.sentence,
        "because": each.because,
        "evidence": [
            {"term": one.term, "value": one.value, "unit": one.unit, "where": one.where} for one in each.evidence
        ],
        "why": [
            {"term": one.term, "unit": one.unit, "budget": one.budget, "measured": one.measured, "note": one.note}
            for one in each.why
        ],
        "mends": [
            {
                "change": one.change,
                "risk": one.risk,
                "basis": one.basis,
                "effect_bytes": one.effect_bytes,
                "mends": one.mends,
                "note": one.note,
            }
            for one in each.mends
        ],
    }


def _plain(value: object) -> object:
    return value if isinstance(value, (str, int, float, bool)) or value is None else str(value)
