"""Llama 3.2 Vision and Llama 4.

Source: transformers 5.23, `models/{mllama,llama4}/modeling_*.py`; what the largest image becomes: vLLM 0.10.2,
`model_executor/models/mllama.py` (the last release that served Llama 3.2 Vision), and 0.33.0, `mllama4.py`. Sixteen
tiles are the limit of Llama 4's preprocessor config.
"""

from __future__ import annotations

from memplan.domain.attention import CrossAttention
from memplan.domain.model import Layer, ModelSpec, Tower
from memplan.domain.tensors import Role, Tensor
from memplan.errors import UnsupportedModel
from memplan.introspect import blocks, towers
from memplan.introspect.blocks import Heads, read_heads
from memplan.introspect.config import Config
from memplan.introspect.families.nested import merged, read_language, wrap
from memplan.introspect.families.vision import grid_side
from memplan.introspect.towers import Style
from memplan.records import replace

_LLAMA4_TILES = 16
_EXTRA_TOKENS = 8  # rows of Llama 3.2 Vision's token table beyond its vocabulary
_LAYER = Style(
    attention=tuple(f"self_attn.{name}_proj" for name in "qkvo"),
    mlp=("mlp.fc1", "mlp.fc2"),
    norms=("input_layernorm", "post_attention_layernorm"),
)
_MLLAMA_LAYER = replace(_LAYER, qkv_bias=False, out_bias=False)
_MLLAMA_TEXT = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 40,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": False,
}


def mllama(config: Config, name: str) -> ModelSpec:
    """Llama 3.2 Vision: some layers attend to the image alone, and cache it once; the others are Llama's."""
    text_config = merged(config, "text_config", _MLLAMA_TEXT)
    text = read_language(
        Config({**config.raw(), "text_config": {**text_config.raw(), "model_type": "llama"}}, path=config.path), name
    )
    vision = merged(config, "vision_config", {})
    source_tokens = _mllama_tokens(vision)
    crossing = text_config.ints("cross_attention_layers", default=(3, 8, 13, 18, 23, 28, 33, 38))
    heads = read_heads(text_config)
    cross: dict[int, Layer] = {}  # by the plain layer that it replaces: equal layers stay one object
    layers = list(text.layers)
    for index in crossing:
        if not 0 <= index < len(layers):
            raise UnsupportedModel(f"config key `text_config.cross_attention_layers` names no layer: {index}")
        plain = layers[index]
        layers[index] = cross.setdefault(id(plain), _cross_layer(plain, heads, source_tokens))
    table = text.shared[0]
    table = replace(table, shape=(table.shape[0] + _EXTRA_TOKENS, table.shape[1]))
    text = replace(text, layers=tuple(layers), shared=(table, *text.shared[1:]))
    width = vision.int("vision_output_dim", default=7680)
    projector = towers.projector(towers.dense("multi_modal_projector", text.hidden_size, width))
    return wrap(config, text, (_mllama_tower(vision, source_tokens), projector), prefix="language_model.")


def llama4(config: Config, name: str) -> ModelSpec:
    """Llama 4: tiles of one size and the whole image, every 2 x 2 patches one token."""
    text = read_language(config, name, default_type="llama4_text")
    vision = merged(config, "vision_config", {})
    shape = towers.read_shape(vision, hidden=768, intermediate=5632, num_layers=34, num_heads=16)
    patch = towers.read_square(vision, "patch_size", 14)
    side = grid_side(towers.read_square(vision, "image_size", 448), patch)
    middle = vision.int("projector_input_dim", default=4096)
    width = vision.int("projector_output_dim", default=4096)
    per_tile = max(round(side**2 * vision.float("pixel_shuffle_ratio", default=0.5) ** 2), 1)
    tensors = (
        towers.parameter("class_embedding", shape.hidden),
        towers.parameter("positional_embedding_vlm", side**2 + 1, shape.hidden),
        *towers.dense(
            "patch_embedding.linear", shape.hidden, vision.int("num_channels", default=3) * patch**2, bias=False
        ),
        *blocks.norms(("layernorm_pre", "layernorm_post"), shape.hidden, bias=True),
        *towers.stack("model.layers", towers.layer(_LAYER, shape), shape.num_layers),
        *towers.bridge(
            ("vision_adapter.mlp.fc1", "vision_adapter.mlp.fc2"), (shape.intermediate, middle, width), bias=False
        ),
    )
    tiles = _LLAMA4_TILES + 1
    media = (towers.image(shape, tokens=tiles * per_tile, patches=tiles * (side**2 + 1)),)
    source = vision.int("vision_output_dim", default=7680)
    projector = towers.dense("multi_modal_projector.linear_1", text.hidden_size, source, bias=False)
    return wrap(
        config,
        text,
        (towers.tower(Role.VISION, "vision_model.", tensors, media=media), towers.projector(projector)),
        prefix="language_model.",
    )


