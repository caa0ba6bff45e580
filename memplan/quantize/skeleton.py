"""A model with no weights, of which one part at a time is filled from its checkpoint, run, and emptied again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from memplan.errors import CorruptFile, UnsupportedModel
from memplan.quantize.checkpoint import Checkpoint
from memplan.quantize.ends import ends, read_rows_of
from memplan.quantize.experts import check_experts, pools, split_experts
from memplan.quantize.linears import is_linear
from memplan.quantize.rows import row_slices
from memplan.quantize.stored import Stored, StoredNames
from memplan.quantize.torch_memory import give_back
from memplan.quantize.unsupported import NEWER_TRANSFORMERS, UnsupportedHere


class Skeleton:
    """A causal language model of transformers on the meta device, beside the checkpoint that fills it.

    `blocks` are the decoder blocks of its language part, in order, by name. Buffers that no checkpoint holds (rotary
    frequencies) are computed at once, because the model's own code makes them. `checkpoint` stands in for the one in
    `path`, where its weights must be made plain first.
    Raises: UnsupportedModel for a model that transformers cannot build or that has no list of blocks.
    """

    def __init__(
        self,
        path: Path,
        *,
        device: str = "cpu",
        trust_remote_code: bool = False,
        checkpoint: Checkpoint | None = None,
    ) -> None:
        self.checkpoint = checkpoint or Checkpoint(path)
        self.device = device
        self.config, self.model = _build(path, trust_remote_code)
        self.model.eval().requires_grad_(False)
        split_experts(self.model)
        self.blocks = _blocks(self.model)
        self._stored = StoredNames(self.model, self.checkpoint)
        self.dtype: torch.dtype = next(self.model.parameters()).dtype
        _fill_buffers(self.model, device, self._stored)
        self._read_buffers()
        self._checked_experts: set[type] = set()

    @property
    def hidden_size(self) -> int:
        """Features of a hidden state."""
        return int(self.config.get_text_config().hidden_size)

    @property
    def vocab_size(self) -> int:
        """Tokens that logits are for."""
        return int(self.config.get_text_config().vocab_size)

    def head_dim(self, block: nn.Module) -> int:
        """Features of an attention head of a block; 0 where neither it nor the config says."""
        said = (getattr(module, "head_dim", None) for module in block.modules())
        found = next((int(size) for size in said if isinstance(size, int)), 0)
        text = self.config.get_text_config()
        heads = int(getattr(text, "num_attention_heads", 0) or 0)
        return found or (int(text.hidden_size) // heads if heads else 0)

    def stored(self, name: str) -> Stored:
        """Where the checkpoint keeps a parameter. Raises: KeyError for one that it does not hold."""
        return self._stored[name]

    def stored_name(self, name: str) -> str:
        """The name of a parameter in a checkpoint. Raises: KeyError for one that this one does not hold."""
        return self._stored[name].written

    def is_tied(self, name: str) -> bool:
        """Whether the checkpoint keeps one tensor for this parameter and another."""
        return self._stored.is_tied(name)

    def load(self, part: str) -> nn.Module:
        """Fill the parameters of a part of the model from the checkpoint, and return it.

        Raises: UnsupportedModel for parameters that the checkpoint keeps in another form, such as fused experts.
        """
        module = self.model.get_submodule(part)
        for name, _ in list(module.named_parameters()):
            if (full := f"{part}.{name}" if part else name) in self._stored:
                self._fill(full)
        empty = next((name for name, value in module.named_parameters() if value.device.type == "meta"), None)
        if empty is not None:
            raise self._absent(f"{part}.{empty}")
        for name, experts in pools(module).items():
            if type(experts.family) not in self._checked_experts:
                check_experts(f"{part}.{name}", experts)
                self._checked_experts.add(type(experts.family))
        give_back()  # what unpacking and checks have made beside many small layers lies between them
        return module

    def check_blocks(self) -> None:
        """Raises: as `load`, for the first parameter of a block that the checkpoint lacks; nothing is read."""
        for block in self.blocks:
            for name, _ in self.model.get_submodule(block).named_parameters():
                if f"{block}.{name}" not in self._stored:
                    raise self._absent(f"{block}.{name}")

    def load_outside_blocks(self) -> None:
        """Make ready what is not in a block: norms are filled; embeddings and the head read rows as they need them.

        What is no part of the language model, such as a vision tower, stays empty.
        """
        left_out = tuple(f"{block}." for block in self.blocks)
        read_by_rows = {f"{name}.weight": module for name, module in ends(self.model)}
        decoder = _decoder(self.model)
        towers = {id(value) for value in self.model.base_model.parameters()} - {id(v) for v in decoder.parameters()}
        for name, value in list(self.model.named_parameters(remove_duplicate=False)):
            if name.startswith(left_out) or (id(value) in towers and name not in read_by_rows):
                continue
            if name not in read_by_rows or name not in self._stored or self._is_unpacked(name):
                self._fill(name)
            else:
                read_rows_of(read_by_rows[name], self._checked(name), self.device, self.dtype)

    def drop(self, part: str) -> None:
        """Empty a part of the model again, and hand its memory back."""
        module = self.model.get_submodule(part)
        for name, value in list(module.named_parameters()):
            owner, leaf = _owner(module, name)
            empty = torch.empty(value.shape, dtype=value.dtype, device="meta")
            setattr(owner, leaf, nn.Parameter(empty, requires_grad=False))
        give_back()

    def _absent(self, name: str) -> CorruptFile | UnsupportedModel:
        """Why a parameter of a block is not there: what stands beside it is to be put together, or nothing is."""
        module = name.rpartition(".")[0]
        beside = module.rpartition(".")[0] + "."
        if any(stored.startswith(beside) for stored in self._stored.unclaimed):
            return UnsupportedModel(
                f"the checkpoint keeps {name} in pieces that are put together while a model loads",
                hint="block by block it cannot be worked on yet; evaluated it can be, where it fits whole",
            )
        return self._missing(name)

    def _missing(self, name: str) -> CorruptFile:
        return CorruptFile(f"{self.checkpoint.path} has no weights for {name}", hint="is the download complete?")

    def _fill(self, name: str) -> None:
        if name not in self._stored:
            raise self._missing(name)
        owner, leaf = _owner(self.model, name)
        value = self._checked(name)
        # A copy of its own, also where the type is the same: what is mapped would be read again at every pass.
        is_mapped = not self._is_unpacked(name)
        setattr(owner, leaf, nn.Parameter(value.to(self.device, self.dtype, copy=is_mapped), requires_grad=False))

    def _read_buffers(self) -> None:
        """Fill the buffers that the checkpoint keeps, such as the biases of a router's choice. They stay."""
        for name, value in list(self.model.named_buffers()):
            if name in self._stored:
                owner, leaf = _owner(self.model, name)
                owner._buffers[leaf] = self._checked(name).to(self.device, value.dtype, copy=True)

    def _is_unpacked(self, name: str) -> bool:
        return self.checkpoint.is_unpacked(self._stored[name].name)

    def _checked(self, name: str) -> torch.Tensor:
        """A tensor of the checkpoint as the model wants it; of one that is mapped, no byte is held."""
        owner, leaf = _owner(self.model, name)
        shape, stored = tuple(getattr(owner, leaf).shape), self._stored[name]
        value = stored.read(self.checkpoint, shape)
        if self._is_unpacked(name) and not isinstance(owner, nn.Linear):
            value = value.t()
        if tuple(value.shape) != shape:
            raise CorruptFile(f"{stored.name} has shape {tuple(value.shape)}; the config asks for {shape}")
        parts = [value] if value.dim() < 2 else (value[rows] for rows in row_slices(value.shape[0]))
        if not all(bool(torch.isfinite(part).all()) for part in parts):
            raise CorruptFile(f"{stored.name} holds NaN or infinite weights", hint="the checkpoint itself is broken")
        return value


