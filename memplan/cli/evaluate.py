"""`memplan evaluate`: how well a model predicts text, and how much worse than the model it was made from."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from memplan.cli.options import EVALUATE_OPTIONS, OUTPUT_OPTIONS, SERVING_OPTIONS, SOURCE_OPTIONS, Given, accepts
from memplan.cli.output import answer_with, check_output
from memplan.cli.progress import progress
from memplan.cli.quantize_stops import in_one_go
from memplan.errors import SourceNotFound, UsageError
from memplan.quantize.packages import require_packages
from memplan.units import parse_fraction, parse_size_bytes

if TYPE_CHECKING:
    from memplan.domain.quality import TaskScore
    from memplan.quantize.evaluation import Evaluation, EvaluationRequest
    from memplan.quantize.gate import GateResult

_SERVING = tuple(option for option in SERVING_OPTIONS if option.name == "kv_dtype")
_SOURCES = tuple(option for option in SOURCE_OPTIONS if option.name != "introspect")
_QUALITY_MISSED = 6


@accepts(*EVALUATE_OPTIONS, *_SERVING, *_SOURCES, *OUTPUT_OPTIONS)
def evaluate_command(given: Given) -> None:
    """Measure perplexity per domain; against a base also its rise, KL divergence and top-1 agreement."""
    if given.get("json") and given.get("quiet"):
        raise UsageError("--json and --quiet exclude each other", hint="give one of them")
    check_output(given)
    from memplan.cli.state import filled_in

    given = filled_in(given)
    require_packages("memplan evaluate")
    request = _request(given)
    writes_scales = bool(given.get("write_kv_scales"))
    if writes_scales:
        _check_kv_scales(request, force=bool(given.get("force")))
    tasks = _tasks(given, request) if "tasks" in given else ()
    from memplan.quantize.evaluation import evaluate
    from memplan.quantize.gate import DEFAULT_LIMIT_FRACTION, judge

    with progress("evaluating") as step, in_one_go("the model was measured"):
        found = evaluate(request, step)
    gate = None
    if found.report.base is not None:
        limit = given.get("max_perplexity_increase")
        gate = judge(found.report, parse_fraction(limit) if limit is not None else DEFAULT_LIMIT_FRACTION)
    answer_with(given, _render(given, found, gate, tasks))
    if gate is not None and gate.verdict == "missed":
        if writes_scales:
            print("the scales were not written: quality missed", file=sys.stderr)
        raise SystemExit(_QUALITY_MISSED)
    if writes_scales:
        from memplan.quantize.kv_scale_files import write_kv_scales

        with in_one_go("scales were written"):
            written = write_kv_scales(request.path, found.kv_scales)
        print(f"wrote {written}", file=sys.stderr)


def _check_kv_scales(request: EvaluationRequest, *, force: bool) -> None:
    """Raises: UsageError, UnsupportedModel for a model that scales cannot be written into."""
    from memplan.quantize.kv_rounding import kv_dtype_named
    from memplan.quantize.kv_scale_files import check_kv_scales

    if not request.kv_dtype:
        raise UsageError("--write-kv-scales without a cache that has scales", hint="add --kv-dtype fp8")
    if not Path(request.name).is_dir():
        raise UsageError(f"--write-kv-scales would change the shared copy of {request.name}", hint="name a folder")
    check_kv_scales(request.path, kv_dtype=kv_dtype_named(request.kv_dtype), force=force)


def _request(given: Given) -> EvaluationRequest:
    from memplan.quantize.evaluation import EvaluationRequest, device_named

    if "max_perplexity_increase" in given:
        parse_fraction(given["max_perplexity_increase"])
        if "against" not in given and "kv_dtype" not in given:
            raise UsageError("--max-perplexity-increase is judged against a base", hint="name it with --against")
    base = given.get("against")
    return EvaluationRequest(
        path=_folder(given["model"], given.get("revision")),
        name=given["model"],
        base_path=_folder(base, None) if base is not None else None,
        base_name=base,
        text_set=given.get("text", "builtin"),
        calibration=given.get("calibration", "builtin"),
        window_tokens=_count(given, "window"),
        stride_tokens=_count(given, "stride"),
        max_documents=_count(given, "max_documents"),
        kv_dtype="" if given.get("kv_dtype", "auto") == "auto" else given["kv_dtype"],
        device=device_named(given.get("device", "auto")),
        max_memory_bytes=parse_size_bytes(given["max_ram"], what="--max-ram") if "max_ram" in given else 0,
        seed=given.get("seed", 0),
        offline=given.get("offline", False),
        trust_remote_code=given.get("trust_remote_code", False),
    )


def _folder(name: str, revision: str | None) -> Path:
    """The folder with a model's weights. Raises: SourceNotFound when they are not at hand."""
    from memplan.introspect.resolve import weights_folder

    folder = weights_folder(name, revision=revision)
    if folder is None:
        raise SourceNotFound(
            f"the weights of `{name}` are not on this disk",
            hint="name a folder with safetensors, a model in the Hugging Face cache, or demo",
        )
    return folder


def _count(given: Given, name: str) -> int:
    """A whole number above zero; 0 where it was not given."""
    if name in given and given[name] < 1:
        raise UsageError(f"--{name.replace('_', '-')} is {given[name]}", hint="it must be at least 1")
    return int(given.get(name, 0))


def _tasks(given: Given, request: EvaluationRequest) -> tuple[TaskScore, ...]:
    """What lm-eval gives for --tasks. It comes first, so that a task that cannot run costs no other time."""
    if request.kv_dtype:
        raise UsageError("--tasks run with the model's own cache, not one of --kv-dtype", hint="leave one of them out")
    from memplan.quantize.tasks import run_tasks, task_names

    return run_tasks(
        request.path,
        task_names(given["tasks"]),
        base_path=request.base_path,
        device=request.device,
        max_documents=request.max_documents,
        seed=request.seed,
        offline=request.offline,
        trust_remote_code=request.trust_remote_code,
    )


def _render(given: Given, found: Evaluation, gate: GateResult | None, tasks: tuple[TaskScore, ...]) -> str:
    if given.get("json"):
        from memplan.report.quality_json import quality_json

        scales = {layer: {"k_scale": each.k_scale, "v_scale": each.v_scale} for layer, each in found.kv_scales.items()}
        return quality_json(found.report, gate, scales, tasks)
    from memplan.cli.listing import page_style
    from memplan.report.quality_text import render_gate, render_quality

    style, _ = page_style(no_color=given.get("no_color", False))
    if given.get("quiet"):
        if gate is None:
            return f"{found.report.overall.perplexity:.3f}\n"
        return render_gate(gate, style).splitlines()[-1] + "\n"
    return render_quality(found.report, style, gate, tasks)
