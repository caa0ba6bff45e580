"""Profiles of people's own programs: what `memplan.profile.record` and `python -m memplan.profile` write and print.

A program's stdout is its own, so the page goes to stderr; the profile goes to a file.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import runpy
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import cast

from memplan.cli.output import check_output, write_file
from memplan.domain.timeline import MemoryTimeline
from memplan.errors import MemplanError, UsageError
from memplan.profile.attach import Attached, Where, current

_INTERRUPTED = 130


@contextlib.contextmanager
def record(
    name: str = "run", *, device: Where = "auto", output: str | os.PathLike[str] | None = None, show: bool = True
) -> Iterator[Attached]:
    """Profile the memory of what runs inside; within such a block, name a phase: `with record("prefill"):`.

    `output` is the JSON file to write, or a page if it ends in .html; it replaces an older one. `show` prints the page
    to stderr. The profile is in `timeline` of what this gives, once it is over.

    Raises: MissingExtra without torch; UsageError for a file that cannot be written.
    """
    running = current()
    if running is not None:
        with running.phase(name):
            yield running
        return
    path = None if output is None else Path(output)
    check_output({"output": path, "force": True})
    recording = Attached(name, device)
    try:
        with recording:
            yield recording
    finally:  # what ends in an error, such as memory that ran out, is told as well
        if recording.has_begun:
            tell(recording.timeline, path, show=show)


def tell(timeline: MemoryTimeline | None, path: Path | None, *, show: bool) -> None:
    """Write a profile and print its page. Raises: UsageError for a file that cannot be written."""
    if timeline is None:
        print("memplan: nothing was allocated", file=sys.stderr)
        return
    if show:
        from memplan.cli.listing import page_style
        from memplan.report.profile_text import render_profile

        style, _ = page_style(no_color=not sys.stderr.isatty())
        print(render_profile(timeline, style, with_hint=False), file=sys.stderr, end="")
    if path is not None:
        write_file(path, _content(timeline, path))
        print(f"wrote {path}", file=sys.stderr)


def _content(timeline: MemoryTimeline, path: Path) -> str:
    """What goes into a file: a page where its name says so, else JSON."""
    if path.suffix.lower() in (".html", ".htm"):
        from memplan.report.profile_html import html_profiles

        return html_profiles([timeline])
    from memplan.report.profile_json import profiles_json

    return profiles_json([timeline])


def run_script(arguments: Sequence[str]) -> int:
    """`python -m memplan.profile [options] SCRIPT [ARGS]`: run a script as python would, and profile it.

    Returns the exit code: the script's own, or that of an error of memplan's.
    """
    options = _parser().parse_args(arguments)
    script: Path = options.script
    path: Path = options.output or Path(f"{script.stem}.profile.json")
    try:
        if not script.is_file():
            raise UsageError(f"no such file: {script}", hint="give a Python script, then its arguments")
        check_output({"output": path, "force": options.force})
        return _run(script, options, path)
    except MemplanError as error:
        print(f"error: {error.message}", file=sys.stderr)
        if error.hint:
            print(f"hint: {error.hint}", file=sys.stderr)
        return error.exit_code


def _run(script: Path, options: argparse.Namespace, path: Path) -> int:
    """Run the script; whatever ends it, what was recorded until then is told."""
    recording = Attached(script.name, cast("Where", options.device))
    code, failure = 0, None
    kept: dict[str, object] = {}  # the script's own names, so that its end is not told as its last phase
    before = sys.argv, sys.path[:]
    sys.argv, sys.path[0:1] = [str(script), *options.arguments], [str(script.resolve().parent)]
    try:
        with recording:
            try:
                kept = runpy.run_path(str(script), run_name="__main__")
            except SystemExit as ended:
                code = ended.code if isinstance(ended.code, int) else 1 if ended.code else 0
                if isinstance(ended.code, str):
                    print(ended.code, file=sys.stderr)
            except KeyboardInterrupt:
                code = _INTERRUPTED
            except Exception as error:
                code, failure = 1, error
    finally:
        sys.argv, sys.path[:] = before
    kept.clear()
    if failure is not None:
        failure = failure.with_traceback(_within(script, failure.__traceback__))
        sys.excepthook(type(failure), failure, failure.__traceback__)
    tell(recording.timeline, path, show=not options.quiet)
    return code


def _within(script: Path, found: TracebackType | None) -> TracebackType | None:
    """A traceback from the script on, or whole where the script is not in it."""
    inner = found
    while inner is not None and Path(inner.tb_frame.f_code.co_filename) != script:
        inner = inner.tb_next
    return inner or found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m memplan.profile", description="Run a script, and profile the memory that it takes."
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="whose memory is watched")
    parser.add_argument(
        "--output", "-o", type=Path, help="the file to write, JSON or .html (default: SCRIPT.profile.json)"
    )
    parser.add_argument("--force", action="store_true", help="replace that file")
    parser.add_argument("--quiet", action="store_true", help="print no page")
    parser.add_argument("script", type=Path, help="the Python script to run")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="what it is given")
    return parser
