"""What a quantization came to: where it lies, what it took, and how good it is. Torch is not known here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from memplan.domain.quality import QualityReport
from memplan.quantize.forecast import Forecast
from memplan.quantize.gate import GateResult
from memplan.quantize.mix import Choice
from memplan.quantize.request import QuantizeRequest
from memplan.records import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizeResult:
    """One finished quantization.

    `folder` is where the checkpoint lies: the output, or beside it when the gate was missed. `blocks` has each block's
    errors as `quantization_report.json` keeps them; `peak_bytes` is the most memory that the process held, and
    `memory` what it held over time: seconds, bytes, and the block or phase that was worked on. `mix` has the widths of
    layers where each has its own, with the damage that it does.
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
    mix: tuple[Choice, ...] = ()
    memory: tuple[tuple[float, int, str], ...] = ()


def notes_on_experts(blocks: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """What blocks say of experts that saw few tokens, together."""
    pools = [pool for block in blocks for pool in block.get("experts", {}).values()]
    few, none = (sum(pool[name] for pool in pools) for name in ("with_few_tokens", "without_tokens"))
    if not few and not none:
        return ()
    total, wanted = sum(pool["experts"] for pool in pools), max(pool["wanted_tokens"] for pool in pools)
    if not wanted:
        return (f"{none} of {total} experts had no tokens and were rounded to nearest",)
    return (
        f"{few} of {total} experts had fewer than {wanted:,} tokens of their own, {none} none; "
        "they were shown other tokens as well",
    )
