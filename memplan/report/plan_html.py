"""A plan as one self-contained HTML page: the winner, the front as a table and as a plot, what was ruled out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from memplan.domain.plan import PlanAnswer
from memplan.report import html_figures
from memplan.report import plan_words as words
from memplan.report.html_parts import escape, page, scroll
from memplan.report.plan_plot import legend, scatter
from memplan.report.words import model_title

_MOST_REJECTIONS = 60


def html_plan(answer: PlanAnswer) -> str:
    """Return the page of one search."""
    title = model_title(answer.model_name, answer.parameters)
    body = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="sub">{escape(words.title(answer))}; goal: {escape(answer.request.goal)}</p>',
        *(_winner(answer) if answer.winner else _none(answer)),
        f"<h2>Ruled out of {answer.considered:,} candidates</h2>",
        _table(
            "Regions of the search, the largest first",
            ("candidates", "region", "by", "because"),
            words.rejections(answer, _MOST_REJECTIONS),
            right=frozenset({0}),
        ),
        f'<p class="note">{words.beaten(answer.rejections):,} more are beaten on every axis; '
        f"{answer.estimated:,} budgets were computed.</p>",
        *(f'<p class="note">Note: {escape(note)}</p>' for note in words.notes(answer)),
    ]
    return page(f"Plan for {title}", body)


def _winner(answer: PlanAnswer) -> list[str]:
    plan = answer.winner
    assert plan is not None
    against = ""
    if answer.runner_up is not None:
        loses = ", ".join(answer.runner_up_loses_by)
        against = f"<p>Runner-up: {escape(words.sentence(answer.runner_up))}. Against the winner: {escape(loses)}.</p>"
    pairs = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in words.promises(plan))
    caption = "Output tokens a second against the cost of an hour; the winner is ringed"
    return [
        f'<div class="verdict fits"><p><span class="word">WINNER</span>: {escape(words.sentence(plan))}</p>'
        f"<p>It is {escape(', '.join(plan.reasons))}.</p>{against}</div>",
        f"<dl>{pairs}</dl>",
        f"<figure><figcaption>{escape(caption)}</figcaption>{scroll(scatter(answer), caption)}{legend()}</figure>",
        f"<figure><figcaption>What each GPU of the winner would hold</figcaption>"
        f"{scroll(html_figures.bar(plan.budget, 'winner'), 'memory of the winner')}"
        f"{html_figures.legend(plan.budget)}</figure>",
        "<h2>The plans that no other beats on every axis</h2>",
        _table("In the order of the goal", words.COLUMNS, [words.row(each) for each in answer.front], words.RIGHT),
        f'<p class="note">{escape(words.LEGEND)}</p>',
    ]


def _none(answer: PlanAnswer) -> list[str]:
    binding = ", ".join(words.LIMITS[limit] for limit in answer.binding)
    near = "".join(
        f"<li>with <code>{escape(each.change)}</code>: {escape(words.sentence(each.plan))}</li>"
        for each in answer.nearest
    )
    return [
        '<div class="verdict does_not_fit"><p><span class="word">NO PLAN</span>: nothing keeps every limit. '
        f"What binds: {escape(binding)}.</p>{f'<p>The nearest:</p><ul>{near}</ul>' if near else ''}</div>"
    ]


def _table(caption: str, head: Sequence[str], rows: Iterable[Sequence[str]], right: frozenset[int]) -> str:
    def cells(row: Sequence[str]) -> str:
        kinds = (' class="n"' if column in right else "" for column in range(len(row)))
        return "".join(f"<td{kind}>{escape(text)}</td>" for kind, text in zip(kinds, row, strict=True))

    titles = "".join(
        f'<th scope="col"{" class=n" if column in right else ""}>{escape(name)}</th>'
        for column, name in enumerate(head)
    )
    body = "".join(f"<tr>{cells(row)}</tr>" for row in rows)
    about = f"<caption>{escape(caption)}</caption>"
    return scroll(f'<table class="wide">{about}<thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table>', caption)
