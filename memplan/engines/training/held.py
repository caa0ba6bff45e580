"""What lies in memory, in the categories and words of the answer: from the step's blocks to phases and lines."""

from __future__ import annotations

from memplan.budget.training.autograd import Parameter
from memplan.budget.training.build import Builder
from memplan.budget.training.device import PhaseHeld
from memplan.domain.model import ModelSpec
from memplan.domain.tensors import Tensor
from memplan.domain.training import GATHERING, TrainingSpec
from memplan.domain.training_budget import Category, Held, Phase, PhaseName
from memplan.records import replace

_LOSS = ("logits", "loss", "log-softmax", "lm_head", "compiled loss", "fused loss", "linear loss", "sum of losses")
_CATEGORIES: dict[str, Category] = {
    "weights": "weights",
    "gradients": "gradients",
    "optimizer state": "optimizer_state",
    "activations": "activations",
    "workspace": "workspace",
    "gathered weights": "gathered_weights",
    "communication buffers": "communication_buffers",
}


def phase_of(found: PhaseHeld, name: PhaseName, note: str = "") -> Phase:
    """A phase of the step with everything that is alive at its peak, the largest first."""
    held: dict[tuple[Category, str], int] = {}
    for (category, part), size in found.held.items():
        key = (_category(category, part), part)
        held[key] = held.get(key, 0) + size
    parts = tuple(
        Held(category=category, name=part, size_bytes=size)
        for (category, part), size in sorted(held.items(), key=lambda item: -item[1])
    )
    return Phase(name=name, peak_bytes=found.peak_bytes, after_bytes=found.after_bytes, held=parts, note=note)


def _category(category: str, name: str) -> Category:
    if name == "adapters":
        return "adapters"
    if category in ("activations", "workspace") and _is_loss(name):
        return "logits_and_loss"
    return _CATEGORIES[category]


def _is_loss(name: str) -> bool:
    plain = name.removeprefix("gradient of ").removeprefix("the ")
    return plain in _LOSS or "logits" in plain or plain.startswith("loss")


def checkpoint_phase(spec: ModelSpec, training: TrainingSpec, load: Phase) -> Phase:
    """Saving a whole state dict: where weights are cut up, one tensor after another is gathered and handed to the host;
    else nothing is added.

    Source: torch/distributed/checkpoint/state_dict.py (full_state_dict with cpu_offload), deepspeed/runtime/engine.py
    (_zero3_consolidated_16bit_state_dict).
    """
    held, note = load.held, ""
    if training.sharding in GATHERING and training.layout.shards > 1:
        size = round(largest_tensor(spec) * training.weight_bytes)
        held = tuple(
            sorted(
                (*held, Held(category="gathered_weights", name="one tensor at a time", size_bytes=size)),
                key=lambda each: -each.size_bytes,
            )
        )
        note = "handed to the host tensor by tensor; without cpu_offload rank 0 would hold the whole model"
    peak = sum(each.size_bytes for each in held)
    return Phase(name="checkpoint", peak_bytes=peak, after_bytes=load.after_bytes, held=held, note=note)


def largest_tensor(spec: ModelSpec) -> int:
    """Elements of the largest tensor that is gathered by itself."""
    tensors: list[Tensor] = [*spec.shared, *(each for layer, _ in spec.distinct_layers() for each in layer.tensors)]
    return max((each.num_parameters for each in tensors), default=0)


def trained_parameters(spec: ModelSpec, training: TrainingSpec) -> int:
    """Parameters that are trained, over all ranks."""
    if training.method == "full":
        return spec.parameters - sum(tower.num_parameters for tower in spec.towers)
    return sum(lora_parameters(spec, training).values())


def lora_parameters(spec: ModelSpec, training: TrainingSpec) -> dict[str, int]:
    """Adapters' parameters by the name of the layer that they stand beside: rank x (inputs + outputs) of each."""
    found: dict[str, int] = {}
    whole = replace(training, layout=replace(training.layout, data=1, tensor=1, pipeline=1, expert=1, context=1))

    def counted(times: int) -> Builder:
        def make(name: str, elements: float, is_trained: bool) -> Parameter:
            if is_trained and name.endswith((".A", ".B", ".magnitude")):
                short = name.rsplit(".", 2)[-2]
                found[short] = found.get(short, 0) + round(elements * times)
            return Parameter(name, 0.0, 0.0, None, elements)

        return Builder(spec, whole, make)

    for layer, times in spec.distinct_layers():
        counted(times).layer(layer, 0)
    counted(1).linear("lm_head", spec.vocab_size, spec.hidden_size)
    return found
