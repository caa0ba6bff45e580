"""The training budget beside PyTorch's own trackers: MemTracker on one device, FSDPMemTracker on one rank of several.

Two steps run on meta tensors, with attention by PyTorch's plain formula, because a tracker sees no kernel of a GPU.
What libraries take inside of operators is left out of the budget, because trackers do not see it. Compared is the
largest peak of both steps: a tracker does not tell phases apart. Frozen weights, and so LoRA, MemTracker refuses.

    python benchmarks/training/against_trackers.py [--json] [--only NAME]

Exits with 1 when the median is above 1.5 % or any peak is further apart than 5 %.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import json
import sys
import warnings
from statistics import median
from typing import Any

import torch
from against_profile import MEDIAN_LIMIT, WORST_LIMIT, Point, cut, requested, training_of

from memplan.budget.training.step import Step
from memplan.pipeline import load_model
from memplan.profile.execute import settled
from memplan.profile.fake_ranks import among_fake_ranks
from memplan.profile.inputs import training_inputs
from memplan.profile.kernels import simulated_kernels
from memplan.profile.optimizers import make_optimizer
from memplan.profile.recorder import Recorder
from memplan.profile.request import ProfileRequest
from memplan.profile.sharing import shared
from memplan.profile.subject import load_subject
from memplan.profile.training import prepare
from memplan.records import replace
from memplan.units import MIB

POINTS = (
    Point("llama-3.2-1b", 4, attention="math", checkpointing=True, batch=2, tokens=1024),
    Point("llama-8b", 4, attention="math"),
    Point("qwen2.5-7b", 2, attention="math", checkpointing=True),
    Point("pythia-1.4b", 4, attention="math", tokens=1024),
    Point("gemma-2b", 4, attention="math", checkpointing=True),
    Point("llama-3.2-1b", 4, attention="math", ranks=2),
    Point("llama-8b", 4, attention="math", ranks=8, mixed=True, checkpointing=True),
    Point("mistral-7b", 4, attention="math", ranks=4, checkpointing=True),
)


def tracked(request: ProfileRequest) -> int:
    """The peak that a tracker finds in two steps, in bytes."""
    from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
    from torch.distributed._tools.mem_tracker import MemTracker
    from transformers import masking_utils

    kernels = simulated_kernels("cuda", request.attention, request.compute_capability)
    recorder = Recorder("meta")
    is_shared = request.sharing != "none"
    ranks = among_fake_ranks(request.num_ranks, recorder) if is_shared else contextlib.nullcontext()
    with settled(request), kernels, ranks:
        subject = load_subject(request, runs_as="cuda")
        prepare(subject, request)
        if is_shared:
            subject = shared(subject, request, recorder)
        optimizer = make_optimizer(request.optimizer, subject)
        inputs = training_inputs(subject, request)
        del inputs["attention_mask"]  # which a model asks for its values, and a tracker cannot answer
        masking_utils.find_packed_sequence_indices = lambda position_ids: None  # which asks positions for theirs
        tracker: Any = FSDPMemTracker(subject.model, optimizer) if is_shared else MemTracker()
        if is_shared:
            tracker.track_inputs(tuple(inputs.values()))
        else:
            tracker.track_external(subject.model, optimizer, *inputs.values())
        with tracker:
            for _ in range(2):
                tracker.reset_mod_stats()
                subject.model(**inputs).loss.backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
    kinds = max(tracker.get_tracker_snapshot("peak").values(), key=lambda each: max(each.values()))
    return int(max(kinds.values()))


def budgeted(point: Point, folder: str) -> int:
    """The peak of the budget, in bytes."""
    spec = load_model(folder, revision=None, offline=True, introspect="auto")
    training = replace(training_of(point), workspace_bytes=0)
    return max(phase.peak_bytes for phase in Step(spec, training).run())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--only", default="", help="points whose name has this in it")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    rows = []
    for point in POINTS:
        if options.only not in point.name:
            continue
        with cut(point) as folder, contextlib.redirect_stdout(io.StringIO()):
            theirs, ours = tracked(requested(point, folder)), budgeted(point, folder)
        gc.collect()
        rows.append({"point": point.name, "tracker_bytes": theirs, "budget_bytes": ours, "apart": ours / theirs - 1})
        if not options.json:
            sizes = f"tracker {theirs / MIB:9.1f} MiB  budget {ours / MIB:9.1f} MiB"
            print(f"{point.name:85} {sizes}  {ours / theirs - 1:+.2%}", flush=True)
    errors = [abs(row["apart"]) for row in rows]
    summary = {"points": len(rows), "median": median(errors), "worst": max(errors)}
    print(json.dumps({"summary": summary, "points": rows}, indent=1) if options.json else summary)
    sys.exit(0 if summary["median"] <= MEDIAN_LIMIT and summary["worst"] <= WORST_LIMIT else 1)


if __name__ == "__main__":
    main()
