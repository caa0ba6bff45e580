"""The parts that decoder layers are made of, as tensors: linear maps, attention, MLPs, experts, norms.

Every function returns the tensors of one part under the checkpoint's own names, with the cut that tensor-parallel
engines give them: query, key, value, gate and up projections by output channel, output and down projections by input
channel, their biases likewise (the bias of a projection cut by input is replicated).
"""

from __future__ import annotations

from dataclasses import dataclass

from memplan.domain.attention import Cache, FullAttention
from memplan.domain.dtypes import DType
from memplan.domain.tensors import REPLICATED, Role, Shard, ShardKind, Tensor
from memplan.errors import UnsupportedModel
from memplan.introspect.config import Config


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

    def full(self) -> Cache:
        """The cache of this attention when every token is kept."""
        return FullAttention(self.num_kv_heads, self.key_width, self.value_width)


def read_heads(config: Config, *, default_kv: int | None = None) -> Heads:
    """Return the attention shape under the names that most configs use.

    `head_dim` is hidden size over heads when the config does not give it; key-value heads equal the query heads when
    the config gives none (`default_kv` overrides that).
    """
    hidden = config.int("hidden_size", "n_embd", "d_model", "dim")
    num_heads = config.int("num_attention_heads", "n_head", "n_heads", "num_heads")
    num_kv_heads = config.int("num_key_value_heads", "multi_query_group_num", default=default_kv or num_heads)
    head_dim = config.optional_int("head_dim", "kv_channels", minimum=1) or exact_div(hidden, num_heads, "hidden size", "heads")
    return Heads(hidden=hidden, num_heads=num_heads, num_kv_heads=num_kv_heads, key_width=head_dim, value_width=head_dim)


def exact_div(numerator: int, denominator: int, what: str, by: str) -> int:
    """Return a quotient that must come out even. Raises: UnsupportedModel when it does not."""
    if numerator % denominator:
        raise UnsupportedModel(f"{what} {numerator} does not divide by {denominator} {by}")
    return numerator // denominator


def column(name: str, out_width: int, in_width: int, units: int, role: Role, *, bias: bool = False) -> tuple[Tensor, ...]:
    """A linear map cut by output channel into `units` pieces."""
    return _linear(name, out_width, in_width, Shard(ShardKind.SPLIT, units), role, bias, cut_bias=True)


def kv_column(name: str, out_width: int, in_width: int, heads: int, role: Role, *, bias: bool = False) -> tuple[Tensor, ...]:
    """A key or value projection: cut by key-value head, and replicated once ranks outnumber heads."""
    return _linear(name, out_width, in_width, Shard(ShardKind.KV_HEADS, heads), role, bias, cut_bias=True)


def row(name: str, out_width: int, in_width: int, units: int, role: Role, *, bias: bool = False) -> tuple[Tensor, ...]:
    """A linear map cut by input channel; its bias is replicated."""
    return _linear(name, out_width, in_width, Shard(ShardKind.SPLIT, units), role, bias, cut_bias=False)


def replicated(name: str, out_width: int, in_width: int, role: Role, *, bias: bool = False) -> tuple[Tensor, ...]:
    """A linear map that every rank holds whole."""
    return _linear(name, out_width, in_width, REPLICATED, role, bias, cut_bias=False)


def vector(name: str, width: int, role: Role = Role.NORM, *, shard: Shard = REPLICATED, dtype: DType | None = None) -> Tensor:
    """A one-dimensional weight: a norm, a bias, a sink, a decay."""
    return Tensor(name=name, shape=(width,), role=role, shard=shard, dtype=dtype)


def norm(name: str, width: int, *, bias: bool = False) -> tuple[Tensor, ...]:
    """A normalisation's weight, and its bias for a LayerNorm that has one."""
    weight = vector(f"{name}.weight", width)
    return (weight, vector(f"{name}.bias", width)) if bias else (weight,)


def norms(names: tuple[str, ...], width: int, *, bias: bool = False) -> tuple[Tensor, ...]:
    """Several norms of one width."""
    return tuple(tensor for name in names for tensor in norm(name, width, bias=bias))


