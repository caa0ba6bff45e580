"""`memplan models`: list, search and show the models of the catalogue."""

from typing import Annotated

import typer

from memplan.cli.output import guarded_stdout, write_answer
from memplan.errors import SourceNotFound, UsageError

_SEARCH = typer.Argument(help="Words that a model's id, names or family must have.", show_default=False)


def models_command(
    search: Annotated[list[str] | None, _SEARCH] = None,
    show: Annotated[str | None, typer.Option(help="All that is known of one model.")] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    no_color: Annotated[bool, typer.Option("--no-color", help="No colour.")] = False,
) -> None:
    """List the models that memplan knows by name; any other can be given as a hub id, a folder or a file."""
    if search and show is not None:
        raise UsageError("a search and --show exclude each other", hint="give one of them")
    from memplan.catalog.models import find_model, list_models, search_models, suggest_models
    from memplan.cli.listing import page_style
    from memplan.report.lists import model_page, model_table, models_json

    style, width = page_style(no_color=no_color)
    if show is not None:
        model = find_model(show)
        if model is None:
            hint = suggest_models(show) or "memplan models lists them all"
            raise SourceNotFound(f"unknown model: `{show}`", hint=hint)
        if model.resolved_note:
            typer.echo(f"note: {model.resolved_note}", err=True)
        text = models_json((model,), with_config=True) if json else model_page(model, style)
    else:
        models = search_models(" ".join(search)) if search else list_models()
        if not models:
            raise UsageError(f"no model matches: `{' '.join(search or ())}`", hint="memplan models lists them all")
        text = models_json(models) if json else model_table(models, style, width=width)
    with guarded_stdout():
        write_answer(text)
