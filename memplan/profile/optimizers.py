"""Optimizers as training runs them on a GPU, also for tensors of the meta device.

PyTorch chooses the foreach form by itself on a GPU and refuses the fused form elsewhere; the 8-bit form belongs to
another package. What they make is made here in the same order.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from typing import Any

import torch

from memplan.errors import MissingExtra
from memplan.profile.recorder import local
from memplan.profile.request import Optimizer
from memplan.profile.subject import Subject

# Source: bitsandbytes 0.44 to 0.48, optim/optimizer.py and functional.py: one scale for each block of 256 values, and
# tensors with fewer values than this stay in FP32.
_BLOCK = 256
_SMALLEST = 4096


def make_optimizer(kind: Optimizer, subject: Subject) -> torch.optim.Optimizer:
    """The optimizer of the parameters that are trained."""
    trained = _alike(each for each in subject.model.parameters() if each.requires_grad)
    if kind == "adamw-8bit" and subject.device.startswith("cuda"):
        return _real_8bit(trained)
    if kind == "adamw-8bit":
        return AdamW8bit(trained)
    if kind.startswith("sgd"):
        return torch.optim.SGD(trained, lr=1e-4, momentum=0.9 if kind == "sgd-momentum" else 0.0, foreach=True)
    if kind == "adamw-fused" and subject.device == "meta":
        return FusedAdamW(trained)
    if kind == "adamw-fused":
        return torch.optim.AdamW(trained, lr=1e-4, fused=True)
    is_foreach = kind == "adamw-foreach" or (kind == "adamw" and subject.runs_as != "cpu")
    return torch.optim.AdamW(trained, lr=1e-4, foreach=is_foreach)


def _alike(parameters: Iterable[torch.Tensor]) -> list[dict[str, Any]]:
    """Parameters in groups that one operator takes together: those that ranks share, and those that are whole."""
    groups: dict[type, list[torch.Tensor]] = {}
    for each in parameters:
        groups.setdefault(type(each), []).append(each)
    return [{"params": each} for each in groups.values()]


def _real_8bit(trained: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """The optimizer that the other one stands for, where it can run. Raises: MissingExtra without its package."""
    try:
        package = importlib.import_module("bitsandbytes")
    except ImportError:
        raise MissingExtra("adamw-8bit on a GPU needs bitsandbytes", hint="pip install bitsandbytes") from None
    made: torch.optim.Optimizer = package.optim.AdamW8bit(trained, lr=1e-4)
    return made


def state_tensors(optimizer: torch.optim.Optimizer) -> Iterable[torch.Tensor]:
    """What an optimizer keeps from step to step."""
    for state in optimizer.state.values():
        yield from (each for each in state.values() if isinstance(each, torch.Tensor))


class FusedAdamW(torch.optim.Optimizer):
    """The fused AdamW of a GPU: moments and a counter for each parameter, and nothing beside them."""

    def __init__(self, parameters: list[dict[str, Any]]) -> None:
        super().__init__(parameters, {})

    def step(self, closure: Any = None) -> None:
        for parameter in _with_gradients(self):
            state = self.state[parameter]
            if not state:
                state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
                state["exp_avg"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
                state["exp_avg_sq"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)


class AdamW8bit(torch.optim.Optimizer):
    """AdamW with moments in blocks of 8 bit values, each block with its scale."""

    def __init__(self, parameters: list[dict[str, Any]]) -> None:
        super().__init__(parameters, {})
        self._maps: list[torch.Tensor] = []

    def step(self, closure: Any = None) -> None:
        for parameter in _with_gradients(self):
            state = self.state[parameter]
            if state:
                continue
            if not self._maps:
                self._maps = [torch.zeros(256, device=parameter.device) for _ in range(2)]
            count = local(parameter).numel()
            if count < _SMALLEST:
                state["state1"] = torch.zeros_like(parameter, dtype=torch.float32)
                state["state2"] = torch.zeros_like(parameter, dtype=torch.float32)
                continue
            blocks = -(-count // _BLOCK)
            for name in ("1", "2"):
                state[f"state{name}"] = torch.zeros_like(parameter, dtype=torch.uint8)
                state[f"absmax{name}"] = torch.zeros(blocks, dtype=torch.float32, device=parameter.device)


def _with_gradients(optimizer: torch.optim.Optimizer) -> Iterable[torch.Tensor]:
    for group in optimizer.param_groups:
        yield from (each for each in group["params"] if each.grad is not None)
