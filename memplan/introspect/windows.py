"""Which layers keep every token and which only a window of them, by the rules that families follow.

A rule takes the config, the attention's shape and the number of layers, and returns one cache per layer. Most families
list the kinds in `layer_types`; older configs leave the list out and follow the pattern of their class.

Source: the configuration classes of transformers 5.23.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from memplan.domain.attention import Cache, ChunkedLocal
from memplan.errors import UnsupportedModel
from memplan.introspect.blocks import Heads
from memplan.introspect.config import Config

Window = Callable[[Config, Heads, int], Sequence[Cache]]
Pattern = Callable[[Config, int], Sequence[str]]  # the kinds of all layers when the config does not list them

FULL = "full_attention"
SLIDING = "sliding_attention"
CHUNKED = "chunked_attention"


def full(config: Config, heads: Heads, num_layers: int) -> Sequence[Cache]:
    """Every layer keeps every token."""
    return (heads.full(),) * num_layers


def always(default: int | None = None) -> Window:
    """A rule that windows every layer when the config names a window; `default` is the class's own window."""

    def rule(config: Config, heads: Heads, num_layers: int) -> Sequence[Cache]:
        return (heads.window(config.nullable_int("sliding_window", default=default)),) * num_layers

    return rule


def qwen2(config: Config, heads: Heads, num_layers: int) -> Sequence[Cache]:
    """Layers from `max_window_layers` on are windowed, when `use_sliding_window` says so."""
    if not config.bool("use_sliding_window", default=False):
        return (heads.full(),) * num_layers
    return typed(_late_windows)(config, heads, num_layers)


def switched(config: Config, heads: Heads, num_layers: int) -> Sequence[Cache]:
    """Every layer is windowed when `use_sliding_window` says so."""
    is_on = config.bool("use_sliding_window", default=False)
    return (heads.window(config.optional_int("sliding_window") if is_on else None),) * num_layers


def typed(pattern: Pattern | None = None, *, window: int | None = None) -> Window:
    """A rule by `layer_types`, or by `pattern` when the config does not list them (all full without a pattern).

    `window` is the class's default for `sliding_window`.
    """

    def rule(config: Config, heads: Heads, num_layers: int) -> Sequence[Cache]:
        kinds = layer_types(config, num_layers, pattern)
        tokens = config.nullable_int("sliding_window", default=window)
        caches: dict[str, Cache] = {}
        for kind in kinds:
            if kind not in caches:
                caches[kind] = _cache(kind, heads, tokens, config)
        return tuple(caches[kind] for kind in kinds)

    return rule


def layer_types(config: Config, num_layers: int, pattern: Pattern | None = None) -> tuple[str, ...]:
    """The kind of every layer: what the config lists under `layer_types`, else what `pattern` says, else all full.

    Raises: UnsupportedModel when the list is shorter than the model.
    """
    if not config.has("layer_types"):
        return tuple(pattern(config, num_layers)) if pattern else (FULL,) * num_layers
    kinds = config.strs("layer_types")
    if len(kinds) < num_layers:
        raise UnsupportedModel(f"config key `layer_types` names {len(kinds)} layers of {num_layers}")
    return kinds[:num_layers]


def flags(config: Config, name: str, num_layers: int) -> tuple[int, ...]:
    """A number for every layer. Raises: UnsupportedModel when the list is shorter than the model."""
    numbers = config.ints(name)
    if len(numbers) < num_layers:
        raise UnsupportedModel(f"config key `{name}` names {len(numbers)} layers of {num_layers}")
    return numbers[:num_layers]


def all_windowed(config: Config, num_layers: int) -> Sequence[str]:
    """Windows in every layer."""
    return (SLIDING,) * num_layers


def last_full(period: int, *keys: str) -> Pattern:
    """Windows, and a full layer at the end of every `period` layers; `keys` may give another period."""

    def pattern(config: Config, num_layers: int) -> Sequence[str]:
        every = config.int(*keys, default=period) if keys else period
        return tuple(FULL if (index + 1) % every == 0 else SLIDING for index in range(num_layers))

    return pattern


def first_full(period: int) -> Pattern:
    """A full layer at the start of every `period` layers, and windows."""

    def pattern(config: Config, num_layers: int) -> Sequence[str]:
        return tuple(SLIDING if index % period else FULL for index in range(num_layers))

    return pattern


def unknown_kind(kind: str, known: Mapping[str, object] | Sequence[str]) -> UnsupportedModel:
    """The error for a kind of layer that a family does not have."""
    return UnsupportedModel(
        f"config key `layer_types` has a kind that this family does not have: `{kind[:40]}`",
        hint=f"known: {', '.join(known)}",
    )


def _late_windows(config: Config, num_layers: int) -> Sequence[str]:
    first = config.int("max_window_layers", default=28, minimum=0)
    return tuple(SLIDING if index >= first else FULL for index in range(num_layers))


def _cache(kind: str, heads: Heads, window: int | None, config: Config) -> Cache:
    if kind == FULL:
        return heads.full()
    if kind == SLIDING:
        return heads.window(window)
    if kind == CHUNKED:
        chunk = config.int("attention_chunk_size", default=8192)
        return ChunkedLocal(heads.num_kv_heads, heads.key_width, heads.value_width, chunk)
    raise unknown_kind(kind, (FULL, SLIDING, CHUNKED))
