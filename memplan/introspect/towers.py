"""The parts that towers and encoders are made of: convolutions, bidirectional layers, stacks of them, projectors.

A tower's tensors carry their full checkpoint name, with `*` for the number of a layer, and the tower's own role. What
is cut over tensor-parallel ranks is cut as engines cut a decoder: by attention head and by MLP channel.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from memplan.domain.model import MediaInput, Tower
from memplan.domain.tensors import REPLICATED, Role, Tensor
from memplan.errors import UnsupportedModel
from memplan.introspect import blocks
from memplan.introspect.config import Config
from memplan.records import dataclass, replace


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The widths of a stack of equal transformer layers.

    `head_width` is given where it is not the hidden size over the heads, `num_kv_heads` where it is not the query
    heads.
    """

    hidden: int
    intermediate: int
    num_layers: int
    num_heads: int
    head_width: int = 0
    num_kv_heads: int = 0

    @property
    def query_width(self) -> int:
        return self.num_heads * self.head_width if self.head_width else self.hidden

    @property
    def kv_width(self) -> int:
        return self.query_width // self.num_heads * (self.num_kv_heads or self.num_heads)

    def __post_init__(self) -> None:
        if self.query_width % self.num_heads:
            raise UnsupportedModel(f"hidden size {self.hidden} does not divide by {self.num_heads} heads")


@dataclass(frozen=True, slots=True, kw_only=True)
class Style:
    """How a family stores a bidirectional transformer layer.

    `attention` names the query, key, value and output projections, or (fused, output) where the first three are one
    matrix. Every name of `mlp` but the last maps up, the last maps down. `head_norms` are norms of one head's width.
    """

    attention: tuple[str, ...]
    mlp: tuple[str, ...]
    norms: tuple[str, ...]
    qkv_bias: bool = True
    key_bias: bool = True
    out_bias: bool = True
    mlp_bias: bool = True
    norm_bias: bool = True
    head_norms: tuple[str, ...] = ()


CLIP = Style(
    attention=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj"),
    mlp=("mlp.fc1", "mlp.fc2"),
    norms=("layer_norm1", "layer_norm2"),
)
TIMM = Style(attention=("attn.qkv", "attn.proj"), mlp=("mlp.fc1", "mlp.fc2"), norms=("norm1", "norm2"))
BERT = Style(
    attention=("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"),
    mlp=("intermediate.dense", "output.dense"),
    norms=("attention.output.LayerNorm", "output.LayerNorm"),
)
WHISPER = Style(
    attention=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj"),
    mlp=("fc1", "fc2"),
    norms=("self_attn_layer_norm", "final_layer_norm"),
    key_bias=False,
)


