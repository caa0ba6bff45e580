"""A profile as one self-contained HTML page: the curve, the flame of its peak, phases before and after, findings."""

from __future__ import annotations

from collections.abc import Sequence

from memplan.domain.timeline import Finding, MemoryTimeline
from memplan.report import module_tree
from memplan.report import profile_comparison as comparison
from memplan.report import profile_html_figures as figures
from memplan.report import profile_runs as runs
from memplan.report import profile_traffic as traffic
from memplan.report import profile_words as words
from memplan.report.html_parts import data_table, escape, figure, notes, page, table_row, titled
from memplan.report.profile_comparison import ProfileChange

ABOUT = (
    "Sizes are of one rank; 1 GiB is 2^30 bytes. Allocated: what tensors hold, in the allocator's blocks. Reserved: "
    "what the allocator holds of the device. Fragmented: the part of reserved that lies free in segments which a live "
    "block keeps from being returned. Simulated: the model's own code ran without data, and a model of PyTorch's "
    "caching allocator replayed what it allocated."
)
_SEVERITY_CLASSES = {"error": "does_not_fit", "warning": "tight", "note": "fits"}


def html_profiles(timelines: Sequence[MemoryTimeline]) -> str:
    """Return a page of one profile, or of several with a table of them all first."""
    first = timelines[0]
    body = [f"<h1>{escape(words.title(first))}</h1>"]
    if len(timelines) == 1:
        return page(f"Profile of {words.title(first)}", [*body, _profile(first, "p1")], about=ABOUT)
    names = [f"p{number}" for number in range(1, len(timelines) + 1)]
    body.append(f'<p class="sub">{escape(words.where(first, with_workload=False))}</p>')
    body.append(_side_by_side(timelines, names))
    body.append(_traffic(timelines))
    for timeline, name in zip(timelines, names, strict=True):
        body.append(f'<h2 id="{name}">{escape(words.label(timeline))}</h2>{_profile(timeline, name)}')
    return page(f"Profiles of {words.title(first)}", body, about=ABOUT)


def html_comparison(change: ProfileChange) -> str:
    """Return a page of two profiles: what became of every phase, then both flames, both curves."""
    title = f"{words.title(change.before)}: before and after"
    kind = "fits" if change.reserved_bytes <= 0 else "tight"
    gone, new = comparison.gone_and_new(change)
    said = comparison.sentence(change)
    lines = [*(f"Mended: {each}." for each in gone), *(f"New: {each}." for each in new)]
    body = [
        f"<h1>{escape(title)}</h1>",
        f'<div class="verdict {kind}"><p>{escape(said[:1].upper() + said[1:])}</p>'
        f"{''.join(f'<p>{escape(line)}</p>' for line in lines)}</div>",
        _titled_table(
            "Phases", "The fullest run of each", comparison.COLUMNS, comparison.phase_rows(change), range(1, 7)
        ),
        _titled_table(
            "Categories",
            "At the fullest moment",
            ("category", "before", "after", "change"),
            comparison.category_rows(change),
            range(1, 4),
        ),
        _titled_table("Changed", "What was asked differently", ("setting", "before", "after"), change.changed, ()),
    ]
    scale = max(words.reserved_bytes(change.before), words.reserved_bytes(change.after))
    for word, timeline in (("Before", change.before), ("After", change.after)):
        name = word.lower()
        bars = figures.bars(timeline, name, scale_bytes=scale)
        body.append(f'<h2>{word}</h2><p class="sub">{escape(words.where(timeline))}</p>{_answer(timeline)}')
        body.append(figure("Every phase at its peak, on one scale for both", bars, figures.legend(timeline)))
        body.append(_curves(timeline, name) + _flame(timeline, name))
        body.append(titled("Findings", findings(timeline.findings)))
    return page(title, body, about=ABOUT)


def _titled_table(
    title: str, caption: str, head: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int]
) -> str:
    drawn = [table_row(row, right=right) for row in rows]
    return titled(title, data_table(caption, head, drawn, right, kind="wide") if drawn else "")


def _profile(timeline: MemoryTimeline, name: str) -> str:
    parts = [
        f'<p class="sub">{escape(words.where(timeline))}</p>',
        _answer(timeline),
        _curves(timeline, name),
        figure(
            "Every phase at its peak; the frame is what was reserved, the ticks are what was held before and after",
            figures.bars(timeline, name),
            figures.legend(timeline),
        ),
        _flame(timeline, name),
        titled("Findings", findings(timeline.findings)),
        titled("Phases", _phases(timeline)),
        titled("At the peaks, by category", _categories(timeline)),
        titled("Largest alive at the peak", _largest(timeline)),
        titled("Traffic", _work(timeline)),
        titled("The first run, and those after it", _runs(timeline)),
        titled("CUDA graph", _capture(timeline)),
        titled("Profiled against estimated", _compared(timeline)),
        titled("Settings", _settings(timeline)),
        *notes(timeline.warnings),
    ]
    return "\n".join(part for part in parts if part)


def _answer(timeline: MemoryTimeline) -> str:
    kind = "does_not_fit" if timeline.out_of_memory else "fits"
    return (
        f'<div class="verdict {kind}"><p><span class="word">{words.word(timeline)}</span>: '
        f"{escape(words.sentence(timeline))}</p></div>"
    )


def _curves(timeline: MemoryTimeline, name: str) -> str:
    whole = figures.curve(timeline, name)
    if not whole:
        return ""
    drawn = figure(
        "Memory over the run; short phases are drawn wider than they are long", whole, figures.legend(timeline)
    )
    above = figures.curve(timeline, name, cut=True)
    return drawn + (figure("The same, from just below what is held throughout", above) if above else "")


