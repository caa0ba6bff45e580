"""`memplan gpus`: list, search and show the GPUs of the catalogue, or of this machine."""

from typing import Annotated

import typer

from memplan.cli.output import guarded_stdout, write_answer
from memplan.domain.gpu import GpuSpec
from memplan.errors import UsageError

_SEARCH = typer.Argument(help="Words that a GPU's name, vendor or generation must have.", show_default=False)


def gpus_command(
    search: Annotated[list[str] | None, _SEARCH] = None,
    show: Annotated[str | None, typer.Option(help="All that is known of one GPU or slice of one.")] = None,
    local: Annotated[bool, typer.Option("--local", help="The GPUs of this machine.")] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    no_color: Annotated[bool, typer.Option("--no-color", help="No colour.")] = False,
) -> None:
    """List the GPUs that memplan knows, with the memory that programs really see of them."""
    if sum((bool(search), show is not None, local)) > 1:
        raise UsageError("a search, --show and --local exclude each other", hint="give one of them")
    from memplan.cli.listing import page_style

    style, width = page_style(no_color=no_color)
    if local:
        from memplan.catalog.local_gpus import read_local_gpus
        from memplan.report.lists import local_json, local_table

        devices = read_local_gpus()
        text = local_json(devices) if json else local_table(devices, style, width=width)
    else:
        from memplan.catalog.gpus import find_gpu, list_gpus, search_gpus
        from memplan.report.lists import gpu_page, gpu_table, gpus_json

        specs: tuple[GpuSpec, ...]
        if show is not None:
            specs = (find_gpu(show),)
        else:
            specs = search_gpus(" ".join(search)) if search else list_gpus()
        if not specs:
            raise UsageError(f"no GPU matches: `{' '.join(search or ())}`", hint="memplan gpus lists them all")
        if json:
            text = gpus_json(specs)
        elif show is not None:
            text = gpu_page(specs[0], style)
        else:
            text = gpu_table(specs, style, width=width)
        if specs[0].resolved_note and show is not None:
            typer.echo(f"note: {specs[0].resolved_note}", err=True)
    with guarded_stdout():
        write_answer(text)
