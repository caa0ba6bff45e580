"""Gemma 3 and Gemma 4 with their vision and audio towers.

Source: transformers 5.23, `models/{gemma3,gemma4}/modeling_*.py` for the tensors; vLLM 0.33.0,
`model_executor/models/{gemma3_mm,gemma4_mm}.py` for what the largest image, video or clip becomes. Gemma 4's clipping
bounds are buffers of one number each, and are left out.
"""

from __future__ import annotations

from memplan.domain.model import ModelSpec, Tower
from memplan.domain.tensors import Role, Tensor
from memplan.errors import UnsupportedModel
from memplan.introspect import blocks, towers
from memplan.introspect.config import Config
from memplan.introspect.families.nested import merged, read_language, wrap
from memplan.introspect.families.vision import read_vision
from memplan.introspect.towers import Shape, Style
from memplan.records import replace

_VIDEO_FRAMES = 32
_VIDEO_FRAME_TOKENS = 70
_AUDIO_TOKENS = 750
_GEMMA4_VISION = Style(
    attention=tuple(f"self_attn.{name}_proj.linear" for name in "qkvo"),
    mlp=tuple(f"mlp.{name}_proj.linear" for name in ("gate", "up", "down")),
    norms=(
        "input_layernorm",
        "post_attention_layernorm",
        "pre_feedforward_layernorm",
        "post_feedforward_layernorm",
    ),
    qkv_bias=False,
    out_bias=False,
    mlp_bias=False,
    norm_bias=False,
    head_norms=("self_attn.q_norm", "self_attn.k_norm"),
)
_GEMMA4_AUDIO_ATTENTION = Style(
    attention=(*(f"self_attn.{name}_proj.linear" for name in "qkv"), "self_attn.post.linear"),
    mlp=("feed_forward1.ffw_layer_1.linear", "feed_forward1.ffw_layer_2.linear"),
    norms=("norm_pre_attn", "norm_post_attn", "norm_out"),
    qkv_bias=False,
    out_bias=False,
    mlp_bias=False,
    norm_bias=False,
)


def gemma3(config: Config, name: str) -> ModelSpec:
    """Gemma 3: a SigLIP tower pooled to `mm_tokens_per_image` tokens. Pan and scan is off, as vLLM profiles it."""
    text = read_language(config, name, default_type="gemma3_text")
    vision = read_vision(merged(config, "vision_config", {}), default_type="siglip_vision_model")
    tokens = config.int("mm_tokens_per_image", default=256)
    media = (towers.image(vision.shape, tokens=tokens, patches=vision.patches),)
    projector = (
        towers.parameter("multi_modal_projector.mm_input_projection_weight", vision.shape.hidden, text.hidden_size),
        *blocks.norm("multi_modal_projector.mm_soft_emb_norm", vision.shape.hidden),
    )
    return wrap(
        config,
        text,
        (
            towers.tower(Role.VISION, "vision_tower.vision_model.", vision.tensors, media=media),
            towers.projector(projector),
        ),
        prefix="language_model.",
    )


def gemma4(config: Config, name: str) -> ModelSpec:
    """Gemma 4: a vision tower for any aspect ratio, and in the small models an audio conformer."""
    text = read_language(config, name, default_type="gemma4_text")
    parts: list[Tower] = []
    for key, build in (("vision_config", _gemma4_vision), ("audio_config", _gemma4_audio)):
        if config.has(key):
            tower, width = build(config.sub(key))
            name_of_map = f"model.embed_{key.removesuffix('_config')}.embedding_projection"
            parts += [tower, towers.projector(towers.dense(name_of_map, text.hidden_size, width, bias=False))]
    return wrap(config, text, tuple(parts), model="model.language_model")


