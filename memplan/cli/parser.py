"""The command line as typer parses it: help, completion of half a thought, and what is wrong with a line.

Lines that are plain are read without it (`memplan.cli.plain_line`): importing typer takes longer than an estimate.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Any, Optional

import typer
from typer.core import TyperCommand, TyperGroup

from memplan.cli.commands import COMMANDS, import_command
from memplan.cli.options import Command, Option, flags_of
from memplan.errors import UsageError, did_you_mean

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
    return parser_of(name, import_command(name))


def parser_of(name: str, command: Command | Callable[..., None]) -> Any:
    """A command as an object that parses its own arguments."""
    single = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    settings = {"help_option_names": ["-h", "--help"], "max_content_width": 118}
    function = _annotated(command) if isinstance(command, Command) else command
    single.command(name, cls=PanelledCommand, context_settings=settings)(function)
    return typer.main.get_command(single)


def _annotated(command: Command) -> Callable[..., None]:
    """A command as a function that typer understands."""

    def run(**values: Any) -> None:
        command(**values)

    kinds = {option.name: _annotation(option) for option in command.options}
    if (argument := command.argument) is not None:
        shown = typer.Argument(help=argument.help, show_default=False, metavar=f"[{argument.name.upper()}]")
        kinds = {argument.name: Annotated[Optional[str], shown], **kinds}  # noqa: UP045 - a value, not a hint
    run.__doc__ = command.work.__doc__
    run.__annotations__ = kinds
    run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind)
            for name, kind in kinds.items()
        ]
    )
    return run


def _annotation(option: Option) -> Any:
    flags, opposite = flags_of(option)
    names = flags if opposite is None else (f"{flags[0]}/{opposite}",)
    shown = typer.Option(*names, help=option.help, show_default=False, rich_help_panel=option.panel or None)
    return Annotated[Optional[option.kind], shown]  # noqa: UP045


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


def run_parsed(arguments: list[str]) -> int:
    """Parse a command line and run its command; its exit code.

    Raises: UsageError for what the parser did not understand, KeyboardInterrupt, and what the command raises.
    """
    try:
        return app(args=arguments, prog_name="memplan", standalone_mode=False) or 0
    except _PARSER_ERROR as error:
        message = error.format_message().strip().rstrip(".")  # type: ignore[attr-defined]
        raise UsageError(message[:1].lower() + message[1:], hint="add --help to see the options") from None
    except typer.Abort:
        raise KeyboardInterrupt from None
