"""A model with no weights, of which one part at a time is filled from its checkpoint, run, and emptied again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from memplan.errors import CorruptFile, UnsupportedModel
from memplan.quantize.checkpoint import Checkpoint
from memplan.quantize.ends import ends, read_rows_of
from memplan.quantize.linears import is_linear
from memplan.quantize.rows import row_slices


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
        self.blocks = _blocks(self.model)
        self._stored_name = _stored_names(self.model, self.checkpoint)
        self.dtype: torch.dtype = next(self.model.parameters()).dtype
        _fill_buffers(self.model, device)

    @property
    def hidden_size(self) -> int:
        """Features of a hidden state."""
        return int(self.config.get_text_config().hidden_size)

    @property
    def head_dim(self) -> int:
        """Features of an attention head; 0 where the config does not say."""
        text = self.config.get_text_config()
        heads = int(getattr(text, "num_attention_heads", 0) or 0)
        return int(getattr(text, "head_dim", 0) or 0) or (int(text.hidden_size) // heads if heads else 0)

    def stored_name(self, name: str) -> str:
        """The name of a parameter in the checkpoint. Raises: KeyError for one that it does not hold."""
        return self._stored_name[name]

    def is_tied(self, name: str) -> bool:
        """Whether the checkpoint keeps one tensor for this parameter and another."""
        stored = self._stored_name.get(name)
        return stored is not None and list(self._stored_name.values()).count(stored) > 1

    def load(self, part: str) -> nn.Module:
        """Fill the parameters of a part of the model from the checkpoint, and return it.

        Raises: UnsupportedModel for parameters that the checkpoint keeps in another form, such as fused experts.
        """
        module = self.model.get_submodule(part)
        for name, _ in list(module.named_parameters()):
            if (full := f"{part}.{name}" if part else name) in self._stored_name:
                self._fill(full)
        empty = next((name for name, value in module.named_parameters() if value.device.type == "meta"), None)
        if empty is not None:
            raise UnsupportedModel(
                f"the checkpoint keeps {part}.{empty} in pieces that are put together while a model loads",
                hint="block by block it cannot be worked on yet; evaluated it can be, where it fits whole",
            )
        return module

    def load_outside_blocks(self) -> None:
        """Make ready what is not in a block: norms are filled; embeddings and the head read rows as they need them."""
        left_out = tuple(f"{block}." for block in self.blocks)
        read_by_rows = {f"{name}.weight": module for name, module in ends(self.model)}
        for name, _ in list(self.model.named_parameters(remove_duplicate=False)):
            if name.startswith(left_out):
                continue
            stored = self._stored_name.get(name)
            if name not in read_by_rows or stored is None or self.checkpoint.is_unpacked(stored):
                self._fill(name)
            else:
                read_rows_of(read_by_rows[name], self._checked(name, stored), self.device, self.dtype)

    def drop(self, part: str) -> None:
        """Empty a part of the model again."""
        module = self.model.get_submodule(part)
        for name, value in list(module.named_parameters()):
            owner, leaf = _owner(module, name)
            empty = torch.empty(value.shape, dtype=value.dtype, device="meta")
            setattr(owner, leaf, nn.Parameter(empty, requires_grad=False))

    def _fill(self, name: str) -> None:
        stored = self._stored_name.get(name)
        if stored is None:
            raise CorruptFile(f"{self.checkpoint.path} has no weights for {name}", hint="is the download complete?")
        owner, leaf = _owner(self.model, name)
        value = self._checked(name, stored)
        # A copy of its own, also where the type is the same: what is mapped would be read again at every pass.
        setattr(owner, leaf, nn.Parameter(value.to(self.device, self.dtype, copy=True), requires_grad=False))

    def _checked(self, name: str, stored: str) -> torch.Tensor:
        """A tensor of the checkpoint as the model wants it; of one that is mapped, no byte is held."""
        owner, leaf = _owner(self.model, name)
        wanted = getattr(owner, leaf)
        value = self.checkpoint.read(stored)
        if self.checkpoint.is_unpacked(stored) and not isinstance(owner, nn.Linear):
            value = value.t()
        if tuple(value.shape) != tuple(wanted.shape):
            raise CorruptFile(f"{stored} has shape {tuple(value.shape)}; the config asks for {tuple(wanted.shape)}")
        parts = [value] if value.dim() < 2 else (value[rows] for rows in row_slices(value.shape[0]))
        if not all(bool(torch.isfinite(part).all()) for part in parts):
            raise CorruptFile(f"{stored} holds NaN or infinite weights", hint="the checkpoint itself is broken")
        return value


def _build(path: Path, trust_remote_code: bool) -> tuple[Any, nn.Module]:
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
        with torch.device("meta"):
            model = transformers.AutoModelForCausalLM.from_config(
                config, dtype=config.dtype or torch.bfloat16, trust_remote_code=trust_remote_code
            )
    except (ValueError, KeyError, TypeError, AttributeError, ImportError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UnsupportedModel(f"transformers cannot build {path}: {reason}") from None
    return config, model


def _blocks(model: nn.Module) -> tuple[str, ...]:
    """The names of the decoder blocks: the list of modules with the most weights in linear layers."""
    best, most = "", 0
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and not any(part in name for part in ("vision", "visual", "audio")):
            weights = sum(leaf.weight.numel() for leaf in module.modules() if is_linear(leaf))
            if weights > most:
                best, most = name, weights
    if not best:
        raise UnsupportedModel(f"{type(model).__name__} has no list of decoder blocks with linear layers")
    return tuple(f"{best}.{index}" for index in range(len(model.get_submodule(best))))


def _stored_names(model: nn.Module, checkpoint: Checkpoint) -> Mapping[str, str]:
    """Where the checkpoint keeps every parameter: under its own name, or under one that transformers renames.

    A tied parameter that is stored once is found under the name of the other.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming, rename_source_key

    changes = get_model_conversion_mapping(model)
    renamings = [change for change in changes if isinstance(change, WeightRenaming)]
    parameters = dict(model.named_parameters(remove_duplicate=False))
    found: dict[str, str] = {}
    for stored in checkpoint.names():
        name, _ = rename_source_key(stored, renamings, [], str(model.base_model_prefix), dict(parameters))
        if name in parameters:
            found[name] = stored
    for names in _tied(model):
        stored_as = next((found[name] for name in names if name in found), None)
        if stored_as is not None:
            found.update({name: found.get(name, stored_as) for name in names})
    return found


