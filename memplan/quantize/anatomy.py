"""What a decoder block is made of, found by running it once and by trying: no table of families.

Linear layers that read the same tensor share their statistics and are quantized as one *subset*. A *site* is a place
where a scaling can be moved: from the input of some linear layers into what feeds them (a norm's weights, or the rows
of another linear layer). Whether it can is not read from names: a random scaling is moved, and the block's outputs must
stay as they were. So a family that nobody thought of is handled, and one where it would be wrong is left alone.

Axes: I in features of the layers that are scaled, P entries of the producer that feeds them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from memplan.quantize.linears import is_linear, linears, parameter, weight_of
from memplan.quantize.rows import row_slices
from memplan.records import dataclass

_SAME = 1e-3  # relative; a scaling that is not undone changes outputs by tens of percent
_MAX_REPEATS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """A place where a scaling can be moved.

    The inputs of `consumers` are divided by scales, their weights multiplied; `producer` makes up for it. `kind` is
    `norm`, `unit_norm` (one that multiplies by 1 + its weight) or `linear`. In feature i is fed by entry `first + j` of
    the producer, where j is i, or the j that `repeats` heads of `head_dim` share.
    """

    kind: Literal["norm", "unit_norm", "linear"]
    producer: str
    consumers: tuple[str, ...]
    first: int = 0
    repeats: int = 1
    head_dim: int = 0

    def fold(self, value_I: Tensor, how: Callable[[Tensor, int], Tensor]) -> Tensor:
        """Return a value of in features as one of producer entries, by `how` (such as a mean) over those shared."""
        if self.repeats == 1:
            return value_I
        return how(value_I.reshape(-1, self.repeats, self.head_dim), 1).reshape(-1)

    def spread(self, value_P: Tensor) -> Tensor:
        """Return a value of producer entries as one of in features."""
        if self.repeats == 1:
            return value_P
        heads = value_P.reshape(-1, 1, self.head_dim)
        return heads.expand(-1, self.repeats, self.head_dim).reshape(-1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Anatomy:
    """The linear layers of a block: subsets that read the same tensor, in the order they run, and sites."""

    subsets: tuple[tuple[str, ...], ...]
    sites: tuple[Site, ...]
    unreached: tuple[str, ...] = ()


Run = Callable[[nn.Module], Tensor]


def inspect_block(block: nn.Module, run: Run, *, head_dim: int, sites: bool = True) -> Anatomy:
    """Return the anatomy of a block. `run` calls a block with an input of its own and returns the output.

    With `sites` a copy of the block in float32 is run, many times; else the block itself, once.
    """
    trial = copy.deepcopy(block).to(torch.float32) if sites else block
    trace = _Trace(trial)
    with torch.no_grad(), trace:
        wanted = run(trial)
    subsets = trace.subsets()
    reached = {name for subset in subsets for name in subset}
    found = []
    for subset in subsets if sites else ():
        site = _site(trial, trace, subset, head_dim, lambda: _is_same(run, trial, wanted))
        if site is not None:
            found.append(site)
    unreached = tuple(name for name, _ in linears(block) if name not in reached)
    return Anatomy(subsets=subsets, sites=tuple(found), unreached=unreached)


@torch.no_grad()
def move_scaling(block: nn.Module, site: Site, scale_P: Tensor) -> Tensor:
    """Divide what the producer makes by `scale_P`, multiply the consumers' weights, and return the scales used (I).

    The producer's entries are rounded to the type they are stored in first, and the consumers take what that came to,
    so that rounding costs nothing.
    """
    modules = dict(block.named_modules())
    used_P = _divide(modules[site.producer], site, scale_P.to(torch.float32))
    scale_I = site.spread(used_P)
    for name in site.consumers:
        weight_OI = weight_of(modules[name])
        for rows in row_slices(weight_OI.shape[0]):
            weight_OI[rows] = weight_OI[rows].to(torch.float32) * scale_I
    return scale_I


def _divide(producer: nn.Module, site: Site, scale_P: Tensor) -> Tensor:
    """Divide a producer's entries, and return by how much they are smaller now."""
    if site.kind == "linear":
        rows = slice(site.first, site.first + scale_P.numel())
        weight_PI = weight_of(producer)[rows]
        for part in row_slices(weight_PI.shape[0]):
            weight_PI[part] = weight_PI[part].to(torch.float32) / scale_P[part, None]
        bias = parameter(producer, "bias")
        if bias is not None:
            bias[rows] = bias[rows].to(torch.float32) / scale_P
        return scale_P
    weight_P = parameter(producer, "weight")
    assert weight_P is not None
    unit = 1.0 if site.kind == "unit_norm" else 0.0
    before_P = weight_P.to(torch.float32) + unit
    weight_P.copy_(before_P / scale_P - unit)
    after_P = weight_P.to(torch.float32) + unit
    used_P = torch.where(after_P != 0, before_P / after_P, scale_P)
    bias = parameter(producer, "bias")
    if bias is not None:
        bias.copy_(bias.to(torch.float32) / used_P)
    return used_P