def layer(style: Style, shape: Shape) -> tuple[Tensor, ...]:
    """One layer: attention, MLP and norms, with the roles that they have in a decoder."""
    return (
        *attention(style.attention, shape, style),
        *(t for name in style.head_norms for t in blocks.norm(name, shape.query_width // shape.num_heads)),
        *feed_forward(style.mlp, shape.hidden, shape.intermediate, bias=style.mlp_bias),
        *blocks.norms(style.norms, shape.hidden, bias=style.norm_bias),
    )


def attention(names: tuple[str, ...], shape: Shape, style: Style, *, source_width: int = 0) -> tuple[Tensor, ...]:
    """The projections of one attention; `source_width` is the width of what keys and values come from, when another."""
    role, heads = Role.ATTENTION, shape.num_heads
    out = blocks.row(names[-1], shape.hidden, shape.query_width, heads, role, bias=style.out_bias)
    if len(names) == 2:
        fused_width = shape.query_width + 2 * shape.kv_width
        return (*blocks.column(names[0], fused_width, shape.hidden, heads, role, bias=style.qkv_bias), *out)
    source = source_width or shape.hidden
    kv_heads = shape.num_kv_heads or heads
    key_bias = style.qkv_bias and style.key_bias
    return (
        *blocks.column(names[0], shape.query_width, shape.hidden, heads, role, bias=style.qkv_bias),
        *blocks.kv_column(names[1], shape.kv_width, source, kv_heads, role, bias=key_bias),
        *blocks.kv_column(names[2], shape.kv_width, source, kv_heads, role, bias=style.qkv_bias),
        *out,
    )


def feed_forward(names: tuple[str, ...], hidden: int, intermediate: int, *, bias: bool) -> tuple[Tensor, ...]:
    """Maps up, then one map down."""
    ups = (t for n in names[:-1] for t in blocks.column(n, intermediate, hidden, intermediate, Role.MLP, bias=bias))
    return (*ups, *blocks.row(names[-1], hidden, intermediate, intermediate, Role.MLP, bias=bias))


def bridge(names: tuple[str, str], widths: tuple[int, int, int], *, bias: bool = True) -> tuple[Tensor, ...]:
    """Two linear maps from one width through another to a third, the usual projector."""
    source, middle, target = widths
    return (
        *blocks.column(names[0], middle, source, middle, Role.PROJECTOR, bias=bias),
        *blocks.row(names[1], target, middle, middle, Role.PROJECTOR, bias=bias),
    )


def stack(prefix: str, tensors: Iterable[Tensor], num_layers: int) -> tuple[Tensor, ...]:
    """`num_layers` equal layers under `prefix.*.`; none at all when there are no layers."""
    if not num_layers:
        return ()
    return tuple(replace(t, name=f"{prefix}.*.{t.name}", count=t.count * num_layers) for t in tensors)


def under(prefix: str, tensors: Iterable[Tensor], role: Role | None = None) -> tuple[Tensor, ...]:
    """The same tensors with a prefix to their names, and all in one role when `role` is given."""
    return tuple(replace(t, name=f"{prefix}{t.name}", role=role or t.role) for t in tensors)


def conv(name: str, out_width: int, in_width: int, *kernel: int, bias: bool = False) -> tuple[Tensor, ...]:
    """A convolution, in PyTorch's order (out, in, *kernel); every rank holds it whole."""
    weight = Tensor(name=f"{name}.weight", shape=(out_width, in_width, *kernel), role=Role.OTHER)
    return (weight, blocks.vector(f"{name}.bias", out_width, Role.OTHER)) if bias else (weight,)


def dense(name: str, out_width: int, in_width: int, *, bias: bool = True) -> tuple[Tensor, ...]:
    """A linear map that every rank holds whole."""
    return blocks.replicated(name, out_width, in_width, Role.OTHER, bias=bias)


def table(name: str, rows: int, width: int) -> Tensor:
    """A lookup table that every rank holds whole: positions, token types, tiles."""
    return Tensor(name=f"{name}.weight", shape=(rows, width), role=Role.POSITION)


def parameter(name: str, *shape: int) -> Tensor:
    """A free-standing weight."""
    return Tensor(name=name, shape=shape, role=Role.OTHER, shard=REPLICATED)


def tower(
    role: Role,
    prefix: str,
    tensors: Iterable[Tensor],
    *,
    media: tuple[MediaInput, ...] = (),
    optional: bool = False,
    whole: bool = False,
) -> Tower:
    """A tower whose tensors all get its role and `prefix`; `whole` when engines hold all of it on every rank."""
    named = under(prefix, tensors, role)
    if whole:
        named = tuple(replace(tensor, shard=REPLICATED) for tensor in named)
    return Tower(role=role, tensors=named, media=media, optional=optional)


def projector(tensors: Iterable[Tensor]) -> Tower:
    """What stands between a tower and the language model."""
    return tower(Role.PROJECTOR, "", tensors)


def image(shape: Shape, *, tokens: int, patches: int) -> MediaInput:
    """The largest single image."""
    return _media("image", shape, tokens, patches)


def audio(shape: Shape, *, tokens: int, patches: int) -> MediaInput:
    """The longest single clip."""
    return _media("audio", shape, tokens, patches)


def video(
    shape: Shape, *, step_tokens: int, step_patches: int, max_steps: int, reserved_tokens: int = 0, bounded: bool = True
) -> MediaInput:
    """The longest single video, made of steps; see `MediaInput`. `bounded` false: whatever the context, it is
    profiled whole.
    """
    whole = _media("video", shape, step_tokens * max_steps, step_patches * max_steps)
    if not bounded:
        return whole
    return replace(whole, step_tokens=step_tokens, reserved_tokens=reserved_tokens)


def _media(modality: Literal["image", "video", "audio"], shape: Shape, tokens: int, patches: int) -> MediaInput:
    return MediaInput(
        modality=modality,
        max_tokens=max(tokens, 1),
        patches=patches,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_layers=shape.num_layers,
        num_heads=shape.num_heads,
    )


def read_shape(
    config: Config,
    *,
    hidden: int = 768,
    intermediate: int = 3072,
    num_layers: int = 12,
    num_heads: int = 12,
) -> Shape:
    """The widths of a tower under transformers' usual names; the arguments are the class's defaults for absent keys."""
    return Shape(
        hidden=config.int("hidden_size", "embed_dim", default=hidden),
        intermediate=config.int("intermediate_size", default=intermediate),
        num_layers=config.num_layers("num_hidden_layers", "depth", default=num_layers),
        num_heads=config.int("num_attention_heads", "num_heads", "attention_heads", default=num_heads),
    )


def read_square(config: Config, key: str, default: int) -> int:
    """A side length that some configs give as `[side, side]`."""
    value = config.get(key)
    if isinstance(value, (list, tuple)):
        sides = config.ints(key)
        if len(set(sides)) != 1 or sides[0] < 1:
            raise UnsupportedModel(f"config key `{config.path}.{key}` is not a square: {list(sides)[:4]}")
        return sides[0]
    return config.int(key, default=default)
