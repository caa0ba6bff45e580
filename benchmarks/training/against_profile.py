"""The training budget beside the simulated profile: the same step, once by formulas, once by the model's own code.

Every point is one architecture, a method and a batch. The profile runs transformers' code on meta tensors; the second
of two steps is compared, whose optimizer state is there from the beginning. Models keep their widths and vocabulary and
lose layers, so that a point takes seconds.

    python benchmarks/training/against_profile.py [--json] [--only NAME] [--alive]

Exits with 1 when the median over phases is above 1.5 % or any phase is further apart than 5 %.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import json
import sys
import tempfile
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from memplan.budget.training.step import Step
from memplan.domain.dtypes import DType
from memplan.domain.model import ModelSpec
from memplan.domain.training import TrainingLayout, TrainingSpec
from memplan.introspect.resolve import find_config
from memplan.pipeline import load_model
from memplan.profile.events import EventLog
from memplan.profile.request import TRAINING, ProfileRequest
from memplan.units import MIB, round_up

HERE = Path(__file__).parent
PHASES = ("forward", "backward", "optimizer")
MEDIAN_LIMIT, WORST_LIMIT = 0.015, 0.05
KERNELS = {"sdpa": "auto", "flash": "flash", "efficient": "efficient", "math": "math", "eager": "eager"}
OPTIMIZERS = {"foreach": "adamw-foreach", "fused": "adamw-fused", "for-loop": "adamw-loop"}


@dataclass(frozen=True)
class Point:
    """One comparison. `model` is a name of the catalogue or of a file in `models/`; `layers` None keeps them all."""

    model: str
    layers: int | None = None
    batch: int = 1
    tokens: int = 2048
    attention: str = "sdpa"
    checkpointing: bool = False
    lora: int | None = None
    targets: tuple[str, ...] = ()
    optimizer: str = "foreach"
    ranks: int = 1
    mixed: bool = False
    config: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        words = [
            self.model,
            f"{self.layers} layers" if self.layers else "",
            f"LoRA {self.lora} {'+'.join(self.targets) or 'all'}" if self.lora else "full",
            f"{self.batch} x {self.tokens}",
            self.attention,
            "checkpointing" if self.checkpointing else "",
            self.optimizer,
            f"FSDP2 over {self.ranks}" if self.ranks > 1 else "",
            "fp32 weights" if self.mixed else "",
            "small vocabulary" if "vocab_size" in self.config else "",
        ]
        return ", ".join(word for word in words if word)

    @property
    def group(self) -> str:
        if self.ranks > 1:
            return "FSDP2"
        if "vocab_size" in self.config:
            return "few logits"
        return "LoRA" if self.lora else "full"


QV = ("q_proj", "v_proj")
NARROW = {"vocab_size": 2048, "quantization_config": None}
POINTS = (
    Point("llama-3.2-1b"),
    Point("llama-3.2-1b", batch=4, tokens=1024, checkpointing=True),
    Point("llama-8b", 4, attention="math", optimizer="fused"),
    Point("llama-8b", 4, attention="eager", tokens=1024, optimizer="for-loop"),
    Point("llama-8b", lora=16, targets=QV, checkpointing=True, tokens=4096),
    Point("mistral-7b", 4, lora=8, batch=2),
    Point("mistral-7b-v0.1", 4, attention="efficient", tokens=8192, checkpointing=True),
    Point("qwen2.5-0.5b", batch=2, checkpointing=True),
    Point("qwen2.5-7b", 4, lora=64, batch=2),
    Point("qwen3-0.6b", batch=2),
    Point("qwen3-8b", 6, checkpointing=True, batch=2),
    Point("gemma-2-2b", 6, attention="eager", tokens=1024),
    Point("gemma-3-1b", 8, lora=16, checkpointing=True),
    Point("gemma-3-1b", 8),
    Point("gemma-2b", 6),
    Point("phi-3-mini", 8),
    Point("phi-3-mini", 8, lora=16, batch=2),
    Point("phi-2", 8),
    Point("phi-4", 4, checkpointing=True, tokens=4096),
    Point("gpt2-medium", 8, tokens=1024, batch=4),
    Point("pythia-1.4b", 8, batch=2),
    Point("pythia-1.4b", 8, batch=2, lora=8, checkpointing=True),
    Point("falcon-7b", 4),
    Point("gpt-j-6b", 4),
    Point("bloom-7b1", 4),
    Point("starcoder2-3b", 6),
    Point("gpt_bigcode-santacoder", 8),
    Point("olmo-1b", 8),
    Point("olmo-2-7b", 4, batch=2),
    Point("command-r7b", 4),
    Point("glm-4-9b-0414", 3),
    Point("granite-3.1-8b", 4, batch=2),
    Point("mixtral-8x7b", 2),
    Point("mixtral-8x7b", 2, lora=16, targets=QV, checkpointing=True, tokens=4096),
    Point("qwen3-30b-a3b", 3, batch=2),
    Point("olmoe-1b-7b", 4),
    Point("granite-3.1-1b-a400m", 6),
    Point("deepseek-v2-lite", 3),
    Point("deepseek-v3", 4, tokens=4096, config={"quantization_config": None}),
    Point("gpt-oss-20b", 2, config={"quantization_config": None}),
    Point("gpt-oss-20b", 2, lora=8, targets=QV, checkpointing=True, config={"quantization_config": None}),
    Point("llama-4-scout", 2, tokens=1024),
    Point("phi-3.5-moe", 2, checkpointing=True),
    Point("glm-4.5-air", 2, checkpointing=True),
    Point("lfm2-1.2b", 6),
    Point("apertus-8b", 3),
    Point("opt-1.3b", 4),
    Point("stablelm-2-1.6b", 4, checkpointing=True),
    Point("gemma-3-4b", 6, lora=16, targets=QV),
    Point("minicpm3-4b", 4, checkpointing=True),
    Point("llama-8b", 4, attention="flash", batch=2),
    Point("llama-8b", 4, attention="flash", tokens=8192, checkpointing=True),
    # With few logits a layer makes the peak, in the middle of its backward pass.
    Point("llama-8b", 2, lora=8, batch=2, checkpointing=True, config=NARROW),
    Point("llama-8b", 2, lora=8, targets=QV, batch=2, checkpointing=True, attention="flash", config=NARROW),
    Point("llama-8b", 2, lora=8, targets=QV, batch=2, checkpointing=True, attention="math", config=NARROW),
    Point("llama-8b", 2, lora=8, targets=QV, batch=2, checkpointing=True, attention="eager", config=NARROW),
    Point("llama-8b", 2, batch=2, checkpointing=True, optimizer="fused", config=NARROW),
    Point("qwen3-8b", 2, lora=8, batch=2, checkpointing=True, config=NARROW),
    Point("gemma-2-9b", 2, lora=8, batch=2, checkpointing=True, config=NARROW),
    Point("pythia-6.9b", 2, lora=8, batch=2, checkpointing=True, config=NARROW),
    Point("phi-2", 2, lora=8, batch=2, checkpointing=True, config=NARROW),
    Point("olmo-2-7b", 2, lora=8, batch=2, checkpointing=True, config=NARROW),
    Point("mixtral-8x7b", 2, batch=2, checkpointing=True, optimizer="fused", config=NARROW),
    Point("qwen3-30b-a3b", 2, lora=8, targets=QV, batch=2, checkpointing=True, config=NARROW),
    Point("deepseek-v3", 2, lora=8, targets=("o_proj",), batch=2, checkpointing=True, config=NARROW),
    Point("lfm2-1.2b", 2, lora=8, batch=2, checkpointing=True, config=NARROW),
    Point("llama-3.2-1b", ranks=2),
    Point("llama-3.2-1b", ranks=8, mixed=True, checkpointing=True),
    Point("qwen3-0.6b", ranks=8, mixed=True, optimizer="fused"),
    Point("llama-8b", 6, ranks=8, mixed=True, checkpointing=True, tokens=4096),
    Point("llama-8b", 6, ranks=4, checkpointing=True, batch=2),
    Point("mistral-7b", 6, ranks=4, tokens=512, optimizer="fused"),
    Point("gemma-2-2b", 6, ranks=4, mixed=True, attention="eager", tokens=1024),
    Point("qwen3-30b-a3b", 3, ranks=8, mixed=True, checkpointing=True),
)


@dataclass(frozen=True)
class Compared:
    """One phase of one point, in bytes."""

    phase: str
    profiled_bytes: int
    estimated_bytes: int
    profiled: dict[str, int]
    estimated: dict[str, int]

    @property
    def apart(self) -> float:
        return self.estimated_bytes / self.profiled_bytes - 1


def requested(point: Point, folder: str) -> ProfileRequest:
    return ProfileRequest(
        model=folder,
        offline=True,
        phases=TRAINING,
        batch=point.batch,
        prompt_tokens=point.tokens,
        dtype=DType.F32 if point.mixed else DType.BF16,
        attention=KERNELS[point.attention],
        optimizer=OPTIMIZERS[point.optimizer],
        checkpointing=point.checkpointing,
        lora_rank=point.lora,
        lora_targets=point.targets,
        sharing="fsdp" if point.ranks > 1 else "none",
        num_ranks=point.ranks,
        mixed_precision=DType.BF16 if point.mixed else None,
        warmup=1,
    )


def training_of(point: Point) -> TrainingSpec:
    is_full = point.lora is None
    return TrainingSpec(
        method="full" if is_full else "lora",
        lora_rank=point.lora or 0,
        lora_targets=point.targets,
        weight_bytes=4 if point.mixed else 2,
        grad_bytes=4 if point.mixed else 2,
        state_bytes=4 if point.mixed or not is_full else 2,
        reduce_bytes=4 if point.mixed else None,
        optimizer_form=point.optimizer,
        sharding="fsdp2" if point.ranks > 1 else "none",
        layout=TrainingLayout(data=point.ranks),
        micro_batch=point.batch,
        sequence_tokens=point.tokens,
        checkpointing="full" if point.checkpointing else "none",
        attention=point.attention,
        loss="plain-flat",
        caches_keys=not point.checkpointing,
        reentrant=False,
    )


@contextlib.contextmanager
def cut(point: Point) -> Iterator[str]:
    """A folder with the point's config."""
    own = HERE / "models" / f"{point.model}.json"
    raw, _ = find_config(str(own) if own.exists() else point.model, revision=None, offline=True)
    made = {**raw, **point.config}
    for part in (made, made.get("text_config")):
        if not isinstance(part, dict) or point.layers is None:
            continue
        for key in ("num_hidden_layers", "n_layer", "num_layers"):
            if key in part:
                part[key] = point.layers
        if isinstance(part.get("layer_types"), list):
            part["layer_types"] = part["layer_types"][: point.layers]
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(made), encoding="utf-8")
        yield folder


