"""A Grafana dashboard of one server: the cache, the queue, latencies and tokens, beside the limits of the budget.

Source: Grafana's dashboard JSON model (schema version 39).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from memplan.domain.emission import Emission, EmitSubject, EmittedFile
from memplan.emit import sizing
from memplan.emit.signals import Signals, gpu_limit_mib, kv_threshold, signals
from memplan.emit.words import cache_holds, gpus, groups, verdict
from memplan.records import dataclass

_WIDTH, _HEIGHT = 8, 8
_DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One graph: its curves by name, its unit, and the limit that is drawn as a line (None draws none)."""

    title: str
    curves: tuple[tuple[str, str], ...]
    unit: str = "short"
    limit: float | None = None
    about: str = ""


def emit(subject: EmitSubject) -> Emission:
    """Return dashboard.json. Raises: UsageError for an engine that exports no metrics."""
    asked = signals(subject)
    panels = [_text_panel(subject)]
    panels += [_graph(panel, index) for index, panel in enumerate(_panels(subject, asked))]
    dashboard = {
        "title": f"{subject.spec_name} on {subject.checked_for}",
        "uid": asked.job[:40],
        "tags": ["llm", "memplan", subject.engine],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "templating": {"list": [{"name": "datasource", "type": "datasource", "query": "prometheus"}]},
        "panels": panels,
    }
    text = json.dumps(dashboard, indent=2, ensure_ascii=False) + "\n"
    file = EmittedFile(name="dashboard.json", text=text, media_type="application/json")
    return Emission(files=(file,), notes=asked.notes)


def _panels(subject: EmitSubject, asked: Signals) -> Iterator[Panel]:
    """The graphs that the release has metrics for."""
    has = asked.metrics.has
    if has("kv_usage"):
        threshold, why = kv_threshold(subject)
        yield Panel(
            title="KV cache in use",
            curves=(("fullest replica", asked.fullest()),),
            unit="percentunit",
            limit=threshold,
            about=f"{cache_holds(subject.budget)}; the line: {why}",
        )
    if has("running"):
        admitted = sizing.admitted(subject)
        curves = [("running", asked.gauge("running"))]
        curves += [("waiting", asked.gauge("waiting"))] if has("waiting") else []
        yield Panel(title="Requests", curves=tuple(curves), limit=admitted.value, about=f"the line: {admitted.why}")
    if has("preemptions"):
        about = "requests whose cache was dropped and is computed again; none is expected"
        yield Panel(title="Preemptions a second", curves=(("preemptions", asked.rate("preemptions")),), about=about)
    for meaning, title in (
        ("first_token", "Time to the first token"),
        ("inter_token", "Time between tokens"),
        ("queue_time", "Time in the queue"),
        ("whole_request", "Whole request"),
    ):
        if has(meaning):
            quantiles = tuple((f"p{round(share * 100)}", asked.quantile(share, meaning)) for share in (0.5, 0.95, 0.99))
            yield Panel(title=title, curves=quantiles, unit="s")
    if has("prompt_tokens", "output_tokens"):
        curves = [("prompt", asked.rate("prompt_tokens")), ("output", asked.rate("output_tokens"))]
        yield Panel(title="Tokens a second", curves=tuple(curves))
    if has("prefix_hits", "prefix_queries"):
        hits = f"{asked.rate('prefix_hits')} / {asked.rate('prefix_queries')}"
        yield Panel(title="Prompt tokens found in the cache", curves=(("share", hits),), unit="percentunit")
    if subject.gpu.vendor == "nvidia":
        limit, why = gpu_limit_mib(subject)
        used = f'max by (gpu) (DCGM_FI_DEV_FB_USED{{exported_pod=~"{asked.job}-.*"}})'
        about = f"by the DCGM exporter; the line: {why}"
        yield Panel(title="GPU memory", curves=(("GPU {{gpu}}", used),), unit="decmbytes", limit=limit, about=about)


def _text_panel(subject: EmitSubject) -> dict[str, Any]:
    """What the numbers below are to be held against."""
    budget = subject.budget
    lines = (f"{gpus(budget)}; {verdict(budget)}", f"Each GPU: {groups(budget)}", f"Made by: {subject.command}")
    return {
        "id": 1,
        "type": "text",
        "title": "Budget",
        "gridPos": {"x": 0, "y": 0, "w": 3 * _WIDTH, "h": 4},
        "options": {"mode": "code", "code": {"language": "plaintext"}, "content": "\n".join(lines)},
    }


def _graph(panel: Panel, index: int) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [{"color": "green", "value": None}]
    custom: dict[str, Any] = {"lineWidth": 2, "fillOpacity": 8}
    if panel.limit is not None:
        steps.append({"color": "red", "value": panel.limit})
        custom["thresholdsStyle"] = {"mode": "line"}
    return {
        "id": index + 2,
        "type": "timeseries",
        "title": panel.title,
        "description": panel.about,
        "datasource": _DATASOURCE,
        "gridPos": {"x": index % 3 * _WIDTH, "y": 4 + index // 3 * _HEIGHT, "w": _WIDTH, "h": _HEIGHT},
        "fieldConfig": {
            "defaults": {
                "unit": panel.unit,
                "min": 0,
                "custom": custom,
                "thresholds": {"mode": "absolute", "steps": steps},
            },
            "overrides": [],
        },
        "targets": [
            {"refId": chr(ord("A") + number), "datasource": _DATASOURCE, "expr": expression, "legendFormat": name}
            for number, (name, expression) in enumerate(panel.curves)
        ],
    }
