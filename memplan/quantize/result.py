"""What a quantization came to: where it lies, what it took, and how good it is. Torch is not known here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from memplan.domain.quality import QualityReport
from memplan.quantize.forecast import Forecast
from memplan.quantize.gate import GateResult
from memplan.quantize.request import QuantizeRequest
from memplan.records import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizeResult:
    """One finished quantization.

    `folder` is where the checkpoint lies: the output, or beside it when the gate was missed. `blocks` has each block's
    errors as `quantization_report.json` keeps them; `peak_bytes` is the most memory that the process held.
    """

    model_name: str
    request: QuantizeRequest
    forecast: Forecast
    folder: Path
    quality: QualityReport
    gate: GateResult
    blocks: tuple[dict[str, Any], ...]
    output_bytes: int
    seconds: float
    peak_bytes: int | None
    notes: tuple[str, ...] = ()