def profiled(request: ProfileRequest) -> dict[str, tuple[int, dict[str, int], list[str]]]:
    """By phase of the last step: the peak in blocks of 512 bytes, its categories, and its largest tensors."""
    from memplan.profile.execute import record

    return peaks(record(request).log)


def peaks(log: EventLog) -> dict[str, tuple[int, dict[str, int], list[str]]]:
    found: dict[str, tuple[int, dict[str, int], list[str]]] = {}
    sizes = [round_up(size, 512) for size in log.sizes]
    level = 0
    for mark, start, stop in log.spans():
        peak, moment = level, start
        for position in range(start, stop):
            number = log.order[position]
            level += sizes[number - 1] if number > 0 else -sizes[-number - 1]
            if level > peak:
                peak, moment = level, position + 1
        if mark.phase in PHASES:
            found[mark.phase] = (peak, *alive(log, sizes, moment))
    return found


def alive(log: EventLog, sizes: list[int], moment: int) -> tuple[dict[str, int], list[str]]:
    """What is alive after so many events: bytes by category, and lines that tell what it is."""
    living: dict[int, int] = {}
    for number in log.order[:moment]:
        if number > 0:
            living[number - 1] = sizes[number - 1]
        else:
            del living[-number - 1]
    kinds: dict[str, int] = defaultdict(int)
    equal: dict[tuple[str, str], list[int]] = defaultdict(list)
    for number, size in living.items():
        label = log.labels[log.label_of[number]]
        category = log.category(number)
        kinds[category] += size
        module = ".".join("*" if part.isdigit() else part for part in label.module.split("."))
        what = f"{label.operator} in {module} {label.dtype} {list(label.shape)} {label.where.rpartition('/')[2]}"
        equal[(category, what if category in ("activations", "workspace") else "")].append(size)
    ordered = sorted(equal.items(), key=lambda each: -sum(each[1]))
    return dict(kinds), [
        f"{sum(each) / MIB:10.2f} MiB {len(each):4} x {category:15} {what}" for (category, what), each in ordered[:60]
    ]


