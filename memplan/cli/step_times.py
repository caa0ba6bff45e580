"""Measured step times from a file: lines of `phase`, `batch`, `context` (or `tokens`) and `seconds`."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from math import isfinite
from pathlib import Path
from typing import Any

from memplan.cli.small_file import read_small_text
from memplan.domain.simulation import MeasuredSteps
from memplan.errors import UsageError

_HOLDS = "lines such as `decode,64,2000,,0.018` below `phase,batch,context,tokens,seconds`, `prefill,,,4096,0.21`"


def read_step_times(path: Path) -> MeasuredSteps:
    """Return the measured times of a CSV or of JSON lines: decode steps by batch and context, prompts by tokens.

    Raises: UsageError for a file or a line that does not read.
    """
    decode: list[tuple[float, float, float]] = []
    prefill: list[tuple[float, float]] = []
    for number, row in _rows(path):
        phase, seconds = str(row.get("phase", "")).strip().lower(), _number(row, "seconds", path, number)
        if phase == "decode":
            batch, context = (_number(row, name, path, number) for name in ("batch", "context"))
            decode.append((batch, context, seconds))
        elif phase == "prefill":
            prefill.append((_number(row, "tokens", path, number), seconds))
        else:
            raise UsageError(f"{path}, line {number}: the phase is decode or prefill: `{phase:.30}`", hint=_HOLDS)
    if not decode or not prefill:
        raise UsageError(f"{path} needs a decode step and a prefill step at least", hint=_HOLDS)
    return MeasuredSteps(decode_points=tuple(decode), prefill_points=tuple(prefill), source=f"measured: {path.name}")


def _rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    lines = read_small_text(path, holds=_HOLDS).lstrip("\ufeff").splitlines()
    first = next((line.strip() for line in lines if line.strip()), "")
    if not first.startswith("{"):
        reader = csv.DictReader(line for line in lines if line.strip())
        for row in reader:
            yield reader.line_num, {str(name).strip().lower(): cell for name, cell in row.items()}
        return
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            entry = None
        if not isinstance(entry, dict):
            raise UsageError(f"{path}, line {number}: not a step: `{line:.60}`", hint=_HOLDS)
        yield number, entry


def _number(row: Mapping[str, Any], name: str, path: Path, line: int) -> float:
    try:
        number = float(row.get(name) or "")
    except (TypeError, ValueError):
        number = float("nan")
    if not isfinite(number) or number < 0 or (number == 0 and name != "context"):
        raise UsageError(f"{path}, line {line}: {name} is no number above 0: `{row.get(name)!s:.40}`", hint=_HOLDS)
    return number