class _Trace:
    """One run of a block: who read which tensor, and which norm made it."""

    def __init__(self, block: nn.Module) -> None:
        self.block = block
        self.reads: dict[str, int] = {}
        self.norm_outputs: dict[int, str] = {}
        self._kept: list[Tensor] = []
        self._hooks: list[Any] = []

    def __enter__(self) -> _Trace:
        for name, module in self.block.named_modules():
            if is_linear(module):
                self._hooks.append(module.register_forward_pre_hook(self._reading(name), with_kwargs=True))
            elif _is_norm(module):
                self._hooks.append(module.register_forward_hook(self._made(name)))
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def subsets(self) -> tuple[tuple[str, ...], ...]:
        """The linear layers by the tensor that they read, in the order they ran."""
        by_tensor: dict[int, list[str]] = {}
        for name, tensor in self.reads.items():
            by_tensor.setdefault(tensor, []).append(name)
        return tuple(tuple(names) for names in by_tensor.values())

    def _reading(self, name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
            self.reads.setdefault(name, self._identity(args[0] if args else next(iter(kwargs.values()))))

        return hook

    def _made(self, name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                self.norm_outputs.setdefault(self._identity(output), name)

        return hook

    def _identity(self, tensor: Tensor) -> int:
        """A tensor's memory, which is kept until the run is over so that no other takes its place."""
        self._kept.append(tensor)
        return int(tensor.untyped_storage().data_ptr())


def _is_norm(module: nn.Module) -> bool:
    weight = parameter(module, "weight")
    return weight is not None and weight.dim() == 1 and not list(module.children())


@torch.no_grad()
def _site(
    block: nn.Module, trace: _Trace, subset: tuple[str, ...], head_dim: int, is_same: Callable[[], bool]
) -> Site | None:
    """The site that feeds a subset, if moving a scaling there leaves the block's outputs alone."""
    for site in _possible(block, trace, subset, head_dim):
        touched = [block.get_submodule(name) for name in (site.producer, *site.consumers)]
        before = [(value, value.clone()) for module in touched for value in module.parameters()]
        num_in = weight_of(block.get_submodule(subset[0])).shape[1]
        generator = torch.Generator().manual_seed(0)
        scale_P = torch.rand(num_in // site.repeats, generator=generator) * 1.5 + 0.5
        move_scaling(block, site, scale_P)
        same = is_same()
        for value, kept in before:
            value.copy_(kept)
        del before
        if same:
            return site
    return None


def _possible(block: nn.Module, trace: _Trace, subset: tuple[str, ...], head_dim: int) -> Iterator[Site]:
    """Sites worth trying: the norm that made the tensor, else the layers that ran before, the latest first."""
    norm = trace.norm_outputs.get(trace.reads[subset[0]])
    if norm is not None:
        yield Site(kind="norm", producer=norm, consumers=subset)
        yield Site(kind="unit_norm", producer=norm, consumers=subset)
        return
    num_in = weight_of(block.get_submodule(subset[0])).shape[1]
    earlier = list(trace.reads)[: list(trace.reads).index(subset[0])]
    for name in reversed(earlier):
        num_out = weight_of(block.get_submodule(name)).shape[0]
        for repeats in _repeats(num_in, head_dim):
            first = num_out - num_in // repeats
            if first >= 0:
                yield Site(
                    kind="linear", producer=name, consumers=subset, first=first, repeats=repeats, head_dim=head_dim
                )


def _repeats(num_in: int, head_dim: int) -> Iterator[int]:
    """How many heads may share an entry: 1, and every number that divides the heads."""
    yield 1
    if head_dim and num_in % head_dim == 0:
        heads = num_in // head_dim
        yield from (count for count in range(2, min(heads, _MAX_REPEATS) + 1) if heads % count == 0)


def _is_same(run: Run, block: nn.Module, wanted: Tensor) -> bool:
    with torch.no_grad():
        got = run(block)
    return bool((got - wanted).abs().max() <= _SAME * wanted.abs().max())
