"""Gemma 3n: MobileNetV5 for images, a conformer for sound, and a small vocabulary of soft tokens for each.

Source: transformers 5.23, `models/gemma3n/modeling_gemma3n.py`; vLLM 0.33.0, `model_executor/models/gemma3n_mm.py`:
an image becomes 256 tokens, a clip 188.
"""

from __future__ import annotations

from memplan.domain.model import ModelSpec, Tower
from memplan.domain.tensors import Role, Tensor
from memplan.errors import UnsupportedModel
from memplan.introspect import blocks, towers
from memplan.introspect.config import Config
from memplan.introspect.families import mobilenet
from memplan.introspect.families.nested import merged, read_language, wrap
from memplan.introspect.towers import Shape

_IMAGE_TOKENS, _AUDIO_TOKENS = 256, 188
_VISION_TOWER = "mobilenetv5_300m_enc"


def gemma3n(config: Config, name: str) -> ModelSpec:
    """The language model and both towers with their embedders."""
    text = read_language(config, name, default_type="gemma3n_text")
    hidden = text.hidden_size
    vision, audio = merged(config, "vision_config", {}), merged(config, "audio_config", {})
    if (tower := vision.str("architecture", default=_VISION_TOWER)) != _VISION_TOWER:
        raise UnsupportedModel(f"unknown vision tower: `{tower}`", hint="try --introspect torch")
    width, audio_width = (
        vision.int("hidden_size", default=mobilenet.WIDTH),
        audio.int("hidden_size", default=1536),
    )
    seen = Shape(hidden=width, intermediate=width, num_layers=1, num_heads=1)
    media = (towers.image(seen, tokens=_IMAGE_TOKENS, patches=_IMAGE_TOKENS),)
    parts = (
        towers.tower(Role.VISION, "model.vision_tower.timm_model.", mobilenet.mobilenet_v5(), media=media, whole=True),
        _embedder("model.embed_vision", vision.int("vocab_size", default=128), width, hidden),
        _hearing(audio, audio_width),
        _embedder("model.embed_audio", audio.int("vocab_size", default=128), audio_width, hidden),
    )
    return wrap(config, text, parts, model="model.language_model")


def _embedder(name: str, vocab: int, width: int, hidden: int) -> Tower:
    """The table of a medium's special tokens, norms for these and for the tower's output, one map."""
    return towers.projector(
        (
            towers.table(f"{name}.embedding", vocab, width),
            *blocks.norms((f"{name}.hard_embedding_norm", f"{name}.soft_embedding_norm"), width),
            *towers.dense(f"{name}.embedding_projection", hidden, width, bias=False),
        )
    )


def _hearing(config: Config, width: int) -> Tower:
    shape = Shape(
        hidden=width,
        intermediate=4 * width,
        num_layers=config.num_layers("conf_num_hidden_layers", default=12),
        num_heads=config.int("conf_num_attention_heads", default=8),
    )
    tensors = (
        *_subsampling(config, width),
        *towers.stack("conformer", _layer(shape, config.int("conf_conv_kernel_size", default=5)), shape.num_layers),
    )
    media = (towers.audio(shape, tokens=_AUDIO_TOKENS, patches=4 * _AUDIO_TOKENS),)
    return towers.tower(Role.AUDIO, "model.audio_tower.", tensors, media=media, whole=True)


def _subsampling(config: Config, width: int) -> tuple[Tensor, ...]:
    """Two convolutions that halve the mel bins each, and a map into the conformer."""
    channels = config.ints("sscp_conv_channel_size", default=(128, 32))
    if len(channels) != 2 or min(channels) < 1:
        raise UnsupportedModel("config key `audio_config.sscp_conv_channel_size` must be two positive whole numbers")
    bins = config.int("input_feat_size", default=128) // 4
    prefix = "subsample_conv_projection"
    return (
        *towers.conv(f"{prefix}.conv_0.conv", channels[0], 1, 3, 3),
        *blocks.norm(f"{prefix}.conv_0.norm", channels[0]),
        *towers.conv(f"{prefix}.conv_1.conv", channels[1], channels[0], 3, 3),
        *blocks.norm(f"{prefix}.conv_1.norm", channels[1]),
        *towers.dense(f"{prefix}.input_proj_linear", width, channels[1] * bins, bias=False),
    )


def _layer(shape: Shape, kernel: int) -> tuple[Tensor, ...]:
    """A conformer layer: half an MLP, attention, a light convolution, the other half MLP, a norm."""
    hidden = shape.hidden
    projections = tuple(f"attention.attn.{name}_proj" for name in "qkv")
    maps = (*projections, "attention.attn.relative_position_embedding.pos_proj", "attention.post")
    halves = ("ffw_layer_start", "ffw_layer_end")
    norms = (
        *(f"{half}.{side}_layer_norm" for half in halves for side in ("pre", "post")),
        "attention.pre_attn_norm",
        "attention.post_norm",
        "lconv1d.pre_layer_norm",
        "lconv1d.conv_norm",
        "norm",
    )
    return (
        *(t for name in maps for t in towers.dense(name, hidden, hidden, bias=False)),
        towers.parameter("attention.attn.per_dim_scale", hidden // shape.num_heads),
        *(
            tensor
            for half in halves
            for tensor in towers.feed_forward(
                (f"{half}.ffw_layer_1", f"{half}.ffw_layer_2"), hidden, shape.intermediate, bias=False
            )
        ),
        *towers.dense("lconv1d.linear_start", 2 * hidden, hidden, bias=False),
        *towers.conv("lconv1d.depthwise_conv1d", hidden, 1, kernel),
        *towers.dense("lconv1d.linear_end", hidden, hidden, bias=False),
        *blocks.norms(norms, hidden),
    )
