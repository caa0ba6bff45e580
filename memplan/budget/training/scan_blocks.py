"""Recurrent layers as blocks, from their tensors: widths follow from the shapes of projections and convolutions."""

from __future__ import annotations

from typing import Protocol

from memplan.budget.training.autograd import Parameter
from memplan.budget.training.linear import Linear
from memplan.budget.training.scans import DeltaNetBlock, Mamba2Block, MambaBlock
from memplan.domain.attention import LinearState
from memplan.domain.model import Layer as ModelLayer
from memplan.domain.model import ModelSpec
from memplan.domain.tensors import Role, Tensor
from memplan.records import replace

# Tokens that the kernel makes one state for, where it is not the usual number (transformers, configuration_*.py).
_CHUNKS = {"nemotron_h": 128}
_USUAL_CHUNK = 256
_JAMBA = "dt_layernorm"  # it normalises between two products: its kernel is another one


class Maker(Protocol):
    """What makes the parameters and linear layers of a model."""

    def linear(self, name: str, outputs: int, inputs: int) -> Linear: ...

    def norm(self, name: str, width: int) -> Parameter: ...


class _Parts:
    """The tensors of one layer's mixer, by their last names."""

    def __init__(self, maker: Maker, layer: ModelLayer, number: int) -> None:
        self._maker = maker
        self._number = number
        parts = [each for each in layer.tensors if each.role is Role.STATE or each.name.count(".") > 1]
        self._found = {each.name.removesuffix(".weight").rsplit(".", 1)[-1]: each for each in parts}

    def __contains__(self, name: str) -> bool:
        return name in self._found

    def tensor(self, name: str) -> Tensor:
        """One of them, whose shape says what there is."""
        return self._found[name]

    def linear(self, name: str) -> Linear:
        """A matrix that is multiplied."""
        outputs, inputs = self._found[name].shape[-2:]
        return self._maker.linear(self._name(name), outputs, inputs)

    def small(self, *names: str) -> tuple[Parameter, ...]:
        """Weights that are no matrices, of those that there are."""
        found = [name for name in names if name in self._found]
        return tuple(self._maker.norm(self._name(name), self._found[name].num_elements) for name in found)

    def _name(self, name: str) -> str:
        return f"layers.{self._number}.{self._found[name].name.removesuffix('.weight')}"


def make_scan(
    maker: Maker,
    spec: ModelSpec,
    layer: ModelLayer,
    number: int,
    norms: tuple[Parameter | None, Parameter | None],
    *,
    is_padded: bool,
) -> MambaBlock | Mamba2Block | DeltaNetBlock | None:
    """The block of a recurrent layer; None for a kind that is not modelled, or one among several mixers.

    is_padded: several sequences, whose padding is put out before they are read.
    """
    states = [each for each in layer.caches if isinstance(each, LinearState)]
    parts = _Parts(maker, layer, number)
    if len(layer.caches) != 1 or "out_proj" not in parts or "conv1d" not in parts:
        return None
    if states[0].kind == "mamba2":
        made = _mamba2(parts, states[0], norms, _CHUNKS.get(spec.model_type, _USUAL_CHUNK))
        return replace(made, is_padded=is_padded)
    if states[0].kind == "mamba1" and "x_proj" in parts and _JAMBA not in parts:
        return replace(_mamba(parts, states[0], norms), is_padded=is_padded)
    if states[0].kind == "gated_delta_net" and ("in_proj_qkv" in parts or "in_proj_qkvz" in parts):
        return replace(_delta_net(parts, states[0], norms), is_padded=is_padded)
    return None


def _mamba2(
    parts: _Parts, state: LinearState, norms: tuple[Parameter | None, Parameter | None], chunk: int
) -> Mamba2Block:
    inner = parts.tensor("out_proj").shape[-1]
    width = state.state_elements // inner
    heads = parts.tensor("A_log").shape[0]
    return Mamba2Block(
        before=norms[0],
        after=norms[1],
        into=parts.linear("in_proj"),
        small=parts.small("conv1d", "A_log", "D", "dt_bias", "norm"),
        out=parts.linear("out_proj"),
        inner=inner,
        heads=heads,
        state=width,
        groups=max((parts.tensor("conv1d").shape[0] - inner) // (2 * width), 1),
        chunk=chunk,
    )


def _mamba(parts: _Parts, state: LinearState, norms: tuple[Parameter | None, Parameter | None]) -> MambaBlock:
    inner = parts.tensor("out_proj").shape[-1]
    return MambaBlock(
        before=norms[0],
        after=norms[1],
        into=parts.linear("in_proj"),
        small=parts.small("conv1d", "A_log", "D"),
        narrow=parts.linear("x_proj"),
        step=parts.linear("dt_proj"),
        out=parts.linear("out_proj"),
        inner=inner,
        rank=parts.tensor("dt_proj").shape[-1],
        state=state.state_elements // inner,
    )


def _delta_net(parts: _Parts, state: LinearState, norms: tuple[Parameter | None, Parameter | None]) -> DeltaNetBlock:
    """A state has, for each of the values' heads, as many rows as a key is wide and as many columns as a value."""
    value_heads = parts.tensor("A_log").shape[0]
    value_width = parts.tensor("out_proj").shape[-1] // value_heads
    key_width = state.state_elements // (value_heads * value_width)
    convolved = parts.tensor("conv1d").shape[0]
    is_joined = "in_proj_qkvz" in parts
    names = ("in_proj_qkvz", "in_proj_ba") if is_joined else ("in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a")
    return DeltaNetBlock(
        before=norms[0],
        after=norms[1],
        into=tuple(parts.linear(name) for name in names),
        convolution=parts.small("conv1d")[0],
        small=parts.small("A_log", "dt_bias"),
        norm=parts.small("norm")[0],
        out=parts.linear("out_proj"),
        key_heads=(convolved - value_heads * value_width) // (2 * key_width),
        key_width=key_width,
        value_heads=value_heads,
        value_width=value_width,
        is_joined=is_joined,
    )