def attention(
    heads: Heads,
    *,
    prefix: str = "self_attn",
    names: tuple[str, str, str, str] = ("q_proj", "k_proj", "v_proj", "o_proj"),
    qkv_bias: bool = False,
    out_bias: bool = False,
) -> tuple[Tensor, ...]:
    """Query, key, value and output projections, stored apart."""
    query, key, value, out = (f"{prefix}.{name}" for name in names)
    return (
        *column(query, heads.query_width, heads.hidden, heads.num_heads, Role.ATTENTION, bias=qkv_bias),
        *kv_column(key, heads.num_kv_heads * heads.key_width, heads.hidden, heads.num_kv_heads, Role.ATTENTION, bias=qkv_bias),
        *kv_column(value, heads.num_kv_heads * heads.value_width, heads.hidden, heads.num_kv_heads, Role.ATTENTION, bias=qkv_bias),
        *row(out, heads.hidden, heads.num_heads * heads.value_width, heads.num_heads, Role.ATTENTION, bias=out_bias),
    )


def mlp(
    hidden: int,
    intermediate: int,
    *,
    prefix: str = "mlp",
    names: tuple[str, ...] = ("gate_proj", "up_proj", "down_proj"),
    bias: bool = False,
    role: Role = Role.MLP,
) -> tuple[Tensor, ...]:
    """A feed-forward block: every name but the last maps up, the last maps down."""
    ups = tuple(
        tensor for name in names[:-1] for tensor in column(f"{prefix}.{name}", intermediate, hidden, intermediate, role, bias=bias)
    )
    return (*ups, *row(f"{prefix}.{names[-1]}", hidden, intermediate, intermediate, role, bias=bias))


def experts(
    hidden: int,
    intermediate: int,
    num_experts: int,
    *,
    prefix: str = "mlp.experts.*",
    names: tuple[str, ...] = ("gate_proj", "up_proj", "down_proj"),
    bias: bool = False,
) -> tuple[Tensor, ...]:
    """A stack of equal experts; `*` stands for the expert's number."""
    shard = Shard(ShardKind.EXPERTS, intermediate)
    tensors: list[Tensor] = []
    for index, name in enumerate(names):
        is_down = index == len(names) - 1
        shape = (hidden, intermediate) if is_down else (intermediate, hidden)
        tensors.append(
            Tensor(name=f"{prefix}.{name}.weight", shape=shape, role=Role.EXPERT, shard=shard, count=num_experts, linear=True)
        )
        if bias:
            tensors.append(Tensor(name=f"{prefix}.{name}.bias", shape=(shape[0],), role=Role.EXPERT, shard=shard, count=num_experts))
    return tuple(tensors)


def embedding(name: str, vocab: int, width: int, role: Role = Role.EMBEDDING) -> Tensor:
    """A table with one row per vocabulary entry; engines pad it and cut it by row."""
    return Tensor(name=f"{name}.weight", shape=(vocab, width), role=role, shard=Shard(ShardKind.VOCAB, vocab))


def lm_head(name: str, vocab: int, width: int, *, bias: bool = False) -> tuple[Tensor, ...]:
    """The output projection onto the vocabulary. It is a Linear layer, which quantizers leave alone unless told."""
    weight = Tensor(name=f"{name}.weight", shape=(vocab, width), role=Role.LM_HEAD, shard=Shard(ShardKind.VOCAB, vocab), linear=True)
    if not bias:
        return (weight,)
    return (weight, Tensor(name=f"{name}.bias", shape=(vocab,), role=Role.LM_HEAD, shard=Shard(ShardKind.VOCAB, vocab)))


def _linear(
    name: str, out_width: int, in_width: int, shard: Shard, role: Role, bias: bool, *, cut_bias: bool
) -> tuple[Tensor, ...]:
    weight = Tensor(name=f"{name}.weight", shape=(out_width, in_width), role=role, shard=shard, linear=True)
    if not bias:
        return (weight,)
    return (weight, vector(f"{name}.bias", out_width, role, shard=shard if cut_bias else REPLICATED))
