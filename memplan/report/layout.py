"""How plain text is laid out: wrapped to a width, aligned in columns, coloured when colours are wanted.

Nothing here looks at the terminal, and nothing is ever cut off: what has no room beside goes below.
"""

from __future__ import annotations

from collections.abc import Sequence

from memplan.records import dataclass

Cell = str | tuple[str, str]
"""A text, or a text and the ANSI code of its colour."""

_GAP = 2
_NARROWEST = 16
_BELOW_INDENT = 4


@dataclass(frozen=True, slots=True)
class Style:
    """How wide a page is, and whether it may have colours and block characters."""

    width: int = 100
    color: bool = False
    unicode: bool = True

    def paint(self, text: str, code: str) -> str:
        """Wrap `text` in a colour, if there are colours."""
        return f"\x1b[{code}m{text}\x1b[0m" if self.color and code and text else text


def printable(text: str) -> str:
    """Return `text` on one line and without control characters: names come from files and may hold escape codes."""
    return text if text.isprintable() else "".join(char if char.isprintable() else " " for char in text)


def wrap(text: str, width: int, *, indent: str = "") -> list[str]:
    """Return `text` in lines of at most `width`; lines after the first start with `indent`. Long words are split."""
    text = printable(text)
    if len(text) <= width:
        return [text]
    lead = text[: len(text) - len(text.lstrip())]
    lines, line = [], lead
    room = max(1, width - len(lead + indent))
    for word in text.split():
        for start in range(0, len(word), room):
            piece = word[start : start + room]
            if line.strip() and len(line) + 1 + len(piece) > width:
                lines.append(line)
                line = lead + indent
            line = f"{line} {piece}" if line.strip() else line + piece
    return [*lines, line]


def paragraph(text: str, style: Style, *, indent: str = "  ", hang: str = "  ", code: str = "") -> str:
    """Return `text` as lines of the page, the first after `indent` and the rest after `hang`."""
    first, *rest = wrap(text, style.width - max(len(indent), len(hang)))
    return "\n".join([indent + style.paint(first, code), *(hang + style.paint(line, code) for line in rest)])


def table(
    rows: Sequence[Sequence[Cell]],
    style: Style,
    *,
    right: frozenset[int],
    indent: str = "",
    narrowest_first: int = 30,
    narrowest_last: int = 26,
) -> str:
    """Return aligned columns within the page; the columns in `right` are set to the right.

    The last column wraps in what the others leave. Where that is less than `narrowest_last`, the first column wraps
    down to `narrowest_first`; where that is not enough, the last column goes below its row.
    """
    texts = [[printable(_text(cell)) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in texts) for column in range(len(texts[0]))]
    room = style.width - len(indent)
    last = len(widths) - 1
    wanted = min(widths[last], narrowest_last) + _GAP if widths[last] else 0
    others = sum(widths[1:last]) + _GAP * (last - 1)
    beside = min(widths[0], max(narrowest_first, room - wanted - others))
    is_below = beside + others + wanted > room
    widths[0] = beside if not is_below else min(widths[0], max(_NARROWEST, room - others))
    widths[last] = 0 if is_below or not wanted else min(widths[last], room - widths[0] - others - _GAP)
    lines: list[str] = []
    for row, plain in zip(rows, texts, strict=True):
        codes = [cell[1] if isinstance(cell, tuple) else "" for cell in row]
        lines += [indent + line for line in _row_lines(plain, codes, widths, style, right)]
        if is_below and plain[last]:
            pad = indent + " " * _BELOW_INDENT
            lines += [pad + style.paint(line, codes[last]) for line in wrap(plain[last], style.width - len(pad))]
    return "\n".join(lines)


def _text(cell: Cell) -> str:
    return cell[0] if isinstance(cell, tuple) else cell


def _row_lines(
    texts: Sequence[str], codes: Sequence[str], widths: Sequence[int], style: Style, right: frozenset[int]
) -> list[str]:
    """One row as lines: the first and the last cell may take several."""
    shown = [column for column, width in enumerate(widths) if width]
    cells = {column: wrap(texts[column], widths[column], indent="" if column else "  ") for column in shown}
    height = max(len(cell) for cell in cells.values())
    lines = []
    for number in range(height):
        parts, padding = [], ""
        for column in shown:
            text = cells[column][number] if number < len(cells[column]) else ""
            if text:
                ahead = " " * (widths[column] - len(text)) if column in right else ""
                parts.append(padding + ahead + style.paint(text, codes[column]))
                padding = "" if column in right else " " * (widths[column] - len(text))
            else:
                padding += " " * widths[column]
            padding += " " * _GAP
        lines.append("".join(parts))
    return lines
