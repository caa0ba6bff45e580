"""The phases of a profile, as code: load, prefill, decode, generate; forward, backward, optimizer.

Each is what transformers does in that phase, with nothing around it that would not be there in a program of one's own.
"""

from __future__ import annotations

from typing import Any

import torch

from memplan.domain.timeline import Phase
from memplan.profile.recorder import Recorder
from memplan.profile.request import ProfileRequest
from memplan.profile.subject import Subject


def load(subject: Subject, recorder: Recorder) -> None:
    """Note the weights, as they are laid out when they are loaded onto the device."""
    recorder.begin("load")
    sizes = [tensor.untyped_storage().nbytes() for _, tensor in subject.weights()]
    recorder.spike([sum(sizes)], "caching_allocator_warmup")
    for name, tensor in subject.weights():
        recorder.hold(tensor, "weights", module=name.rpartition(".")[0], operator="load")


class Inference:
    """A prefill and the steps after it, over one cache."""

    def __init__(self, subject: Subject, recorder: Recorder, request: ProfileRequest) -> None:
        self._subject = subject
        self._recorder = recorder
        self._request = request
        self._cache: Any = None
        self._tokens: Any = None
        self._mask: Any = None

    def prefill(self, iteration: int) -> None:
        """Run the prompt, and keep what generate keeps: the cache, the tokens, the mask."""
        self._cache = self._tokens = self._mask = None
        self._recorder.begin("prefill", iteration)
        shape = (self._request.batch, self._request.prompt_tokens)
        self._tokens = torch.zeros(shape, dtype=torch.long, device=self._subject.device)
        self._mask = torch.ones(shape, dtype=torch.long, device=self._subject.device)
        self._step(self._tokens, logits_to_keep=1)

    def decode(self, iteration: int) -> None:
        """Write the tokens after the first one."""
        self._recorder.begin("decode", iteration)
        for _ in range(self._request.output_tokens - 1):
            self._step(self._tokens[:, -1:])

    def _step(self, tokens: torch.Tensor, **options: Any) -> None:
        outputs = self._subject.model(
            input_ids=tokens, attention_mask=self._mask, past_key_values=self._cache, use_cache=True, **options
        )
        self._cache = outputs.past_key_values
        self._recorder.classify(_tensors_of(self._cache), "kv_cache")
        logits = outputs.logits[:, -1].to(copy=True, dtype=torch.float32)
        self._tokens = torch.cat([self._tokens, torch.argmax(logits, dim=-1)[:, None]], dim=-1)
        self._mask = torch.cat([self._mask, self._mask.new_ones((self._mask.shape[0], 1))], dim=-1)


def run(subject: Subject, recorder: Recorder, request: ProfileRequest) -> None:
    """Run the phases of a request, in order."""
    recorder.name_modules(subject.model)
    phases: tuple[Phase, ...] = request.phases
    with recorder, torch.no_grad():
        load(subject, recorder)
        start = len(recorder.log.sizes)
        inference = Inference(subject, recorder, request)
        for iteration in range(request.iterations):
            if "prefill" in phases or "decode" in phases:
                inference.prefill(iteration)
            if "decode" in phases:
                inference.decode(iteration)
        recorder.classify_unknown("activations", start)


def _tensors_of(cache: Any) -> list[torch.Tensor]:
    """Every tensor that a cache object holds."""
    found: list[torch.Tensor] = []
    waiting: list[Any] = [cache]
    seen: set[int] = set()
    while waiting:
        each = waiting.pop()
        if isinstance(each, torch.Tensor):
            found.append(each)
        elif id(each) in seen or isinstance(each, (str, int, float, type(None), torch.dtype, torch.device)):
            continue
        elif isinstance(each, dict):
            waiting.extend(each.values())
        elif isinstance(each, (list, tuple)):
            waiting.extend(each)
        elif type(each).__module__.startswith("transformers") and hasattr(each, "__dict__"):
            waiting.extend(vars(each).values())
        seen.add(id(each))
    return found
