"""A simulation as a page of plain text."""

from __future__ import annotations

from memplan.domain.simulated import SimulatedSetup, SimulationAnswer
from memplan.report import simulation_words as words
from memplan.report.layout import Cell, Style, paragraph, table
from memplan.report.words import model_title

_BOLD, _DIM = "1", "2"
_CODES = {"KEEPS": "1;32", "SERVED": "1;32", "MISSES": "1;31", "NOT ALL SERVED": "1;33"}
_LEVELS = " ▁▂▃▄▅▆▇█"
_SPARK = 60


def render_summary(answer: SimulationAnswer, style: Style) -> str:
    """A line for each setup."""
    lines = []
    for setup in answer.setups:
        word, sentence = words.verdict(setup, answer.promise)
        name = f"{setup.name}: " if len(answer.setups) > 1 else ""
        lines.append(f"{name}{style.paint(word, _CODES[word])}: {sentence}")
    if answer.least is not None:
        lines.append(f"least: {words.least(answer)}")
    return "\n".join(lines) + "\n"


def render_simulation(answer: SimulationAnswer, style: Style) -> str:
    """The whole page."""
    first = answer.setups[0]
    head = [
        paragraph(model_title(answer.model_name, answer.parameters), style, indent="", code=_BOLD),
        paragraph(words.traffic(answer.traffic), style, indent=""),
    ]
    parts = ["\n".join(head), _setup(answer, first, style), _times(first, style), _waste(first, style)]
    if len(answer.setups) > 1:
        parts.append(_side_by_side(answer, style))
    if answer.promise.is_made:
        least = f"the least GPU that keeps the limits: {words.least(answer)}"
        parts.append(paragraph(least, style, indent="", code=_BOLD if answer.least else ""))
    parts.append("\n".join(paragraph(f"note: {note}", style, indent="", hang="      ") for note in words.notes(answer)))
    parts.append(paragraph(_hint(answer), style, indent="hint: ", hang="      "))
    return "\n\n".join(part for part in parts if part) + "\n"


def _setup(answer: SimulationAnswer, setup: SimulatedSetup, style: Style) -> str:
    word, sentence = words.verdict(setup, answer.promise)
    first = paragraph(f"{word}: {sentence}", style, indent="")
    rows: list[list[Cell]] = [[(name, _DIM), value] for name, value in words.facts(setup)]
    spark = _sparks(setup, style)
    return "\n".join(
        [
            paragraph(words.deployment(setup), style, indent=""),
            style.paint(word, _CODES[word]) + first[len(word) :],
            table(rows, style, right=frozenset(), indent="  ", narrowest_first=12),
            *([spark] if spark else []),
        ]
    )


def _sparks(setup: SimulatedSetup, style: Style) -> str:
    """The cache and the queue over the run, by scheduler steps."""
    series = setup.result.series
    if not style.unicode or len(series.used_blocks) < 2:
        return ""
    room = max(1, setup.result.settings.num_blocks * setup.result.settings.replicas)
    lines = []
    for name, values, top in (
        ("cache", series.used_blocks, room),
        ("running", series.running, max(1, *series.running)),
        ("waiting", series.waiting, max(1, *series.waiting)),
    ):
        parts = words.thinned(values, min(_SPARK, style.width - 30))
        marks = "".join(_LEVELS[min(8, -(-int(8 * part) // top) if part else 0)] for part in parts)
        most = words.percent(max(values) / top) if name == "cache" else f"{max(values):,}"
        lines.append(f"  {name:<12} {marks}  up to {most}")
    return "\n".join(lines)


def _times(setup: SimulatedSetup, style: Style) -> str:
    found = words.times(setup.result)
    if not found:
        return ""
    rows: list[list[Cell]] = [[(name, _DIM) for name in ("time", *words.TIMES[1:])]]
    rows += [[*row] for row in found]
    return table(rows, style, right=words.TIMES_RIGHT, indent="  ", narrowest_first=12)


def _waste(setup: SimulatedSetup, style: Style) -> str:
    rows: list[list[Cell]] = [[("the cache held", _DIM), ("part", _DIM), ("", _DIM)]]
    rows += [[name, part, (about, _DIM)] for name, part, about in words.wastes(setup.result.waste)]
    return table(rows, style, right=frozenset({1}), indent="  ", narrowest_first=14)


def _side_by_side(answer: SimulationAnswer, style: Style) -> str:
    title = style.paint("the same traffic, side by side", _BOLD)
    head, texts = words.side_by_side(answer)
    rows: list[list[Cell]] = [[(name, _DIM) for name in head]]
    rows += [[*row] for row in texts]
    if "kept" in head:
        place = head.index("kept")
        for row, setup in zip(rows[1:], answer.setups, strict=True):
            row[place] = (str(row[place]), "32" if setup.keeps else "31")
    shown = table(rows, style, right=words.right_columns(head), narrowest_first=18)
    return f"{title}\n{shown}\n{paragraph(words.LEGEND, style)}"


def _hint(answer: SimulationAnswer) -> str:
    if answer.least is not None:
        return "`memplan emit-config --from-simulation FILE` writes the least setup of a FILE that --json made"
    if len(answer.setups) == 1:
        return "--what-if usual shows the same traffic under other settings, --html the run as plots"
    return "--html shows the runs as plots"
