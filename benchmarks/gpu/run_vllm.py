"""Measure the memory of real vLLM starts, point by point, and append records that benchmarks/vllm/score.py reads.

    python benchmarks/gpu/run_vllm.py [--python VLLM_PYTHON] [--budget-s 540] [--only ID...] [--device cpu]

VLLM_PYTHON is the interpreter of an environment with vLLM (default: this one). Points that a record exists for, made by
the same release on the same device, are left out, so the command is simply run again until nothing is left. A point
that fails is written to failures.jsonl with the end of its log, and the next one starts; failed points come last in the
next run. Exit code: 0 nothing left, 7 stopped by the budget with points left, 1 all that is left has failed, 2 bad use.
"""

from __future__ import annotations

import gzip
import json
import os
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]
from gpu_points import LADDER_SEQUENCES, LADDER_TOKENS, POINTS_FILE, BadPoints, Point, read_points  # noqa: E402
from model_folder import model_config, write_model_folder  # noqa: E402
from point_record import build_record  # noqa: E402
from sweep import (  # noqa: E402
    Budget,
    Ended,
    Journal,
    Record,
    fingerprint,
    pending,
    read_lines,
    run_child,
    say,
    sweep_parser,
)
from vllm_logs import read_log  # noqa: E402

RECORDS = HERE / "records"
# A point may take this many times its guess before it is stopped, and at least so long.
PATIENCE, LEAST_S = 3, 90
QUIET = {
    "VLLM_LOGGING_LEVEL": "DEBUG",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Where a sweep runs: vLLM's interpreter, what is installed there, and the folders it writes to."""

    python: str
    machine: Mapping[str, Any]
    into: Path
    scratch: Path

    def key(self, point: Point) -> str:
        """Name a point by everything that decides its outcome; the same name twice is the same measurement."""
        asked = (point.ladder, point.trace, point.request)
        where = (self.machine.get("vllm"), self.machine.get("torch"), self.machine.get("gpu"))
        return fingerprint(model_config(point.model), dict(point.engine), dict(point.env), asked, where)


def measure(point: Point, bench: Bench, limit_s: float) -> tuple[Ended, Record]:
    """Start the engine of a point in a process of its own and return how that ended and what the probe answered."""
    folder = write_model_folder(point.model, bench.scratch / "models")
    order_file, answer_file = bench.scratch / f"{point.id}.order.json", bench.scratch / f"{point.id}.answers.json"
    answer_file.unlink(missing_ok=True)
    order = {
        "folder": str(folder),
        "engine": dict(point.engine),
        "answers": str(answer_file),
        "ladder": {"tokens": LADDER_TOKENS, "sequences": LADDER_SEQUENCES} if point.ladder else None,
        "trace": point.trace,
        "request": point.request,
    }
    order_file.write_text(json.dumps(order), encoding="utf-8")
    paths = [str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = {**QUIET, "VLLM_CACHE_ROOT": str(bench.scratch / "cache"), "PYTHONPATH": os.pathsep.join(paths), **point.env}
    ended = run_child([bench.python, str(HERE / "vllm_probe.py"), str(order_file)], limit_s=limit_s, env=env)
    answers = json.loads(answer_file.read_text(encoding="utf-8")) if answer_file.exists() else {}
    return ended, answers


def record_of(point: Point, bench: Bench, ended: Ended, answers: Record) -> Record:
    """Return the record of a start that worked, or what is known of one that did not (`problem` is set)."""
    terms = read_log(ended.output)
    record = {"key": bench.key(point), "point": point.id, "seconds": ended.seconds}
    if "start_seconds" in answers:
        record |= build_record(point, machine=bench.machine, answers=answers, terms=terms)
        if not answers.get("finished"):
            record["notes"] += "; the run ended before all was measured"
        return record
    reason = "stopped at its time limit" if ended.code is None else f"exit code {ended.code}"
    return {
        **record,
        "problem": terms.get("problem") or {"kind": reason},
        "engine": dict(point.engine),
        "machine": dict(bench.machine),
        "terms": terms,
        "log_end": ended.output[-3000:],
    }


def sweep(points: tuple[Point, ...], bench: Bench, budget: Budget, known: list[Path]) -> int:
    """Measure what has no record yet, in the file's order, failed points last. Returns the exit code."""
    journal = Journal(path=bench.into / "vllm_runs.jsonl", others=known)
    failures = Journal(path=bench.into / "failures.jsonl")
    by_key = {bench.key(point): point for point in points}
    todo = sorted(pending(by_key, journal), key=lambda key: key in failures.known)
    say(f"{len(by_key) - len(todo)} points are recorded, {len(todo)} to go, {budget.left_s:.0f} s")
    put_off = failed = 0
    for key in todo:
        point = by_key[key]
        if not budget.allows(point.seconds):
            put_off += 1
            continue
        patience_s = max(LEAST_S, PATIENCE * budget.expected_s(point.seconds))
        left_s = budget.left_s
        ended, answers = measure(point, bench, min(left_s, patience_s))
        record = record_of(point, bench, ended, answers)
        keep_log(bench.into / "logs.txt.gz", point.id, ended.output)
        if ended.code is None and left_s < patience_s:
            put_off += 1  # cut off by the sweep's end, which says nothing about the point: what it told is kept, apart
            if "problem" not in record:
                write_config(point, bench.into)
                journal.append({**record, "key": f"{key}-part"})
            continue
        budget.learn(point.seconds, ended.seconds)
        if "problem" in record:
            failed += 1
            failures.append(record)
            say(f"{point.id}: failed after {ended.seconds:.0f} s: {record['problem']}")
        else:
            write_config(point, bench.into)
            journal.append(record)
            say(f"{point.id}: {ended.seconds:.0f} s, {summary(record['truth'])}")
    say(f"{failed} failed, {put_off} put off, {budget.left_s:.0f} s left")
    return 7 if put_off else 1 if failed else 0


def write_config(point: Point, into: Path) -> None:
    """Keep the config that was measured where score.py looks for it."""
    folder = into / "configs" / point.model.name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(model_config(point.model), indent=1) + "\n", encoding="utf-8")


def keep_log(path: Path, name: str, log: str) -> None:
    """Add a run's log to the compressed file of logs (gzip members may follow one another)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "at", encoding="utf-8") as file:
        file.write(f"===== {name}\n{log}\n")


def summary(truth: Mapping[str, Any]) -> str:
    """The main terms of a record on one line."""
    names = ("weights_gib", "activation_peak_gib", "non_torch_gib", "cuda_graph_gib", "kv_cache_gib")
    return ", ".join(f"{name.removesuffix('_gib')} {truth[name]:.2f}" for name in names if truth[name] is not None)


def read_machine(python: str) -> dict[str, Any]:
    """Ask vLLM's interpreter what is installed there. Raises: BadPoints when it cannot answer or has no vLLM."""
    ended = run_child([python, str(HERE / "vllm_probe.py"), "--environment"], limit_s=180)
    lines = [line for line in ended.output.splitlines() if line.startswith("{")]
    if ended.code != 0 or not lines:
        raise BadPoints(f"{python} does not run: {ended.output[-300:].strip()}")
    machine: dict[str, Any] = json.loads(lines[-1])
    if machine.get("vllm") is None:
        raise BadPoints(f"{python} has no vLLM")
    return machine


def with_settings(points: tuple[Point, ...], settings: list[str]) -> tuple[Point, ...]:
    """Apply `--set KEY=VALUE` to every point's engine arguments; a value is JSON where it is, else text."""
    from dataclasses import replace

    extra: dict[str, Any] = {}
    for setting in settings:
        name, sign, value = setting.partition("=")
        if not sign:
            raise BadPoints(f"--set takes KEY=VALUE: {setting}")
        try:
            extra[name] = json.loads(value)
        except ValueError:
            extra[name] = value
    return tuple(replace(point, engine={**point.engine, **extra}) for point in points)


def main() -> int:
    """Read the points, ask the machine, measure."""
    parser = sweep_parser(__doc__.splitlines()[0], into=RECORDS, budget_s=3600)
    parser.add_argument("--points", type=Path, default=POINTS_FILE)
    parser.add_argument("--only", nargs="*", help="ids of points")
    parser.add_argument("--set", action="append", default=[], help="KEY=VALUE for every point's engine")
    parser.add_argument("--list", action="store_true", help="show what is left and end")
    options = parser.parse_args()
    try:
        points = with_settings(read_points(options.points, device=options.device), options.set)
        if options.only is not None:
            if unknown := set(options.only) - {point.id for point in points}:
                raise BadPoints(f"no such points: {', '.join(sorted(unknown))}")
            points = tuple(point for point in points if point.id in options.only)
        if options.list:
            done = {record.get("point") for record in read_lines(options.into / "vllm_runs.jsonl")}
            for point in points:
                state = "recorded" if point.id in done else "to do"
                print(f"{state:9} {point.seconds:4} s  {point.id}: {point.separates}")
            return 0
        budget = Budget(limit_s=options.budget_s)
        with tempfile.TemporaryDirectory(prefix="gpu-sweep-") as scratch:
            bench = Bench(
                python=options.python,
                machine=read_machine(options.python),
                into=options.into,
                scratch=Path(scratch),
            )
            return sweep(points, bench, budget, [RECORDS / "vllm_runs.jsonl"])
    except BadPoints as error:
        say(str(error))
        return 2


if __name__ == "__main__":
    sys.exit(main())
