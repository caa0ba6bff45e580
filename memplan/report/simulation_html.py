"""A simulation as one self-contained HTML page: the run as plots, times and waste as tables, setups side by side."""

from __future__ import annotations

from memplan.domain.simulated import SimulatedSetup, SimulationAnswer
from memplan.report import simulation_plots as plots
from memplan.report import simulation_words as words
from memplan.report.html_parts import data_table, escape, figure, notes, page, pairs, table_row, titled
from memplan.report.html_style import line_style
from memplan.report.words import model_title

_KINDS = {"KEEPS": "fits", "SERVED": "fits", "MISSES": "does_not_fit", "NOT ALL SERVED": "tight"}
_MOST_RUNS = 12
_ABOUT = (
    "A simulation of the engine's scheduler and cache; step times are modelled unless it says that they were measured. "
    "Times count from a request's arrival at the engine. Parts of the cache are means over the time in which it worked."
)


def html_simulation(answer: SimulationAnswer) -> str:
    """Return the page of one simulation."""
    title = model_title(answer.model_name, answer.parameters)
    first = answer.setups[0]
    body = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="sub">{escape(words.traffic(answer.traffic))}</p>',
        _verdict(answer, first),
        f'<p class="sub">{escape(words.deployment(first))}</p>',
        pairs(words.facts(first)),
        *_plots(answer, first, "first"),
        _times(first),
        _waste(first),
        *_others(answer),
        *notes(words.notes(answer)),
    ]
    return page(f"Simulation of {title}", body, about=_ABOUT, style=line_style(plots.LINE_COLORS))


def _verdict(answer: SimulationAnswer, setup: SimulatedSetup) -> str:
    word, sentence = words.verdict(setup, answer.promise)
    least = words.least(answer)
    said = f"<p>The least GPU that keeps the limits: {escape(least)}.</p>" if least else ""
    return (
        f'<div class="verdict {_KINDS[word]}"><p><span class="word">{word}</span>: {escape(sentence)}.</p>{said}</div>'
    )


def _plots(answer: SimulationAnswer, setup: SimulatedSetup, name: str) -> list[str]:
    parts = []
    if drawn := plots.occupancy(setup, f"{name}-cache"):
        key = (
            f'<ul class="key"><li><span class="c-{plots.HELD}"></span>held by requests</li>'
            '<li><span class="c-kv_spare"></span>of finished requests, may be found again</li>'
            '<li><span class="c-missing"></span>a request gave way</li></ul>'
        )
        parts.append(figure("The cache over the run, in parts of its room", drawn, key))
    if drawn := plots.queue(setup, f"{name}-queue"):
        key = (
            '<ul class="key"><li><span class="c-kv_asked"></span>running</li>'
            '<li><span class="c-missing"></span>waiting</li></ul>'
        )
        parts.append(figure("Requests over the run", drawn, key))
    setups = answer.setups if name == "first" else (setup,)
    if drawn := plots.waits(setups, answer.promise, f"{name}-waits"):
        parts.append(
            figure(
                "Share of all requests that have their first token within a time",
                drawn,
                plots.curve_legend(setups, answer.promise),
            )
        )
    return parts


def _times(setup: SimulatedSetup) -> str:
    rows = [table_row(row, right=range(1, 7)) for row in words.times(setup.result)]
    if not rows:
        return ""
    return titled("Times", data_table("Of requests that finished", words.TIMES, rows, range(1, 7)))


def _waste(setup: SimulatedSetup) -> str:
    rows = [table_row(row, right=(1,)) for row in words.wastes(setup.result.waste)]
    return titled("What the cache held", data_table("On average", ("", "part", "what it is"), rows, (1,)))


def _others(answer: SimulationAnswer) -> list[str]:
    if len(answer.setups) == 1:
        return []
    head, rows = words.side_by_side(answer)
    right = sorted(words.right_columns(head))
    drawn = [table_row(row, _mark(setup), right) for row, setup in zip(rows, answer.setups, strict=True)]
    parts = [
        "<h2>The same traffic, side by side</h2>",
        data_table("What each setup makes of it", head, drawn, right, kind="wide"),
        f'<p class="note">{escape(words.LEGEND)}</p>',
    ]
    for number, setup in enumerate(answer.setups[1:_MOST_RUNS], start=1):
        drawn_run = plots.occupancy(setup, f"run{number}-cache")
        parts += [f"<h3>{escape(setup.name)}</h3>", figure("The cache over the run", drawn_run)] if drawn_run else []
    return parts


def _mark(setup: SimulatedSetup) -> str:
    return "best" if setup.keeps else ""
