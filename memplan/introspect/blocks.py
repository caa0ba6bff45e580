"""The parts that decoder layers are made of, as tensors: linear maps, attention, MLPs, experts, norms.

Every function returns the tensors of one part under the checkpoint's own names, with the cut that tensor-parallel
engines give them: query, key, value, gate and up projections by output channel, output and down projections by input
channel, their biases likewise (the bias of a projection cut by input is replicated).
"""

from __future__ import annotations

from memplan.domain.attention import Cache, FullAttention, SlidingWindow
from memplan.domain.dtypes import DType
from memplan.domain.tensors import REPLICATED, Role, Shard, ShardKind, Tensor
from memplan.errors import UnsupportedModel
from memplan.introspect.config import Config
from memplan.records import dataclass

HIDDEN = ("hidden_size", "n_embd", "n_embed", "d_model", "dim")
HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads")


@dataclass(frozen=True, slots=True, kw_only=True)
class Heads:
    """The shape of a softmax attention."""

    hidden: int
    num_heads: int
    num_kv_heads: int
    key_width: int
    value_width: int

    @property
    def query_width(self) -> int:
        return self.num_heads * self.key_width

    @property
    def value_out_width(self) -> int:
        """The width that the output projection reads."""
        return self.num_heads * self.value_width

    def full(self) -> Cache:
        """The cache of this attention when every token is kept."""
        return FullAttention(self.num_kv_heads, self.key_width, self.value_width)

    def window(self, tokens: int | None) -> Cache:
        """The cache of this attention when the last `tokens` tokens are kept; all of them when that is None."""
        return SlidingWindow(self.num_kv_heads, self.key_width, self.value_width, tokens) if tokens else self.full()


def read_heads(config: Config, *, default_kv: int | None = None, head_dim: int | None = None) -> Heads:
    """Return the attention shape under the names that most configs use.

    `default_kv` and `head_dim` are a family's defaults for absent keys. Without one, and for null, key-value heads
    equal the query heads, and the width of a head is the hidden size over the heads.
    """
    hidden = config.int(*HIDDEN)
    num_heads = config.int(*HEADS)
    num_kv_heads = config.nullable_int("num_key_value_heads", default=default_kv, minimum=1) or num_heads
    width = config.optional_int("kv_channels", minimum=1) or head_dim
    width = config.nullable_int("head_dim", default=width, minimum=1) or exact_div(
        hidden, num_heads, "hidden size", "heads"
    )
    return Heads(hidden=hidden, num_heads=num_heads, num_kv_heads=num_kv_heads, key_width=width, value_width=width)


def exact_div(numerator: int, denominator: int, what: str, by: str) -> int:
    """Return a quotient that must come out even. Raises: UnsupportedModel when it does not."""
    if numerator % denominator:
        raise UnsupportedModel(f"{what} {numerator} does not divide by {denominator} {by}")
    return numerator // denominator


def column(
    name: str, out_width: int, in_width: int, units: int, role: Role, *, bias: bool = False
) -> tuple[Tensor, ...]:
    """A linear map cut by output channel into `units` pieces."""
    return _linear(name, out_width, in_width, Shard(ShardKind.SPLIT, units), role, bias, cut_bias=True)


def kv_column(
    name: str, out_width: int, in_width: int, heads: int, role: Role, *, bias: bool = False
) -> tuple[Tensor, ...]:
    """A key or value projection: cut by key-value head, and replicated once ranks outnumber heads."""
    return _linear(name, out_width, in_width, Shard(ShardKind.KV_HEADS, heads), role, bias, cut_bias=True)


def row(name: str, out_width: int, in_width: int, units: int, role: Role, *, bias: bool = False) -> tuple[Tensor, ...]:
    """A linear map cut by input channel; its bias is replicated."""
    return _linear(name, out_width, in_width, Shard(ShardKind.SPLIT, units), role, bias, cut_bias=False)


def replicated(name: str, out_width: int, in_width: int, role: Role, *, bias: bool = False) -> tuple[Tensor, ...]:
    """A linear map that every rank holds whole."""
    return _linear(name, out_width, in_width, REPLICATED, role, bias, cut_bias=False)


def plain(name: str, out_width: int, in_width: int, role: Role) -> tuple[Tensor, ...]:
    """A linear map that every rank holds whole and that published quantized checkpoints leave as it is."""
    return (Tensor(name=f"{name}.weight", shape=(out_width, in_width), role=role),)


def vector(
    name: str,
    width: int,
    role: Role = Role.NORM,
    *,
    units: int = 0,
    shard: Shard = REPLICATED,
    dtype: DType | None = None,
    is_buffer: bool = False,
) -> Tensor:
    """A one-dimensional weight: a norm, a bias, a sink, a decay. It is cut into `units` pieces where that is not 0."""
    cut = Shard(ShardKind.SPLIT, units) if units else shard
    return Tensor(name=name, shape=(width,), role=role, shard=cut, dtype=dtype, is_buffer=is_buffer)


def norm(name: str, width: int, *, bias: bool = False) -> tuple[Tensor, ...]:
    """A normalisation's weight, and its bias for a LayerNorm that has one."""
    weight = vector(f"{name}.weight", width)
    return (weight, vector(f"{name}.bias", width)) if bias else (weight,)


def norms(names: tuple[str, ...], width: int, *, bias: bool = False) -> tuple[Tensor, ...]:
    """Several norms of one width."""
    return tuple(tensor for name in names for tensor in norm(name, width, bias=bias))


