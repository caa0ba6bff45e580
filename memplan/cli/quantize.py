"""`memplan quantize`: forecast, then block after block, then the proof of quality, then the checkpoint.

Weights that are not at hand end in the forecast and exit code 3; a result that lost too much in exit code 6, with the
checkpoint put aside; a run that was stopped in exit code 7, with all finished blocks kept.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from memplan.cli.options import OUTPUT_OPTIONS, QUANTIZE_OPTIONS, SOURCE_OPTIONS, Given, accepts
from memplan.errors import Offline, UsageError
from memplan.units import format_gib

if TYPE_CHECKING:
    from memplan.cli.quantize_request import AskedQuantization

_OUTPUT = tuple(option for option in OUTPUT_OPTIONS if option.name != "output")
_SOURCES = tuple(option for option in SOURCE_OPTIONS if option.name != "introspect")


@accepts(*QUANTIZE_OPTIONS, *_SOURCES, *_OUTPUT)
def quantize_command(given: Given) -> None:
    """Quantize a model block by block in bounded memory, and check its quality before it is accepted."""
    from memplan.cli.output import write_answer
    from memplan.cli.quantize_ranks import is_first, is_one_of_several, run_on_devices
    from memplan.cli.quantize_request import ask, with_time
    from memplan.cli.state import filled_in

    if given.get("json") and given.get("quiet"):
        raise UsageError("--json and --quiet exclude each other", hint="give one of them")
    given = filled_in(given)
    asked = ask(given)
    if asked.folder is None or given.get("dry_run"):
        asked = asked if asked.folder is None else with_time(asked)
        write_answer(_render_forecast(given, asked))
        # What this machine has free says nothing of the one that the weights will be on; limits that were given do.
        if asked.folder is not None or any(name in given for name in ("max_ram", "max_gpu_memory")):
            asked.check()
        if asked.folder is None:
            raise Offline(f"the weights of `{asked.spec.name}` are not on this disk", hint=_where_from(asked))
        return
    if given.get("backend", "native") != "native":
        from memplan.cli.quantize_backend import run_backend

        write_answer(run_backend(str(given["backend"]), asked, given))
        return
    if asked.request.method.format == "gguf":
        from memplan.cli.quantize_gguf import run_gguf

        write_answer(_render_result(given, run_gguf(asked, given)))
        return
    asked.check()
    if given.get("devices", 1) != 1 and not is_one_of_several():
        code, answer = run_on_devices(int(given["devices"]))
        write_answer(answer)
        raise SystemExit(code)
    asked = with_time(asked)
    if is_first():
        print(_needs(asked), file=sys.stderr)
    from memplan.cli.quantize_run import run_quantization

    result = run_quantization(asked, given)
    if result is not None:
        write_answer(_render_result(given, result))


def _where_from(asked: AskedQuantization) -> str:
    """How to get the weights that are missing."""
    if Path(asked.name).is_dir():
        return "safetensors are read; load a .bin checkpoint with weights_only and save it as safetensors first"
    return f"hf download {asked.spec.name}, then run this again"


def _needs(asked: AskedQuantization) -> str:
    """What the work will take, in a line."""
    from memplan.report.quantize_text import duration

    found = asked.forecast
    memory = [f"{format_gib(found.device_bytes)} of GPU memory"] if found.device_bytes else []
    memory += [f"{format_gib(found.host_bytes)} of memory", f"{format_gib(found.disk_bytes)} of disk"]
    time = f", about {duration(found.seconds)}" if found.seconds is not None else ""
    return f"needs {', '.join(memory[:-1])} and {memory[-1]}{time}"


def _render_forecast(given: Given, asked: AskedQuantization) -> str:
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
