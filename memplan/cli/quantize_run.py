"""A quantization carried out: texts, blocks, checkpoint, proof. Torch is imported here and below."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from memplan.cli.options import Given
from memplan.cli.progress import progress
from memplan.cli.quantize_request import AskedQuantization
from memplan.errors import QualityMissed, Unfinished
from memplan.quantize.gate import GateResult, judge
from memplan.quantize.packages import require_packages
from memplan.quantize.result import QuantizeResult, notes_on_experts

if TYPE_CHECKING:
    from memplan.domain.quality import QualityReport
    from memplan.quantize.pipeline import Quantization

_REPORT = "quantization_report.json"
_VALIDATION_TOKENS = 2048  # of a window, as in the papers; less where the model's context is shorter


def run_quantization(asked: AskedQuantization, given: Given) -> QuantizeResult:
    """Quantize, prove and accept.

    Raises: Unfinished when it was interrupted; QualityMissed when the result lost too much; MissingExtra, and what the
    pipeline raises.
    """
    require_packages("memplan quantize", "compressed_tensors")
    from memplan.quantize.evaluation import device_named
    from memplan.quantize.output import accept, write_checkpoint
    from memplan.quantize.workspace import Workspace, write_whole
    from memplan.report.quantize_json import result_json

    assert asked.folder is not None
    assert asked.output is not None
    device_named(asked.request.device)
    start = time.monotonic()
    work, notes = _quantization(asked, given)
    workspace = Workspace(asked.output, work.identity())
    workspace.open(resume=bool(given.get("resume")), force=bool(given.get("force")))
    try:
        with progress("block", lines=True) as step:
            work.run(workspace, step)
        staging = write_checkpoint(work, workspace)
        quality, gate = _prove(asked, work, staging, given)
    except KeyboardInterrupt:
        raise Unfinished(
            f"stopped after {len(workspace.blocks)} of {len(work.skeleton.blocks)} blocks; they are kept",
            hint="the same command with --resume goes on",
        ) from None
    blocks = tuple(workspace.blocks)
    place = asked.output if gate.verdict == "passed" else asked.output.with_name(asked.output.name + ".rejected")
    result = QuantizeResult(
        model_name=asked.spec.name,
        request=asked.request,
        forecast=asked.forecast,
        folder=place,
        quality=quality,
        gate=gate,
        blocks=blocks,
        output_bytes=sum(path.stat().st_size for path in staging.iterdir()),
        seconds=time.monotonic() - start,
        peak_bytes=_peak_bytes(),
        notes=(
            *notes,
            *work.notes(),
            *notes_on_experts(blocks),
            *(note for block in blocks for note in block["notes"]),
        ),
    )
    write_whole(staging / _REPORT, result_json(result).encode())
    accept(workspace, staging, place)
    if gate.verdict == "missed":
        _refuse(result)
    _remember(asked, result)
    return result


def _quantization(asked: AskedQuantization, given: Given) -> tuple[Quantization, list[str]]:
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
        window_tokens=min(request.window_tokens, asked.spec.max_context_tokens),
        num_windows=request.num_samples,
    )
    notes: list[str] = []
    if request.method.needs_calibration:
        widest = max(
            tensor.shape[1] for layer in asked.spec.layers for tensor in layer.tensors if len(tensor.shape) == 2
        )
        thin = check_enough(windows, widest_inputs=widest)
        notes += [thin] if thin else []
    work = Quantization(request, asked.folder, list(windows.split(request.batch_size)))
    if asked.target_bytes is not None:
        notes.append(_mix(asked, work, asked.target_bytes))
    return work, notes


def _mix(asked: AskedQuantization, work: Quantization, target_bytes: int) -> str:
    from memplan.quantize.auto import mixed

    assert asked.output is not None
    measured = asked.output.with_name(asked.output.name + ".sensitivity.json")
    with progress("measuring block", lines=True) as step:
        return mixed(work, asked.spec, target_bytes, measured, step)


def _prove(
    asked: AskedQuantization, work: Quantization, staging: Path, given: Given
) -> tuple[QualityReport, GateResult]:
    """Measure the written checkpoint beside the model that it was made from, on text that it was not calibrated on."""
    from memplan.domain.quality import QualityReport
    from memplan.quantize.forward import StreamedModel
    from memplan.quantize.perplexity import measure
    from memplan.quantize.text_sets import read_set
    from memplan.quantize.windows import load_tokenizer, scoring_windows
    from memplan.quantize.written import written_model

    assert asked.folder is not None
    texts = read_set(asked.request.calibration, "validate", seed=0, offline=bool(given.get("offline")))
    window = min(_VALIDATION_TOKENS, asked.spec.max_context_tokens)
    windows = scoring_windows(texts, load_tokenizer(asked.folder), window_tokens=window)
    with progress("checking block", lines=True) as step:
        domains, overall = measure(
            written_model(
                staging, work.layout, asked.request.format, device=asked.request.device, spill=staging.parent
            ),
            windows,
            base=StreamedModel(asked.folder, device=asked.request.device, spill=staging.parent),
            progress=step,
        )
    report = QualityReport(
        model=str(asked.output),
        base=asked.spec.name,
        text_set=texts.name,
        text_digest=texts.digest,
        window_tokens=window,
        stride_tokens=window,
        domains=domains,
        overall=overall,
    )
    return report, judge(report, asked.max_increase_fraction)


def _refuse(result: QuantizeResult) -> None:
    """Raises: QualityMissed, with the figures on stderr and the checkpoint put aside."""
    from memplan.report.layout import Style
    from memplan.report.quality_text import render_quality

    print(render_quality(result.quality, Style(), result.gate), file=sys.stderr, end="")
    worst = result.gate.worst
    raise QualityMissed(
        f"perplexity on {worst.domain} rises by {worst.increase_fraction:.1%}, {worst.limit_fraction:.1%} is allowed; "
        f"the checkpoint is put aside in {result.folder}",
        hint="--method awq+gptq, --group-size 32, --method int8, or a larger --max-perplexity-increase",
    )


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


def _peak_bytes() -> int | None:
    """The largest resident size of this process, where the system says it."""
    try:
        import resource
    except ImportError:
        return None
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * 1024
