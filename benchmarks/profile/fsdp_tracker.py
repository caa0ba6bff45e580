"""One rank's FSDP2 training step on meta tensors: memplan's recorder beside PyTorch's own FSDPMemTracker.

Both run the same program over the same fake process group: weights cut layer by layer, forward with the model's loss,
backward, AdamW in its foreach form, at the attention's plain formula, because the tracker sees no kernel of a GPU.
Compared is what tensors hold: of memplan's trace what it adds inside of operators is left out, which no dispatch mode
sees, and so are the blocks of the allocator, which are larger than what was asked for where a rest is too small to be
split off.

    python benchmarks/profile/fsdp_tracker.py [--json] [--models qwen3-0.6b llama-8b] [--ranks 2 8] [--tokens 2048]
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import json
import sys
import time
import warnings
from itertools import product
from typing import Any

import torch
from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
from transformers import masking_utils

from memplan.domain.dtypes import DType
from memplan.profile.events import EventLog
from memplan.profile.execute import record, settled
from memplan.profile.fake_ranks import among_fake_ranks
from memplan.profile.inputs import training_inputs
from memplan.profile.kernels import simulated_kernels
from memplan.profile.optimizers import make_optimizer
from memplan.profile.recorder import Recorder
from memplan.profile.replay import replay
from memplan.profile.request import TRAINING, ProfileRequest
from memplan.profile.sharing import shared
from memplan.profile.subject import load_subject
from memplan.profile.training import prepare
from memplan.records import replace

_LIMIT = 0.01


def ours(request: ProfileRequest) -> tuple[float, int]:
    """Seconds and the peak in bytes."""
    clock = time.perf_counter()
    log = record(request).log
    peak = replay(seen_by_trackers(log), None, num_samples=0).peak_allocated_bytes
    return time.perf_counter() - clock, peak


def seen_by_trackers(log: EventLog) -> EventLog:
    """A trace without what operators take inside themselves, which no dispatch mode sees: it has no shape."""
    unseen = {number for number, label in enumerate(log.labels) if not label.shape and not label.dtype}
    sizes = log.sizes[:]
    for number, label in enumerate(log.label_of):
        if label in unseen:
            sizes[number] = 0
    return replace(log, sizes=sizes)


def theirs(request: ProfileRequest) -> tuple[float, int, dict[str, int]]:
    """The same of FSDPMemTracker, and what it names at its peak."""
    clock = time.perf_counter()
    kernels = simulated_kernels("cuda", request.attention, request.compute_capability)
    recorder = Recorder("meta")
    with settled(request), kernels, among_fake_ranks(request.num_ranks, recorder):
        subject = load_subject(request, runs_as="cuda")
        prepare(subject, request)
        subject = shared(subject, request, recorder)
        optimizer = make_optimizer(request.optimizer, subject)
        tracker = FSDPMemTracker(subject.model, optimizer)
        inputs = training_inputs(subject, request)
        del inputs["attention_mask"]  # which a model asks for its values, and the tracker cannot answer
        masking_utils.find_packed_sequence_indices = lambda position_ids: None  # which asks positions for theirs
        tracker.track_inputs(tuple(inputs.values()))
        with tracker:
            subject.model(**inputs).loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    snapshot: Any = tracker.get_tracker_snapshot("peak")
    kinds = max(snapshot.values(), key=lambda each: max(each.values()))
    named = {str(kind): int(size) for kind, size in kinds.items() if size}
    return time.perf_counter() - clock, named.pop("Total"), named


def _cases(models: list[str], ranks: list[int], tokens: int) -> list[ProfileRequest]:
    found = []
    for model, num_ranks, checkpointing, mixed in product(models, ranks, (False, True), (False, True)):
        options: dict[str, Any] = {"model": model, "offline": True, "phases": TRAINING, "prompt_tokens": tokens}
        options |= {"attention": "math", "sharing": "fsdp", "num_ranks": num_ranks, "checkpointing": checkpointing}
        options |= {"dtype": DType.F32, "mixed_precision": DType.BF16} if mixed else {"dtype": DType.BF16}
        found.append(ProfileRequest(**options))
    return found


def main() -> None:
    """Print a line for each run; exit 1 when any two peaks are further than 1 % apart."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--models", nargs="+", default=["qwen3-0.6b", "llama-8b"])
    parser.add_argument("--ranks", nargs="+", type=int, default=[2, 8])
    parser.add_argument("--tokens", type=int, default=2048)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    record(ProfileRequest(model="demo", phases=TRAINING, prompt_tokens=16))
    rows = []
    for request in _cases(options.models, options.ranks, options.tokens):
        gc.collect()
        with contextlib.redirect_stdout(io.StringIO()):
            seconds, peak = ours(request)
            other_seconds, other_peak, kinds = theirs(request)
        rows.append(
            {
                "model": request.model,
                "ranks": request.num_ranks,
                "checkpointing": request.checkpointing,
                "precision": "float32, computed in bfloat16" if request.mixed_precision else "bfloat16",
                "memplan": {"seconds": round(seconds, 2), "peak_bytes": peak},
                "FSDPMemTracker": {"seconds": round(other_seconds, 2), "peak_bytes": other_peak, "by_kind": kinds},
                "apart": peak / other_peak - 1,
            }
        )
        if not options.json:
            _print(rows[-1])
    if options.json:
        print(json.dumps(rows, indent=1))
    sys.exit(0 if all(abs(row["apart"]) <= _LIMIT for row in rows) else 1)


def _print(row: dict[str, Any]) -> None:
    mine, other = row["memplan"], row["FSDPMemTracker"]
    how = f"{row['precision']}{', checkpointing' if row['checkpointing'] else ''}"
    print(
        f"{row['model']:11} {row['ranks']:2} ranks, {how:45} {mine['seconds']:6.2f} s {mine['peak_bytes'] / 2**30:8.3f}"
        f" GiB   tracker {other['seconds']:6.2f} s {other['peak_bytes'] / 2**30:8.3f} GiB   apart {row['apart']:+.2%}",
        flush=True,
    )


if __name__ == "__main__":
    main()
