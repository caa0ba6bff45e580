"""How far long work is: a bar with the time left on a terminal; off one, nothing or a line for every step."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Step(Protocol):
    """Is told how many steps of how many are done, and what comes next."""

    def __call__(self, done: int, total: int, name: str = "") -> None: ...


@contextmanager
def progress(what: str, *, lines: bool = False) -> Iterator[Step]:
    """Show the progress of `what` on stderr. With `lines`, every step is a line where there is no terminal."""
    if not sys.stderr.isatty():
        yield _line(what) if lines else _nothing
        return
    from rich.console import Console
    from rich.progress import Progress as Bar

    with Bar(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)

        def step(done: int, total: int, name: str = "") -> None:
            bar.update(task, completed=done, total=total, description=f"{what} {name}".strip())

        yield step


def _line(what: str) -> Step:
    def step(done: int, total: int, name: str = "") -> None:
        print(f"{what} {done} of {total} {name}".rstrip(), file=sys.stderr, flush=True)

    return step


def _nothing(done: int, total: int, name: str = "") -> None:
    """Off a terminal short work shows nothing."""
