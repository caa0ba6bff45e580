"""The `memplan` command: one place where command lines begin, and where errors end.

Only the command that was asked for is imported, and the parser only where a line needs it, so that `memplan estimate`
stays a blink. What a command answers goes to the real stdout through `memplan.cli.output`; everything else that is
printed, by whatever library, lands on stderr.
"""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from memplan.cli.commands import COMMANDS, import_command
from memplan.cli.options import Command
from memplan.errors import MemplanError

_CALLBACK_SECONDS = 0.05  # a callback that drops an interruption is through by then


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run a command line and exit with its documented code."""
    if sys.unraisablehook is sys.__unraisablehook__:
        sys.unraisablehook = _interrupt_again
    try:
        code = _run(sys.argv[1:] if arguments is None else arguments)
        if code == 130:
            print("interrupted", file=sys.stderr)
    except MemplanError as error:
        _report(error)
        code = error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        code = 0
    except Exception as error:
        code = _report_bug(error)
    finally:
        exec("")  # after an exec that was interrupted `python -m` ends as if killed, until another exec is through
    sys.exit(code)


def _run(arguments: list[str]) -> int:
    """Run a plain line at once, every other one through the parser; its exit code, where it did not exit by itself."""
    if arguments and arguments[0] in COMMANDS:
        command = import_command(arguments[0])
        if isinstance(command, Command):
            from memplan.cli.plain_line import read_plain_line

            given = read_plain_line(command, arguments[1:])
            if given is not None:
                command(**given)
                return 0
    from memplan.cli.parser import run_parsed

    return run_parsed(arguments)


def _interrupt_again(lost: sys.UnraisableHookArgs) -> None:
    """Bring Ctrl-C back where Python drops it: in the callback of a weak reference, and in `__del__`.

    A profile on the CPU notes in such a callback that a storage is freed; the next signal shall find it at an end.
    """
    if not issubclass(lost.exc_type, KeyboardInterrupt):
        sys.__unraisablehook__(lost)
        return
    import _thread
    import threading

    again = threading.Timer(_CALLBACK_SECONDS, _thread.interrupt_main)
    again.daemon = True
    again.start()


def _report_bug(error: Exception) -> int:
    """Something that memplan did not foresee: the whole story, and the exit code of a bug."""
    import traceback

    traceback.print_exception(error, file=sys.stderr)
    print(f"error: memplan has a bug: {type(error).__name__}: {error}", file=sys.stderr)
    print("\nhint: please report it with the lines above and the command line", file=sys.stderr)
    return 70


def _report(error: MemplanError) -> None:
    print(f"error: {error.message}", file=sys.stderr)
    if error.hint:
        print(f"\nhint: {error.hint}", file=sys.stderr)
