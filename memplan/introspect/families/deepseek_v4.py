"""DeepSeek V4: every layer attends to a window of latents, and most also to latents compressed by 4 or by 128.

The residual stream has several lanes, which hyper-connections mix before and after every half of a layer. The first
layers choose their experts by a table over tokens. Parameters that the checkpoint keeps in FP32 say so.

Source: transformers 5.23, `models/deepseek_v4` and its checkpoint names; vLLM 0.33.0, `models/deepseek_v4/{attention,
compressor}.py` and `v1/attention/backends/mla/sparse_swa.py` for what is cached.
Checked by: the published element counts of V4-Pro by type, with its predictor.
"""

from __future__ import annotations

from collections.abc import Sequence

from memplan.domain.attention import Cache, CompressedAttention, CompressorState, IndexerKeys, LatentWindow
from memplan.domain.dtypes import DType
from memplan.domain.model import Mlp
from memplan.domain.tensors import Role, Tensor
from memplan.errors import UnsupportedModel
from memplan.introspect import blocks
from memplan.introspect.blocks import exact_div
from memplan.introspect.config import Config
from memplan.introspect.families.decoder import Decoder, Frame, correction_bias
from memplan.introspect.families.mtp import num_mtp_layers
from memplan.introspect.stack import Feed, Mixer, per_layer
from memplan.records import dataclass, replace

_SPARSE, _HEAVY, _SLIDING = "compressed_sparse_attention", "heavily_compressed_attention", "sliding_attention"
_OVERLAPPED_RATIO = 4  # groups of this ratio overlap, and only they have an indexer


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shape:
    hidden: int
    num_heads: int
    head_width: int
    rope_width: int
    query_rank: int
    out_groups: int
    out_rank: int
    window: int
    index_heads: int
    index_width: int
    lanes: int


