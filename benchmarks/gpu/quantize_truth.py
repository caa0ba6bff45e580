"""What quantizing takes of a GPU beside what was forecast; needs torch, transformers, compressed-tensors and a GPU.

    python benchmarks/gpu/quantize_truth.py [--budget-s 540] [--only CASE...] [--work DIR] [--device cpu --into DIR]
    python benchmarks/gpu/quantize_truth.py --list | --score

Models in the shapes of the catalogue's, with weights made up on the device, go through `memplan quantize` from its
forecast to its proof, by the command itself: an 8B model whole, two layers of a 70B one under `--max-gpu-memory 24GiB`,
because memory does not hang on their number. Each case appends one record: what was forecast of memory, step by step,
and of time, and what was measured. Cases that are recorded for the same device and versions are left out. A case that
the budget cuts off goes on in the next run with the same --work, which keeps models too; its seconds are then those of
the last part, and the record says so. No weights and no network are needed. `--device cpu` is a rehearsal with a small
model. `--score` reads the records, and exits with 1 when a peak is more than 10 % from its forecast. Other exit codes
as in run_torch.py.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]
from gpu_points import ModelChoice  # noqa: E402
from model_folder import write_model_folder  # noqa: E402
from profile_truth import read_machine  # noqa: E402
from sweep import Budget, Journal, fingerprint, pending, read_lines, run_child, say, sweep_parser  # noqa: E402

RECORDS = HERE / "records"
RUNS = "quantize_truth.jsonl"
_SHARD_BYTES = 2 << 30
_MOST_OFF = 0.10
_GUESS_S = 120.0
_LIMITED = ("--max-gpu-memory", "24GiB")
_SMALL = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "vocab_size": 8192,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One command."""

    model: ModelChoice
    method: str
    options: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """How it is asked for."""
        return f"{self.model.name}/{self.method}"


def cases(*, is_rehearsal: bool) -> Iterator[Case]:
    """What is measured, in order of worth."""
    if is_rehearsal:
        small = ModelChoice(name="llama-small-l1", catalogue="llama-3.1-8b", layers=1, set=_SMALL)
        yield Case(model=small, method="rtn", options=("--num-samples", "8", "--window", "128"))
        return
    whole = ModelChoice(name="llama-3.1-8b", catalogue="llama-3.1-8b")
    wide = ModelChoice(name="llama-3.1-70b-l2", catalogue="llama-3.1-70b", layers=2)
    for method in ("awq", "gptq"):
        yield Case(model=whole, method=method)
        yield Case(model=wide, method=method, options=_LIMITED)
    yield Case(model=whole, method="int8")
    yield Case(model=wide, method="awq+gptq", options=_LIMITED)


def write_weights(folder: Path, device: str) -> None:
    """Write made-up weights for the config of a folder, with an index, and the tokenizer of the demo model."""
    import torch
    import transformers
    from safetensors.torch import save_file

    from memplan.introspect.resolve import weights_folder

    config = transformers.AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    torch.manual_seed(0)
    held: dict[str, Any] = {}
    weight_map: dict[str, str] = {}

    def save() -> None:
        name = f"model-{len(set(weight_map.values())):05d}.safetensors"
        save_file(held, folder / name, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(held, name))
        held.clear()

    for name, like in model.state_dict().items():
        if like.dim() == 1:
            value = torch.ones(like.shape, dtype=like.dtype)
        else:
            value = torch.randn(like.shape, dtype=like.dtype, device=device).mul_(0.02).cpu()
        held[name] = value
        if sum(tensor.nbytes for tensor in held.values()) >= _SHARD_BYTES:
            save()
    save()
    total_bytes = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    index = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
    demo = weights_folder("demo")
    assert demo is not None
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(demo / name, folder / name)
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def model_of(choice: ModelChoice, work: Path, device: str) -> Path:
    """The folder of a model, made where it is not there; other models of the sweep make room."""
    folder = work / choice.name
    if (folder / "model.safetensors.index.json").exists():
        return folder
    for other in work.glob("*/model.safetensors.index.json"):
        shutil.rmtree(other.parent)
    write_model_folder(choice, work)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "torch_dtype": "bfloat16"}), encoding="utf-8")
    write_weights(folder, device)
    return folder


def row_of(report: dict[str, Any], *, was_resumed: bool) -> dict[str, Any]:
    """What a report says of memory and time."""
    asked = report["forecast"]
    peaks: dict[str, int] = {}
    for sample in report["memory"]:
        peaks[sample["phase"]] = max(peaks.get(sample["phase"], 0), sample["bytes"])
    return {
        "forecast": {key: asked[key] for key in ("host_bytes", "device_bytes", "seconds", "steps", "disk_bytes")},
        "peak_bytes": report["peak_bytes"],
        "host_peaks": peaks,
        "seconds": report["seconds"],
        "output_bytes": report["output_bytes"],
        "was_resumed": was_resumed,
    }


