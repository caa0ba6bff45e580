"""Measure what torch and the driver take by themselves; needs torch and a GPU, no engine.

    python benchmarks/gpu/run_torch.py [--python PYTHON] [--budget-s 300] [--only PROBE...] [--device cpu]

Each probe of torch_probes.py runs in a process of its own and appends one record: its rows of settings and bytes, and
the machine. Probes that are recorded for the same device and torch are left out. `--device cpu` is a rehearsal: all
shapes are tiny and all readings zero, but every line of code runs. Exit codes as in run_vllm.py.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
from meter import Meter  # noqa: E402
from sweep import Budget, Journal, fingerprint, pending, run_child, say, sweep_parser  # noqa: E402
from torch_probes import PROBES  # noqa: E402

RECORDS = HERE / "records"


def run_one(name: str, device: str) -> int:
    """Run one probe in this process; each row is a JSON line on stdout as soon as it is known."""
    probe = PROBES[name][0]
    for row in probe(Meter(device=device), device == "cpu"):
        print(json.dumps({"row": row}), flush=True)
    return 0


def read_machine(device: str) -> dict[str, Any]:
    """Describe torch and the device; runs in a child, so that the parent never makes a context."""
    import torch

    machine: dict[str, Any] = {"torch": torch.__version__, "cuda": torch.version.cuda, "device": device, "gpu": None}
    if device == "cuda":
        facts = torch.cuda.get_device_properties(0)
        machine |= {
            "gpu": facts.name,
            "gpu_memory_bytes": facts.total_memory,
            "multiprocessors": facts.multi_processor_count,
            "compute_capability": f"{facts.major}.{facts.minor}",
            "driver": _driver(),
        }
    return machine


def _driver() -> str | None:
    try:
        import pynvml
    except ImportError:
        return None
    pynvml.nvmlInit()
    return str(pynvml.nvmlSystemGetDriverVersion())


def rows_of(output: str) -> list[dict[str, Any]]:
    """Return the rows among a child's output; other lines, warnings for one, are passed over."""
    rows = []
    for line in output.splitlines():
        if line.startswith('{"row": '):
            try:
                rows.append(json.loads(line)["row"])
            except ValueError:  # the child was stopped while it wrote
                continue
    return rows


def sweep(options: argparse.Namespace) -> int:
    """Run what is not recorded yet. Returns the exit code."""
    budget = Budget(limit_s=options.budget_s)
    me = [options.python, str(HERE / "run_torch.py"), "--device", options.device]
    answer = run_child([*me, "--machine"], limit_s=120)
    lines = [line for line in answer.output.splitlines() if line.startswith("{")]
    if answer.code != 0 or not lines:
        say(f"{options.python} cannot use torch on {options.device}: {answer.output[-300:].strip()}")
        return 2
    machine = json.loads(lines[-1])
    journal = Journal(path=options.into / "torch_runs.jsonl", others=[RECORDS / "torch_runs.jsonl"])
    failures = Journal(path=options.into / "torch_failures.jsonl")
    wanted = options.only or list(PROBES)
    keys = {fingerprint(name, machine): name for name in wanted}
    put_off = failed = 0
    for key in sorted(pending(keys, journal), key=lambda key: key in failures.known):
        name = keys[key]
        _, env, guess_s = PROBES[name]
        if not budget.allows(guess_s):
            put_off += 1
            continue
        limit_s = min(budget.left_s, max(60, 4 * guess_s))
        ended = run_child([*me, "--one", name], limit_s=limit_s, env={**env, "PYTHONUNBUFFERED": "1"})
        budget.learn(guess_s, ended.seconds)
        record = {"key": key, "probe": name, "env": env, "machine": machine, "seconds": ended.seconds}
        record["rows"] = rows_of(ended.output)
        if ended.code == 0 and record["rows"]:
            journal.append(record)
        else:
            failed += 1
            failures.append({**record, "code": ended.code, "log_end": ended.output[-2000:]})
        say(f"{name}: {len(record['rows'])} rows, {ended.seconds:.0f} s, exit code {ended.code}")
    say(f"{failed} failed, {put_off} put off, {budget.left_s:.0f} s left")
    return 7 if put_off else 1 if failed else 0


def main() -> int:
    """Be the sweep, or one of its children."""
    parser = sweep_parser(__doc__.splitlines()[0], into=RECORDS, budget_s=600)
    parser.add_argument("--only", nargs="*", choices=tuple(PROBES))
    parser.add_argument("--one", choices=tuple(PROBES), help=argparse.SUPPRESS)
    parser.add_argument("--machine", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.machine:
        print(json.dumps(read_machine(options.device)))
        return 0
    if options.one:
        return run_one(options.one, options.device)
    return sweep(options)


if __name__ == "__main__":
    os.environ.setdefault("PYTHONPATH", str(HERE))
    sys.exit(main())