def _flame(timeline: MemoryTimeline, name: str) -> str:
    tree = module_tree.of_peak(timeline)
    if tree is None:
        return ""
    title = f"What was alive at the peak of {timeline.peak.phase}"
    about = f"{title}: every box is as wide as its bytes, its parts lie below it; equal layers are one box"
    drawn = figure(about, figures.flame(tree, f"{name}-all", title))
    rest = module_tree.without_weights(tree)
    if rest is not None:
        drawn += figure(
            "The same without the weights", figures.flame(rest, f"{name}-rest", f"{title}, but the weights")
        )
    return drawn


def findings(found: Sequence[Finding]) -> str:
    """Return every diagnosis with its evidence and its mend."""
    return "".join(
        f'<div class="verdict {_SEVERITY_CLASSES[one.severity]}"><p><span class="word">{one.severity}</span>: '
        f"{escape(one.title)}.</p><p>{_sentence(one.evidence)}</p>"
        f"<p>Mend: {escape(one.mend + words.mended(one.saves_bytes))}.</p></div>"
        for one in found
    )


def _sentence(text: str) -> str:
    return escape(f"{text[:1].upper()}{text[1:]}.")


def _phases(timeline: MemoryTimeline) -> str:
    right = range(1, len(words.PHASE_COLUMNS))
    rows = [table_row(row, right=right) for row in words.phase_rows(timeline)]
    table = data_table("What each phase held", words.PHASE_COLUMNS, rows, right, kind="wide")
    return f'{table}<p class="note">{escape(words.LEGEND)}.</p>'


def _categories(timeline: MemoryTimeline) -> str:
    names = words.categories(timeline)
    right = range(1, len(names) + 1)
    rows = [table_row(row, right=right) for row in words.category_rows(timeline)]
    head = ("phase", *(words.CATEGORY_NAMES[name] for name in names))
    return data_table("Allocated bytes at each phase's peak", head, rows, right, kind="wide") if names else ""


def _largest(timeline: MemoryTimeline) -> str:
    peak = timeline.peak
    rows = [table_row(row, right=()) for row in words.largest_rows(peak)]
    caption = f"At the peak of {peak.phase}, with the code that made them"
    return data_table(caption, words.LARGEST_COLUMNS, rows, (), kind="largest") if rows else ""


def _work(timeline: MemoryTimeline) -> str:
    right = (1, 2, 3)
    rows = [table_row(row, right=right) for row in words.work_rows(timeline)]
    if not rows:
        return ""
    found = [data_table("One pass of each phase", words.WORK_COLUMNS, rows, right, kind="wide")]
    if timeline.roof:
        said = words.ridge(timeline.roof)
        found.append(f'<p class="note">{escape(said[:1].upper() + said[1:])}.</p>')
    for phase, _ in words.merged(timeline):
        inner = [table_row(row, right=right) for row in words.module_work_rows(phase, timeline.roof)]
        if inner:
            head = ("module", *words.WORK_COLUMNS[1:])
            found.append(data_table(f"{phase.phase}, the modules that move most", head, inner, right, kind="wide"))
    return "".join(found)


def _traffic(timelines: Sequence[MemoryTimeline]) -> str:
    drawn = []
    for head, found in traffic.traffic_tables(timelines):
        right = range(1, len(head))
        rows = [table_row(row, right=right) for row in found]
        caption = f"Peak and traffic of one pass of {head[0]}"
        drawn.append(data_table(caption, ("profile", *head[1:]), rows, right, kind="wide"))
    return titled("Peak and traffic, side by side", "".join(drawn))


def _runs(timeline: MemoryTimeline) -> str:
    right = range(1, 7)
    head, found = words.filled(runs.RUN_COLUMNS, runs.run_rows(timeline))
    rows = [table_row(row, right=right) for row in found]
    return data_table("Peaks of every phase", head, rows, right, kind="wide") if rows else ""


def _capture(timeline: MemoryTimeline) -> str:
    if timeline.capture is None:
        return ""
    said = f"<p>{_sentence(runs.capture_sentence(timeline.capture))}</p>"
    rows = [table_row(row, right=()) for row in runs.break_rows(timeline.capture)]
    return said + (data_table("What stands in the way", runs.BREAK_COLUMNS, rows, (), kind="wide") if rows else "")


def _compared(timeline: MemoryTimeline) -> str:
    right = (1, 2, 3)
    rows = [table_row(row, right=right) for row in words.compared_rows(timeline)]
    caption = "Beside memplan estimate --engine transformers"
    return data_table(caption, words.COMPARED_COLUMNS, rows, right, kind="wide") if rows else ""


def _settings(timeline: MemoryTimeline) -> str:
    rows = [table_row(list(pair), right=()) for pair in words.shown_settings(timeline)]
    return data_table("Every setting that took effect", ("setting", "value"), rows, ()) if rows else ""


def _side_by_side(timelines: Sequence[MemoryTimeline], names: Sequence[str]) -> str:
    head, *rows = words.matrix(timelines)
    right = range(1, len(head))
    drawn = []
    for name, row in zip(names, rows, strict=True):
        cells = "".join(f'<td class="n">{escape(text)}</td>' for text in row[1:])
        drawn.append(f'<tr><th scope="row"><a href="#{name}">{escape(row[0])}</a></th>{cells}</tr>')
    return data_table("Side by side", head, drawn, right)
