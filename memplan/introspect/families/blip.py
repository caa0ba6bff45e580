"""BLIP for captions: a vision encoder, and a BERT that attends to it in every layer.

Source: transformers 5.23, `models/blip/modeling_blip.py` and `modeling_blip_text.py`.
"""

from __future__ import annotations

from memplan.domain.attention import CrossAttention, FullAttention
from memplan.domain.model import Layer, Mlp, ModelSpec
from memplan.domain.tensors import Role, Tensor
from memplan.errors import UnsupportedModel
from memplan.introspect import blocks, towers
from memplan.introspect.config import Config
from memplan.introspect.families import encoder
from memplan.introspect.families.decoder import architecture, checkpoint_dtype
from memplan.introspect.families.encoder import Sizes
from memplan.introspect.families.nested import merged
from memplan.introspect.families.text_encoders import BERT_BODIES
from memplan.introspect.families.vision import grid_side
from memplan.introspect.towers import BERT, CLIP, Shape
from memplan.records import replace

_VISION_LAYER = replace(CLIP, attention=("self_attn.qkv", "self_attn.projection"))
_CROSS = (*(f"crossattention.self.{name}" for name in ("query", "key", "value")), "crossattention.output.dense")


def blip(config: Config, name: str) -> ModelSpec:
    """`BlipForConditionalGeneration`; the other classes have other parts and are refused."""
    if (class_name := architecture(config)) not in ("", "BlipForConditionalGeneration"):
        raise UnsupportedModel(f"unknown kind of BLIP: `{class_name}`", hint="try --introspect torch")
    vision, text = merged(config, "vision_config", {}), merged(config, "text_config", {})
    sight = towers.read_shape(vision)
    patch = towers.read_square(vision, "patch_size", 16)
    positions = grid_side(towers.read_square(vision, "image_size", 384), patch) ** 2 + 1
    shape = towers.read_shape(text, num_heads=8)
    vocab = text.int("vocab_size", default=30524)
    limit = text.int("max_position_embeddings", default=512)
    media = (towers.image(sight, tokens=positions, patches=positions),)
    tower = towers.tower(Role.VISION, "vision_model.", _vision_tensors(vision, sight, patch, positions), media=media)
    head = BERT_BODIES["ForMaskedLM"].head(Sizes(hidden=shape.hidden, vocab=vocab))
    bare = (
        encoder.word_embeddings("bert.embeddings.word_embeddings", vocab, shape.hidden),
        towers.table("bert.embeddings.position_embeddings", limit, shape.hidden),
        *blocks.norm("bert.embeddings.LayerNorm", shape.hidden, bias=True),
    )
    return ModelSpec(
        name=name,
        model_type=config.str("model_type"),
        architecture=class_name,
        dtype=checkpoint_dtype(config),
        hidden_size=shape.hidden,
        vocab_size=vocab,
        num_heads=shape.num_heads,
        max_context_tokens=limit,
        layers=(_layer(shape, sight.hidden, positions),) * shape.num_layers,
        layer_prefix="text_decoder.bert.encoder.layer.",
        shared=towers.under("text_decoder.", (*bare, *head)),
        towers=(tower,),
        tied_embeddings=True,
    )


def _vision_tensors(vision: Config, shape: Shape, patch: int, positions: int) -> tuple[Tensor, ...]:
    return (
        towers.parameter("embeddings.class_embedding", 1, 1, shape.hidden),
        towers.parameter("embeddings.position_embedding", 1, positions, shape.hidden),
        *towers.conv("embeddings.patch_embedding", shape.hidden, 3, patch, patch, bias=True),
        *towers.stack("encoder.layers", towers.layer(_VISION_LAYER, shape), shape.num_layers),
        *blocks.norm("post_layernorm", shape.hidden, bias=True),
    )


def _layer(shape: Shape, source_width: int, source_tokens: int) -> Layer:
    width = shape.query_width // shape.num_heads
    return Layer(
        kind="decoder",
        caches=(
            FullAttention(shape.num_heads, width, width),
            CrossAttention(shape.num_heads, width, width, source_tokens),
        ),
        tensors=(
            *towers.layer(BERT, shape),
            *towers.attention(_CROSS, shape, BERT, source_width=source_width),
            *blocks.norm("crossattention.output.LayerNorm", shape.hidden, bias=True),
        ),
        query_width=shape.query_width,
        num_heads=shape.num_heads,
        mlp=Mlp(intermediate=shape.intermediate, gated=False),
    )
