"""What is loaded beside the model: LoRA adapters that PEFT keeps unmerged, and an assistant model that drafts.

PEFT adds two matrices to every Linear layer of attention and MLP, in FP32, on the device of that layer. An assistant is
a whole model with a cache of its own, on the first GPU.

Source: peft/tuners/lora/layer.py (autocast_adapter_dtype); generation/candidate_generator.py.
"""

from __future__ import annotations

from memplan.catalog.rules import Rules
from memplan.domain.model import Layer, ModelSpec
from memplan.domain.serving import ServingSettings
from memplan.domain.tensors import Role
from memplan.engines.transformers.caches import layer_cache
from memplan.engines.transformers.families import family_of
from memplan.engines.transformers.loading import allocated, requests
from memplan.engines.transformers.settings import TransformersSettings

_ADAPTER_BYTES = 4
_ADAPTED = frozenset({Role.ATTENTION, Role.MLP, Role.SHARED_EXPERT})


def adapter_bytes(layers: list[Layer], asked: ServingSettings) -> int:
    """The LoRA adapters of some layers."""
    slots, rank = asked.lora.max_loras, asked.lora.max_rank
    if not slots:
        return 0
    return sum(
        slots * rank * (tensor.shape[-1] + tensor.shape[-2]) * _ADAPTER_BYTES
        for layer in layers
        for tensor in layer.tensors
        if tensor.linear and tensor.role in _ADAPTED
    )


def draft_bytes(draft: ModelSpec | None, settings: TransformersSettings, rules: Rules) -> int:
    """An assistant model and its cache at the end of the context."""
    if draft is None:
        return 0
    tensors = [*draft.shared, *(tensor for layer in draft.layers for tensor in layer.tensors)]
    cached = sum(layer_cache(layer, settings, rules, family_of(draft)).final_bytes for layer in draft.layers)
    return allocated(requests(tensors, settings.dtype, rules), rules) + cached
