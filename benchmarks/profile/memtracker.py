"""Time and peak of one training step on meta tensors: memplan's recorder beside PyTorch's own MemTracker.

Both run the same program: forward with the model's loss, backward, AdamW in its foreach form, at the attention's plain
formula, because MemTracker sees no kernel of a GPU. Imports are left out on both sides; building the model, running
it and summing up are counted on both. MemTracker rounds every tensor to 512 bytes as memplan's allocator does.

    python benchmarks/profile/memtracker.py [--json] [--models qwen3-0.6b llama-8b] [--tokens 2048]
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import json
import time
import warnings
from typing import Any

import torch
from torch.distributed._tools.mem_tracker import MemTracker

from memplan.budget.caching_allocator.settings import AllocatorSettings
from memplan.profile.execute import record
from memplan.profile.inputs import training_inputs
from memplan.profile.kernels import simulated_kernels
from memplan.profile.optimizers import make_optimizer
from memplan.profile.replay import replay
from memplan.profile.request import TRAINING, ProfileRequest
from memplan.profile.subject import load_subject
from memplan.profile.training import prepare


def ours(request: ProfileRequest) -> tuple[float, float, int]:
    """Seconds on the clock, seconds of the processor, and the peak in bytes."""
    clock, processor = time.perf_counter(), time.process_time()
    log = record(request).log
    peak = replay(log, AllocatorSettings()).peak_allocated_bytes
    return time.perf_counter() - clock, time.process_time() - processor, peak


def theirs(request: ProfileRequest) -> tuple[float, float, int]:
    """The same of MemTracker."""
    clock, processor = time.perf_counter(), time.process_time()
    tracker = MemTracker()
    with simulated_kernels("cuda", request.attention, request.compute_capability):
        subject = load_subject(request, runs_as="cuda")
        prepare(subject, request)
        optimizer = make_optimizer(request.optimizer, subject)
        tracker.track_external(subject.model, optimizer)
        with tracker:
            _step(subject, optimizer, request)
    snapshot: Any = tracker.get_tracker_snapshot("peak")
    peak = max(sum(value for key, value in kinds.items() if str(key) != "Total") for kinds in snapshot.values())
    return time.perf_counter() - clock, time.process_time() - processor, int(peak)


def _step(subject: Any, optimizer: Any, request: ProfileRequest) -> None:
    inputs = training_inputs(subject, request)
    del inputs["attention_mask"]  # which a model asks for its values, and MemTracker cannot answer
    loss = subject.model(**inputs).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def main() -> None:
    """Print a line for each model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--models", nargs="+", default=["qwen3-0.6b", "llama-8b"])
    parser.add_argument("--tokens", type=int, default=2048)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    _warm_up()
    rows = []
    for name in options.models:
        request = ProfileRequest(
            model=name, offline=True, phases=TRAINING, prompt_tokens=options.tokens, attention="math"
        )
        row: dict[str, Any] = {"model": name, "tokens": options.tokens}
        for label, measure in (("memplan", ours), ("MemTracker", theirs)):
            gc.collect()
            with contextlib.redirect_stdout(io.StringIO()):
                seconds, processor, peak = measure(request)
            row[label] = {"seconds": round(seconds, 2), "processor_seconds": round(processor, 2), "peak_bytes": peak}
        rows.append(row)
        if not options.json:
            _print(row)
    if options.json:
        print(json.dumps(rows, indent=1))


def _print(row: dict[str, Any]) -> None:
    mine, other = row["memplan"], row["MemTracker"]
    apart = 100 * (mine["peak_bytes"] / other["peak_bytes"] - 1)
    print(
        f"{row['model']:14} memplan {mine['seconds']:6.2f} s, {mine['peak_bytes'] / 2**30:8.3f} GiB   "
        f"MemTracker {other['seconds']:6.2f} s, {other['peak_bytes'] / 2**30:8.3f} GiB   apart {apart:+.2f} %"
    )


def _warm_up() -> None:
    """Import what the first model of a family imports."""
    record(ProfileRequest(model="demo", phases=TRAINING, prompt_tokens=16))
    import transformers.models.llama.modeling_llama
    import transformers.models.qwen3.modeling_qwen3  # noqa: F401

    torch.set_num_threads(1)


if __name__ == "__main__":
    main()
