"""A model's logits over windows of tokens: with the whole model in memory, or one decoder block at a time.

Axes: N windows, B windows of a batch, T tokens, H hidden features, V tokens of the vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from memplan.errors import CorruptFile, MissingExtra, UnsupportedModel
from memplan.quantize.activations import Activations
from memplan.quantize.calls import Call, Surroundings, returned
from memplan.quantize.checkpoint import Checkpoint
from memplan.quantize.kv_rounding import KvRounding
from memplan.quantize.rows import row_slices
from memplan.quantize.skeleton import Skeleton, auto_class
from memplan.quantize.unsupported import NEWER_TRANSFORMERS, UnsupportedHere
from memplan.records import replace

_BATCH_TOKENS = 2048
# Logits of a batch are handed out in pieces of this, in float32: 261 tokens where the vocabulary is 128k.
PIECE_BYTES = 128 * 2**20
# Hidden states of more than this are kept in a file.
MOST_HIDDEN_BYTES = 256 * 2**20

Progress = Callable[[int, int], None]


class Forward(ABC):
    """A model that can be run over windows. `logits` yields one batch after the other, in order.

    Where the logits of a batch are large, it comes in pieces, the first tokens of all its windows first. It is no
    generator under `torch.no_grad()`, which would hold each piece until the next one is made.
    """

    @abstractmethod
    def logits(self, token_NT: Tensor, progress: Progress | None = None) -> Iterator[Tensor]:
        """Yield float or half logits (B x T x V); `progress` is told how many steps of how many are done."""


def batches(token_NT: Tensor) -> list[Tensor]:
    """The windows in batches, the same for every model."""
    return list(token_NT.split(max(1, _BATCH_TOKENS // token_NT.shape[1])))


def pieces(token_BT: Tensor, vocabulary: int) -> Iterator[slice]:
    """The tokens of a batch whose logits are handed out together."""
    return row_slices(token_BT.shape[1], max(1, PIECE_BYTES // (4 * vocabulary * token_BT.shape[0])))


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
        self.model = load_whole(path, device, trust_remote_code)
        if kv is not None and calibration_NT is not None:
            kv.measures = True
            for _ in self.logits(calibration_NT):
                pass
            kv.measures = False

    def logits(self, token_NT: Tensor, progress: Progress | None = None) -> Iterator[Tensor]:
        """Yield the logits of every batch."""
        parts = batches(token_NT)
        for number, token_BT in enumerate(parts, start=1):
            cache = {"past_key_values": self.kv.cache(), "use_cache": True} if self.kv else {"use_cache": False}
            with torch.no_grad():
                logits_BTV: Tensor = self.model(input_ids=token_BT.to(self.device), **cache).logits
            if progress:
                progress(number, len(parts))
            yield from (logits_BTV[:, piece] for piece in pieces(token_BT, logits_BTV.shape[2]))


class StreamedModel(Forward):
    """A model of which one decoder block at a time is in memory; hidden states are in a file where there are many.

    `spill` is the folder for that file, the system's own for what is temporary where none is named.
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
        spill: Path | None = None,
    ) -> None:
        self.spill = spill
        self.skeleton = skeleton or Skeleton(path, device=device, trust_remote_code=trust_remote_code)
        self.skeleton.dtype = compute_dtype(device) or self.skeleton.dtype
        _loop_over_experts(self.skeleton.model)
        self.surroundings = Surroundings(self.skeleton)
        self.kv, self.calibration_NT = kv, calibration_NT

    def logits(self, token_NT: Tensor, progress: Progress | None = None) -> Iterator[Tensor]:
        """Run block after block over all windows, and return the logits of every batch, to be made one by one.

        The blocks are run at once: of two models side by side none holds logits while the other holds a block.
        """
        found = self._through_all(token_NT, progress)
        next(found)
        return found

    def _through_all(self, token_NT: Tensor, progress: Progress | None) -> Iterator[Tensor]:
        """Yield nothing when the blocks have been run, and then the logits of every batch."""
        self.skeleton.load_outside_blocks()
        scored = batches(token_NT)
        measured = batches(self.calibration_NT) if self.kv and self.calibration_NT is not None else []
        tokens = [*measured, *scored]
        with self._states(tokens) as hidden:
            calls = self._first(tokens, hidden)
            for index, name in enumerate(self.skeleton.blocks):
                block = self.skeleton.load(name)
                hidden.write(self._through(block, index, hidden, calls, len(measured)))
                self.skeleton.drop(name)
                if progress:
                    progress(index + 1, len(self.skeleton.blocks))
            yield token_NT[:0]
            for number, token_BT in enumerate(scored, start=len(measured)):
                output_BTH = hidden.read(number).to(self.skeleton.device)
                for piece in pieces(token_BT, self.skeleton.vocab_size):
                    yield self._finish(token_BT[:, piece], output_BTH[:, piece])

    @contextmanager
    def _states(self, tokens: list[Tensor]) -> Iterator[Activations]:
        """Room for the hidden states of all batches."""
        width = self.skeleton.hidden_size
        shapes = [(*token_BT.shape, width) for token_BT in tokens]
        dtype = self.skeleton.dtype
        if sum(token_BT.numel() for token_BT in tokens) * width * dtype.itemsize <= MOST_HIDDEN_BYTES:
            yield Activations(None, shapes, dtype)
            return
        with TemporaryDirectory(prefix="memplan-", dir=self.spill) as folder:
            yield Activations(Path(folder) / "hidden.bin", shapes, dtype)

    def _first(self, tokens: list[Tensor], hidden: Activations) -> list[list[Call]]:
        """Write the inputs of the first block, and return the calls of all blocks for every batch.

        Batches of one shape share a call, where what blocks are given does not depend on the tokens.
        """
        found: list[list[Call]] = []

        def inputs() -> Iterator[Tensor]:
            known: dict[torch.Size, list[Call]] = {}
            for token_BT in tokens:
                input_BTH, calls = self.surroundings.calls(token_BT)
                same = known.setdefault(token_BT.shape, calls)
                found.append(same if all(map(Call.equals, same, calls)) else calls)
                yield input_BTH

        hidden.write(inputs())
        return found

    def _through(
        self, block: nn.Module, index: int, hidden: Activations, calls: list[list[Call]], num_measured: int
    ) -> Iterator[Tensor]:
        """The outputs of a block for every batch; the first `num_measured` tell the scales of a rounded cache."""
        for number, of_batch in enumerate(calls):
            call = self._with_cache(of_batch[index], measures=number < num_measured)
            with torch.no_grad():
                output_BTH = call.run(block, hidden.read(number).to(self.skeleton.device))
            yield output_BTH

    def _with_cache(self, call: Call, *, measures: bool) -> Call:
        if self.kv is None:
            return call
        name = next((name for name in ("past_key_values", "past_key_value", "layer_past") if name in call.kwargs), None)
        if name is None:
            raise UnsupportedHere("this family hands its cache to its blocks in a way that is not known here")
        self.kv.measures = measures
        return replace(call, kwargs={**call.kwargs, name: self.kv.cache()})

    @torch.no_grad()
    def _finish(self, token_BT: Tensor, output_BTH: Tensor) -> Tensor:
        """What the model makes of the last block's output: its norm, its head, and whatever it does to logits."""
        model, names = self.skeleton.model, self.skeleton.blocks
        blocks = [model.get_submodule(name) for name in names]
        try:
            for name, block in zip(names, blocks, strict=True):
                model.set_submodule(name, _Handing(block, output_BTH, self.surroundings.num_returned or 0))
            logits_BTV: Tensor = model(input_ids=token_BT.to(self.skeleton.device), use_cache=False).logits
        finally:
            for name, block in zip(names, blocks, strict=True):
                model.set_submodule(name, block)
        return logits_BTV


