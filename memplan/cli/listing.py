"""How a listing is laid out on what stdout is: cut and coloured on a terminal, whole and plain anywhere else."""

from __future__ import annotations

import os
import shutil

from memplan.cli.output import answer_is_terminal
from memplan.report.text import Style


def page_style(*, no_color: bool) -> tuple[Style, int | None]:
    """Return the style, and the width that lines are cut to: None off a terminal."""
    if not answer_is_terminal():
        return Style(), None
    width = shutil.get_terminal_size().columns
    return Style(width=width, color=not no_color and "NO_COLOR" not in os.environ), width
