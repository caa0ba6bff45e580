"""What `memplan quantize` measured of a model's quality, beside the weights: for `plan`, before tables."""

from __future__ import annotations

import json
from pathlib import Path

from memplan.catalog.quality import quality_measured
from memplan.cli.options import Given
from memplan.cli.state import quantized_output
from memplan.domain.model import ModelSpec
from memplan.domain.plan import Quality

_REPORT = "quantization_report.json"


def measured_quality(given: Given, spec: ModelSpec) -> tuple[tuple[str | None, Quality], ...]:
    """Return the measured quality by weight scheme: of MODEL itself (None), and of what was made of it here."""
    found: list[tuple[str | None, Quality]] = []
    if "model" in given and (own := _of(Path(str(given["model"])).expanduser())) is not None:
        found.append((None, own))
    made = quantized_output()
    if made is not None and made.model == spec.name and (quality := _of(made.output)) is not None:
        found.append((made.scheme, quality))
    return tuple(found)


def _of(folder: Path) -> Quality | None:
    """The rise that the report in a folder tells; None where there is none, or it cannot be read."""
    try:
        report = json.loads((folder / _REPORT).read_text(encoding="utf-8"))
        quality = report["quality"]
        rise = float(quality["overall"]["difference"]["perplexity_increase"])
        name = str(quality["text"]["set"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return quality_measured(rise, f"measured by memplan quantize on {name}: {folder / _REPORT}")
