"""What a result of `memplan quantize` is worth: beside the model that it was made from, on text to validate on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from memplan.cli.options import Given
from memplan.cli.progress import progress
from memplan.cli.quantize_request import AskedQuantization
from memplan.domain.quality import QualityReport
from memplan.quantize.gate import GateResult, judge

if TYPE_CHECKING:
    from memplan.quantize.forward import Forward

_WINDOW_TOKENS = 2048  # as in the papers; less where the model's context is shorter


def proven(
    asked: AskedQuantization, given: Given, made: Callable[[], Forward], spill: Path
) -> tuple[QualityReport, GateResult]:
    """Measure what is `made` beside its base, and judge it; many hidden states are in files of the folder `spill`."""
    from memplan.quantize.forward import StreamedModel
    from memplan.quantize.perplexity import measure
    from memplan.quantize.text_sets import read_set
    from memplan.quantize.windows import load_tokenizer, scoring_windows

    assert asked.folder is not None
    texts = read_set(asked.request.calibration, "validate", seed=0, offline=bool(given.get("offline")))
    window = min(_WINDOW_TOKENS, asked.spec.max_context_tokens)
    windows = scoring_windows(texts, load_tokenizer(asked.folder), window_tokens=window)
    base = StreamedModel(asked.folder, device=asked.request.device, spill=spill)
    with progress("checking block", lines=True) as step:
        domains, overall = measure(made(), windows, base=base, progress=step)
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