class _Handing(nn.Module):
    """Stands in for a block and returns what the last block put out. Whatever else is asked, the block answers."""

    def __init__(self, block: nn.Module, output_BTH: Tensor, num_returned: int) -> None:
        super().__init__()
        object.__setattr__(self, "_block", block)
        object.__setattr__(self, "_output", output_BTH)
        self.num_returned = num_returned

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(object.__getattribute__(self, "_block"), name)

    def forward(self, *_: Any, **__: Any) -> Any:
        """Ignore the input."""
        output = object.__getattribute__(self, "_output")
        return returned(output, self.num_returned)


def load_whole(path: Path, device: str, trust_remote_code: bool) -> Any:
    """The model as transformers loads it.

    Raises: UnsupportedModel, MissingExtra when it cannot; CorruptFile for files that are cut off, and for a parameter
    that they lack, which transformers would make up.
    """
    import transformers

    Checkpoint(path, may_be_quantized=True).close()
    try:
        config = transformers.AutoConfig.from_pretrained(
            path, local_files_only=True, trust_remote_code=trust_remote_code
        )
        model, found = auto_class(config).from_pretrained(
            path,
            output_loading_info=True,
            dtype=compute_dtype(device) or "auto",
            local_files_only=True,
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
        )
    except ImportError as error:
        raise MissingExtra(f"transformers cannot load {path}: {first_line(error)}") from error
    except (ValueError, KeyError, TypeError, AttributeError, OSError, RuntimeError) as error:
        raise UnsupportedModel(
            f"transformers cannot load {path}: {first_line(error)}", hint=NEWER_TRANSFORMERS
        ) from error
    made_up = next((name for name, _ in model.named_parameters() if name in found["missing_keys"]), None)
    if made_up is not None:
        raise CorruptFile(f"{path} has no weights for {made_up}", hint="is the download complete?")
    _loop_over_experts(model)
    return model.to(device).eval().requires_grad_(False)


def _loop_over_experts(model: Any) -> None:
    """Run experts one after the other: the grouped kernels of transformers 5 take 16-bit weights only on the CPU."""
    choose = getattr(model, "set_experts_implementation", None)
    if choose is not None:
        choose("eager")


def first_line(error: Exception) -> str:
    """What an error of a library says first, or its name."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
