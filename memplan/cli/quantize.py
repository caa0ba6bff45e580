"""`memplan quantize`: forecast, then block after block, then the proof of quality, then the checkpoint.

Weights that are not at hand end in the forecast and exit code 3; a result that lost too much in exit code 6, with the
checkpoint put aside; a run that was stopped in exit code 7, with all finished blocks kept.
"""

from __future__ import annotations

import sys

from memplan.cli.options import OUTPUT_OPTIONS, QUANTIZE_OPTIONS, SOURCE_OPTIONS, Given, accepts
from memplan.errors import DoesNotFit, Offline, UsageError
from memplan.units import format_gib

_OUTPUT = tuple(option for option in OUTPUT_OPTIONS if option.name != "output")
_SOURCES = tuple(option for option in SOURCE_OPTIONS if option.name != "introspect")


@accepts(*QUANTIZE_OPTIONS, *_SOURCES, *_OUTPUT)
def quantize_command(given: Given) -> None:
    """Quantize a model block by block in bounded memory, and check its quality before it is accepted."""
    from memplan.cli.output import write_answer
    from memplan.cli.quantize_request import ask
    from memplan.cli.state import filled_in

    asked = ask(filled_in(given))
    if asked.folder is None or given.get("dry_run"):
        write_answer(_render_forecast(given, asked))
        if asked.limit_bytes is not None and asked.needed_bytes > asked.limit_bytes:
            raise DoesNotFit(asked.shortage(), hint=asked.mend())
        if asked.folder is None:
            raise Offline(
                f"the weights of `{asked.spec.name}` are not on this disk",
                hint=f"huggingface-cli download {asked.spec.name}, then run this again",
            )
        return
    if asked.limit_bytes is not None and asked.needed_bytes > asked.limit_bytes:
        raise DoesNotFit(asked.shortage(), hint=asked.mend())
    if asked.output is None:
        raise UsageError("no place for the result", hint="--output FOLDER")
    print(
        f"needs {format_gib(asked.needed_bytes)} of {asked.where} and {format_gib(asked.forecast.disk_bytes)} of disk",
        file=sys.stderr,
    )
    from memplan.cli.quantize_run import run_quantization

    write_answer(_render_result(given, run_quantization(asked, given)))


def _render_forecast(given: Given, asked: object) -> str:
    from memplan.cli.quantize_request import AskedQuantization

    assert isinstance(asked, AskedQuantization)
    if given.get("json"):
        from memplan.report.quantize_json import forecast_json

        return forecast_json(asked.forecast, asked.request)
    from memplan.report.quantize_text import render_forecast

    return render_forecast(asked.forecast, asked.request)


def _render_result(given: Given, result: object) -> str:
    from memplan.quantize.result import QuantizeResult

    assert isinstance(result, QuantizeResult)
    if given.get("json"):
        from memplan.report.quantize_json import result_json

        return result_json(result)
    if given.get("quiet"):
        return f"{result.gate.verdict}: {result.folder}\n"
    from memplan.cli.listing import page_style
    from memplan.report.quantize_text import render_result

    return render_result(result, page_style(no_color=bool(given.get("no_color")))[0])
