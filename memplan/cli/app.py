"""The `memplan` command: a table of commands that are imported when they are called, and one place where errors end.

Only the command that was asked for is imported, so that `memplan estimate` stays a blink. What a command answers goes
to the real stdout through `memplan.cli.output`; everything else that is printed, by whatever library, lands on
stderr.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping
from typing import Any, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup

from memplan.errors import MemplanError, UsageError, did_you_mean

COMMANDS: Mapping[str, tuple[str, str]] = {
    "estimate": (
        "memplan.cli.estimate:estimate_command",
        "What a model uses on a GPU, what fits, what would make it fit.",
    ),
    "emit-config": (
        "memplan.cli.emit_config:emit_config_command",
        "Write the config that runs a model as estimated, with a reason for every value.",
    ),
    "plan": ("memplan.cli.plan:plan_command", "The best way to serve a model, found by search, and what it costs."),
    "simulate": (
        "memplan.cli.simulate:simulate_command",
        "How a deployment behaves under traffic: cache, queues, waits, waste, what-ifs side by side.",
    ),
    "profile": ("memplan.cli.profile:profile_command", "What memory a model really takes, phase by phase, and why."),
    "quantize": (
        "memplan.cli.quantize:quantize_command",
        "Make a model smaller, and prove that it is still good before it is accepted.",
    ),
    "evaluate": (
        "memplan.cli.evaluate:evaluate_command",
        "How well a model predicts text, and how much worse than the one it was made from.",
    ),
    "doctor": (
        "memplan.cli.doctor:doctor_command",
        "Why a run went out of memory: from its log, traceback, config, snapshot or live server.",
    ),
    "models": ("memplan.cli.models:models_command", "List, search and show the models that memplan knows by name."),
    "gpus": ("memplan.cli.gpus:gpus_command", "List, search and show the GPUs that memplan knows by name."),
}

# The parser's own error, wherever this release of typer keeps it.
_PARSER_ERROR: type[Exception] = typer.BadParameter.__mro__[2]


class LazyGroup(TyperGroup):
    """A command group whose commands are imported when they are looked up."""

    def list_commands(self, ctx: Any) -> list[str]:
        """The commands in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Import and return one command. Raises: UsageError for an unknown name."""
        if cmd_name in COMMANDS:
            return load_command(cmd_name)
        if cmd_name.startswith("-"):
            return None  # the parser says it better
        hint = did_you_mean(cmd_name, list(COMMANDS)) or f"use one of {', '.join(COMMANDS)}"
        raise UsageError(f"unknown command: `{cmd_name}`", hint=hint)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """List the commands from the table, without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


class PanelledCommand(TyperCommand):
    """A command whose --help lists options below the headings that they name."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """List arguments, options without a heading, then the headings in the order of their first options."""
        panels: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                kind = "Arguments" if parameter.param_type_name == "argument" else "Options"
                panels.setdefault(getattr(parameter, "rich_help_panel", None) or kind, []).append(record)
        for title in sorted(panels, key=lambda name: name not in ("Arguments", "Options")):
            with formatter.section(title):
                formatter.write_dl(panels[title])


def load_command(name: str) -> Any:
    """Import the command of that name as an object that parses its own arguments."""
    module, attribute = COMMANDS[name][0].split(":")
    single = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    settings = {"help_option_names": ["-h", "--help"], "max_content_width": 118}
    command = getattr(importlib.import_module(module), attribute)
    single.command(name, cls=PanelledCommand, context_settings=settings)(command)
    return typer.main.get_command(single)


app = typer.Typer(
    cls=LazyGroup,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 118},
)


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: bool = typer.Option(False, "--version", help="Print the version and exit."),
) -> None:
    """Know what a language model will use on a GPU before you rent or crash one."""
    if version:
        from memplan import __version__

        print(f"memplan {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run a command line and exit with its documented code."""
    try:
        code = app(args=arguments, prog_name="memplan", standalone_mode=False) or 0
        if code == 130:
            print("interrupted", file=sys.stderr)
    except MemplanError as error:
        _report(error)
        code = error.exit_code
    except _PARSER_ERROR as error:
        _report(_usage_error(error))
        code = UsageError.exit_code
    except (KeyboardInterrupt, typer.Abort):
        print("interrupted", file=sys.stderr)
        code = 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        code = 0
    except Exception as error:
        code = _report_bug(error)
    sys.exit(code)


def _usage_error(error: Any) -> UsageError:
    """What the parser did not understand, said as every other error is."""
    message = error.format_message().strip().rstrip(".")
    return UsageError(message[:1].lower() + message[1:], hint="add --help to see the options")


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
