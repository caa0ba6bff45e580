"""Writing text: a prefill, and the steps after it over one cache, as transformers' `generate` runs them greedily."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch

from memplan.domain.timeline import Phase
from memplan.errors import UnsupportedModel
from memplan.profile.graphed_step import WARM_UP_STEPS, GraphedStep
from memplan.profile.inputs import prompt
from memplan.profile.recorder import Recorder
from memplan.profile.repeat import Step, are_alike, spread, write_steps
from memplan.profile.request import ProfileRequest
from memplan.profile.subject import Subject
from memplan.units import round_up

# Steps that stand for all that are not run; more of them change a peak by less than one token's cache.
_MOST_WRITTEN = 64
_FIRST_STEPS = 4
# Source: transformers 5.23 `generation/continuous_batching`, block_size.
_BLOCK_TOKENS = 256
_CACHE_NAMES = ("past_key_values", "cache_params", "state")


class Generation:
    """One prompt and what is written after it."""

    def __init__(self, subject: Subject, recorder: Recorder, request: ProfileRequest) -> None:
        self.notes: list[str] = []
        self._subject = subject
        self._recorder = recorder
        self._request = request
        self._takes = inspect.signature(type(subject.model).forward).parameters
        self._cache: Any = None
        self._cache_name = next((name for name in _CACHE_NAMES if name in self._takes), _CACHE_NAMES[0])
        self._tokens: Any = None
        self._fixed: dict[str, Any] = {}
        self._graphed: GraphedStep | None = None

    def begin(self, phase: Phase, iteration: int) -> None:
        """Start a phase."""
        self._recorder.begin(phase, iteration)

    def end(self) -> None:
        """Let go of everything."""
        self._cache = self._tokens = self._graphed = None
        self._fixed = {}

    def prefill(self) -> None:
        """Run the prompt; what `generate` keeps of it stays: the cache, the tokens, the mask.

        A captured step keeps the cache that it was captured with, which is written anew.
        """
        graphed, cache = self._graphed, self._cache
        self.end()
        if graphed is not None:
            self._graphed, self._cache = graphed, cache
            cache.reset()
        del graphed, cache
        given = prompt(self._subject, self._request)
        if self._subject.kind == "encoder_decoder":
            model = self._subject.model
            self._fixed = {"encoder_outputs": model.get_encoder()(**given)}
            if "attention_mask" in given:
                self._fixed["attention_mask"] = given["attention_mask"]
            shape = (self._request.batch, 1)
            self._tokens = torch.zeros(shape, dtype=torch.long, device=self._subject.device)
        else:
            self._tokens = given["input_ids"]
            self._fixed = {"attention_mask": given["attention_mask"]} if "attention_mask" in self._takes else {}
        if self._cache is None and (self._request.cache == "static" or self._request.attention == "paged"):
            self._cache = self._static_cache()
        self._step(self._tokens)

    def decode(self) -> None:
        """Write the tokens after the first one: all of them, or the first and what follows from those."""
        write = self._write_one if self._graphed is None else self._replay_one
        steps = self._request.output_tokens - 1
        marks: list[Step] = []
        work = self._recorder.work
        counts = [work.so_far()] if work is not None else []
        for done in range(steps):
            marks.append(self._timed(write))
            counts += [work.so_far()] if work is not None else []
            log, left = self._recorder.log, steps - done - 1
            if self._can_repeat(left) and len(marks) >= _FIRST_STEPS:
                last = (marks[-3], marks[-2], marks[-1])
                if are_alike(log, last):
                    distances = spread(left, _MOST_WRITTEN)
                    self._recorder.renumber(write_steps(log, last[1], last[2], distances))
                    if work is not None:
                        work.repeat((counts[-3], counts[-2], counts[-1]), left)
                    said = f"decode: {done + 1 + len(distances)} of {steps} steps stand for all"
                    if len(distances) < left and said not in self.notes:
                        self.notes.append(said)
                    return

    def capture(self) -> None:
        """Run the decoding step as a capture wants it, and capture it in a graph if nothing is in the way.

        Raises: UnsupportedModel for a model that decodes beside an encoder.
        """
        if self._subject.kind != "decoder":
            raise UnsupportedModel(f"no graph is captured of `{self._subject.name}`, which has an encoder beside it")
        options = {self._cache_name: self._cache, "use_cache": True}
        options |= {"logits_to_keep": 1} if "logits_to_keep" in self._takes else {}
        options |= {"attention_mask": None} if "attention_mask" in self._takes else {}
        step = GraphedStep(self._subject.model, self._recorder, self._tokens, self._longest(), options)
        self.begin("decode", 0)
        self._recorder.graph = step.warm_up()
        self._recorder.classify(tensors_of(self._cache), "kv_cache")
        if not self._recorder.graph.breaks:
            step.capture()
            self._graphed = step

    def _can_repeat(self, left: int) -> bool:
        """Whether later steps follow from earlier ones: nothing is run for its values, and no window fills up."""
        if self._subject.device != "meta" or left < 2:
            return False
        length = self._tokens.shape[1]
        windows = {getattr(layer, "sliding_window", None) for layer in getattr(self._cache, "layers", None) or ()}
        return not any(isinstance(each, int) and length <= each < length + left for each in windows)

    def _timed(self, write: Callable[[], None]) -> Step:
        log = self._recorder.log
        start, first = len(log.order), len(log.sizes)
        write()
        return Step(start, len(log.order), first, len(log.sizes))

    def _write_one(self) -> None:
        self._step(self._tokens[:, -1:])

    def _replay_one(self) -> None:
        assert self._graphed is not None
        self._tokens = torch.cat([self._tokens, self._graphed.replay()], dim=-1)

    def _step(self, tokens: torch.Tensor) -> None:
        name = "decoder_input_ids" if self._subject.kind == "encoder_decoder" else "input_ids"
        options = {name: tokens, "use_cache": True, **self._fixed}
        if self._cache is not None:
            options[self._cache_name] = self._cache
        if "logits_to_keep" in self._takes:
            options["logits_to_keep"] = 1
        outputs = self._subject.model(**options)
        self._cache = next((outputs[each] for each in _CACHE_NAMES if outputs.get(each) is not None), None)
        self._recorder.classify(tensors_of(self._cache), "kv_cache")
        logits = outputs.logits[:, -1].to(copy=True, dtype=torch.float32)
        self._tokens = torch.cat([self._tokens, torch.argmax(logits, dim=-1)[:, None]], dim=-1)
        mask = self._fixed.get("attention_mask")
        if mask is not None and self._subject.kind == "decoder":
            self._fixed["attention_mask"] = torch.cat([mask, mask.new_ones((mask.shape[0], 1))], dim=-1)

    def _static_cache(self) -> Any:
        """A cache that is made once and written into; paged, one of whole blocks."""
        import transformers

        return transformers.StaticCache(config=self._subject.config, max_cache_len=self._longest())

    def _longest(self) -> int:
        """The tokens of a sequence that a cache which does not grow has room for."""
        length = self._request.prompt_tokens + self._request.output_tokens
        if self._request.execution == "graph":
            length = max(length, self._request.prompt_tokens + WARM_UP_STEPS)
        return round_up(length, _BLOCK_TOKENS) if self._request.attention == "paged" else length


def tensors_of(cache: Any) -> list[torch.Tensor]:
    """Every tensor that a cache object holds."""
    found: list[torch.Tensor] = []
    waiting: list[Any] = [cache]
    seen: set[int] = set()
    while waiting:
        each = waiting.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        if isinstance(each, torch.Tensor):
            found.append(each)
        elif isinstance(each, dict):
            waiting.extend(each.values())
        elif isinstance(each, (list, tuple)):
            waiting.extend(each)
        elif type(each).__module__.startswith("transformers") and "Config" not in type(each).__name__:
            waiting.extend(vars(each).values() if hasattr(each, "__dict__") else ())
    return found
