"""A model's logits over windows of tokens: with the whole model in memory, or one decoder block at a time.

Axes: N windows, B windows of a batch, T tokens, H hidden features, V tokens of the vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from memplan.errors import MissingExtra, UnsupportedModel
from memplan.quantize.calls import Call, Surroundings
from memplan.quantize.kv_rounding import KvRounding
from memplan.quantize.skeleton import Skeleton
from memplan.records import replace

# Tokens of a batch: with a vocabulary of 128k, their logits are 1 GiB in float32.
_BATCH_TOKENS = 2048

Progress = Callable[[int, int], None]


class Forward(ABC):
    """A model that can be run over windows. `logits` yields one batch after the other, in order."""

    @abstractmethod
    def logits(self, token_NT: Tensor, progress: Progress | None = None) -> Iterator[Tensor]:
        """Yield float or half logits (B x T x V); `progress` is told how many steps of how many are done."""


def batches(token_NT: Tensor) -> list[Tensor]:
    """The windows in batches, the same for every model."""
    return list(token_NT.split(max(1, _BATCH_TOKENS // token_NT.shape[1])))


def compute_dtype(device: str) -> torch.dtype | None:
    """The type to compute in: float32 on the CPU, where it is exact and not slower; else the checkpoint's own."""
    return torch.float32 if device == "cpu" else None


class WholeModel(Forward):
    """A model loaded by transformers, quantized checkpoints included where it can read them.

    With `kv`, keys and values are rounded; `calibration_NT` is what its scales are measured on.
    Raises: UnsupportedModel, MissingExtra when transformers cannot load it.
    """

    def __init__(
        self,
        path: Path,
        *,
        device: str = "cpu",
        kv: KvRounding | None = None,
        calibration_NT: Tensor | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        self.device, self.kv = device, kv
        self.model = _load(path, device, trust_remote_code)
        if kv is not None and calibration_NT is not None:
            kv.measures = True
            for _ in self.logits(calibration_NT):
                pass
            kv.measures = False

    @torch.no_grad()
    def logits(self, token_NT: Tensor, progress: Progress | None = None) -> Iterator[Tensor]:
        """Yield the logits of every batch."""
        parts = batches(token_NT)
        for number, token_BT in enumerate(parts, start=1):
            cache = {"past_key_values": self.kv.cache(), "use_cache": True} if self.kv else {"use_cache": False}
            logits_BTV: Tensor = self.model(input_ids=token_BT.to(self.device), **cache).logits
            if progress:
                progress(number, len(parts))
            yield logits_BTV


class StreamedModel(Forward):
    """A model of which one decoder block at a time is in memory, beside its embeddings, head and all hidden states.

    Raises: as Skeleton; UnsupportedModel for a cache type where the family's blocks take no cache.
    """

    def __init__(
        self,
        path: Path,
        *,
        device: str = "cpu",
        kv: KvRounding | None = None,
        calibration_NT: Tensor | None = None,
        trust_remote_code: bool = False,
        skeleton: Skeleton | None = None,
    ) -> None:
        self.skeleton = skeleton or Skeleton(path, device=device, trust_remote_code=trust_remote_code)
        self.skeleton.dtype = compute_dtype(device) or self.skeleton.dtype
        _loop_over_experts(self.skeleton.model)
        self.surroundings = Surroundings(self.skeleton)
        self.kv, self.calibration_NT = kv, calibration_NT

    @torch.no_grad()
    def logits(self, token_NT: Tensor, progress: Progress | None = None) -> Iterator[Tensor]:
        """Run block after block over all windows, then yield the logits of every batch."""
        self.skeleton.load_outside_blocks()
        scored = batches(token_NT)
        measured = batches(self.calibration_NT) if self.kv and self.calibration_NT is not None else []
        runs = [self.surroundings.calls(token_BT) for token_BT in (*measured, *scored)]
        hidden = [first_BTH for first_BTH, _ in runs]
        for index, name in enumerate(self.skeleton.blocks):
            block = self.skeleton.load(name)
            for number, (_, calls) in enumerate(runs):
                call = self._with_cache(calls[index], measures=number < len(measured))
                hidden[number] = call.run(block, hidden[number])
            self.skeleton.drop(name)
            if progress:
                progress(index + 1, len(self.skeleton.blocks))
        for token_BT, output_BTH in zip(scored, hidden[len(measured) :], strict=True):
            yield self._finish(token_BT, output_BTH)

    def _with_cache(self, call: Call, *, measures: bool) -> Call:
        if self.kv is None:
            return call
        name = next((name for name in ("past_key_values", "past_key_value", "layer_past") if name in call.kwargs), None)
        if name is None:
            raise UnsupportedModel("this family hands its cache to its blocks in a way that is not known here")
        self.kv.measures = measures
        return replace(call, kwargs={**call.kwargs, name: self.kv.cache()})

    def _finish(self, token_BT: Tensor, output_BTH: Tensor) -> Tensor:
        """What the model makes of the last block's output: its norm, its head, and whatever it does to logits."""
        model, names = self.skeleton.model, self.skeleton.blocks
        blocks = [model.get_submodule(name) for name in names]
        try:
            for name, block in zip(names, blocks, strict=True):
                model.set_submodule(name, _Handing(block, output_BTH, returns_tuple=self.surroundings.returns_tuple))
            logits_BTV: Tensor = model(input_ids=token_BT.to(self.skeleton.device), use_cache=False).logits
        finally:
            for name, block in zip(names, blocks, strict=True):
                model.set_submodule(name, block)
        return logits_BTV


class _Handing(nn.Module):
    """Stands in for a block and returns what the last block put out. Whatever else is asked, the block answers."""

    def __init__(self, block: nn.Module, output_BTH: Tensor, *, returns_tuple: bool) -> None:
        super().__init__()
        object.__setattr__(self, "_block", block)
        object.__setattr__(self, "_output", output_BTH)
        self.returns_tuple = returns_tuple

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(object.__getattribute__(self, "_block"), name)

    def forward(self, *_: Any, **__: Any) -> Any:
        """Ignore the input."""
        output = object.__getattribute__(self, "_output")
        return (output,) if self.returns_tuple else output


def _load(path: Path, device: str, trust_remote_code: bool) -> Any:
    import transformers

    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            path,
            dtype=compute_dtype(device) or "auto",
            local_files_only=True,
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
        )
    except ImportError as error:
        raise MissingExtra(f"transformers cannot load {path}: {_first_line(error)}") from error
    except (ValueError, KeyError, TypeError, AttributeError, OSError, RuntimeError) as error:
        raise UnsupportedModel(f"transformers cannot load {path}: {_first_line(error)}") from error
    _loop_over_experts(model)
    return model.to(device).eval().requires_grad_(False)


def _loop_over_experts(model: Any) -> None:
    """Run experts one after the other: the grouped kernels of transformers 5 take 16-bit weights only on the CPU."""
    choose = getattr(model, "set_experts_implementation", None)
    if choose is not None:
        choose("eager")


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
