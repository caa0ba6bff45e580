"""Simulated peaks beside real ones of a GPU; needs torch, transformers and a GPU, no weights and no network.

    python benchmarks/gpu/profile_truth.py [--budget-s 540] [--only MODEL...] [--device cpu --into DIR]
    python benchmarks/gpu/profile_truth.py --list | --score

Models of the catalogue with few layers and made-up weights run inference and training steps on the GPU, under
memplan's own recorder for real devices, and once more on meta tensors, replayed through the simulated allocator. Each
case appends one record: for every phase the peak allocated and reserved, real and simulated, in bytes. Cases that are
recorded for the same device and versions are left out. `--device cpu` is a rehearsal on the CPU with a tiny model.
`--score` reads the records, and exits with 1 when the errors are larger than they should be. Other exit codes as in
run_torch.py.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
import warnings
from itertools import groupby
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]
from model_folder import write_model_folder  # noqa: E402
from sweep import Budget, Journal, fingerprint, pending, read_lines, run_child, say, sweep_parser  # noqa: E402
from truth_cases import Case, cases  # noqa: E402

from memplan.domain.dtypes import DType  # noqa: E402
from memplan.errors import MissingExtra  # noqa: E402

RECORDS = HERE / "records"
RUNS = "profile_truth.jsonl"
_GUESS_S = 25.0  # for a model's cases, and 4 for each
_TARGETS = {"allocated": (0.01, 0.04), "reserved": (0.03, None)}


def read_machine(device: str) -> dict[str, Any]:
    """The device and the versions that decide what is measured."""
    import torch
    import transformers

    machine: dict[str, Any] = {"torch": torch.__version__, "transformers": transformers.__version__, "gpu": None}
    if device == "cuda":
        facts = torch.cuda.get_device_properties(0)
        machine |= {"gpu": facts.name, "gpu_memory_bytes": facts.total_memory, "capability": [facts.major, facts.minor]}
    return machine


def run_case(case: Case, folder: Path, device: str) -> dict[str, Any]:
    """Profile a case on the device and on meta tensors."""
    import torch

    from memplan.profile.device_memory import RehearsedMemory
    from memplan.profile.fake_ranks import among_fake_ranks
    from memplan.profile.measured import measure
    from memplan.profile.request import INFERENCE, TRAINING, ProfileRequest
    from memplan.profile.run import profile_model
    from memplan.records import replace

    capability = torch.cuda.get_device_capability() if device == "cuda" else (8, 0)
    request = ProfileRequest(
        model=str(folder),
        device="cuda",
        phases=TRAINING if case.trains else INFERENCE,
        warmup=1,
        compute_capability=capability,
        offline=True,
        **{"dtype": DType.BF16, **case.options},
    )
    with among_fake_ranks(request.num_ranks) if request.sharing != "none" else contextlib.nullcontext():
        real, _ = measure(request, None if device == "cuda" else RehearsedMemory())
    simulated, _ = profile_model(replace(request, device="simulated"))
    beside = {(phase.phase, phase.iteration): phase for phase in simulated.phases}
    return {
        "architecture": real.architecture,
        "outside_bytes": real.outside_bytes,
        "out_of_memory": real.out_of_memory is not None,
        "phases": [
            {
                "phase": phase.phase,
                "real": _peaks(phase),
                "simulated": _peaks(beside[phase.phase, phase.iteration]),
                "by_category": {
                    "real": phase.by_category,
                    "simulated": beside[phase.phase, phase.iteration].by_category,
                },
                "seconds": phase.work.seconds if phase.work else None,
            }
            for phase in real.phases
            if (phase.phase, phase.iteration) in beside
        ],
    }


def _peaks(phase: Any) -> dict[str, int]:
    return {
        "allocated_bytes": phase.peak.allocated_bytes,
        "requested_bytes": phase.peak.requested_bytes,
        "reserved_bytes": phase.peak_reserved_bytes,
        "after_bytes": phase.after.allocated_bytes,
    }


def run_model(keys: list[str], device: str) -> int:
    """Run cases of one model in this process; each is a JSON line on stdout as soon as it is known."""
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as parent:
        for key, case in keyed(device).items():
            if key not in keys:
                continue
            started = time.monotonic()
            try:
                row = run_case(case, write_model_folder(case.model, Path(parent)), device)
            except MissingExtra as error:
                row = {"skipped": error.message}
            except Exception as error:  # whatever a case raises is its answer, and the next one has its turn
                row = {"failed": f"{type(error).__name__}: {error}"[:500]}
            seconds = round(time.monotonic() - started, 2)
            print(json.dumps({"row": {"key": key, "seconds": seconds, **row}}), flush=True)
    return 0


def keyed(device: str) -> dict[str, Case]:
    """Every case under its fingerprint for this machine."""
    machine = read_machine(device)
    every = cases(is_rehearsal=device == "cpu")
    return {fingerprint(case.model.name, case.trains, case.options, machine): case for case in every}


def sweep(options: argparse.Namespace) -> int:
    """Run what is not recorded yet, each model in a process of its own. Returns the exit code."""
    budget = Budget(limit_s=options.budget_s)
    me = [options.python, str(HERE / "profile_truth.py"), "--device", options.device]
    answer = run_child([*me, "--machine"], limit_s=180)
    lines = [line for line in answer.output.splitlines() if line.startswith('{"machine": ')]
    if answer.code != 0 or not lines:
        say(f"{options.python} cannot use torch and transformers on {options.device}: {answer.output[-300:].strip()}")
        return 2
    known = json.loads(lines[-1])
    journal = Journal(path=options.into / RUNS, others=[RECORDS / RUNS])
    failures = Journal(path=options.into / "profile_truth_failures.jsonl")
    every = dict(zip(known["keys"], cases(is_rehearsal=options.device == "cpu"), strict=True))
    wanted = [key for key in pending(every, journal) if not options.only or every[key].model.name in options.only]
    put_off = failed = 0
    for name, group in groupby(wanted, key=lambda key: every[key].model.name):
        keys = list(group)
        guess_s = _GUESS_S + 4 * len(keys)
        if not budget.allows(guess_s / 2):
            put_off += len(keys)
            continue
        ended = run_child([*me, "--cases", *keys], limit_s=budget.left_s, env={"PYTHONUNBUFFERED": "1"})
        budget.learn(guess_s, ended.seconds)
        rows = {row["key"]: row for row in rows_of(ended.output)}
        for key, row in rows.items():
            case = every[key]
            record = {"model": name, "trains": case.trains, "options": case.options, "machine": known["machine"], **row}
            (journal if "phases" in row or "skipped" in row else failures).append(record)
        bad = sum("failed" in row for row in rows.values())
        failed += bad
        missing = len(keys) - len(rows)
        if missing and ended.code is None:
            put_off += missing
        elif missing:
            failed += missing
            log_end = ended.output[-2000:]
            failures.append({"key": keys[len(rows)], "model": name, "code": ended.code, "log_end": log_end})
        say(f"{name}: {len(rows) - bad} of {len(keys)} cases, {ended.seconds:.0f} s, exit code {ended.code}")
    say(f"{failed} failed, {put_off} put off, {budget.left_s:.0f} s left")
    return 7 if put_off else 1 if failed else 0


def rows_of(output: str) -> list[dict[str, Any]]:
    """The rows among a child's output."""
    return [json.loads(line)["row"] for line in output.splitlines() if line.startswith('{"row": ') and line[-1] == "}"]


