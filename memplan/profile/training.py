"""The phases of training: forward with its loss, backward, and the optimizer's step."""

from __future__ import annotations

from typing import Any

import torch

from memplan.profile.adapters import add_adapters
from memplan.profile.inputs import training_inputs
from memplan.profile.optimizers import make_optimizer, state_tensors
from memplan.profile.recorder import Recorder
from memplan.profile.request import ProfileRequest
from memplan.profile.subject import Subject


def prepare(subject: Subject, request: ProfileRequest) -> None:
    """Make a model ready to be trained as a request says: adapters, checkpointing, what needs gradients."""
    model = subject.model
    if not request.trains:
        model.requires_grad_(False)
        model.eval()
        return
    model.train()
    if request.lora_rank is not None:
        add_adapters(model, request.lora_rank, request.lora_targets)
    if request.checkpointing:
        _checkpoint(model, with_adapters=request.lora_rank is not None)


def _checkpoint(model: Any, *, with_adapters: bool) -> None:
    model.config.use_cache = False
    if hasattr(model, "gradient_checkpointing_enable"):
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    else:
        model.enable_gradient_checkpointing()
    if with_adapters and hasattr(model, "enable_input_require_grads"):
        model.enable_input_require_grads()


class Training:
    """Steps of training over one model and one optimizer."""

    def __init__(self, subject: Subject, recorder: Recorder, request: ProfileRequest) -> None:
        self._subject = subject
        self._recorder = recorder
        self._request = request
        self._optimizer = make_optimizer(request.optimizer, subject) if request.trains else None
        self._loss: Any = None

    def forward(self, iteration: int) -> None:
        """Run the model on one batch and compute its loss; without gradients where nothing follows that needs them."""
        self._loss = None
        self._recorder.begin("forward", iteration)
        with torch.set_grad_enabled(self._request.trains):
            answer = self._subject.model(**training_inputs(self._subject, self._request))
            self._loss = _loss(answer) if self._request.trains else None

    def backward(self, iteration: int) -> None:
        """Run the backward pass."""
        self._recorder.begin("backward", iteration)
        self._loss.backward()
        self._loss = None
        grads = [each.grad for each in self._subject.model.parameters() if each.grad is not None]
        self._recorder.classify(grads, "gradients")

    def step(self, iteration: int) -> None:
        """Update the weights and drop the gradients."""
        self._recorder.begin("optimizer", iteration)
        optimizer = self._optimizer
        if optimizer is None:
            return
        optimizer.step()
        self._recorder.classify(state_tensors(optimizer), "optimizer_state")
        optimizer.zero_grad(set_to_none=True)


def _loss(answer: Any) -> torch.Tensor:
    """The model's own loss; of a model without one, the mean square of what it returns."""
    loss = getattr(answer, "loss", None)
    if loss is not None:
        return loss
    made = getattr(answer, "sample", None)
    if made is None:
        made = answer[0]
    return made.float().pow(2).mean()