def sweep(options: argparse.Namespace, work: Path) -> int:
    """Run what is not recorded yet. Returns the exit code."""
    budget = Budget(limit_s=options.budget_s)
    me = [options.python, str(HERE / "quantize_truth.py"), "--device", options.device, "--work", str(work)]
    answer = run_child([*me, "--machine"], limit_s=180)
    lines = [line for line in answer.output.splitlines() if line.startswith('{"machine": ')]
    if answer.code != 0 or not lines:
        say(f"{options.python} cannot use torch and transformers on {options.device}: {answer.output[-300:].strip()}")
        return 2
    machine = json.loads(lines[-1])["machine"]
    journal = Journal(path=options.into / RUNS, others=[RECORDS / RUNS])
    failures = Journal(path=options.into / "quantize_truth_failures.jsonl")
    every = {
        fingerprint(case.model.name, case.method, case.options, machine): case
        for case in cases(is_rehearsal=options.device == "cpu")
    }
    put_off = failed = 0
    for key in pending(every, journal):
        case = every[key]
        if options.only and case.name not in options.only:
            continue
        if not budget.allows(_GUESS_S / 2):
            put_off += 1
            continue
        made = run_child([*me, "--make", case.name], limit_s=budget.left_s)
        output = work / f"made-{key}"
        was_resumed = output.with_name(f"{output.name}.partial").exists()
        asked = [options.python, "-m", "memplan", "quantize", str(work / case.model.name), "--method", case.method]
        asked += ["--device", options.device, "--output", str(output), "--offline", "--json", *case.options]
        asked += ["--max-perplexity-increase", "100%", *(["--resume"] if was_resumed else [])]
        ended = run_child(asked, limit_s=budget.left_s) if made.code == 0 else made
        budget.learn(_GUESS_S, made.seconds + ended.seconds)
        report = output / "quantization_report.json"
        if ended.code == 0 and report.exists():
            row = row_of(json.loads(report.read_text(encoding="utf-8")), was_resumed=was_resumed)
            about = {"key": key, "case": case.name, "options": list(case.options), "machine": machine}
            journal.append({**about, **row})
        elif ended.code is None:
            put_off += 1
        else:
            failed += 1
            failures.append({"key": key, "case": case.name, "code": ended.code, "log_end": ended.output[-2000:]})
        shutil.rmtree(output, ignore_errors=True)
        say(f"{case.name}: {made.seconds:.0f} s to make it, {ended.seconds:.0f} s, exit code {ended.code}")
    say(f"{failed} failed, {put_off} put off, {budget.left_s:.0f} s left")
    return 7 if put_off else 1 if failed else 0


def score(paths: list[Path]) -> int:
    """Print every forecast beside what was measured. Returns the exit code."""
    records = [record for path in paths for record in read_lines(path) if record.get("peak_bytes")]
    if not records:
        say("no records")
        return 2
    is_good = True
    print("| case | peak GiB | forecast GiB | forecast/peak | s | forecast s |")
    print("|---|---:|---:|---:|---:|---:|")
    for record in records:
        asked = record["forecast"]
        forecast_bytes = asked["device_bytes"] or asked["host_bytes"]
        ratio = forecast_bytes / record["peak_bytes"]
        is_good &= abs(ratio - 1) <= _MOST_OFF
        seconds = f"{record['seconds']:.0f}{' (the end of it)' if record['was_resumed'] else ''}"
        sizes = f"{record['peak_bytes'] / 2**30:.2f} | {forecast_bytes / 2**30:.2f}"
        print(f"| {record['case']} | {sizes} | {ratio:.2f} | {seconds} | {asked['seconds'] or 0:.0f} |")
    return 0 if is_good else 1


def main() -> int:
    """Be the sweep, or one of its children."""
    parser = sweep_parser(__doc__.splitlines()[0], into=RECORDS, budget_s=540)
    parser.add_argument("--only", nargs="*", metavar="CASE")
    parser.add_argument("--work", type=Path, help="folder for models and unfinished work, kept for the next run")
    parser.add_argument("--list", action="store_true", help="name the cases and stop")
    parser.add_argument("--score", action="store_true", help="compare what is recorded and stop")
    parser.add_argument("--make", help=argparse.SUPPRESS)
    parser.add_argument("--machine", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    every = list(cases(is_rehearsal=options.device == "cpu"))
    if options.machine:
        print(json.dumps({"machine": read_machine(options.device)}))
        return 0
    if options.make:
        model_of(next(case.model for case in every if case.name == options.make), options.work, options.device)
        return 0
    if options.list:
        print("\n".join(" ".join((case.name, *case.options)) for case in every))
        return 0
    if options.score:
        return score(sorted({options.into / RUNS, RECORDS / RUNS}))
    if options.work is not None:
        options.work.mkdir(parents=True, exist_ok=True)
        return sweep(options, options.work.absolute())
    with tempfile.TemporaryDirectory() as folder:
        return sweep(options, Path(folder))


if __name__ == "__main__":
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(HERE.parents[1]), os.environ.get("PYTHONPATH"))))
    sys.exit(main())
