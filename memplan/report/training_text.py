"""A training budget as a page for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from memplan.domain.training_budget import Category, TrainingBudget
from memplan.report import training_words as words
from memplan.report.layout import Cell, Style, paragraph, printable, table
from memplan.report.text import VERDICT_CODES
from memplan.report.words import VERDICTS
from memplan.units import format_gib

_BOLD, _DIM = "1", "2"
_OUTCOME_CODES = {"fits": "32", "tight": "33", "does_not_fit": "31"}
_WIDEST_BAR = 100
# Per part of the bar: its block, its letter where there are only letters, and its colour.
_SYMBOLS: dict[Category | str, tuple[str, str, str]] = {
    "weights": ("█", "w", "34"),
    "adapters": ("▉", "a", "34"),
    "gathered_weights": ("▓", "g", "36"),
    "gradients": ("▒", "d", "35"),
    "optimizer_state": ("▚", "s", "32"),
    "activations": ("▞", "c", "33"),
    "logits_and_loss": ("▙", "l", "31"),
    "workspace": ("▌", "t", "33"),
    "communication_buffers": ("▖", "b", "36"),
    "unused_segments": ("░", "u", "90"),
    "outside_torch": ("▐", "o", "90"),
    "left": ("·", ".", "90"),
}


def render_training(budget: TrainingBudget, style: Style) -> str:
    """Return the whole page of one budget."""
    sections = [
        f"{paragraph(words.title(budget), style, indent='', code=_BOLD)}\n"
        f"{paragraph(words.where(budget), style, indent='')}\n{_verdict(budget, style)}",
        _bar(budget, style),
        _lines(budget, style),
        _phases(budget, style),
        _pairs("what you will see", words.memory_rows(budget), style),
        _pairs("limits", words.limits(budget), style),
        _remedies(budget, style),
        _facts(budget, style),
        "\n".join(paragraph(warning, style, indent="note: ", hang="      ") for warning in budget.warnings),
        paragraph(words.next_step(budget), style, indent="hint: ", hang="      "),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def render_training_verdict(budget: TrainingBudget, style: Style, *, named: bool = False) -> str:
    """Return the answer in one line."""
    word = style.paint(VERDICTS[budget.verdict], VERDICT_CODES[budget.verdict])
    name = f"{printable(words.gpus(budget))}: " if named else ""
    return f"{name}{word}: {printable(words.sentence(budget))}\n"


def render_training_table(budgets: Sequence[TrainingBudget], left_out: Sequence[str], style: Style) -> str:
    """Return several GPUs side by side, and those that do not hold it."""
    sections = []
    if budgets:
        head, rows = words.table_rows(budgets)
        cells: list[list[Cell]] = [[(name, _DIM) for name in head], *(list[Cell](row) for row in rows)]
        sections += [
            paragraph(words.title(budgets[0]), style, indent="", code=_BOLD),
            table(cells, style, right=frozenset({1, 4, 5})),
        ]
    if left_out:
        sections.append(paragraph(f"Do not hold it: {', '.join(left_out)}.", style, indent=""))
    if not budgets:
        hint = "name several GPUs with --gpu NAMEx8, or see what would make it fit on one"
        sections.append(paragraph(hint, style, indent="hint: ", hang="      "))
    return "\n\n".join(sections) + "\n"


def _verdict(budget: TrainingBudget, style: Style) -> str:
    word = VERDICTS[budget.verdict]
    first = paragraph(f"{word}: {words.sentence(budget)}", style, indent="")
    lines = [style.paint(word, VERDICT_CODES[budget.verdict]) + first[len(word) :]]
    lines += [paragraph(reason, style, indent="  - ", hang="    ") for reason in words.reasons(budget)]
    mending = words.mending(budget)
    return "\n".join([*lines, paragraph(mending, style, indent="")] if mending else lines)


def _bar(budget: TrainingBudget, style: Style) -> str:
    """The fullest moment of the fullest GPU as a bar, and its legend."""
    parts: dict[str, int] = {}
    for line in budget.lines:
        parts[line.category] = parts.get(line.category, 0) + line.size_bytes
    parts["left"] = max(0, budget.gpu_memory_bytes - budget.used_bytes)
    shown = {key: size for key, size in parts.items() if size > 0}
    total, width = sum(shown.values()), min(style.width, _WIDEST_BAR) - 2
    cells = {key: max(1, round(size / total * width)) for key, size in shown.items()}
    largest = max(shown, key=lambda key: shown[key])
    cells[largest] += width - sum(cells.values())
    column = 0 if style.unicode else 1
    drawn = "".join(style.paint(_SYMBOLS[key][column] * number, _SYMBOLS[key][2]) for key, number in cells.items())
    used, memory = format_gib(budget.used_bytes), format_gib(budget.gpu_memory_bytes)
    verb = "would hold" if budget.used_bytes > budget.gpu_memory_bytes else "holds"
    legend = "   ".join(f"{_SYMBOLS[key][column]} {_name(key)} {format_gib(size)}" for key, size in shown.items())
    head = f"{words.each_gpu(budget)} {verb} {used} in {words.PHASE_NAMES[budget.peak_phase]}, it has {memory}"
    return "\n".join([head, f"[{drawn}]", paragraph(legend, style, indent=" ", hang=" ")])


def _name(key: str) -> str:
    return "left" if key == "left" else words.CATEGORY_NAMES[key]  # type: ignore[index]


def _lines(budget: TrainingBudget, style: Style) -> str:
    head = (f"at the peak, on {words.each_gpu(budget)}", "size", "90 % interval", "how known", "working")
    rows: list[list[Cell]] = [[(name, _DIM) for name in head]]
    for row in words.line_rows(budget):
        strong = _BOLD if row.kind == "sum" else ""
        rows.append([(row.name, strong), (row.size, strong), row.interval, row.known, (row.working, _DIM)])
    return table(rows, style, right=frozenset({1}))


def _phases(budget: TrainingBudget, style: Style) -> str:
    """Phase by phase: its peak, what is alive then, the largest first."""
    rows: list[list[Cell]] = [[("phase", _DIM), ("peak", _DIM), ("after", _DIM), ("alive at its peak", _DIM)]]
    for phase in budget.phases:
        is_peak = phase.name == budget.peak_phase
        alive = ", ".join(
            f"{words.CATEGORY_NAMES[category]} {format_gib(size)}" for category, size in phase.category_bytes().items()
        )
        after = format_gib(phase.after_bytes) if phase.after_bytes is not None else ""
        text = f"{alive}; {phase.note}" if phase.note else alive
        code = _BOLD if is_peak else ""
        name = f"{'> ' if is_peak else '  '}{words.PHASE_NAMES[phase.name]}"
        rows.append([(name, code), (format_gib(phase.peak_bytes), code), after, (text, _DIM)])
    title = style.paint("phases", _BOLD)
    largest = ", ".join(f"{name} {size}" for name, size, _ in words.operator_rows(budget, 6))
    below = paragraph(f"largest at the peak: {largest}", style, indent="  ", hang="  ")
    return f"{title}; > is the step's peak\n{table(rows, style, right=frozenset({1, 2}))}\n{below}"


def _pairs(title: str, pairs: Sequence[tuple[str, str]], style: Style) -> str:
    if not pairs:
        return ""
    rows: list[list[Cell]] = [[(name, _DIM), value] for name, value in pairs]
    return f"{style.paint(title, _BOLD)}\n{table(rows, style, right=frozenset(), indent='  ')}"


def _remedies(budget: TrainingBudget, style: Style) -> str:
    if not budget.remedies:
        return ""
    best = budget.cheapest
    heads = ("  change", "returns", "fits", "time", "")
    rows: list[list[Cell]] = [[(name, _DIM) for name in heads]]
    for remedy, texts in words.remedy_rows(budget):
        name, size, outcome, time, note = texts
        shown: Cell = (f"> {name}", _BOLD) if remedy is best else f"  {name}"
        rows.append([shown, size, (outcome, _OUTCOME_CODES[remedy.verdict]), time, note])
    mark = "; > mends it at the least cost" if best else ""
    title = style.paint("changes, by what they cost; each is computed again", _BOLD)
    return f"{title}{mark}\n{table(rows, style, right=frozenset({1}), narrowest_first=38, narrowest_last=16)}"


def _facts(budget: TrainingBudget, style: Style) -> str:
    if not budget.facts:
        return ""
    rows: list[list[Cell]] = [[(name, _DIM), f"{value} ({source})"] for name, value, source in budget.facts]
    title = style.paint(f"how {budget.trainer} works, where nothing else was asked for", _BOLD)
    return f"{title}\n{table(rows, style, right=frozenset(), indent='  ')}"
