"""Our quantization beside other libraries': quality, time and memory, on the same texts, in one run.

    python benchmarks/quantize/peers.py --python NAME=PATH [--python ...] [--model demo] [--bits 4,3] [--group-size 128]
        [--seeds 0,1,2] [--num-samples 128] [--window 512] [--json FILE]

Every library wants an environment of its own with memplan in it: `--python gptqmodel=/path/to/bin/python`, the same for
`autoawq` and `llmcompressor`. Each run is a process that is handed the same windows. Timed is what follows the imports:
reading the model, quantizing and writing the files. Peak memory is the most anonymous memory (RssAnon) that the process
held in that time, less what it held after the imports. Quality is the rise of perplexity over the 16-bit model on the
built-in text to validate on, measured by `memplan evaluate` of this environment for all of them.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from pathlib import Path
from statistics import mean, stdev
from typing import Any

METHODS = {"gptq": ("native", "gptqmodel", "llmcompressor"), "awq": ("native", "autoawq", "llmcompressor")}
MIB = 1 << 20


def anonymous_bytes() -> int:
    """What this process holds that is no file."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0


class Peak:
    """The most that is held while something runs."""

    def __enter__(self) -> Peak:
        self.before_bytes = self.most_bytes = anonymous_bytes()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(0.02):
            self.most_bytes = max(self.most_bytes, anonymous_bytes())


def work(asked: dict[str, Any]) -> None:
    """One quantization, in the environment of its library; what it took goes to stdout's last line."""
    import torch
    import transformers  # noqa: F401 - an import that is not timed

    from memplan.quantize.backends import BACKENDS, quantize_with
    from memplan.quantize.output import copy_others
    from memplan.quantize.request import quantize_request
    from memplan.quantize.text_sets import read_set
    from memplan.quantize.windows import calibration_windows, load_tokenizer

    name, source, output = asked["library"], Path(asked["source"]), Path(asked["output"])
    settings = {key: asked[key] for key in ("bits", "group_size", "num_samples", "window_tokens", "seed")}
    form = "compressed-tensors" if name == "native" else BACKENDS[name].format
    symmetric = asked["method"] == "gptq"
    request = quantize_request(asked["method"], format=form, symmetric=symmetric, **settings)
    if name != "native":
        __import__(BACKENDS[name].package)
    texts = read_set("builtin", "calibrate", seed=request.seed, offline=True)
    windows = calibration_windows(
        texts, load_tokenizer(source), window_tokens=request.window_tokens, num_windows=request.num_samples
    )
    torch.manual_seed(request.seed)
    with Peak() as peak:
        start = time.monotonic()
        if name == "native":
            run_native(request, source, windows, output)
        else:
            quantize_with(name, request, source, windows, output)
        seconds = time.monotonic() - start
    if name != "native":
        copy_others(source, output)  # the tokenizer, which not every library saves
    print(json.dumps({"seconds": seconds, "peak_bytes": peak.most_bytes - peak.before_bytes}))


def run_native(request: Any, source: Path, windows: Any, output: Path) -> None:
    """The pipeline without its forecast and its proof, which no other library has."""
    from memplan.quantize.output import accept, write_checkpoint
    from memplan.quantize.pipeline import Quantization
    from memplan.quantize.workspace import Workspace

    made = Quantization(request, source, list(windows.split(request.batch_size)))
    workspace = Workspace(output, made.identity())
    workspace.open(resume=False, force=True)
    made.run(workspace)
    accept(workspace, write_checkpoint(made, workspace), output)


def run(python: str, asked: dict[str, Any], folder: str) -> dict[str, Any]:
    """One process, in a folder that may be littered (llm-compressor logs there); what it said last where it fails."""
    command = [python, str(Path(__file__).resolve()), "--work", json.dumps(asked)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    if done.returncode:
        return {"error": _last_line(done.stderr)}
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no word"])[-1][:200]


def rise(output: Path, source: str) -> dict[str, Any]:
    """The rise of perplexity over the 16-bit model, as a fraction, with its standard error; errors as of `run`."""
    command = [sys.executable, "-m", "memplan", "evaluate", str(output), "--against", source, "--json"]
    done = subprocess.run([*command, "--max-perplexity-increase", "100%"], capture_output=True, text=True, check=False)
    if done.returncode:
        return {"error": f"evaluate: {_last_line(done.stderr)}"}
    difference = json.loads(done.stdout)["overall"]["difference"]
    error = difference["perplexity_increase_standard_error"] or 0.0
    return {"quality_rise": difference["perplexity_increase"], "quality_error": error}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", help=argparse.SUPPRESS)
    parser.add_argument("--python", action="append", default=[], metavar="NAME=PATH")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--bits", default="4")
    parser.add_argument("--group-size", default="128")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--num-samples", type=int, default=128)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.work:
        work(json.loads(arguments.work))
        return
    from memplan.introspect.resolve import weights_folder

    pythons = {"native": sys.executable, **dict(each.split("=", 1) for each in arguments.python)}
    pythons = {name: os.path.abspath(shutil.which(path) or path) for name, path in pythons.items()}
    found = weights_folder(arguments.model)
    if found is None:
        parser.error(f"the weights of {arguments.model} are not on this disk")
    source = str(found.absolute())
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for bits in map(int, arguments.bits.split(",")):
            for group in map(int, arguments.group_size.split(",")):
                for method, libraries in METHODS.items():
                    for seed in map(int, arguments.seeds.split(",")):
                        for library in libraries:
                            if library not in pythons or (library == "autoawq" and bits != 4):
                                continue
                            output = Path(folder) / f"{library}-{method}-{bits}-{group}-{seed}"
                            asked = {"library": library, "method": method, "bits": bits, "group_size": group}
                            asked |= {"seed": seed, "num_samples": arguments.num_samples, "source": source}
                            asked |= {"window_tokens": arguments.window, "output": str(output)}
                            row = asked | run(pythons[library], asked, folder)
                            if "error" not in row:
                                row |= rise(output, source)
                            rows.append(row)
                            print(json.dumps(row), file=sys.stderr, flush=True)
    print_table(rows)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def print_table(rows: list[dict[str, Any]]) -> None:
    """One line for each library and setting: means over seeds, with their spread."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        groups[row["method"], row["bits"], row["group_size"], row["library"]].append(row)
    print("| method | bits | group | library | perplexity | error | seconds | peak MiB |")
    print("|---|---:|---:|---|---:|---:|---:|---:|")
    for (method, bits, group, library), found in groups.items():
        whole = [row for row in found if "quality_rise" in row]
        if not whole:
            print(f"| {method} | {bits} | {group} | {library} | failed: {found[0].get('error')} | | | |")
            continue
        rises = [100 * row["quality_rise"] for row in whole]
        spread = stdev(rises) if len(rises) > 1 else 100 * whole[0]["quality_error"]
        print(
            f"| {method} | {bits} | {group} | {library} | {mean(rises):+.2f} % | {spread:.2f} | "
            f"{mean(row['seconds'] for row in whole):.1f} | {mean(row['peak_bytes'] for row in whole) / MIB:,.0f} |"
        )


if __name__ == "__main__":
    main()