def _shape(config: Config) -> _Shape:
    width = config.int("head_dim", default=512)
    rope = config.int("qk_rope_head_dim", default=max(width // 8, 1))
    if rope >= width:
        raise UnsupportedModel(f"config key `qk_rope_head_dim` is {rope}, of a head of {width}")
    return _Shape(
        hidden=config.int(*blocks.HIDDEN),
        num_heads=config.int(*blocks.HEADS),
        head_width=width,
        rope_width=rope,
        query_rank=config.int("q_lora_rank", default=1024),
        out_groups=config.int("o_groups", default=8),
        out_rank=config.int("o_lora_rank", default=1024),
        window=config.int("sliding_window", default=128),
        index_heads=config.int("index_n_heads", default=64),
        index_width=config.int("index_head_dim", default=128),
        lanes=config.int("hc_mult", default=4),
    )


def _ratios(config: Config, num_layers: int) -> Sequence[int]:
    """How many tokens one compressed entry stands for in every layer; 0 for a window alone."""
    rates = {_SPARSE: 4, _HEAVY: 128, _SLIDING: 0}
    if config.has("compress_rates"):
        own = config.sub("compress_rates")
        rates |= {kind: own.int(kind, default=rates[kind]) for kind in (_SPARSE, _HEAVY)}
    if config.has("layer_types"):
        kinds = config.strs("layer_types")
        if wrong := set(kinds) - set(rates):
            raise UnsupportedModel(f"config key `layer_types` has an unknown kind: `{min(wrong)[:40]}`")
        ratios: Sequence[int] = [rates[kind] for kind in kinds]
    elif config.has("compress_ratios"):
        ratios = config.ints("compress_ratios")
    else:
        ratios = [rates[_SPARSE] if index > 1 and index % 2 else rates[_HEAVY] for index in range(num_layers)]
    if len(ratios) < num_layers or min(ratios) < 0:
        raise UnsupportedModel(f"config key `compress_ratios` names {len(ratios)} layers of {num_layers}")
    return ratios[:num_layers]


def _attention(shape: _Shape, ratio: int) -> Mixer:
    heads, width, role = shape.num_heads, shape.head_width, Role.ATTENTION
    query_width = heads * width
    group_in = exact_div(query_width, shape.out_groups, "attention width", "output groups")
    out_width = shape.out_groups * shape.out_rank
    latent = width - shape.rope_width
    tensors = [
        blocks.vector("attn.attn_sink", heads, role, units=heads, dtype=DType.F32),
        *blocks.replicated("attn.wq_a", shape.query_rank, shape.hidden, role),
        *blocks.norm("attn.q_norm", shape.query_rank),
        *blocks.column("attn.wq_b", query_width, shape.query_rank, heads, role),
        *blocks.replicated("attn.wkv", width, shape.hidden, role),
        *blocks.norm("attn.kv_norm", width),
        *blocks.column("attn.wo_a", out_width, group_in, shape.out_groups, role),
        *blocks.row("attn.wo_b", shape.hidden, out_width, shape.out_groups, role),
    ]
    caches: list[Cache] = [LatentWindow(latent, shape.rope_width, shape.window)]
    if ratio > 1:
        compressor, state = _compressor("attn.compressor", shape.hidden, width, ratio)
        tensors += compressor
        caches.append(CompressedAttention(latent, shape.rope_width, ratio, state))
    if ratio == _OVERLAPPED_RATIO:
        indexer, keys = _indexer(shape, ratio)
        tensors += indexer
        caches.append(keys)
    return Mixer(tensors=tuple(tensors), caches=tuple(caches), query_width=query_width, num_heads=heads)


def _compressor(name: str, hidden: int, width: int, ratio: int) -> tuple[tuple[Tensor, ...], CompressorState]:
    """What makes one entry of a group of tokens, and the keys and scores it keeps until the group is full."""
    overlap = 2 if ratio == _OVERLAPPED_RATIO else 1
    wide, role = overlap * width, Role.INDEXER if "indexer" in name else Role.ATTENTION
    tensors = (
        Tensor(name=f"{name}.ape", shape=(ratio, wide), role=role, dtype=DType.F32),
        *blocks.plain(f"{name}.wkv", wide, hidden, role),
        *blocks.plain(f"{name}.wgate", wide, hidden, role),
        *blocks.norm(f"{name}.norm", width),
    )
    return tensors, CompressorState(width=2 * wide, tokens=overlap * ratio)


def _indexer(shape: _Shape, ratio: int) -> tuple[tuple[Tensor, ...], IndexerKeys]:
    name, role = "attn.indexer", Role.INDEXER
    compressor, state = _compressor(f"{name}.compressor", shape.hidden, shape.index_width, ratio)
    tensors = (
        *blocks.replicated(f"{name}.wq_b", shape.index_heads * shape.index_width, shape.query_rank, role),
        *blocks.plain(f"{name}.weights_proj", shape.index_heads, shape.hidden, role),
        *compressor,
    )
    return tensors, IndexerKeys(shape.index_width, ratio, state)


def _mixers(config: Config) -> Sequence[Mixer]:
    shape = _shape(config)
    return per_layer(_ratios(config, config.num_layers()), lambda ratio: _attention(shape, ratio))


def _hashed(config: Config, num_layers: int) -> Sequence[bool]:
    """Which layers choose their experts by a table over tokens."""
    if config.has("mlp_layer_types"):
        kinds = config.strs("mlp_layer_types")
        if len(kinds) < num_layers:
            raise UnsupportedModel(f"config key `mlp_layer_types` names {len(kinds)} layers of {num_layers}")
        return [kind == "hash_moe" for kind in kinds[:num_layers]]
    first = config.int("num_hash_layers", default=3, minimum=0)
    return [index < first for index in range(num_layers)]


def _experts(config: Config, *, is_hashed: bool) -> Feed:
    hidden, inner = config.int(*blocks.HIDDEN), config.int("moe_intermediate_size", default=2048)
    number = config.int("n_routed_experts", "num_local_experts", default=256)
    per_token = config.int("num_experts_per_tok", default=6)
    shared = inner * config.int("n_shared_experts", default=1)
    w132, bias = ("w1", "w3", "w2"), config.bool("mlp_bias", default=False)
    choice = correction_bias("ffn.gate.bias", number)
    if is_hashed:
        table = (config.int("vocab_size"), per_token)
        choice = Tensor(name="ffn.gate.tid2eid", shape=table, role=Role.ROUTER, dtype=DType.INT64, is_buffer=True)
    tensors = (
        *blocks.replicated("ffn.gate", number, hidden, Role.ROUTER),
        choice,
        *blocks.experts(hidden, inner, number, prefix="ffn.experts.*", names=w132),
        *blocks.mlp(hidden, shared, prefix="ffn.shared_experts", names=w132, bias=bias, role=Role.SHARED_EXPERT),
    )
    return Feed(
        tensors=tensors,
        mlp=Mlp(intermediate=inner, num_experts=number, experts_per_token=per_token, shared_intermediate=shared),
    )


def _feeds(config: Config) -> Sequence[Feed]:
    return per_layer(_hashed(config, config.num_layers()), lambda flag: _experts(config, is_hashed=flag))


def _connection(name: str, rows: int, lanes: int, hidden: int, scales: int) -> tuple[Tensor, ...]:
    """A hyper-connection: weights that mix the lanes of the residual stream, in FP32."""
    shapes = {"fn": (rows, lanes * hidden), "base": (rows,), "scale": (scales,)}
    return tuple(
        Tensor(name=f"{name}_{part}", shape=shape, role=Role.OTHER, dtype=DType.F32) for part, shape in shapes.items()
    )


def _norms(config: Config) -> tuple[Tensor, ...]:
    hidden, lanes = config.int(*blocks.HIDDEN), config.int("hc_mult", default=4)
    rows = (2 + lanes) * lanes
    return (
        *blocks.norms(("attn_norm", "ffn_norm"), hidden),
        *_connection("hc_attn", rows, lanes, hidden, 3),
        *_connection("hc_ffn", rows, lanes, hidden, 3),
    )


def _head_connection(config: Config, prefix: str = "") -> tuple[Tensor, ...]:
    hidden, lanes = config.int(*blocks.HIDDEN), config.int("hc_mult", default=4)
    return _connection(f"{prefix}hc_head", lanes, lanes, hidden, 1)


def _mtp(config: Config) -> tuple[Tensor, ...]:
    """A predictor attends to the window alone; it shares the embedding and the head."""
    hidden, shape = config.int(*blocks.HIDDEN), _shape(config)
    layer = (
        *(t for name in ("e_proj", "h_proj") for t in blocks.replicated(name, hidden, hidden, Role.MTP)),
        *blocks.norms(("enorm", "hnorm", "norm"), hidden),
        *_head_connection(config),
        *_attention(shape, 0).tensors,
        *_experts(config, is_hashed=False).tensors,
        *_norms(config),
    )
    return tuple(
        replace(tensor, name=f"mtp.{index}.{tensor.name}")
        for index in range(num_mtp_layers(config, default=1))
        for tensor in layer
    )


DEEPSEEK_V4 = Decoder(
    mixers=_mixers,
    feeds=_feeds,
    layer_norms=_norms,
    frame=Frame(
        layers="layers.",
        embedding="embed",
        final_norm="norm",
        lm_head="head",
        extra=_head_connection,
        mtp=_mtp,
    ),
)