def estimated(spec: ModelSpec, training: TrainingSpec) -> dict[str, tuple[int, dict[str, int], list[str]]]:
    """The same of the training budget."""
    found = {}
    for phase in Step(spec, training).run():
        kinds: dict[str, int] = defaultdict(int)
        for (category, _), size in phase.held.items():
            kinds[category] += size
        ordered = sorted(phase.held.items(), key=lambda each: -each[1])
        lines = [f"{size / MIB:10.2f} MiB {category:20} {name}" for (category, name), size in ordered[:60]]
        found[phase.name] = (phase.peak_bytes, dict(kinds), lines)
    return found


def compare(point: Point, *, shows: bool = False) -> list[Compared]:
    with cut(point) as folder, contextlib.redirect_stdout(io.StringIO()):
        theirs = profiled(requested(point, folder))
        ours = estimated(load_model(folder, revision=None, offline=True, introspect="auto"), training_of(point))
    rows = [Compared(phase, theirs[phase][0], ours[phase][0], theirs[phase][1], ours[phase][1]) for phase in PHASES]
    for row in rows if shows else ():
        print(
            f"--- {row.phase}: profiled {row.profiled_bytes / MIB:.2f} MiB, estimated {row.estimated_bytes / MIB:.2f}"
        )
        print(row.profiled, *theirs[row.phase][2], sep="\n")
        print("estimated", row.estimated, *ours[row.phase][2], sep="\n")
    return rows


