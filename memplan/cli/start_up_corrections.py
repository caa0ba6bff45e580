"""What start-up logs have shown of an engine's budgets on a GPU, kept in the state folder: one file for each engine,
release and GPU.

`memplan doctor --learn LOG` writes it, `memplan estimate` reads it. Memory outside of torch and of graphs is the
engine's and the GPU's, whatever the model; activations are taken over for the model that they were measured on.
"""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path
from typing import Any, cast

from memplan.cli.correction_files import corrections_folder, write_runs
from memplan.domain.correction import Correction, Term

TERMS: tuple[Term, ...] = ("activation_peak", "non_torch", "cuda_graph")
_OF_A_MODEL = ("activation_peak",)
_MOST_RUNS = 100
_LARGEST_FACTOR = 1000.0
_LARGEST_FILE = 1 << 20


def save_start_up(
    engine: str, release: str, gpu_name: str, *, model: str, ranks: int, terms: dict[Term, tuple[int, int]]
) -> Path:
    """Keep what one start-up measured of each term, with what was estimated; the same model and ranks take its place.

    Raises: UsageError where the folder cannot be written.
    """
    path = _file(engine, release, gpu_name)
    runs = [run for run in _read(path) if (run.get("model"), run.get("ranks")) != (model, ranks)]
    entries = [
        {"term": term, "measured_bytes": measured, "estimated_bytes": estimated}
        for term, (measured, estimated) in terms.items()
    ]
    runs.append({"model": model, "ranks": ranks, "terms": entries})
    content: dict[str, object] = {"engine": engine, "release": release, "gpu": gpu_name, "runs": runs[-_MOST_RUNS:]}
    write_runs(path, content)
    return path


def read_start_ups(engine: str, release: str, gpu_name: str, model: str, ranks: int) -> tuple[Correction, ...]:
    """Return what start-ups of this engine and release on this GPU have shown, with as many ranks."""
    path = _file(engine, release, gpu_name)
    if not path.exists():
        return ()
    factors: dict[Term, list[float]] = {}
    for run in _read(path):
        if run.get("ranks") != ranks:
            continue
        for term, factor in _factors(run):
            if term not in _OF_A_MODEL or run.get("model") == model:
                factors.setdefault(term, []).append(factor)
    return tuple(
        Correction(term=term, phase="start-up", attention="", factors=tuple(found), is_measured=True)
        for term, found in factors.items()
    )


def _factors(run: dict[str, Any]) -> list[tuple[Term, float]]:
    """Every term of a run that can be read: the file may have been written by anybody."""
    found: list[tuple[Term, float]] = []
    terms = run.get("terms")
    for one in terms if isinstance(terms, list) else []:
        if not isinstance(one, dict) or one.get("term") not in TERMS:
            continue
        measured, estimated = one.get("measured_bytes"), one.get("estimated_bytes")
        if isinstance(measured, int) and isinstance(estimated, int) and measured >= 0 and estimated > 0:
            found.append((cast("Term", one["term"]), min(_LARGEST_FACTOR, measured / estimated)))
    return found


def _read(path: Path) -> list[dict[str, Any]]:
    try:
        if os.path.getsize(path) > _LARGEST_FILE:
            return []
        runs = json.loads(path.read_text(encoding="utf-8"))["runs"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []
    return [run for run in runs if isinstance(run, dict)] if isinstance(runs, list) else []


def _file(engine: str, release: str, gpu_name: str) -> Path:
    key = zlib.crc32(f"{gpu_name}\n{engine}\n{release}\nstart-up".encode())
    return corrections_folder() / f"{key:08x}.json"
