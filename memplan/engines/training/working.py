"""How each line of a training budget comes about, in words."""

from __future__ import annotations

from memplan.domain.model import ModelSpec
from memplan.domain.training import GATHERING, TrainingSpec
from memplan.domain.training_budget import Category, Phase
from memplan.units import format_count, format_gib

_MOMENTS = {
    "adamw": "2 moments x {state} B",
    "adamw-8bit": "2 moments x 1 B, and a scale for 256",
    "paged-adamw": "2 moments x {state} B, paged",
    "paged-adamw-8bit": "2 moments x 1 B, paged",
    "sgd": "1 momentum x {state} B",
    "lion": "1 momentum x {state} B",
    "muon": "1 momentum x {state} B",
    "adafactor": "rows and columns",
}


def formula_of(category: Category, spec: ModelSpec, training: TrainingSpec, peak: Phase, trained: int) -> str:
    """The working of one line."""
    if category == "weights":
        width = "4 bits with scales, the rest 2 B" if training.method == "qlora" else f"{training.weight_bytes} B"
        return f"{format_count(spec.parameters)} parameters x {width}{_ranks(training, gathers=True)}"
    if category == "adapters":
        size = 4 if training.adapters_in_float else training.weight_bytes
        ranks = _ranks(training, gathers=True)
        return f"{format_count(trained)} parameters of rank {training.lora_rank} x {size} B{ranks}"
    if category == "optimizer_state":
        text = _MOMENTS[training.optimizer].format(state=training.state_bytes)
        master = f" + {training.master_bytes} B of masters" if training.master_bytes else ""
        return f"{format_count(trained)} trained x ({text}{master}){_state_ranks(training)}"
    if category == "gradients":
        return f"of {format_count(trained)} trained{_ranks(training, gathers=True)}, as far as they are there"
    if category == "activations":
        rows = f"{training.micro_batch} x {training.sequence_tokens:,} tokens"
        return f"{rows}, checkpointing {training.checkpointing}: {largest(peak, category)}"
    if category == "logits_and_loss":
        rows = f"{training.micro_batch} x {training.sequence_tokens:,} tokens"
        return f"{rows} x {spec.vocab_size:,} words, loss {training.loss}"
    return largest(peak, category)


def _ranks(training: TrainingSpec, *, gathers: bool) -> str:
    layout = training.layout
    cut = layout.tensor * layout.pipeline
    parts = f" / {cut} ranks of the model" if cut > 1 else ""
    if gathers and training.sharding in GATHERING and layout.shards > 1:
        parts += f" / {layout.shards} shards"
    return parts


def _state_ranks(training: TrainingSpec) -> str:
    sharded = training.sharding in (*GATHERING, "zero1", "zero2") and training.layout.shards > 1
    cut = training.layout.tensor * training.layout.pipeline
    parts = f" / {cut} ranks of the model" if cut > 1 else ""
    return f"{parts} / {training.layout.shards} shards" if sharded else parts


def largest(peak: Phase, category: Category, number: int = 3) -> str:
    """The largest of a category at a peak."""
    found = [each for each in peak.held if each.category == category][:number]
    return ", ".join(f"{each.name} {format_gib(each.size_bytes)}" for each in found)
