"""A decoder as a stack of halves: what mixes tokens, and what works on each token alone.

A family makes one Mixer and one Feed per layer, the same object wherever layers are equal; `stack_layers` joins them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar, Union

from memplan.domain.attention import Cache, NoCache
from memplan.domain.model import Layer, Mlp
from memplan.domain.tensors import Tensor
from memplan.introspect.config import Config
from memplan.records import dataclass, replace

# A fixed answer, the config key that gives it (with the answer when it is absent), or a rule.
Flag = Union[bool, str, tuple[str, bool], Callable[[Config], bool]]  # noqa: UP007 - evaluated on Python 3.10
Width = Callable[[Config], int]
Tensors = Callable[[Config], tuple[Tensor, ...]]

_Half = TypeVar("_Half")
_Key = TypeVar("_Key")


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixer:
    """The half of a layer that mixes tokens, and what a sequence leaves behind in it.

    `kind` names a recurrent mixer; it is empty for softmax attention.
    """

    tensors: tuple[Tensor, ...]
    caches: tuple[Cache, ...] = (NoCache(),)
    kind: str = ""
    query_width: int = 0
    num_heads: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Feed:
    """The half of a layer that works on each token alone."""

    tensors: tuple[Tensor, ...]
    mlp: Mlp | None = None


Mixers = Callable[[Config], Sequence[Mixer]]
Feeds = Callable[[Config], Sequence[Feed]]
NO_MIXER = Mixer(tensors=())
NO_FEED = Feed(tensors=())


def stack_layers(mixers: Sequence[Mixer], feeds: Sequence[Feed], norms: tuple[Tensor, ...] = ()) -> tuple[Layer, ...]:
    """Return the layers of a decoder, equal halves giving one and the same Layer. `norms` stand in every layer."""
    made: dict[tuple[int, int], Layer] = {}
    layers: list[Layer] = []
    for mixer, feed in zip(mixers, feeds, strict=True):
        key = (id(mixer), id(feed))
        if key not in made:
            made[key] = Layer(
                kind=mixer.kind or _kind(feed),
                caches=mixer.caches,
                query_width=mixer.query_width,
                num_heads=mixer.num_heads,
                mlp=_mlp(feed),
                tensors=(*mixer.tensors, *feed.tensors, *norms),
            )
        layers.append(made[key])
    return tuple(layers)


def per_layer(keys: Sequence[_Key], make: Callable[[_Key], _Half]) -> tuple[_Half, ...]:
    """Return `make(key)` for every layer's key, making each distinct one once."""
    made: dict[_Key, _Half] = {}
    for key in keys:
        if key not in made:
            made[key] = make(key)
    return tuple(made[key] for key in keys)


def is_set(config: Config, flag: Flag) -> bool:
    """Whether a knob is on: itself, or what the config says under the key it names."""
    if isinstance(flag, bool):
        return flag
    if isinstance(flag, tuple):
        return config.bool(flag[0], default=flag[1])
    return config.bool(flag, default=False) if isinstance(flag, str) else flag(config)


def key(*names: str, default: int | None = None) -> Width:
    """A width that the config gives under the first of `names`."""
    if default is None:
        return lambda config: config.int(*names)
    return lambda config: config.int(*names, default=default)


def count(*names: str, default: int = 0) -> Width:
    """A count that the config gives under the first of `names`, and that may be zero."""
    return lambda config: config.int(*names, default=default, minimum=0)


def nothing(config: Config) -> tuple[Tensor, ...]:
    """No tensors."""
    return ()


def none(config: Config) -> int:
    """No width: the part is not there."""
    return 0


def _kind(feed: Feed) -> str:
    return "moe" if feed.mlp is not None and feed.mlp.num_experts else "dense"


def _mlp(feed: Feed) -> Mlp | None:
    """The shape of what works on each token, which goes to no more experts than there are."""
    mlp = feed.mlp
    if mlp is None or mlp.experts_per_token <= mlp.num_experts:
        return mlp
    return replace(mlp, experts_per_token=mlp.num_experts)
