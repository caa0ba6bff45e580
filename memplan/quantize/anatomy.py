"""What a decoder block is made of, found by running it once and by trying: no table of families.

Linear layers that read the same tensor share their statistics and are quantized as one *subset*. The experts of one
module are a *pool*: alike, and each with subsets of its own. A *site* is a place
where a scaling can be moved: from the input of some linear layers into what feeds them (a norm's weights, or the rows
of another linear layer). Whether it can is not read from names: a random scaling is moved, and the block's outputs must
stay as they were. So a family that nobody thought of is handled, and one where it would be wrong is left alone.

Axes: I in features of the layers that are scaled, P entries of the producer that feeds them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from memplan.quantize.experts import SplitExperts, pools
from memplan.quantize.linears import is_linear, is_router, linears, parameter, weight_of
from memplan.quantize.passes import Tail, find_tails
from memplan.quantize.rows import row_slices
from memplan.records import dataclass, replace

_SAME = 1e-3  # relative; a scaling that is not undone changes outputs by tens of percent
_MAX_REPEATS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """A place where a scaling can be moved.

    The inputs of `consumers` are divided by scales, their weights multiplied; `producer` makes up for it. `kind` is
    `norm`, `unit_norm` (one that multiplies by 1 + its weight) or `linear`. In feature i is fed by entry `first + j` of
    the producer, where j is i, or the j that `repeats` heads of `head_dim` share. Consumers may be routers, which are
    never rounded.
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
class Pool:
    """The experts of the module `name`, which ran after `after` of the block's subsets.

    In every expert the layers `entries` read a token as it comes, and `down_proj` what they make of it; `site` is the
    place between the two, by names in an expert.
    """

    name: str
    num_experts: int
    entries: tuple[str, ...]
    after: int
    site: Site | None = None

    def layers(self, expert: int) -> tuple[str, ...]:
        """The linear layers of an expert by their names in the block."""
        return tuple(f"{self.name}.{expert}.{leaf}" for leaf in (*self.entries, "down_proj"))

    def site_of(self, expert: int) -> Site | None:
        """The place inside an expert by names in the block."""
        if self.site is None:
            return None
        inside = f"{self.name}.{expert}."
        return replace(
            self.site,
            producer=inside + self.site.producer,
            consumers=tuple(inside + name for name in self.site.consumers),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Anatomy:
    """The linear layers of a block: subsets that read the same tensor, in the order they run, and sites.

    Layers of experts are in `pools` alone. `tails` are modules that end in a linear layer.
    """

    subsets: tuple[tuple[str, ...], ...]
    sites: tuple[Site, ...]
    unreached: tuple[str, ...] = ()
    pools: tuple[Pool, ...] = ()
    tails: tuple[Tail, ...] = ()


Run = Callable[[nn.Module], Tensor]


def inspect_block(block: nn.Module, run: Run, *, head_dim: int, sites: bool = True) -> Anatomy:
    """Return the anatomy of a block. `run` calls a block with an input of its own and returns the output.

    With `sites` a copy of the block in float32 is run, many times; else the block itself, twice.
    """
    trial = _trial(block) if sites else block
    trace = _Trace(trial)
    with torch.no_grad(), trace:
        wanted = run(trial)
    subsets = trace.subsets()
    reached = {name for subset in subsets for name in subset}
    inside = tuple(f"{name}." for name in trace.pools)
    search = _Search(trial, trace, head_dim, lambda: _is_same(run, trial, wanted))
    found = [search.of_subset(subset) for subset in subsets if not subset[0].startswith(inside)] if sites else []
    found += [search.of_pool(name) for name in trace.pools] if sites else []
    return Anatomy(
        subsets=tuple(subset for subset in subsets if not subset[0].startswith(inside)),
        sites=tuple(site for site in found if site is not None),
        unreached=tuple(
            name for name, _ in linears(block) if name not in reached and not name.startswith(tuple(inside))
        ),
        pools=tuple(
            Pool(
                name=name,
                num_experts=experts.num_fused,
                entries=experts.entries,
                after=trace.before(name, subsets),
                site=search.inside_pool(name) if sites else None,
            )
            for name, experts in pools(block).items()
        ),
        tails=find_tails(trial, run),
    )


def _trial(block: nn.Module) -> nn.Module:
    """A copy of a block in float32, with the first expert of a module alone, to which all tokens go."""
    whole = {experts: experts._modules for experts in pools(block).values()}
    for experts, modules in whole.items():
        experts._modules = {name: module for name, module in modules.items() if name == "0" or not name.isdigit()}
    try:
        trial = copy.deepcopy(block).to(torch.float32)
    finally:
        for experts, modules in whole.items():
            experts._modules = modules
    for experts in pools(trial).values():
        experts.everyone = True
    return trial


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
        self.routers: dict[str, int] = {}
        self.pools: dict[str, int] = {}
        self._num_reads: dict[str, int] = {}
        self.norm_outputs: dict[int, str] = {}
        self._kept: list[Tensor] = []
        self._hooks: list[Any] = []

    def __enter__(self) -> _Trace:
        for name, module in self.block.named_modules():
            noted = self.reads if is_linear(module) else self.routers if is_router(module) else None
            noted = self.pools if isinstance(module, SplitExperts) else noted
            if noted is not None:
                hook = self._reading(name, noted)
                self._hooks.append(module.register_forward_pre_hook(hook, with_kwargs=True))
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

    def before(self, pool: str, subsets: Sequence[Sequence[str]]) -> int:
        """How many of some subsets had begun when a pool was reached."""
        earlier = list(self.reads)[: self._num_reads.get(pool, 0)]
        return sum(subset[0] in earlier and not subset[0].startswith(tuple(self.pools)) for subset in subsets)

    def readers(self, norm: str) -> Iterator[str]:
        """The linear layers and routers that read what a norm made."""
        made = {tensor for tensor, name in self.norm_outputs.items() if name == norm}
        yield from (name for name, tensor in {**self.reads, **self.routers}.items() if tensor in made)

    def _reading(self, name: str, noted: dict[str, int]) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
            noted.setdefault(name, self._identity(args[0] if args else next(iter(kwargs.values()))))
            self._num_reads.setdefault(name, len(self.reads))

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


class _Search:
    """Tries where a scaling may be moved, in a block that is there for it."""

    def __init__(self, block: nn.Module, trace: _Trace, head_dim: int, is_same: Callable[[], bool]) -> None:
        self.block, self.trace, self.head_dim, self.is_same = block, trace, head_dim, is_same

    def of_subset(self, subset: tuple[str, ...]) -> Site | None:
        """The site that feeds a subset: the norm that made the tensor, else a layer that ran before."""
        norm = self.trace.norm_outputs.get(self.trace.reads[subset[0]])
        if norm is not None:
            return self._first(_norm_sites(norm, subset)) if self._width(norm) == self._num_in(subset[0]) else None
        return self._first(self._linear_sites(subset, tuple(self.trace.reads)))

    def of_pool(self, name: str) -> Site | None:
        """The norm that feeds the experts of a module, and with them their router and what else reads it."""
        experts = pools(self.block)[name]
        entries = tuple(f"{name}.0.{leaf}" for leaf in experts.entries)
        made = self.trace.norm_outputs.get(self.trace.pools[name])
        norms = [made] if made is not None else list(self.trace.norm_outputs.values())[::-1]
        for norm in norms:
            if self._width(norm) != self._num_in(entries[0]):
                continue
            readers = tuple(reader for reader in self.trace.readers(norm) if reader not in entries)
            found = self._first(_norm_sites(norm, (*readers, *entries)))
            if found is not None:
                every = tuple(
                    f"{name}.{number}.{leaf}" for number in range(experts.num_fused) for leaf in experts.entries
                )
                return replace(found, consumers=(*readers, *every))
        return None

    def inside_pool(self, name: str) -> Site | None:
        """The site between the layers of an expert, by names in an expert."""
        inside = f"{name}.0."
        earlier = tuple(reader for reader in self.trace.reads if reader.startswith(inside))
        found = self._first(self._linear_sites((f"{inside}down_proj",), earlier))
        if found is None:
            return None
        return replace(found, producer=found.producer.removeprefix(inside), consumers=("down_proj",))

    def _linear_sites(self, subset: tuple[str, ...], readers: tuple[str, ...]) -> Iterator[Site]:
        """The layers among `readers` that ran before a subset, the latest first."""
        num_in = self._num_in(subset[0])
        for name in reversed(readers[: readers.index(subset[0])]):
            num_out = weight_of(self.block.get_submodule(name)).shape[0]
            for repeats in _repeats(num_in, self.head_dim):
                first = num_out - num_in // repeats
                if first >= 0:
                    yield Site(
                        kind="linear",
                        producer=name,
                        consumers=subset,
                        first=first,
                        repeats=repeats,
                        head_dim=self.head_dim,
                    )

    def _num_in(self, name: str) -> int:
        return int(weight_of(self.block.get_submodule(name)).shape[1])

    def _width(self, norm: str) -> int:
        """How many weights a norm has: fewer than features where heads share them."""
        weight = parameter(self.block.get_submodule(norm), "weight")
        return 0 if weight is None else weight.numel()

    def _first(self, sites: Iterator[Site]) -> Site | None:
        """The first of some sites where moving a scaling leaves the block's outputs alone."""
        return next((site for site in sites if self._leaves_outputs(site)), None)

    def _leaves_outputs(self, site: Site) -> bool:
        touched = [self.block.get_submodule(name) for name in (site.producer, *site.consumers)]
        before = [(value, value.detach().clone()) for module in touched for value in module.parameters()]
        generator = torch.Generator().manual_seed(0)
        scale_P = torch.rand(self._num_in(site.consumers[0]) // site.repeats, generator=generator) * 1.5 + 0.5
        move_scaling(self.block, site, scale_P)
        same = self.is_same()
        with torch.no_grad():
            for value, kept in before:
                value.copy_(kept)
        return same


def _norm_sites(norm: str, consumers: tuple[str, ...]) -> Iterator[Site]:
    yield Site(kind="norm", producer=norm, consumers=consumers)
    yield Site(kind="unit_norm", producer=norm, consumers=consumers)


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