def _build(path: Path, trust_remote_code: bool) -> tuple[Any, nn.Module]:
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
        with torch.device("meta"):
            model = auto_class(config).from_config(
                config, dtype=config.dtype or torch.bfloat16, trust_remote_code=trust_remote_code
            )
    except (ValueError, KeyError, TypeError, AttributeError, ImportError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UnsupportedModel(f"transformers cannot build {path}: {reason}", hint=NEWER_TRANSFORMERS) from None
    return config, model


def auto_class(config: Any) -> Any:
    """The class of transformers that loads a model: the one that its config names, where several would.

    Models that see are loaded whole, so that the names of their language part are those of the checkpoint.
    """
    import transformers

    kinds = [
        kind
        for kind in (transformers.AutoModelForCausalLM, transformers.AutoModelForImageTextToText)
        if type(config) in kind._model_mapping
    ]
    named = config.architectures or []
    return next(
        (kind for kind in kinds if getattr(kind._model_mapping[type(config)], "__name__", "") in named),
        kinds[0] if kinds else transformers.AutoModelForCausalLM,
    )


def _decoder(model: Any) -> nn.Module:
    """The part of a model that continues text."""
    decoder: nn.Module = model.get_decoder()
    return decoder


def _blocks(model: nn.Module) -> tuple[str, ...]:
    """The names of the decoder blocks: the list of modules of the decoder with the most weights in linear layers."""
    best, most = "", 0
    inside = {id(module) for module in _decoder(model).modules()}
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and id(module) in inside:
            weights = sum(leaf.weight.numel() for leaf in module.modules() if is_linear(leaf))
            if weights > most:
                best, most = name, weights
    if not best:
        raise UnsupportedHere(f"{type(model).__name__} has no list of decoder blocks with linear layers")
    return tuple(f"{best}.{index}" for index in range(len(model.get_submodule(best))))


def _fill_buffers(model: nn.Module, device: str, stored: StoredNames) -> None:
    """Compute the buffers that are on the meta device, by the model's own rules for what no checkpoint holds."""
    for name, module in model.named_modules():
        waiting = [leaf for leaf, value in module.named_buffers(recurse=False) if value.device.type == "meta"]
        if not waiting:
            continue
        for leaf in waiting:
            value = module.get_buffer(leaf)
            empty = torch.full(value.shape, float("nan") if value.is_floating_point() else 0, dtype=value.dtype)
            module._buffers[leaf] = empty
        _apply_rules(model, name, stored)
        lacking = _lacking(module, name, stored)
        for leaf in waiting:
            value = module.get_buffer(leaf)
            if leaf in lacking:
                raise UnsupportedHere(f"no rule computes the buffer {name}.{leaf} of {type(model).__name__}")
            module._buffers[leaf] = value.to(device)


def _apply_rules(model: nn.Module, name: str, stored: StoredNames) -> None:
    """Have a module, and those around it while it lacks a buffer, make what they make of themselves.

    The rules are those of the nearest part that is a model, a vision model's language part for one.
    """
    parts = name.split(".") if name else []
    around = [".".join(parts[:count]) for count in range(len(parts), -1, -1)]
    for number, inner in enumerate(around):
        outer = (model.get_submodule(part) for part in around[number:])
        rules: Any = next(part for part in outer if callable(getattr(part, "_init_weights", None)))
        rules._init_weights(model.get_submodule(inner))
        if not _lacking(model.get_submodule(name), name, stored):
            return


def _lacking(module: nn.Module, name: str, stored: StoredNames) -> list[str]:
    """The buffers of a module that have no values and are not in the checkpoint either."""
    return [
        leaf
        for leaf, value in module.named_buffers(recurse=False)
        if value.is_floating_point() and bool(torch.isnan(value).any()) and f"{name}.{leaf}" not in stored
    ]


def _owner(module: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, leaf = name.rpartition(".")
    return module.get_submodule(path), leaf
