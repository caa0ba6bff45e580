"""LoRA adapters, with the memory that PEFT's have: two narrow matrices beside each linear layer that is adapted.

The weights of the model are frozen. Adapters are kept in FP32 beside 16 bit weights, as PEFT does by default, so their
input is cast up and their output down again.

Source: PEFT 0.13 to 0.17, tuners/lora/layer.py (`autocast_adapter_dtype`).
"""

from __future__ import annotations

from typing import Any

import torch

from memplan.errors import UnsupportedModel, UsageError, did_you_mean

_NARROW = (torch.bfloat16, torch.float16)


class AdaptedLinear(torch.nn.Module):
    """A frozen linear layer and the low-rank product that is learnt beside it."""

    def __init__(self, base: torch.nn.Linear, rank: int) -> None:
        super().__init__()
        self.base_layer = base
        kept = torch.float32 if base.weight.dtype in _NARROW else base.weight.dtype
        where = {"device": base.weight.device, "dtype": kept}
        self.lora_a = torch.nn.Linear(base.in_features, rank, bias=False, **where)
        self.lora_b = torch.nn.Linear(rank, base.out_features, bias=False, **where)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        base = self.base_layer(hidden)
        cast = hidden.to(self.lora_a.weight.dtype)
        summed = base + self.lora_b(self.lora_a(cast)) * 2.0
        return summed.to(base.dtype)


def add_adapters(model: Any, rank: int, targets: tuple[str, ...] = ()) -> None:
    """Freeze a model and put an adapter beside its linear layers of these last names; without names, beside all but
    its output head.

    Raises: UnsupportedModel when it has no such layer; UsageError for a name that none has.
    """
    linear = {name.rpartition(".")[2] for name, each in model.named_modules() if type(each) is torch.nn.Linear}
    for name in targets:
        if name not in linear:
            hint = did_you_mean(name, sorted(linear)) or f"it has {', '.join(sorted(linear))}"
            raise UsageError(f"no linear layer to put an adapter beside is named `{name:.60}`", hint=hint)
    model.requires_grad_(False)
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    found = [
        (parent, name, child)
        for parent in list(model.modules())
        for name, child in parent.named_children()
        if type(child) is torch.nn.Linear and (name in targets if targets else child is not head)
    ]
    if not found:
        raise UnsupportedModel("no linear layer to put an adapter beside", hint="leave out --lora-rank")
    for parent, name, child in found:
        setattr(parent, name, AdaptedLinear(child, rank))
