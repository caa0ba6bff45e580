"""A simulation as GitHub-flavoured Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from memplan.domain.simulated import SimulationAnswer
from memplan.report import simulation_words as words
from memplan.report.markdown import escape, joined
from memplan.report.words import model_title


def markdown_simulation(answer: SimulationAnswer) -> str:
    """Return the first setup's run, the setups side by side, and the least that keeps the limits."""
    first = answer.setups[0]
    word, sentence = words.verdict(first, answer.promise)
    parts = [
        f"# {escape(model_title(answer.model_name, answer.parameters))}",
        f"{escape(words.traffic(answer.traffic))}.",
        f"{escape(words.deployment(first))}.",
        f"**{word.capitalize()}: {escape(sentence)}.**",
        "\n".join(f"- {escape(name)}: {escape(value)}" for name, value in words.facts(first)),
        "## Times",
        _table(("time", *words.TIMES[1:]), words.times(first.result)),
        "## What the cache held",
        _table(("", "part", "what it is"), words.wastes(first.result.waste)),
    ]
    if len(answer.setups) > 1:
        parts += [
            "## The same traffic, side by side",
            _table(*words.side_by_side(answer)),
            f"{escape(words.LEGEND)}.",
        ]
    if answer.promise.is_made:
        parts.append(f"**The least GPU that keeps the limits: {escape(words.least(answer))}.**")
    parts += [f"> Note: {escape(note)}" for note in words.notes(answer)]
    return joined(parts)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    drawn = [list(head), ["---"] * len(head), *([escape(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in drawn)