def _tied(model: nn.Module) -> Iterator[list[str]]:
    """Names that share one parameter."""
    names: dict[int, list[str]] = {}
    for name, value in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(value), []).append(name)
    yield from (group for group in names.values() if len(group) > 1)
    if getattr(model.config, "tie_word_embeddings", False):
        ends = (model.get_input_embeddings(), model.get_output_embeddings())
        by_module = {id(module): name for name, module in model.named_modules()}
        if all(end is not None for end in ends):
            yield [f"{by_module[id(end)]}.weight" for end in ends]


def _fill_buffers(model: nn.Module, device: str) -> None:
    """Compute the buffers that are on the meta device, by the model's own rules for what no checkpoint holds."""
    for name, module in model.named_modules():
        waiting = [leaf for leaf, value in module.named_buffers(recurse=False) if value.device.type == "meta"]
        if not waiting:
            continue
        for leaf in waiting:
            value = module.get_buffer(leaf)
            empty = torch.full(value.shape, float("nan") if value.is_floating_point() else 0, dtype=value.dtype)
            module._buffers[leaf] = empty
        model._init_weights(module)
        for leaf in waiting:
            value = module.get_buffer(leaf)
            if value.is_floating_point() and bool(torch.isnan(value).any()):
                raise UnsupportedModel(f"no rule computes the buffer {name}.{leaf} of {type(model).__name__}")
            module._buffers[leaf] = value.to(device)


def _owner(module: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, leaf = name.rpartition(".")
    return module.get_submodule(path), leaf
