"""Where a result of `memplan quantize` goes: a folder of its own, in place of nothing but an earlier result."""

from __future__ import annotations

import json
from pathlib import Path

from memplan.cli.options import Given
from memplan.errors import UsageError

_REPORT = "quantization_report.json"


def output_of(given: Given, model: str, method: str, source: Path | None) -> Path:
    """Return the folder that was asked for, or one named by model and method.

    Raises: UsageError for one that is no folder of its own, that holds the weights in `source`, or that --force would
    replace although it is no quantized model.
    """
    name = Path(model).name.lower() or "model"
    output = Path(given.get("output") or f"{name}-{method.replace('+', '-').replace(':', '-')}")
    if output.name in ("", ".."):
        raise UsageError(f"--output {output} names no folder of its own", hint="give the name of a new folder")
    if source is not None and source.resolve().is_relative_to(output.resolve()):
        raise UsageError(f"{output} holds the weights that are to be quantized", hint="give another --output")
    if given.get("force") and output.exists() and not _may_go(output):
        raise UsageError(f"{output} is no quantized model: --force replaces nothing else", hint="give another --output")
    return output


def _may_go(output: Path) -> bool:
    """Whether what lies there is an earlier result, ours or another library's, or an empty folder."""
    if not output.is_dir():
        return False
    if (output / _REPORT).is_file() or next(output.iterdir(), None) is None:
        return True
    try:
        config = json.loads((output / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and "quantization_config" in config