def score(paths: list[Path]) -> int:
    """Print how far the simulated peaks lie from the real ones. Returns the exit code."""
    records = [record for path in paths for record in read_lines(path) if record.get("phases")]
    errors: dict[str, list[tuple[float, str]]] = {"allocated": [], "reserved": []}
    for record in records:
        for phase in record["phases"]:
            if phase["phase"] == "load":
                continue
            which = f"{record['model']} {phase['phase']} {json.dumps(record['options'])}"
            for term, found in errors.items():
                real = phase["real"][f"{term}_bytes"]
                found.append((phase["simulated"][f"{term}_bytes"] / real - 1, which))
    if not records:
        say("no records")
        return 2
    is_good = True
    print(f"{len({record['architecture'] for record in records})} architectures, {len(records)} profiles")
    for term, found in errors.items():
        sizes = [abs(error) for error, _ in found]
        worst = max(found, key=lambda each: abs(each[0]))
        print(f"peak {term}: median {median(sizes):.2%}, worst {worst[0]:+.2%} ({worst[1]}), {len(found)} phases")
        most_median, most = _TARGETS[term]
        is_good &= median(sizes) <= most_median and (most is None or max(sizes) <= most)
    return 0 if is_good else 1


def main() -> int:
    """Be the sweep, or one of its children."""
    parser = sweep_parser(__doc__.splitlines()[0], into=RECORDS, budget_s=540)
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--list", action="store_true", help="name the cases and stop")
    parser.add_argument("--score", action="store_true", help="compare what is recorded and stop")
    parser.add_argument("--cases", nargs="*", help=argparse.SUPPRESS)
    parser.add_argument("--machine", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.machine:
        print(json.dumps({"machine": read_machine(options.device), "keys": list(keyed(options.device))}))
        return 0
    if options.cases:
        return run_model(options.cases, options.device)
    if options.list:
        for case in cases(is_rehearsal=options.device == "cpu"):
            print(case.model.name, "training" if case.trains else "inference", json.dumps(case.options))
        return 0
    if options.score:
        return score(sorted({options.into / RUNS, RECORDS / RUNS}))
    return sweep(options)


if __name__ == "__main__":
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(HERE.parents[1]), os.environ.get("PYTHONPATH"))))
    sys.exit(main())