def _mllama_side(vision: Config) -> int:
    return grid_side(towers.read_square(vision, "image_size", 448), towers.read_square(vision, "patch_size", 14))


def _mllama_tokens(vision: Config) -> int:
    """Vectors of one image: every tile's patches and class token."""
    return vision.int("max_num_tiles", default=4) * (_mllama_side(vision) ** 2 + 1)


def _cross_layer(plain: Layer, heads: Heads, source_tokens: int) -> Layer:
    """The layer with its self-attention replaced by attention to the image, behind gates that start closed."""
    kept = tuple(tensor for tensor in plain.tensors if not tensor.name.startswith("self_attn."))
    attention = blocks.attention(heads, prefix="cross_attn")
    norms = blocks.norms(("cross_attn.q_norm", "cross_attn.k_norm"), heads.key_width)
    gates = (towers.parameter("cross_attn_attn_gate", 1), towers.parameter("cross_attn_mlp_gate", 1))
    return replace(
        plain,
        kind="cross attention",
        caches=(CrossAttention(heads.num_kv_heads, heads.key_width, heads.value_width, source_tokens),),
        tensors=(*attention, *norms, *kept, *gates),
    )


def _mllama_tower(vision: Config, tokens: int) -> Tower:
    shape = towers.read_shape(vision, hidden=1280, intermediate=5120, num_layers=32, num_heads=16)
    hidden, tiles = shape.hidden, vision.int("max_num_tiles", default=4)
    patch = towers.read_square(vision, "patch_size", 14)
    positions = _mllama_side(vision) ** 2 + 1
    ratios = len(vision.list("supported_aspect_ratios", default=(None,) * 8)) + 1
    gates = (towers.parameter("gate_attn", 1), towers.parameter("gate_ffn", 1))
    num_global = vision.num_layers("num_global_layers", default=8)
    tensors = (
        towers.parameter("class_embedding", hidden),
        *towers.conv("patch_embedding", hidden, vision.int("num_channels", default=3), patch, patch),
        towers.parameter("gated_positional_embedding.gate", 1),
        towers.parameter("gated_positional_embedding.embedding", positions, hidden),
        towers.table("gated_positional_embedding.tile_embedding", ratios, tiles * positions * hidden),
        *_tile_embedding("pre_tile_positional_embedding", ratios, tiles * hidden),
        *_tile_embedding("post_tile_positional_embedding", ratios, tiles * hidden),
        *blocks.norms(("layernorm_pre", "layernorm_post"), hidden, bias=True),
        *towers.stack("transformer.layers", towers.layer(_MLLAMA_LAYER, shape), shape.num_layers),
        *towers.stack("global_transformer.layers", (*towers.layer(_MLLAMA_LAYER, shape), *gates), num_global),
    )
    whole = replace(shape, num_layers=shape.num_layers + num_global)
    media = (towers.image(whole, tokens=tokens, patches=tokens),)
    return towers.tower(Role.VISION, "vision_model.", tensors, media=media)


def _tile_embedding(name: str, rows: int, width: int) -> tuple[Tensor, ...]:
    return (towers.parameter(f"{name}.gate", 1), towers.table(f"{name}.embedding", rows, width))