def conv1d(name: str, channels: int, kernel: int, units: int, *, bias: bool = False) -> tuple[Tensor, ...]:
    """A depthwise convolution over time, cut by channel."""
    shard = Shard(ShardKind.SPLIT, units)
    weight = Tensor(name=f"{name}.weight", shape=(channels, 1, kernel), role=Role.STATE, shard=shard)
    return (weight, vector(f"{name}.bias", channels, Role.STATE, shard=shard)) if bias else (weight,)


def attention(
    heads: Heads,
    *,
    prefix: str = "self_attn",
    names: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj"),
    qkv_bias: bool = False,
    out_bias: bool = False,
) -> tuple[Tensor, ...]:
    """Query, key, value and output projections; two names mean that the first three are stored as one matrix."""
    full = tuple(f"{prefix}.{name}" if prefix else name for name in names)
    out = row(full[-1], heads.hidden, heads.value_out_width, heads.num_heads, Role.ATTENTION, bias=out_bias)
    key_width = heads.num_kv_heads * heads.key_width
    value_width = heads.num_kv_heads * heads.value_width
    if len(names) == 2:
        shard = Shard(ShardKind.QKV_HEADS, heads.num_heads, heads.num_kv_heads)
        width = heads.query_width + key_width + value_width
        return (*_linear(full[0], width, heads.hidden, shard, Role.ATTENTION, qkv_bias, cut_bias=True), *out)
    query, key, value = full[:-1]
    return (
        *column(query, heads.query_width, heads.hidden, heads.num_heads, Role.ATTENTION, bias=qkv_bias),
        *kv_column(key, key_width, heads.hidden, heads.num_kv_heads, Role.ATTENTION, bias=qkv_bias),
        *kv_column(value, value_width, heads.hidden, heads.num_kv_heads, Role.ATTENTION, bias=qkv_bias),
        *out,
    )


def mlp(
    hidden: int,
    intermediate: int,
    *,
    prefix: str = "mlp",
    names: tuple[str, ...] = ("gate_proj", "up_proj", "down_proj"),
    bias: bool = False,
    role: Role = Role.MLP,
    fused: bool = False,
) -> tuple[Tensor, ...]:
    """A feed-forward block: every name but the last maps up, the last maps down.

    `fused` stores gate and up as one matrix of twice the width.
    """
    dotted = f"{prefix}." if prefix else ""
    width = 2 * intermediate if fused else intermediate
    ups = tuple(
        tensor
        for name in names[:-1]
        for tensor in column(f"{dotted}{name}", width, hidden, intermediate, role, bias=bias)
    )
    return (*ups, *row(f"{dotted}{names[-1]}", hidden, intermediate, intermediate, role, bias=bias))


def experts(
    hidden: int,
    intermediate: int,
    num_experts: int,
    *,
    prefix: str = "mlp.experts.*",
    names: tuple[str, ...] = ("gate_proj", "up_proj", "down_proj"),
    bias: bool = False,
    fused: bool = False,
    suffix: str = ".weight",
) -> tuple[Tensor, ...]:
    """A stack of equal experts; `*` stands for the expert's number, a name without it for a tensor that holds them all.

    `fused` stores gate and up as one matrix of twice the width. `suffix` ends a weight's name.
    """
    shard = Shard(ShardKind.EXPERTS, intermediate)
    tensors: list[Tensor] = []
    for index, name in enumerate(names):
        is_down = index == len(names) - 1
        width = 2 * intermediate if fused else intermediate
        shape = (hidden, intermediate) if is_down else (width, hidden)
        full = f"{prefix}.{name}"
        tensors.append(
            Tensor(name=f"{full}{suffix}", shape=shape, role=Role.EXPERT, shard=shard, count=num_experts, linear=True)
        )
        if bias:
            bias_name = f"{full}.bias" if suffix else f"{full}_bias"
            tensors.append(Tensor(name=bias_name, shape=(shape[0],), role=Role.EXPERT, shard=shard, count=num_experts))
    return tuple(tensors)


def embedding(name: str, vocab: int, width: int, role: Role = Role.EMBEDDING) -> Tensor:
    """A table with one row per vocabulary entry; engines pad it and cut it by row."""
    return Tensor(name=f"{name}.weight", shape=(vocab, width), role=role, shard=Shard(ShardKind.VOCAB, vocab))


def positions(name: str, rows: int, width: int) -> Tensor:
    """A table of learned positions, whole on every rank."""
    return Tensor(name=f"{name}.weight", shape=(rows, width), role=Role.POSITION)


def lm_head(name: str, vocab: int, width: int, *, bias: bool = False) -> tuple[Tensor, ...]:
    """The output projection onto the vocabulary. It is a Linear layer, which quantizers leave alone unless told."""
    shard = Shard(ShardKind.VOCAB, vocab)
    weight = Tensor(name=f"{name}.weight", shape=(vocab, width), role=Role.LM_HEAD, shard=shard, linear=True)
    if not bias:
        return (weight,)
    return (weight, Tensor(name=f"{name}.bias", shape=(vocab,), role=Role.LM_HEAD, shard=shard))


def _linear(
    name: str, out_width: int, in_width: int, shard: Shard, role: Role, bias: bool, *, cut_bias: bool
) -> tuple[Tensor, ...]:
    weight = Tensor(name=f"{name}.weight", shape=(out_width, in_width), role=role, shard=shard, linear=True)
    if not bias:
        return (weight,)
    return (weight, vector(f"{name}.bias", out_width, role, shard=shard if cut_bias else REPLICATED))
