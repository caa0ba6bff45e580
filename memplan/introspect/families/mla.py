"""Decoders with latent attention: DeepSeek V2, V3, V3.2 and those built like them.

Source: the modelling code, configuration defaults and checkpoint names of transformers 5.23; vLLM 0.33.0 for openPangu,
Sarvam and LongCat's checkpoint names.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from memplan.domain.attention import Cache
from memplan.domain.model import Mlp, ModelSpec
from memplan.domain.tensors import Role, Tensor
from memplan.introspect import blocks
from memplan.introspect.config import Config
from memplan.introspect.families import moe, mtp
from memplan.introspect.families.decoder import Decoder, Frame, Routed, correction_bias
from memplan.introspect.families.routing import after_dense, listed_or, shared_of
from memplan.introspect.latent import (
    Latent,
    indexed_layers,
    indexer_tensors,
    latent_mixer,
    latent_tensors,
    read_latent,
)
from memplan.introspect.stack import Feed, Mixer, is_set, key, per_layer
from memplan.records import replace

_CORRECTION = "mlp.gate.e_score_correction_bias"
_BIAS = "attention_bias"
ReadLatent = Callable[[Config], Latent]


def everywhere(read: ReadLatent = read_latent) -> Callable[[Config], Sequence[Mixer]]:
    """Latent attention of one shape in every layer."""

    def mixers(config: Config) -> Sequence[Mixer]:
        return (latent_mixer(read(config), bias=is_set(config, _BIAS)),) * config.num_layers()

    return mixers


def sparse(num_heads: int, read: ReadLatent = read_latent) -> Callable[[Config], Sequence[Mixer]]:
    """Latent attention with an indexer, in all layers or in some whose choice the next ones share."""

    def mixers(config: Config) -> Sequence[Mixer]:
        flags = indexed_layers(config, config.num_layers())
        return per_layer(flags, lambda flag: sparse_mixer(config, read(config), num_heads, has_indexer=flag))

    return mixers


def sparse_mixer(config: Config, latent: Latent, num_heads: int, *, has_indexer: bool = True) -> Mixer:
    """The sparse latent attention of one layer; `num_heads` is the class's default for the indexer's heads."""
    if not has_indexer:
        return latent_mixer(latent, bias=is_set(config, _BIAS))
    tensors, keys = indexer_tensors(config, latent, num_heads)
    return latent_mixer(latent, *tensors, bias=is_set(config, _BIAS), indexer=keys)


_ROUTED = Routed(
    is_routed=listed_or(3),
    intermediate=key("moe_intermediate_size", default=2048),
    shared=shared_of("n_shared_experts", default=1, width=key("moe_intermediate_size", default=2048)),
    correction=_CORRECTION,
)

DEEPSEEK_V2 = Decoder(
    mixers=everywhere(),
    mlp_bias="mlp_bias",
    routed=Routed(is_routed=after_dense, shared=shared_of("n_shared_experts", default=2), shared_bias="mlp_bias"),
)
DEEPSEEK_V3: Decoder = Decoder(
    mixers=everywhere(),
    routed=replace(_ROUTED, is_routed=lambda config, index: after_dense(_first_dense(config, 3), index)),
    frame=Frame(mtp=mtp.appended(lambda: DEEPSEEK_V3)),
)
DEEPSEEK_V32: Decoder = Decoder(
    mixers=sparse(64),
    routed=_ROUTED,
    frame=Frame(mtp=mtp.appended(lambda: DEEPSEEK_V32)),
)


def _glm_latent(config: Config) -> Latent:
    return read_latent(config, query_rank=2048, nope_width=192, value_width=256)


def _glm_predictor(config: Config) -> tuple[Tensor, ...]:
    """A predictor's layer always has an indexer."""
    layer = sparse_mixer(config, _glm_latent(config), 32)
    return (*layer.tensors, *_ROUTED.feed(config).tensors, *GLM_MOE_DSA.make_norms(config))


GLM_MOE_DSA: Decoder = Decoder(
    mixers=sparse(32, _glm_latent),
    routed=replace(_ROUTED, num_experts=("num_experts", "n_routed_experts", "num_local_experts")),
    frame=Frame(mtp=mtp.appended(lambda: GLM_MOE_DSA, layer=_glm_predictor)),
)
GLM4_MOE_LITE: Decoder = Decoder(
    mixers=everywhere(lambda config: read_latent(config, query_rank=768, nope_width=192, value_width=256)),
    routed=replace(
        _ROUTED,
        is_routed=listed_or(1),
        intermediate=key("moe_intermediate_size", default=1536),
        shared=shared_of("n_shared_experts", default=1, width=key("moe_intermediate_size", default=1536)),
    ),
    frame=Frame(mtp=mtp.appended(lambda: GLM4_MOE_LITE)),
)
MISTRAL4 = Decoder(
    mixers=everywhere(lambda config: read_latent(config, query_rank=1024, latent_width=256, nope_width=64)),
    routed=replace(_ROUTED, is_routed=after_dense, correction=""),
)
MINICPM3 = Decoder(
    mixers=everywhere(
        lambda config: read_latent(
            config, query_rank=768, latent_width=256, nope_width=64, rope_width=32, value_width=64
        )
    ),
    mlp_bias="mlp_bias",
    frame=Frame(tied=True),
)
YOUTU = Decoder(mixers=everywhere(), frame=Frame(tied=True))
SARVAM_MLA = Decoder(
    mixers=everywhere(lambda config: read_latent(config, query_rank=None)),
    routed=Routed(
        is_routed=lambda config, index: after_dense(_first_dense(config, 1), index),
        shared=shared_of(
            "num_shared_experts",
            default=1,
            width=key("moe_shared_expert_intermediate_size", "moe_intermediate_size"),
        ),
        correction=_CORRECTION,
    ),
)


