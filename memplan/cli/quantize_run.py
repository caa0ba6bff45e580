"""A quantization carried out: texts, blocks, checkpoint, proof. Torch is imported here and below."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memplan.cli.options import Given
from memplan.cli.progress import progress
from memplan.cli.quantize_proof import proven
from memplan.cli.quantize_request import AskedQuantization
from memplan.cli.quantize_stops import resumable
from memplan.cli.quantize_told import Told
from memplan.errors import MemplanError, QualityMissed
from memplan.quantize.forecast import forecast
from memplan.quantize.gate import GateResult
from memplan.quantize.packages import require_packages
from memplan.quantize.result import QuantizeResult, notes_on_experts
from memplan.records import replace

if TYPE_CHECKING:
    from memplan.domain.quality import QualityReport
    from memplan.quantize.forward import Forward
    from memplan.quantize.memory_watch import MemoryWatch
    from memplan.quantize.mix import Choice
    from memplan.quantize.pipeline import Quantization
    from memplan.quantize.ranks import Ranks
    from memplan.quantize.workspace import Workspace

_REPORT = "quantization_report.json"


def run_quantization(asked: AskedQuantization, given: Given) -> QuantizeResult | None:
    """Quantize, prove and accept; what is named to fall back on is tried when too much was lost.

    None where in the end the 16-bit model is kept, or another process of several speaks for all.
    Raises: Unfinished when it was interrupted; QualityMissed when the result lost too much; MissingExtra, and what the
    pipeline raises.
    """
    require_packages("memplan quantize", "compressed_tensors")
    from memplan.quantize.evaluation import device_named
    from memplan.quantize.ranks import joined

    device_named(asked.request.device)
    with joined(asked.request.device) as ranks:
        return _attempts(asked, given, ranks)


def _attempts(asked: AskedQuantization, given: Given, ranks: Ranks) -> QuantizeResult | None:
    """Each request in its turn, until one loses little enough."""
    missed: list[str] = []
    requests = (asked.request, *asked.fallbacks)
    for number, request in enumerate(requests):
        one = replace(asked, request=request)
        if number:
            one = replace(one, forecast=forecast(asked.spec, request), target_bytes=None)
        if given.get("resume") and _was_refused(one):
            missed.append(f"{request.method.name} had lost too much")
            continue
        result = _attempt(one, given, ranks, missed)
        if result is None:
            return None
        if result.gate.verdict == "passed":
            _remember(one, result)
            return result
        is_last = number + 1 == len(requests)
        _show(result)
        if is_last and not asked.keeps_base:
            raise _refusal(result)
        missed.append(f"{request.method.name} {_lost(result)}")
        print(f"{missed[-1]}: {'the 16-bit model is kept' if is_last else 'the next is tried'}", file=sys.stderr)
    return None


def _attempt(asked: AskedQuantization, given: Given, ranks: Ranks, missed: list[str]) -> QuantizeResult | None:
    """One request carried out and judged; None in all processes but the first."""
    from memplan.quantize.memory_watch import MemoryWatch
    from memplan.quantize.output import accept, write_checkpoint
    from memplan.quantize.workspace import Workspace

    start = time.monotonic()
    with MemoryWatch() as watch:
        work, notes, mix = _quantization(asked, given, ranks)
        workspace = Workspace(asked.output, work.identity(), rank=ranks.rank)
        if ranks.is_first and given.get("resume") and workspace.was_accepted(len(work.skeleton.blocks)):
            workspace.clear()
            print(f"{asked.output} is whole, nothing was left to do", file=sys.stderr)
            return None
        with resumable(workspace, len(work.skeleton.blocks)):
            if ranks.is_first:
                workspace.open(resume=bool(given.get("resume")), force=bool(given.get("force")))
            ranks.wait()
            workspace.join()
            with progress("block", lines=ranks.is_first) as step:
                told = Told(step, watch, workspace.blocks, asked.forecast.proof_seconds)
                _work_through(work, workspace, told)
            if not ranks.is_first:
                return None
            watch.phase = "writing"
            staging = write_checkpoint(work, workspace)
            watch.phase = "proof"
            quality, gate = _prove(asked, work, staging, given)
    place = asked.output if gate.verdict == "passed" else _rejected(asked)
    result = QuantizeResult(
        model_name=asked.spec.name,
        request=work.request,
        forecast=asked.forecast,
        folder=place,
        quality=quality,
        gate=gate,
        blocks=tuple(workspace.blocks),
        output_bytes=sum(path.stat().st_size for path in staging.iterdir()),
        seconds=time.monotonic() - start,
        peak_bytes=_peak_bytes(asked.request.device, watch),
        memory=tuple(watch.samples),
        mix=mix,
        notes=(*([asked.target_note] if asked.target_note else []), *missed, *notes, *_notes(workspace.blocks)),
    )
    with resumable(workspace, len(work.skeleton.blocks)):
        write_reports(result, staging, asked.folder, html=bool(given.get("html")))
        accept(workspace, staging, place)
    return result


def _work_through(work: Quantization, workspace: Workspace, told: Told) -> None:
    """Quantize what is left to quantize. Of a model that is refused at its first block no work stays in the way."""
    try:
        work.run(workspace, told.block, told.module)
    except MemplanError:
        if not workspace.blocks and not workspace.rank:
            workspace.clear()
        raise


def write_reports(result: QuantizeResult, staging: Path, source: Path | None, *, html: bool) -> None:
    """What was done and how good it is, beside the weights: for programs, for the hub, and for eyes."""
    from memplan.quantize.workspace import write_whole
    from memplan.report.quantize_card import model_card
    from memplan.report.quantize_html import quantization_page
    from memplan.report.quantize_json import result_json

    write_whole(staging / _REPORT, result_json(result).encode())
    write_whole(staging / "README.md", model_card(result, versions(), source).encode())
    if html:
        write_whole(staging / "quantization_report.html", quantization_page(result).encode())


def versions() -> dict[str, str]:
    """The releases of what made a checkpoint."""
    import importlib.metadata

    found = {}
    for name in ("memplan", "torch", "transformers", "safetensors", "compressed-tensors"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _quantization(
    asked: AskedQuantization, given: Given, ranks: Ranks
) -> tuple[Quantization, list[str], tuple[Choice, ...]]:
    """The work to be done, what is to be known of it, and the widths of layers where each has its own."""
    from memplan.quantize.pipeline import Quantization
    from memplan.quantize.text_sets import read_set
    from memplan.quantize.windows import calibration_windows, check_enough, load_tokenizer

    request = asked.request
    assert asked.folder is not None
    tokenizer = load_tokenizer(asked.folder)
    texts = read_set(request.calibration, "calibrate", seed=request.seed, offline=bool(given.get("offline")))
    windows = calibration_windows(
        texts,
        tokenizer,
        window_tokens=request.window_tokens,
        num_windows=request.num_samples,
    )
    notes: list[str] = []
    if request.method.needs_calibration:
        widest = max(
            tensor.shape[1] for layer in asked.spec.layers for tensor in layer.tensors if len(tensor.shape) == 2
        )
        thin = check_enough(windows, widest_inputs=widest)
        notes += [thin] if thin else []
    work = Quantization(request, asked.folder, list(windows.split(request.batch_size)), ranks=ranks)
    # Experts are measured in fewer passes where there is room; what comes out is the same.
    work.pool_bytes += asked.spare_bytes // 2
    notes += work.notes()
    mix = () if asked.target_bytes is None else _mix(asked, work, asked.target_bytes)
    return work, notes, mix


def _mix(asked: AskedQuantization, work: Quantization, target_bytes: int) -> tuple[Choice, ...]:
    from memplan.quantize.auto import mixed

    measured = asked.output.with_name(asked.output.name + ".sensitivity.json")
    with progress("measuring block", lines=work.ranks.is_first) as step:
        return mixed(work, asked.spec, target_bytes, measured, step)


def _prove(
    asked: AskedQuantization, work: Quantization, staging: Path, given: Given
) -> tuple[QualityReport, GateResult]:
    """Measure the written checkpoint beside the model that it was made from, on text that it was not calibrated on."""
    from memplan.quantize.written import written_model

    def made() -> Forward:
        device, spill = asked.request.device, staging.parent
        return written_model(staging, work.layout, asked.request.format, device=device, spill=spill)

    return proven(asked, given, made, staging.parent)


def _show(result: QuantizeResult) -> None:
    """The figures of what lost too much, on stderr."""
    from memplan.report.layout import Style
    from memplan.report.quality_text import render_quality

    print(render_quality(result.quality, Style(), result.gate), file=sys.stderr, end="")


def _lost(result: QuantizeResult) -> str:
    worst = result.gate.worst
    return (
        f"raises perplexity on {worst.domain} by {worst.increase_fraction:.1%}, {worst.limit_fraction:.1%} is allowed"
    )


def _refusal(result: QuantizeResult) -> QualityMissed:
    return QualityMissed(
        f"{result.request.method.name} {_lost(result)}; the checkpoint is put aside in {result.folder}",
        hint="--fallback int8, --method awq+gptq, --group-size 32, or a larger --max-perplexity-increase",
    )


def _rejected(asked: AskedQuantization) -> Path:
    """Where a checkpoint goes that lost too much; each of several that are tried has its own place."""
    tried = f".{asked.request.method.name.replace('+', '-')}" if asked.fallbacks else ""
    return asked.output.with_name(f"{asked.output.name}{tried}.rejected")


def _was_refused(asked: AskedQuantization) -> bool:
    """Whether this request was carried out before a run of several was stopped, and lost too much."""
    from memplan.report.quantize_json import request_facts

    try:
        report = json.loads((_rejected(asked) / _REPORT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(report, dict) and report.get("request") == json.loads(json.dumps(request_facts(asked.request)))


def _notes(blocks: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    return (*notes_on_experts(blocks), *(note for block in blocks for note in block["notes"]))


def _remember(asked: AskedQuantization, result: QuantizeResult) -> None:
    from memplan.cli.state import QuantizedOutput, remember_quantized
    from memplan.quantize.forecast import scheme_name

    difference = result.quality.overall.difference
    words = f"perplexity {result.quality.overall.perplexity:.2f}"
    if difference is not None:
        words += f", {difference.base_perplexity:.2f} before"
    remember_quantized(
        QuantizedOutput(model=asked.spec.name, output=result.folder, scheme=scheme_name(asked.request), quality=words)
    )


def _peak_bytes(device: str, watch: MemoryWatch) -> int:
    """The most that was held of what the forecast is about."""
    if device == "cpu":
        return watch.peak_bytes
    from memplan.quantize.torch_memory import device_peak_bytes

    return device_peak_bytes()
