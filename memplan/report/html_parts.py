"""What every HTML page is made of: its frame, figures, tables, names with values. Text that is given is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape as escape_html

from memplan.report.html_style import style_sheet
from memplan.report.layout import printable

_ABOUT = (
    "Sizes are per GPU, of the fullest rank; 1 GiB is 2^30 bytes. Intervals hold the real value in nine runs of ten. "
    "Exact: read from a file's header. Derived: a formula over the architecture. Measured: on a recorded run. "
    "Modelled: with a constant fitted to recorded runs. Assumed: nothing better is known."
)


def escape(text: str) -> str:
    """Return `text` with everything that HTML would read taken literally."""
    return escape_html(printable(text))


def page(title: str, body: Iterable[str], *, about: str = _ABOUT, style: str = "") -> str:
    """Return a whole page around `body`: its head, the style sheet with what this page alone needs (`style`), and a
    foot that says `about` what it shows.
    """
    sheet = f"{style_sheet()}\n{style}" if style else style_sheet()
    head = (
        '<meta charset="utf-8">\n<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{sheet}\n</style>"
    )
    content = "\n".join(part for part in body if part)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n{head}\n</head>\n<body>\n<main>\n{content}\n'
        f"<footer><p>{escape(about)}</p><p>Written by memplan.</p></footer>\n</main>\n</body>\n</html>\n"
    )


def figure(caption: str, svg: str, below: str = "") -> str:
    """A drawing with its caption, and its legend below."""
    shown = scroll(svg, caption)
    return f"<figure><figcaption>{escape(caption)}</figcaption>{shown}{below}</figure>"


def scroll(content: str, name: str) -> str:
    """What may be wider than a phone scrolls by itself, also by keyboard."""
    return f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(name)}">{content}</div>'


def notes(warnings: Sequence[str]) -> list[str]:
    """What a reader has to know beside the answer."""
    return [f'<p class="note">Note: {escape(warning)}</p>' for warning in warnings]


def titled(title: str, body: str) -> str:
    """A part of the page with its heading; nothing where there is nothing."""
    return f"<h3>{escape(title)}</h3>{body}" if body else ""


def pairs(rows: Sequence[tuple[str, str]]) -> str:
    """Names and values."""
    items = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in rows)
    return f"<dl>{items}</dl>" if items else ""


def table_row(texts: Sequence[str], kind: str = "", right: Sequence[int] = (1, 2)) -> str:
    """One row of a table; the columns in `right` are set to the right."""
    first = f'<th scope="row">{escape(texts[0])}</th>'
    cells = [
        f'<td class="n">{escape(text)}</td>' if column in right else f"<td>{escape(text)}</td>"
        for column, text in enumerate(texts[1:], start=1)
    ]
    mark = f' class="{kind}"' if kind else ""
    return f"<tr{mark}>{first}{''.join(cells)}</tr>"


def data_table(
    caption: str, head: Sequence[str], rows: Sequence[str], right: Sequence[int] = (1, 2), *, kind: str = ""
) -> str:
    """A table of rows that are drawn already; its caption is what it says to a screen reader, too."""
    titles = "".join(
        f'<th scope="col" class="n">{escape(name)}</th>' if column in right else f'<th scope="col">{escape(name)}</th>'
        for column, name in enumerate(head)
    )
    about = f"<caption>{escape(caption)}</caption>"
    body = f"<thead><tr>{titles}</tr></thead><tbody>{''.join(rows)}</tbody>"
    return scroll(f"<table{f' class={kind}' if kind else ''}>{about}{body}</table>", caption)
