"""Multi-head latent attention: keys and values are one small latent per token, and every head expands its own from it.

The down-projections and the latent's norms are whole on every tensor-parallel rank, the up-projections are cut by head.

Source: DeepSeek-V2 (arXiv 2405.04434) and DeepSeek-V3.2 (sparse attention); transformers 5.23, vLLM 0.33.0
(`model_executor/models/deepseek_v2.py`, `models/deepseek_v32`) for names and cuts.
"""

from __future__ import annotations

from collections.abc import Sequence

from memplan.domain.attention import IndexerKeys, LatentAttention
from memplan.domain.tensors import Role, Tensor
from memplan.errors import UnsupportedModel
from memplan.introspect import blocks
from memplan.introspect.config import Config
from memplan.introspect.stack import Mixer
from memplan.records import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Latent:
    """The shape of a latent attention. `query_rank` None: the queries are projected in one step."""

    hidden: int
    num_heads: int
    query_rank: int | None
    latent_width: int
    nope_width: int
    rope_width: int
    value_width: int

    @property
    def key_width(self) -> int:
        return self.nope_width + self.rope_width

    @property
    def query_width(self) -> int:
        return self.num_heads * self.key_width

    @property
    def value_out_width(self) -> int:
        return self.num_heads * self.value_width

    def cache(self) -> LatentAttention:
        """The latent and the rotary key of every token."""
        return LatentAttention(
            latent_width=self.latent_width,
            rope_width=self.rope_width,
            num_heads=self.num_heads,
            expanded_key_width=self.key_width,
            expanded_value_width=self.value_width,
        )


def read_latent(
    config: Config,
    *,
    query_rank: int | None = 1536,
    latent_width: int = 512,
    nope_width: int = 128,
    rope_width: int = 64,
    value_width: int = 128,
) -> Latent:
    """Return the shape of a latent attention; the arguments are the class's defaults for absent keys."""
    return Latent(
        hidden=config.int(*blocks.HIDDEN),
        num_heads=config.int(*blocks.HEADS),
        query_rank=config.nullable_int("q_lora_rank", default=query_rank, minimum=1),
        latent_width=config.int("kv_lora_rank", default=latent_width),
        nope_width=config.int("qk_nope_head_dim", default=nope_width, minimum=0),
        rope_width=config.int("qk_rope_head_dim", default=rope_width, minimum=0),
        value_width=config.int("v_head_dim", default=value_width),
    )


def latent_tensors(latent: Latent, *, prefix: str = "self_attn", bias: bool = False) -> tuple[Tensor, ...]:
    """The projections of a latent attention; only those that read or write the residual stream may have a bias."""
    hidden, heads, role = latent.hidden, latent.num_heads, Role.ATTENTION
    expanded = heads * (latent.nope_width + latent.value_width)
    return (
        *_queries(latent, prefix, bias),
        *blocks.replicated(
            f"{prefix}.kv_a_proj_with_mqa", latent.latent_width + latent.rope_width, hidden, role, bias=bias
        ),
        *blocks.norm(f"{prefix}.kv_a_layernorm", latent.latent_width),
        *blocks.column(f"{prefix}.kv_b_proj", expanded, latent.latent_width, heads, role),
        *blocks.row(f"{prefix}.o_proj", hidden, latent.value_out_width, heads, role, bias=bias),
    )


def latent_mixer(latent: Latent, *extra: Tensor, bias: bool = False, indexer: IndexerKeys | None = None) -> Mixer:
    """The latent attention of one layer, with `extra` tensors and the keys of an indexer where it has one."""
    return Mixer(
        tensors=(*latent_tensors(latent, bias=bias), *extra),
        caches=(latent.cache(), indexer) if indexer else (latent.cache(),),
        query_width=latent.query_width,
        num_heads=latent.num_heads,
    )


def indexer_tensors(config: Config, latent: Latent, num_heads: int) -> tuple[tuple[Tensor, ...], IndexerKeys]:
    """The indexer that picks the tokens a sparse attention reads, and the keys it keeps. It is whole on every rank."""
    rank = latent.query_rank
    if rank is None:
        raise UnsupportedModel("a sparse attention's indexer needs config key `q_lora_rank`")
    width = config.int("index_head_dim", default=128)
    heads = config.int("index_n_heads", default=num_heads)
    name, role = "self_attn.indexer", Role.INDEXER
    tensors = (
        *blocks.replicated(f"{name}.wq_b", heads * width, rank, role),
        *blocks.replicated(f"{name}.wk", width, latent.hidden, role),
        *blocks.norm(f"{name}.k_norm", width, bias=True),
        *blocks.plain(f"{name}.weights_proj", heads, latent.hidden, role),
    )
    return tensors, IndexerKeys(width)


def indexed_layers(config: Config, num_layers: int) -> Sequence[bool]:
    """Which layers have an indexer of their own: a list, a pattern of letters, or one of every `index_topk_freq`.

    The first `index_skip_topk_offset` layers have one in any case; all of them when the config says nothing.
    """
    kinds: Sequence[str] | None = None
    if config.has("indexer_types"):
        kinds = config.strs("indexer_types")
    elif isinstance(pattern := config.get("index_topk_pattern"), str):
        kinds = pattern
    if kinds is None:
        step = max(config.int("index_topk_freq", default=1, minimum=0), 1)
        offset = config.int("index_skip_topk_offset", default=2, minimum=0)
        return [max(index - offset + 1, 0) % step == 0 for index in range(num_layers)]
    if len(kinds) < num_layers:
        raise UnsupportedModel(f"config key `indexer_types` names {len(kinds)} layers of {num_layers}")
    return [kind in ("full", "F") for kind in kinds[:num_layers]]


def _queries(latent: Latent, prefix: str, bias: bool) -> tuple[Tensor, ...]:
    width, heads, role = latent.query_width, latent.num_heads, Role.ATTENTION
    if latent.query_rank is None:
        return blocks.column(f"{prefix}.q_proj", width, latent.hidden, heads, role)
    return (
        *blocks.replicated(f"{prefix}.q_a_proj", latent.query_rank, latent.hidden, role, bias=bias),
        *blocks.norm(f"{prefix}.q_a_layernorm", latent.query_rank),
        *blocks.column(f"{prefix}.q_b_proj", width, latent.query_rank, heads, role),
    )