def _gemma4_vision(config: Config) -> tuple[Tower, int]:
    """The vision tower and its output width. A video's frame takes 70 tokens and eight more that mark it."""
    shape = Shape(
        hidden=config.int("hidden_size", default=768),
        intermediate=config.int("intermediate_size", default=3072),
        num_layers=config.num_layers("num_hidden_layers", default=16),
        num_heads=config.int("num_attention_heads", default=12),
        head_width=config.int("head_dim", default=64),
        num_kv_heads=config.int("num_key_value_heads", default=12),
    )
    positions = config.int("position_embedding_size", default=10240)
    pixels = 3 * config.int("patch_size", default=16) ** 2
    standardized = ("std_bias", "std_scale") if config.bool("standardize", default=False) else ()
    tensors = (
        *(replace(towers.parameter(name, shape.hidden), is_buffer=True) for name in standardized),
        towers.parameter("patch_embedder.position_embedding_table", 2, positions, shape.hidden),
        *towers.dense("patch_embedder.input_proj", shape.hidden, pixels, bias=False),
        *towers.stack("encoder.layers", towers.layer(_GEMMA4_VISION, shape), shape.num_layers),
    )
    tokens = config.int("default_output_length", default=280)
    pooled = config.int("pooling_kernel_size", default=3) ** 2
    media = (
        towers.image(shape, tokens=tokens, patches=tokens * pooled),
        towers.video(
            shape,
            step_tokens=_VIDEO_FRAME_TOKENS + 8,
            step_patches=_VIDEO_FRAME_TOKENS * pooled,
            max_steps=_VIDEO_FRAMES,
            bounded=False,
        ),
    )
    return towers.tower(Role.VISION, "model.vision_tower.", tensors, media=media), shape.hidden


def _gemma4_audio(config: Config) -> tuple[Tower, int]:
    """The audio conformer and its output width. A clip is at most 750 tokens, the processor's `audio_seq_length`."""
    hidden = config.int("hidden_size", default=1024)
    shape = Shape(
        hidden=hidden,
        intermediate=4 * hidden,
        num_layers=config.num_layers("num_hidden_layers", default=12),
        num_heads=config.int("num_attention_heads", default=8),
    )
    channels = config.ints("subsampling_conv_channels", default=(128, 32))
    if len(channels) != 2 or min(channels) < 1:
        raise UnsupportedModel("config key `audio_config.subsampling_conv_channels` must be two positive whole numbers")
    width = config.int("output_proj_dims", default=1536)
    tensors = (
        *_subsampling("subsample_conv_projection", hidden, channels[0], channels[1]),
        *towers.stack("layers", _audio_layer(config, shape), shape.num_layers),
        *towers.dense("output_proj", width, hidden),
    )
    media = (towers.audio(shape, tokens=_AUDIO_TOKENS, patches=_AUDIO_TOKENS),)
    return towers.tower(Role.AUDIO, "model.audio_tower.", tensors, media=media), width


def _subsampling(prefix: str, hidden: int, first: int, second: int) -> tuple[Tensor, ...]:
    """Two strided convolutions over the mel bins, and the map into the tower."""
    return (
        *towers.conv(f"{prefix}.layer0.conv", first, 1, 3, 3),
        *blocks.norm(f"{prefix}.layer0.norm", first),
        *towers.conv(f"{prefix}.layer1.conv", second, first, 3, 3),
        *blocks.norm(f"{prefix}.layer1.norm", second),
        *towers.dense(f"{prefix}.input_proj_linear", hidden, first // 4 * second, bias=False),
    )


def _audio_layer(config: Config, shape: Shape) -> tuple[Tensor, ...]:
    """A conformer layer: half an MLP, attention with relative positions, a light convolution, the other half MLP."""
    hidden, kernel = shape.hidden, config.int("conv_kernel_size", default=5)
    second = ("feed_forward2.ffw_layer_1.linear", "feed_forward2.ffw_layer_2.linear")
    norms = tuple(f"feed_forward{half}.{side}_layer_norm" for half in (1, 2) for side in ("pre", "post"))
    return (
        *towers.layer(_GEMMA4_AUDIO_ATTENTION, shape),
        *towers.feed_forward(second, hidden, shape.intermediate, bias=False),
        *blocks.norms((*norms, "lconv1d.pre_layer_norm", "lconv1d.conv_norm"), hidden),
        towers.parameter("self_attn.per_dim_scale", hidden // shape.num_heads),
        *towers.dense("self_attn.relative_k_proj", hidden, hidden, bias=False),
        *towers.dense("lconv1d.linear_start.linear", 2 * hidden, hidden, bias=False),
        *towers.dense("lconv1d.linear_end.linear", hidden, hidden, bias=False),
        *towers.conv("lconv1d.depthwise_conv1d", hidden, 1, kernel),
    )
