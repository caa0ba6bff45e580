"""Molmo 7B and 72B, in allenai's own code: a CLIP tower of 23 layers, attention that pools 2 x 2 patches, a gated MLP.

Source: allenai's `modeling_molmo.py`; vLLM 0.33.0, `model_executor/models/molmo.py`. The config describes the
language model alone: the tower is the same in every release.
"""

from __future__ import annotations

from memplan.domain.attention import FullAttention
from memplan.domain.model import Layer, MediaInput, Mlp, ModelSpec
from memplan.domain.tensors import Role, Shard, ShardKind, Tensor
from memplan.introspect import blocks, towers
from memplan.introspect.blocks import Heads, read_heads
from memplan.introspect.config import Config
from memplan.introspect.families.decoder import architecture, checkpoint_dtype, max_context_tokens
from memplan.introspect.towers import Shape, Style

_NEW_TOKENS = 128  # rows of a second token table, for the marks around images
_TOWER = Shape(hidden=1024, intermediate=4096, num_layers=23, num_heads=16)
_PATCHES = 577
_TILES = 13  # twelve crops and the whole image
_LAYER = Style(
    attention=tuple(f"attention.w{name}" for name in "qkvo"),
    mlp=("feed_forward.w1", "feed_forward.w2"),
    norms=("attention_norm", "ffn_norm"),
)


def molmo(config: Config, name: str) -> ModelSpec:
    """Molmo's language model stores query, key and value in one matrix, gate and up in another."""
    heads = read_heads(config)
    hidden = heads.hidden
    both = config.int("intermediate_size")
    half = blocks.exact_div(both, 2, "intermediate size", "halves")
    vocab = config.int("embedding_size", "vocab_size")
    tied = config.bool("weight_tying", default=False)
    layer = Layer(
        kind="dense",
        caches=(FullAttention(heads.num_kv_heads, heads.key_width, heads.value_width),),
        query_width=heads.query_width,
        num_heads=heads.num_heads,
        mlp=Mlp(intermediate=half),
        tensors=_layer_tensors(config, heads, half),
    )
    vision = "model.vision_backbone."
    tower = towers.tower(Role.VISION, f"{vision}image_vit.", _vision_tensors(), media=(_largest(),))
    projector = towers.tower(Role.PROJECTOR, vision, _projector_tensors(hidden, half))
    head = () if tied else blocks.lm_head("model.transformer.ff_out", vocab, hidden)
    return ModelSpec(
        name=name,
        model_type=config.str("model_type"),
        architecture=architecture(config),
        dtype=checkpoint_dtype(config),
        hidden_size=hidden,
        vocab_size=vocab,
        num_heads=heads.num_heads,
        max_context_tokens=max_context_tokens(config),
        layers=(layer,) * config.num_layers(),
        layer_prefix="model.transformer.blocks.",
        shared=(
            blocks.embedding("model.transformer.wte.embedding", vocab, hidden),
            blocks.embedding("model.transformer.wte.new_embedding", _NEW_TOKENS, hidden),
            *blocks.norm("model.transformer.ln_f", hidden),
            *head,
        ),
        towers=(tower, projector),
        tied_embeddings=tied,
    )


def _layer_tensors(config: Config, heads: Heads, half: int) -> tuple[Tensor, ...]:
    hidden, kv_width = heads.hidden, heads.num_kv_heads * heads.key_width
    shard = Shard(ShardKind.QKV_HEADS, heads.num_heads, heads.num_kv_heads)
    width = heads.query_width + 2 * kv_width
    bias = (blocks.vector("att_proj.bias", width, Role.ATTENTION, shard=shard),)
    normed = config.bool("attention_layer_norm", default=False)
    return (
        Tensor(name="att_proj.weight", shape=(width, hidden), role=Role.ATTENTION, shard=shard, linear=True),
        *(bias if config.bool("qkv_bias", default=False) else ()),
        *blocks.row("attn_out", hidden, heads.query_width, heads.num_heads, Role.ATTENTION),
        *((*blocks.norm("q_norm", hidden), *blocks.norm("k_norm", kv_width)) if normed else ()),
        *blocks.column("ff_proj", 2 * half, hidden, half, Role.MLP),
        *blocks.row("ff_out", hidden, half, half, Role.MLP),
        *blocks.norms(("attn_norm", "ff_norm"), hidden),
    )


def _vision_tensors() -> tuple[Tensor, ...]:
    width = _TOWER.hidden
    return (
        towers.parameter("class_embedding", width),
        towers.parameter("positional_embedding", _PATCHES, width),
        *towers.dense("patch_embedding", width, 14 * 14 * 3, bias=False),
        *blocks.norm("pre_ln", width, bias=True),
        *towers.stack("transformer.resblocks", towers.layer(_LAYER, _TOWER), _TOWER.num_layers),
    )


def _projector_tensors(hidden: int, half: int) -> tuple[Tensor, ...]:
    """Pooling attention over the features of two layers, then a gated MLP as wide as the language model's."""
    width = _TOWER.hidden
    return (
        *(t for name in "qkv" for t in towers.dense(f"image_pooling_2d.w{name}", width, 2 * width)),
        *towers.dense("image_pooling_2d.wo", width, width),
        *blocks.column("image_projector.w1", half, width, half, Role.PROJECTOR),
        *blocks.column("image_projector.w3", half, width, half, Role.PROJECTOR),
        *blocks.row("image_projector.w2", hidden, half, half, Role.PROJECTOR),
        towers.parameter("pad_embed", 2, 2 * width),
    )


def _largest() -> MediaInput:
    """Twelve crops one above the other overlap to 200 x 24 patches; they and the whole image are pooled by two."""
    return towers.image(_TOWER, tokens=100 * 12 + 12 * 12, patches=_TILES * _PATCHES)
