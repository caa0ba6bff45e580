"""One quantization by one library, in the environment of that library: how long it took and what it held.

    PYTHON benchmarks/quantize/peer_run.py JSON          what is asked: peers.py makes it

The last line of stdout is JSON. Seconds of the clock, and of the CPU over all threads of the process, are given of the
whole (reading the model, quantizing, writing the files) and of the library's own call that quantizes alone (`call_`).
memplan's own call reads and writes block by block, so its reading and writing are in both. Peak memory is the most
anonymous memory (RssAnon, sampled every 10 ms) that the process held meanwhile, less what it held after the imports.

With `warms_up` a first quantization, on few windows, is not measured: what a library imports or compiles when it is
first used is then not in the times. One thread computes.
"""

from __future__ import annotations

import importlib
import json
import shutil
import sys
import threading
import time
from pathlib import Path
from typing import Any

# The call of each library that quantizes, and nothing else: module, class if it is a method, name.
CALLS = {
    "native": ("memplan.quantize.pipeline", "Quantization", "run"),
    "gptqmodel": ("gptqmodel.models.base", "BaseQModel", "quantize"),
    "autoawq": ("awq.models.base", "BaseAWQForCausalLM", "quantize"),
    "llmcompressor": ("llmcompressor", "", "oneshot"),
}
_WARMING_WINDOWS = 4
_SAMPLED_EVERY_S = 0.01


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
        while not self._done.wait(_SAMPLED_EVERY_S):
            self.most_bytes = max(self.most_bytes, anonymous_bytes())


class Clock:
    """Seconds of the clock and of the CPU."""

    def __init__(self) -> None:
        self.seconds = self.cpu_seconds = 0.0

    def __enter__(self) -> Clock:
        self._start = time.monotonic(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.monotonic() - self._start[0]
        self.cpu_seconds = time.process_time() - self._start[1]


def clock_of_call(library: str) -> Clock:
    """A clock of the library's own call that quantizes, of the last one there was."""
    module, owner, name = CALLS[library]
    holder: Any = importlib.import_module(module)
    holder = getattr(holder, owner) if owner else holder
    call, clock = getattr(holder, name), Clock()

    def timed(*args: Any, **named: Any) -> Any:
        with clock:
            return call(*args, **named)

    setattr(holder, name, timed)
    return clock


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


def main() -> None:
    """Quantize, and print what it took."""
    asked = json.loads(sys.argv[1])
    import torch
    import transformers  # noqa: F401 - an import that is not timed

    torch.set_num_threads(1)

    from memplan.quantize.backends import BACKENDS, quantize_with
    from memplan.quantize.output import copy_others
    from memplan.quantize.request import quantize_request
    from memplan.quantize.text_sets import read_set
    from memplan.quantize.windows import calibration_windows, load_tokenizer

    library, source, output = asked["library"], Path(asked["source"]), Path(asked["output"])
    settings = {key: asked[key] for key in ("num_samples", "window_tokens", "seed")}
    if asked["method"] != "int8":
        settings |= {"symmetric": asked["method"] != "awq", "bits": asked["bits"], "group_size": asked["group_size"]}
    form = "compressed-tensors" if library == "native" else BACKENDS[library].format
    weights_only = asked["method"] == "int8" and asked["weights_only"]
    request = quantize_request(asked["method"], format=form, weights_only=weights_only, **settings)
    call = clock_of_call(library)
    texts = read_set("builtin", "calibrate", seed=request.seed, offline=True)
    windows = calibration_windows(
        texts, load_tokenizer(source), window_tokens=request.window_tokens, num_windows=request.num_samples
    )

    def quantize(some_windows: Any) -> None:
        torch.manual_seed(request.seed)
        if library == "native":
            run_native(request, source, some_windows, output)
        else:
            quantize_with(library, request, source, some_windows, output)

    if asked["warms_up"]:
        quantize(windows[:_WARMING_WINDOWS])
        shutil.rmtree(output)
    with Peak() as peak, Clock() as whole:
        quantize(windows)
    if library != "native":
        copy_others(source, output)  # the tokenizer, which not every library saves
    found = {"seconds": whole.seconds, "cpu_seconds": whole.cpu_seconds}
    found |= {"call_seconds": call.seconds, "call_cpu_seconds": call.cpu_seconds}
    print(json.dumps({**found, "peak_bytes": peak.most_bytes - peak.before_bytes}))


if __name__ == "__main__":
    main()