def put_beside(
    points: Sequence[Any], compared: Callable[..., list[Compared]], about: str, *, worst_limit: float = WORST_LIMIT
) -> None:
    """The command line of a comparison: its points, each with its phases, then what lies between, and the exit code.

    A point has a name, and the group that it is counted in.
    """
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--only", default="", help="points whose name has this in it")
    parser.add_argument("--alive", action="store_true", help="list what is alive at every peak")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    table: list[dict[str, Any]] = []
    errors: dict[str, list[float]] = defaultdict(list)
    for point in points:
        if options.only not in point.name:
            continue
        rows = compared(point, shows=options.alive)
        gc.collect()
        table.append({"point": point.name, "phases": [vars(row) | {"apart": row.apart} for row in rows]})
        errors[point.group] += [abs(row.apart) for row in rows]
        if not options.json:
            peak = max(rows, key=lambda row: row.profiled_bytes)
            each = "  ".join(f"{row.phase} {row.apart:+6.2%}" for row in rows)
            print(f"{point.name:95} {peak.profiled_bytes / MIB:10.1f} MiB in {peak.phase:9} {each}", flush=True)
    groups = {**errors, "all": [apart for each in errors.values() for apart in each]} if table else {}
    summary = {
        name: {"points": len(each) // len(PHASES), "median": median(each), "worst": max(each)}
        for name, each in groups.items()
    }
    if options.json:
        print(json.dumps({"summary": summary, "points": table}, indent=1))
    else:
        for name, row in summary.items():
            print(f"{name:15} {row['points']:3} points  median {row['median']:.3%}  worst {row['worst']:.2%}")
    sys.exit(not table or summary["all"]["median"] > MEDIAN_LIMIT or summary["all"]["worst"] > worst_limit)


if __name__ == "__main__":
    put_beside(POINTS, compare, __doc__.splitlines()[0])
