"""A profile, or two of them side by side, as Markdown: for an issue or a pull request."""

from __future__ import annotations

from collections.abc import Sequence

from memplan.domain.timeline import MemoryTimeline
from memplan.report import profile_comparison as comparison
from memplan.report import profile_runs as runs
from memplan.report import profile_traffic as traffic
from memplan.report import profile_words as words
from memplan.report.markdown import escape, joined, markdown_table
from memplan.report.profile_comparison import ProfileChange

_CATEGORIES = ("at the peak", "before", "after", "change")


def markdown_profiles(timelines: Sequence[MemoryTimeline]) -> str:
    """Return one profile, or several with a table of them all first."""
    if len(timelines) == 1:
        return joined([f"## {escape(words.title(timelines[0]))}", *_profile(timelines[0])])
    columns, *found = words.matrix(timelines)
    parts = [f"## {escape(words.title(timelines[0]))}", markdown_table(columns, found, right=range(1, len(columns)))]
    parts += [markdown_table(head, rows, right=range(1, len(head))) for head, rows in traffic.traffic_tables(timelines)]
    for timeline in timelines:
        parts += [f"### {escape(words.label(timeline))}", *_profile(timeline)]
    return joined(parts)


def markdown_comparison(change: ProfileChange) -> str:
    """Return two profiles side by side."""
    gone, new = comparison.gone_and_new(change)
    said = comparison.sentence(change)
    return joined(
        [
            f"## {escape(words.title(change.before))}: before and after",
            escape(said[:1].upper() + said[1:]),
            markdown_table(comparison.COLUMNS, comparison.phase_rows(change), right=range(1, 7)),
            markdown_table(
                ("at the peak", "before", "after", "change"), comparison.category_rows(change), right=range(1, 4)
            ),
            markdown_table(("changed", "before", "after"), change.changed, right=()) if change.changed else "",
            "\n".join([*(f"- Mended: {escape(each)}" for each in gone), *(f"- New: {escape(each)}" for each in new)]),
        ]
    )


def _profile(timeline: MemoryTimeline) -> list[str]:
    names = words.categories(timeline)
    head = ("phase", *(words.CATEGORY_NAMES[name] for name in names))
    found = [
        escape(words.where(timeline)),
        f"**{words.word(timeline)}**: {escape(words.sentence(timeline))}",
        markdown_table(words.PHASE_COLUMNS, words.phase_rows(timeline), right=range(1, len(words.PHASE_COLUMNS))),
        markdown_table(head, words.category_rows(timeline), right=range(1, len(head))),
    ]
    if timeline.peak.largest:
        found.append(markdown_table(words.LARGEST_COLUMNS, words.largest_rows(timeline.peak), right=(0,)))
    if work := words.work_rows(timeline):
        found.append(markdown_table(words.WORK_COLUMNS, work, right=(1, 2, 3)))
    columns, ran = words.filled(runs.RUN_COLUMNS, runs.run_rows(timeline))
    if ran:
        found.append(markdown_table(columns, ran, right=range(1, len(columns))))
    if timeline.capture is not None:
        said = runs.capture_sentence(timeline.capture)
        found.append(escape(f"{said[:1].upper()}{said[1:]}."))
        if breaks := runs.break_rows(timeline.capture):
            found.append(markdown_table(runs.BREAK_COLUMNS, breaks, right=()))
    found.append("\n".join(_finding(one) for one in words.finding_lines(timeline.findings)))
    if compared := words.compared_rows(timeline):
        found.append(markdown_table(words.COMPARED_COLUMNS, compared, right=(1, 2, 3)))
    found.append("\n".join(f"> {escape(warning)}" for warning in timeline.warnings))
    return found


def _finding(lines: tuple[str, str, str]) -> str:
    title, evidence, mend = (escape(line) for line in lines)
    return f"- **{title}**. {evidence}. {mend}"
