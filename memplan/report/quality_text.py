"""An evaluation as plain text: one line per domain, and the verdict of the gate."""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan

from memplan.domain.quality import DomainQuality, Figure, QualityReport, TaskScore
from memplan.quantize.gate import DomainVerdict, GateResult
from memplan.report.layout import Cell, Style, paragraph, table

_RED, _GREEN, _BOLD = "31", "32", "1"


def render_quality(
    report: QualityReport, style: Style, gate: GateResult | None = None, tasks: Sequence[TaskScore] = ()
) -> str:
    """Return the page: what was measured, on what, and whether it is within the limit."""
    lines = [style.paint(_title(report), _BOLD)]
    lines.append(paragraph(_how(report), style, indent="", hang=""))
    lines.append("")
    lines.append(table(_rows(report), style, right=frozenset(range(1, 9))))
    lines += [paragraph(note, style) for note in _legend(report)]
    lines += [paragraph(f"note: {note}", style, indent="") for note in report.notes]
    if tasks:
        lines += ["", table(_task_rows(tasks), style, right=frozenset(range(2, 7)))]
    if gate is not None:
        lines += ["", render_gate(gate, style)]
    return "\n".join(lines) + "\n"


def render_gate(gate: GateResult, style: Style) -> str:
    """Return the verdict on every domain, the verdict on all of them last."""
    lines = []
    for each in gate.domains:
        code = _GREEN if each.verdict == "passed" else _RED
        lines.append(f"{style.paint(each.verdict, code)}  {each.domain}: {_said(each)}")
    code = _GREEN if gate.verdict == "passed" else _RED
    lines.append(style.paint(f"quality {gate.verdict}", code if style.color else _BOLD))
    return "\n".join(lines)


def _title(report: QualityReport) -> str:
    cache = f" with a cache in {report.kv_dtype}" if report.kv_dtype else ""
    return f"{report.model}{cache}{f' against {report.base}' if report.base else ''}"


def _how(report: QualityReport) -> str:
    windows = f"windows of {report.window_tokens:,} tokens"
    if report.stride_tokens != report.window_tokens:
        windows += f", {report.stride_tokens:,} apart"
    return f"text: {report.text_set} ({report.overall.tokens:,} tokens scored); {windows}"


def _rows(report: QualityReport) -> list[list[Cell]]:
    compares = report.overall.difference is not None
    head = ["domain", "tokens", "perplexity", "±", "bits/byte"]
    rows: list[list[Cell]] = [[*head, "base", "rise", "±", "KL", "same top-1", ""] if compares else [*head, ""]]
    return [*rows, *(_row(each) for each in (*report.domains, report.overall))]


def _row(quality: DomainQuality) -> list[Cell]:
    cells: list[Cell] = [
        quality.domain,
        f"{quality.tokens:,}",
        f"{quality.perplexity:.3f}",
        f"{quality.perplexity_standard_error:.3f}",
        f"{quality.bits_per_byte:.3f}",
    ]
    difference = quality.difference
    if difference is None:
        return [*cells, ""]
    return [
        *cells,
        f"{difference.base_perplexity:.3f}",
        f"{difference.perplexity_increase:+.2%}",
        f"{difference.perplexity_increase_standard_error:.2%}",
        _short(difference.kl_divergence),
        f"{difference.top1_agreement.mean:.1%}",
        "",
    ]


def _task_rows(tasks: Sequence[TaskScore]) -> list[list[Cell]]:
    compares = any(each.base is not None for each in tasks)
    rows: list[list[Cell]] = [["task", "metric", "documents", "score", "±", *(["base", "±"] if compares else []), ""]]
    for each in tasks:
        figures = [each.score, *([each.base] if each.base is not None else [])]
        cells = [cell for figure in figures for cell in (f"{figure.mean:.4f}", _error(figure))]
        metric = each.metric if each.filter == "none" else f"{each.metric} ({each.filter})"
        rows.append([each.task, metric, f"{each.documents:,}", *cells, ""])
    return rows


def _error(figure: Figure) -> str:
    return "" if isnan(figure.standard_error) else f"{figure.standard_error:.4f}"


def _short(figure: Figure) -> str:
    return f"{figure.mean:.5f}" if figure.mean < 0.1 else f"{figure.mean:.3f}"


def _legend(report: QualityReport) -> list[str]:
    texts = ["±: one standard error, over runs of 128 tokens."]
    if report.overall.difference is not None:
        texts.append(
            "rise: of perplexity over the base's, its error from the same tokens in pairs; KL: divergence from the "
            "base in nats per token; same top-1: both rank the same token first."
        )
    return texts


def _said(verdict: DomainVerdict) -> str:
    said = (
        f"{verdict.increase_fraction:+.2%} ± {verdict.standard_error_fraction:.2%}, "
        f"{verdict.limit_fraction:.2%} allowed"
    )
    if not verdict.is_sure:
        near = f"{abs(verdict.distance_standard_errors):.1f} standard errors of the limit"
        return f"{said}; within {near}: more text would tell"
    return said
