"""A profile as a page of plain text: the answer, the phases, what was alive at the peak, findings, the estimate."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from memplan.domain.timeline import Finding, MemoryTimeline, PhaseMemory
from memplan.report import module_tree, profile_figures
from memplan.report import profile_comparison as comparison
from memplan.report import profile_runs as runs
from memplan.report import profile_traffic as traffic
from memplan.report import profile_words as words
from memplan.report.layout import Cell, Style, paragraph, printable, table
from memplan.report.profile_comparison import ProfileChange
from memplan.units import format_gib

_HINT = "`--html --output page.html` draws this page, `--json` is for scripts and `--compare`"
_BOLD, _DIM, _GOOD, _BAD = "1", "2", "1;32", "1;31"
_SEVERITY_CODES = {"error": "1;31", "warning": "1;33", "note": "1"}


def render_peak(timeline: MemoryTimeline, style: Style, *, named: bool = False) -> str:
    """Return the answer in one line; `named` says which profile it is the answer for."""
    name = f"{printable(words.label(timeline))}: " if named else ""
    return f"{name}{_painted_word(timeline, style)}: {printable(words.sentence(timeline))}\n"


def render_profile(timeline: MemoryTimeline, style: Style, *, with_hint: bool = True) -> str:
    """Return the whole page of one profile, and how to go on with the command."""
    sections = [
        _head(timeline, style),
        profile_figures.bars(timeline, style),
        _phases(timeline, style),
        profile_figures.curve(timeline, style),
        _categories(timeline, style),
        _modules(timeline, style),
        _largest(timeline, style),
        _work(timeline, style),
        _runs(timeline, style),
        _capture(timeline, style),
        findings(timeline.findings, style),
        _compared(timeline, style),
        "\n".join(paragraph(warning, style, indent="note: ", hang="      ") for warning in timeline.warnings),
        paragraph(_HINT, style, indent="hint: ", hang="      ") if with_hint else "",
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def render_side_by_side(timelines: Sequence[MemoryTimeline], style: Style) -> str:
    """Return several profiles as a table, and what was found of each."""
    head, *found = words.matrix(timelines)
    rows: list[list[Cell]] = [[(name, _DIM) for name in (*head, "")]]
    rows += [[*row, ""] for row in found]
    sections = [
        f"{paragraph(words.title(timelines[0]), style, indent='', code=_BOLD)}\n"
        f"{paragraph(words.where(timelines[0], with_workload=False), style, indent='')}",
        table(rows, style, right=frozenset(range(1, len(head)))),
        _traffic(timelines, style),
    ]
    for timeline in timelines:
        said = [_runs(timeline, style), _capture(timeline, style), findings(timeline.findings, style)]
        if any(said):
            title = style.paint(printable(words.label(timeline)), _BOLD)
            sections.append("\n".join(each for each in (title, *said) if each))
    sections += [paragraph(note, style, indent="note: ", hang="      ") for note in words.all_warnings(timelines)]
    return "\n\n".join(section for section in sections if section) + "\n"


def render_change(change: ProfileChange, style: Style) -> str:
    """Return what became of the peak, in one line."""
    return f"{printable(comparison.sentence(change))}\n"


def render_comparison(change: ProfileChange, style: Style) -> str:
    """Return two profiles side by side: phases, categories, what was changed, what was mended."""
    gone, new = comparison.gone_and_new(change)
    title = f"{words.title(change.before)}: before and after"
    sections = [
        f"{paragraph(title, style, indent='', code=_BOLD)}\n{paragraph(comparison.sentence(change), style, indent='')}",
        _columns(comparison.COLUMNS, comparison.phase_rows(change), style, range(1, 7)),
        _columns(("at the peak", "before", "after", "change"), comparison.category_rows(change), style, range(1, 4)),
        _columns(("changed", "before", "after"), change.changed, style, ()) if change.changed else "",
        "\n".join(paragraph(f"mended: {each}", style, indent="") for each in gone),
        "\n".join(paragraph(f"new: {each}", style, indent="") for each in new),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _columns(head: Sequence[str], found: Sequence[Sequence[str]], style: Style, right: Iterable[int]) -> str:
    rows: list[list[Cell]] = [[(name, _DIM) for name in (*head, "")]]
    rows += [[*row, ""] for row in found]
    return table(rows, style, right=frozenset(right), narrowest_first=8)


def _painted_word(timeline: MemoryTimeline, style: Style) -> str:
    return style.paint(words.word(timeline), _BAD if timeline.out_of_memory else _GOOD)


def _head(timeline: MemoryTimeline, style: Style) -> str:
    said = words.word(timeline)
    first = paragraph(f"{said}: {words.sentence(timeline)}", style, indent="")
    return "\n".join(
        [
            paragraph(words.title(timeline), style, indent="", code=_BOLD),
            paragraph(words.where(timeline), style, indent=""),
            _painted_word(timeline, style) + first[len(said) :],
        ]
    )


def _phases(timeline: MemoryTimeline, style: Style) -> str:
    rows: list[list[Cell]] = [[(name, _DIM) for name in (*words.PHASE_COLUMNS, "")]]
    rows += [[*row, ""] for row in words.phase_rows(timeline)]
    drawn = table(rows, style, right=frozenset(range(1, 7)), narrowest_first=8)
    return f"{drawn}\n{paragraph(words.LEGEND, style)}"


def _categories(timeline: MemoryTimeline, style: Style) -> str:
    names = words.categories(timeline)
    if not names:
        return ""
    head = ["at the peak of", *(words.CATEGORY_NAMES[name] for name in names), ""]
    rows: list[list[Cell]] = [[(name, _DIM) for name in head]]
    rows += [[*row, ""] for row in words.category_rows(timeline)]
    return table(rows, style, right=frozenset(range(1, len(names) + 1)), narrowest_first=8)


def _modules(timeline: MemoryTimeline, style: Style) -> str:
    peak = timeline.peak
    tree = module_tree.of_peak(timeline)
    if tree is None:
        return ""
    rows: list[list[Cell]] = [[("module", _DIM), ("size", _DIM), ("share", _DIM), ""]]
    for indent, name, size in module_tree.rows(tree):
        rows.append([f"{'  ' * indent}{name}", format_gib(size), f"{100 * size / max(1, tree.size_bytes):.1f} %", ""])
    title = style.paint(f"what was alive at the peak of {peak.phase}", _BOLD)
    return f"{title}\n{table(rows, style, right=frozenset({1, 2}), indent='  ')}"


def _largest(timeline: MemoryTimeline, style: Style) -> str:
    peak = timeline.peak
    if not peak.largest:
        return ""
    rows: list[list[Cell]] = [[(name, _DIM) for name in ("size", "for", "tensor, what made it, where")]]
    rows += [[size, kind, ", ".join(part for part in rest if part)] for size, kind, *rest in _kind_first(peak)]
    title = style.paint(f"largest alive at the peak of {peak.phase}", _BOLD)
    return f"{title}\n{table(rows, style, right=frozenset({0}), indent='  ', narrowest_first=10)}"


def _kind_first(peak: PhaseMemory) -> list[list[str]]:
    return [[size, kind, found, *rest] for size, found, kind, *rest in words.largest_rows(peak)]


def _work(timeline: MemoryTimeline, style: Style) -> str:
    found = words.work_rows(timeline)
    if not found:
        return ""
    rows: list[list[Cell]] = [[(name, _DIM) for name in words.WORK_COLUMNS]]
    rows += [list(row) for row in found]
    drawn = table(rows, style, right=frozenset({1, 2, 3}), indent="  ", narrowest_first=8)
    below = f"\n{paragraph(words.ridge(timeline.roof), style)}" if timeline.roof else ""
    return f"{style.paint('traffic, one pass of each phase', _BOLD)}\n{drawn}{below}"


def _rows(head: Sequence[str], found: Sequence[Sequence[str]]) -> list[list[Cell]]:
    rows: list[list[Cell]] = [[(name, _DIM) for name in head]]
    return rows + [list(row) for row in found]


def _traffic(timelines: Sequence[MemoryTimeline], style: Style) -> str:
    drawn = []
    for head, found in traffic.traffic_tables(timelines):
        rows = _rows(head, found)
        drawn.append(table(rows, style, right=frozenset(range(1, len(head))), indent="  ", narrowest_first=8))
    if not drawn:
        return ""
    below = [paragraph(words.ridge(timelines[0].roof), style)] if timelines[0].roof else []
    return "\n".join([style.paint("peak and traffic, one pass of each phase", _BOLD), *drawn, *below])


def _runs(timeline: MemoryTimeline, style: Style) -> str:
    head, found = words.filled(runs.RUN_COLUMNS, runs.run_rows(timeline))
    if not found:
        return ""
    rows = _rows(head, found)
    drawn = table(rows, style, right=frozenset(range(1, 7)), indent="  ", narrowest_first=8)
    return f"{style.paint('the first run, and those after it', _BOLD)}\n{drawn}"


def _capture(timeline: MemoryTimeline, style: Style) -> str:
    if timeline.capture is None:
        return ""
    said = paragraph(runs.capture_sentence(timeline.capture), style, indent="graph: ", hang="  ")
    found = runs.break_rows(timeline.capture)
    if not found:
        return said
    rows = _rows(runs.BREAK_COLUMNS, found)
    return f"{said}\n{table(rows, style, right=frozenset(), indent='  ', narrowest_first=10)}"


def findings(found: Sequence[Finding], style: Style) -> str:
    """Return every diagnosis with its evidence and its mend."""
    if not found:
        return ""
    lines = [style.paint("findings", _BOLD)]
    for one in found:
        first = paragraph(f"{one.severity}: {one.title}", style, indent="  ", hang="    ")
        lines.append(first.replace(one.severity, style.paint(one.severity, _SEVERITY_CODES[one.severity]), 1))
        lines.append(paragraph(one.evidence, style, indent="    ", hang="    "))
        lines.append(paragraph(f"-> {one.mend}{words.mended(one.saves_bytes)}", style, indent="    ", hang="       "))
    return "\n".join(lines)


def _compared(timeline: MemoryTimeline, style: Style) -> str:
    found = words.compared_rows(timeline)
    if not found:
        return ""
    rows: list[list[Cell]] = [[(name, _DIM) for name in words.COMPARED_COLUMNS]]
    rows += [list(row) for row in found]
    title = style.paint("profiled against `memplan estimate --engine transformers`", _BOLD)
    return f"{title}\n{table(rows, style, right=frozenset({1, 2, 3}), indent='  ')}"
