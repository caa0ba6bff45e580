"""What profiles have shown of the estimates of a model on a GPU, kept in the state folder: one file for each pair.

`memplan profile --save-correction` writes it, `memplan estimate --engine transformers` reads it.
"""

from __future__ import annotations

import json
import sys
import zlib
from pathlib import Path
from typing import Any, cast

from memplan.cli.correction_files import corrections_folder, write_runs
from memplan.domain.correction import Correction, Term
from memplan.domain.gpu import GpuSpec
from memplan.domain.timeline import Compared, MemoryTimeline
from memplan.errors import UsageError

ENGINE = "transformers"
ACTIVATIONS = "activations and workspace"
FRAGMENTS = "reserved beyond the allocated"
_TERMS: dict[str, Term] = {ACTIVATIONS: "activations", FRAGMENTS: "fragments"}
ATTENTION = {"auto": "sdpa", "flash": "sdpa", "efficient": "sdpa", "eager": "eager"}
_MOST_RUNS = 100
_LARGEST_FACTOR = 1000.0


def save_correction(timeline: MemoryTimeline, gpu: GpuSpec | None) -> None:
    """Keep what a profile has shown of the estimate; a run of the same settings takes the place of the earlier one.

    Raises: UsageError for a profile that says nothing of a GPU, or a folder that cannot be written.
    """
    if timeline.device == "cpu" or gpu is None:
        raise UsageError("--save-correction is for a GPU", hint="name the GPU with --gpu")
    if not timeline.compared:
        raise UsageError("nothing to correct: no phase was compared with an estimate", hint="profile prefill, decode")
    runs = [run for run in _read(gpu.name, timeline.model_name) if run.get("settings") != _settings(timeline)]
    runs.append(_run(timeline))
    path = _file(gpu.name, timeline.model_name)
    kept = runs[-_MOST_RUNS:]
    content: dict[str, object] = {"gpu": gpu.name, "model": timeline.model_name, "engine": ENGINE, "runs": kept}
    write_runs(path, content)
    print(f"wrote {path}: estimate --engine {ENGINE} now takes it into account", file=sys.stderr)


def read_corrections(gpu_name: str, model_name: str) -> tuple[Correction, ...]:
    """Return what profiles have shown of a model on a GPU; measured runs take the place of simulated ones."""
    factors: dict[tuple[Term, str, str], dict[bool, list[float]]] = {}
    for run in _read(gpu_name, model_name):
        is_measured = run.get("device") == "cuda"
        for term, phase, factor in _factors(run):
            key = (term, phase, str(run.get("attention")))
            factors.setdefault(key, {}).setdefault(is_measured, []).append(factor)
    return tuple(
        Correction(
            term=term,
            phase=phase,
            attention=attention,
            factors=tuple(found.get(True) or found[False]),
            is_measured=True in found,
        )
        for (term, phase, attention), found in factors.items()
    )


def _run(timeline: MemoryTimeline) -> dict[str, object]:
    """What one profile has shown, of its fullest phase alone: that is what decides whether a run fits."""
    fullest = timeline.peak.phase
    return {
        "device": timeline.device,
        "attention": ATTENTION.get(str(timeline.settings.get("attention")), "sdpa"),
        "settings": _settings(timeline),
        "versions": timeline.versions,
        "terms": [_term(one) for one in timeline.compared if one.term in _TERMS and one.phase == fullest],
    }


def _settings(timeline: MemoryTimeline) -> dict[str, object]:
    """What tells one run from another: the device, and what was asked."""
    names = ("dtype", "batch", "prompt_tokens", "output_tokens", "attention", "cache")
    return {"device": timeline.device, **{name: timeline.settings.get(name) for name in names}}


def _term(one: Compared) -> dict[str, object]:
    return {
        "phase": one.phase,
        "term": one.term,
        "measured_bytes": one.measured_bytes,
        "estimated_bytes": one.estimated_bytes,
    }


def _factors(run: dict[str, Any]) -> list[tuple[Term, str, float]]:
    """Every term of a run that can be read, with its factor: the file may have been written by anybody."""
    found = []
    terms = run.get("terms")
    for one in terms if isinstance(terms, list) else []:
        if not isinstance(one, dict) or one.get("term") not in _TERMS or not isinstance(one.get("phase"), str):
            continue
        measured, estimated = one.get("measured_bytes"), one.get("estimated_bytes")
        if isinstance(measured, int) and isinstance(estimated, int) and measured >= 0 and estimated > 0:
            factor = min(_LARGEST_FACTOR, measured / estimated)
            found.append((_TERMS[one["term"]], cast("str", one["phase"]), factor))
    return found


def _read(gpu_name: str, model_name: str) -> list[dict[str, Any]]:
    try:
        content = json.loads(_file(gpu_name, model_name).read_text(encoding="utf-8"))
        runs = content["runs"] if (content["gpu"], content["model"]) == (gpu_name, model_name) else []
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [run for run in runs if isinstance(run, dict)] if isinstance(runs, list) else []


def _file(gpu_name: str, model_name: str) -> Path:
    key = zlib.crc32(f"{gpu_name}\n{model_name}\n{ENGINE}".encode())
    return corrections_folder() / f"{key:08x}.json"
