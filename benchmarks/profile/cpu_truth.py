"""Simulated peaks beside what the CPU's allocator really handed out, for small models of many families.

Every model is run twice as the same program: on meta tensors under memplan's recorder, and for real on the CPU while
PyTorch's own profiler counts the allocator's blocks. Each phase's peak must agree within 1 %. With `--sharing` it is
one rank of several: the others are not there, so that nothing of a network is among its bytes.

    python benchmarks/profile/cpu_truth.py [--json] [--only NAME ...] [--dtype float32] [--sharing fsdp|tp] [--ranks 2]
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import sys
import tempfile
import warnings
from pathlib import Path
from statistics import median
from typing import Any

import torch
from architectures import ARCHITECTURES
from real_cpu import real_peaks

from memplan.domain.dtypes import parse_compute_dtype
from memplan.domain.timeline import Phase
from memplan.errors import UnsupportedModel
from memplan.profile.execute import record
from memplan.profile.fake_ranks import among_fake_ranks
from memplan.profile.replay import replay
from memplan.profile.request import INFERENCE, TRAINING, ProfileRequest

_LIMIT = 0.01
_OWN = ("resolution", "prompt_tokens")
_WITHOUT_TEXT = ("bert", "modernbert", "vit", "dinov2", "swin", "clip", None)
_OPTIONS: tuple[dict[str, Any], ...] = ({}, {"checkpointing": True}, {"lora_rank": 8}, {"optimizer": "sgd-momentum"})


def compare(name: str, phases: tuple[Phase, ...], dtype: str, **options: Any) -> list[dict[str, Any]]:
    """One line for each phase of a model: peak bytes, simulated and real."""
    config = dict(ARCHITECTURES[name])
    own = {key: config.pop(key) for key in _OWN if key in config}
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.json"
        path.write_text(json.dumps(config), "utf-8")
        asked: dict[str, Any] = {"prompt_tokens": 256, "output_tokens": 6, "batch": 2, **own, **options}
        asked |= {"model": str(path), "phases": phases, "dtype": parse_compute_dtype(dtype), "offline": True}
        log = record(ProfileRequest(device="simulated", **asked), target="cpu").log
        with among_fake_ranks(asked["num_ranks"]) if "sharing" in asked else contextlib.nullcontext():
            real = real_peaks(ProfileRequest(device="cpu", **asked))
    for phase in replay(log, None, num_samples=0).phases:
        measured = real[f"{phase.phase} {phase.iteration}"]
        if phase.phase != "load":
            lines.append(_line(name, phase.phase, options, phase.peak.allocated_bytes, measured))
    gc.collect()
    return lines


def _line(name: str, phase: str, options: dict[str, Any], simulated: int, measured: int) -> dict[str, Any]:
    kind = ", ".join(f"{key}={value}" for key, value in options.items())
    error = simulated / measured - 1
    return {
        "model": name,
        "phase": phase,
        "options": kind,
        "simulated_bytes": simulated,
        "real_bytes": measured,
        "error": error,
    }


def _cases(only: list[str], shared: dict[str, Any]) -> list[tuple[str, tuple[Phase, ...], dict[str, Any]]]:
    cases: list[tuple[str, tuple[Phase, ...], dict[str, Any]]] = []
    for name, config in ARCHITECTURES.items():
        if only and not any(name.startswith(each) for each in only):
            continue
        writes = config.get("model_type") not in _WITHOUT_TEXT
        cases.append((name, INFERENCE if writes else ("load", "forward"), shared))
        cases += [
            (name, TRAINING, {**options, **shared})
            for options in (_OPTIONS if name in ("llama", "bert", "vit") else _OPTIONS[:1])
        ]
    return cases


def main() -> None:
    """Print a line for each phase and what they come to; exit 1 when any is further than 1 % from the truth."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--sharing", choices=("fsdp", "tp"))
    parser.add_argument("--ranks", type=int, default=2)
    chosen = parser.parse_args()
    shared = {"sharing": chosen.sharing, "num_ranks": chosen.ranks} if chosen.sharing else {}
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    lines: list[dict[str, Any]] = []
    for name, phases, options in _cases(chosen.only, shared):
        try:
            found = compare(name, phases, chosen.dtype, **options)
        except UnsupportedModel as error:
            if not chosen.sharing:
                raise
            print(f"{name}: {error.message}", file=sys.stderr)  # such as an architecture without a plan
            continue
        lines += found
        for line in () if chosen.json else found:
            print(_text(line), flush=True)
    errors = [abs(line["error"]) for line in lines]
    summary = {
        "architectures": len({line["model"].split(" ")[0] for line in lines}),
        "points": len(lines),
        "median_error": median(errors),
        "worst_error": max(errors),
        "within_1_percent": sum(error <= _LIMIT for error in errors),
    }
    if chosen.json:
        print(json.dumps({"summary": summary, "points": lines}, indent=1))
    else:
        count = f"{summary['architectures']} architectures, {summary['points']} points"
        found = f"median {summary['median_error']:.3%}, worst {summary['worst_error']:.2%}"
        print(f"{count}: {found}, {summary['within_1_percent']} within 1 %")
    sys.exit(0 if summary["within_1_percent"] == summary["points"] else 1)


def _text(line: dict[str, Any]) -> str:
    mark = "" if abs(line["error"]) <= _LIMIT else "  more than 1 %"
    sizes = f"{line['simulated_bytes'] / 2**20:9.3f} {line['real_bytes'] / 2**20:9.3f} MiB"
    return f"{line['model']:26} {line['phase']:10} {line['options']:38} {sizes} {line['error']:+8.3%}{mark}"


if __name__ == "__main__":
    main()