def _pangu_norms(config: Config) -> tuple[Tensor, ...]:
    names: tuple[str, ...] = ("input_layernorm", "post_attention_layernorm")
    if config.bool("sandwich_norm", default=False):
        names += ("pre_mlp_layernorm", "post_mlp_layernorm")
    return blocks.norms(names, config.int(*blocks.HIDDEN))


PANGU_ULTRA: Decoder = Decoder(
    mixers=everywhere(lambda config: read_latent(config, query_rank=None)),
    routed=Routed(
        is_routed=after_dense,
        shared=shared_of("n_shared_experts"),
        correction=_CORRECTION,
    ),
    layer_norms=_pangu_norms,
    frame=Frame(mtp=mtp.appended(lambda: PANGU_ULTRA)),
)


def _axk1_norms(config: Config) -> tuple[Tensor, ...]:
    return blocks.norm("mlp.post_mlp_layernorm", config.int(*blocks.HIDDEN))


AXK1 = Decoder(mixers=everywhere(), feeds=lambda config: _with_norm(config))


def deepseek_v2(config: Config, name: str) -> ModelSpec:
    """DeepSeek V2; `use_mla: false` is the plain attention of DeepSeekMoE under this name."""
    style = DEEPSEEK_V2 if config.bool("use_mla", default=True) else moe.DEEPSEEK
    return style(config, name)


def _first_dense(config: Config, default: int) -> Config:
    return config if config.has("first_k_dense_replace") else config.having(first_k_dense_replace=default)


def _with_norm(config: Config) -> Sequence[Feed]:
    """A.X K1: the experts' output is normed."""
    routed = replace(_ROUTED, is_routed=listed_or(1))
    style = Decoder(routed=routed)
    feeds = style.make_feeds(config)
    made = {id(feed): replace(feed, tensors=(*feed.tensors, *_axk1_norms(config))) for feed in feeds if feed.mlp}
    return [made[id(feed)] if feed.mlp and feed.mlp.num_experts else feed for feed in feeds]


def _longcat_mixer(config: Config) -> Mixer:
    """Two latent attentions in every layer."""
    latent = read_latent(config)
    tensors = tuple(
        tensor
        for half in (0, 1)
        for tensor in latent_tensors(latent, prefix=f"self_attn.{half}", bias=is_set(config, _BIAS))
    )
    cache: Cache = latent.cache()
    return Mixer(tensors=tensors, caches=(cache, cache), query_width=latent.query_width, num_heads=latent.num_heads)


def _longcat_feed(config: Config) -> Feed:
    """Two dense MLPs, and experts of which some are nothing but a short cut."""
    hidden = config.int(*blocks.HIDDEN)
    width, inner = config.int("ffn_hidden_size"), config.int("expert_ffn_hidden_size", "moe_intermediate_size")
    num_experts = config.int("n_routed_experts")
    choices = num_experts + config.int("zero_expert_num", default=0, minimum=0)
    return Feed(
        tensors=(
            *blocks.replicated(
                "mlp.router.classifier", choices, hidden, Role.ROUTER, bias=is_set(config, "router_bias")
            ),
            correction_bias("mlp.router.e_score_correction_bias", choices),
            *blocks.experts(hidden, inner, num_experts),
            *(tensor for half in (0, 1) for tensor in blocks.mlp(hidden, width, prefix=f"mlps.{half}")),
        ),
        mlp=Mlp(
            intermediate=inner,
            num_experts=num_experts,
            experts_per_token=config.int("moe_topk"),
            shared_intermediate=2 * width,
        ),
    )


def _longcat_predictor(config: Config) -> tuple[Tensor, ...]:
    """One predictor with one latent attention and a dense MLP; published configs do not say that it is there."""
    if not mtp.num_mtp_layers(config, default=1):
        return ()
    hidden = config.int(*blocks.HIDDEN)
    layer = (
        *latent_tensors(read_latent(config), bias=is_set(config, _BIAS)),
        *blocks.mlp(hidden, config.int("ffn_hidden_size"), prefix="transformer_layer.mlp"),
        *blocks.norms(("input_layernorm", "post_attention_layernorm"), hidden),
    )
    around = (
        *blocks.norm("model.mtp.norm", hidden),
        blocks.embedding("model.mtp.embed_tokens", config.int("vocab_size"), hidden),
    )
    return (*mtp.LONGCAT.tensors(config, layer, prefix="model.mtp.layers.0."), *around)


LONGCAT_FLASH = Decoder(
    mixers=lambda config: (_longcat_mixer(config),) * config.num_layers("num_layers", "num_hidden_layers"),
    feeds=lambda config: (_longcat_feed(config),) * config.num_layers("num_layers", "num_hidden_layers"),
    norms=("input_layernorm.0", "input_layernorm.1", "post_attention_layernorm.0", "post_attention_layernorm.1"),
    frame=Frame(mtp=_longcat_predictor),
)
