"""Qwen with vision and audio: Qwen2-VL, 2.5-VL, 3-VL (and MoE), 3.5 (and MoE), Qwen2-Audio.

Source: transformers 5.23, `models/{qwen2_vl,qwen2_5_vl,qwen3_vl,qwen3_5,qwen2_audio}/modeling_*.py` for the tensors;
vLLM 0.33.0, `model_executor/models/{qwen2_vl,qwen3_vl,qwen2_audio}.py` for the largest input. The pixel limits stand in
the releases' preprocessor configs, not in `config.json`: 12,845,056 pixels an image (Qwen2-VL, 2.5-VL), 16,777,216 an
image and 25,165,824 a video (Qwen3-VL, 3.5). vLLM 0.11 and 0.12 profiled Qwen3-VL with that video; before 0.11 Qwen2-VL
videos had up to 16 frames, not 14.
"""

from __future__ import annotations

from math import isqrt

from memplan.domain.model import MediaInput, ModelSpec
from memplan.domain.tensors import Role, Tensor
from memplan.introspect import blocks, towers
from memplan.introspect.config import Config
from memplan.introspect.families.audio import encoder_shape, whisper_encoder
from memplan.introspect.families.nested import merged, read_language, wrap
from memplan.introspect.towers import TIMM, Shape, Style
from memplan.records import dataclass, replace

IMAGE_PIXELS = 12_845_056
_QWEN3_IMAGE_PIXELS = 16_777_216
_QWEN3_VIDEO_PIXELS = 25_165_824
_VIDEO_FRAMES = 14
AUDIO_TOKENS = 750  # 30 s of sound: 3,000 mel frames, halved by a convolution and again by pooling
AUDIO_FRAMES = 1500

QWEN2_5 = replace(TIMM, mlp=("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"), norm_bias=False)
_QWEN3 = replace(TIMM, mlp=("mlp.linear_fc1", "mlp.linear_fc2"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Patches:
    """How a Qwen tower cuts an image: `merge` x `merge` patches of `size` x `size` pixels become one token."""

    size: int
    merge: int
    frames: int
    channels: int

    def tokens(self, pixels: int) -> int:
        """The most tokens an image of at most `pixels` becomes, at an aspect ratio of at most 200."""
        most = max(pixels // (self.size * self.merge) ** 2, 1)
        return next((count for count in range(most, 0, -1) if _most_square(count) <= 200), 1)


def _most_square(count: int) -> float:
    """The least aspect ratio of a grid of `count` cells."""
    high = next(side for side in range(isqrt(count), 0, -1) if count % side == 0)
    return count / high**2


def qwen2_vl(config: Config, name: str) -> ModelSpec:
    """Qwen2-VL: the tower's `hidden_size` is what it hands on, `embed_dim` what it works in."""
    vision = merged(config, "vision_config", {})
    hidden = vision.int("embed_dim", default=1280)
    shape = Shape(
        hidden=hidden,
        intermediate=int(hidden * vision.float("mlp_ratio", default=4.0)),
        num_layers=vision.num_layers("depth", default=32),
        num_heads=vision.int("num_heads", default=16),
    )
    tensors = _qwen2_tensors(read_patches(vision), shape, TIMM, vision.int("hidden_size", default=3584))
    return _qwen2_model(config, name, shape, tensors, read_patches(vision))


def qwen2_5_vl(config: Config, name: str) -> ModelSpec:
    """Qwen2.5-VL: gated MLPs and RMS norms in the tower. Its window attention changes no size."""
    vision = merged(config, "vision_config", {})
    shape, tensors = qwen2_5_vision(vision)
    return _qwen2_model(config, name, shape, tensors, read_patches(vision))


def qwen3_vl(config: Config, name: str) -> ModelSpec:
    """Qwen3-VL and its MoE: features of several layers of the tower are handed on, each through a merger of its own."""
    default = "qwen3_vl_moe_text" if "moe" in config.str("model_type") else "qwen3_vl_text"
    return _qwen3_model(config, read_language(config, name, default_type=default), deepstack=(8, 16, 24))


def qwen3_5(config: Config, name: str) -> ModelSpec:
    """Qwen3.5 and 3.6, dense and MoE: Qwen3-VL's tower with a single merger, beside a hybrid language model."""
    default = "qwen3_5_moe_text" if "moe" in config.str("model_type") else "qwen3_5_text"
    return _qwen3_model(config, read_language(config, name, default_type=default), deepstack=())


def qwen4_exp(config: Config, name: str) -> ModelSpec:
    """Qwen4-Exp: Qwen3.5's tower beside its own language model."""
    return _qwen3_model(config, read_language(config, name, default_type="qwen4_exp_text"), deepstack=())


def qwen2_audio(config: Config, name: str) -> ModelSpec:
    """Qwen2-Audio: Whisper's encoder, pooled by two, and one linear map. vLLM holds the encoder whole on every rank."""
    text = read_language(config, name, default_type="qwen2")
    audio = merged(config, "audio_config", {})
    shape = encoder_shape(audio, hidden=1280, intermediate=5120, num_layers=32, num_heads=20)
    encoder = whisper_encoder(
        shape,
        mel_bins=audio.int("num_mel_bins", default=128),
        positions=audio.int("max_source_positions", default=1500),
    )
    media = (towers.audio(shape, tokens=AUDIO_TOKENS, patches=AUDIO_FRAMES),)
    projector = towers.dense("multi_modal_projector.linear", text.hidden_size, shape.hidden)
    return wrap(
        config,
        text,
        (towers.tower(Role.AUDIO, "audio_tower.", encoder, media=media, whole=True), towers.projector(projector)),
        prefix="language_model.",
    )


def read_patches(vision: Config) -> Patches:
    """The patch sizes of a tower's config."""
    return Patches(
        size=towers.read_square(vision, "patch_size", 14),
        merge=vision.int("spatial_merge_size", default=2),
        frames=vision.int("temporal_patch_size", default=2),
        channels=vision.int("in_channels", default=3),
    )


def qwen2_5_vision(vision: Config, style: Style = QWEN2_5) -> tuple[Shape, tuple[Tensor, ...]]:
    """The widths and tensors of Qwen2.5-VL's tower."""
    shape = towers.read_shape(vision, hidden=3584, intermediate=3420, num_layers=32, num_heads=16)
    return shape, _qwen2_tensors(read_patches(vision), shape, style, vision.int("out_hidden_size", default=3584))


def qwen2_media(shape: Shape, patches: Patches) -> tuple[MediaInput, ...]:
    """Image and video of Qwen2-VL and 2.5-VL: a video frame pair may be as large as the largest image."""
    tokens = patches.tokens(IMAGE_PIXELS)
    return (
        towers.image(shape, tokens=tokens, patches=tokens * patches.merge**2),
        towers.video(
            shape,
            step_tokens=tokens,
            step_patches=tokens * patches.merge**2,
            max_steps=max(_VIDEO_FRAMES // patches.frames, 1),
        ),
    )


def _qwen2_tensors(patches: Patches, shape: Shape, style: Style, width: int) -> tuple[Tensor, ...]:
    merged_width = shape.hidden * patches.merge**2
    kernel = (patches.frames, patches.size, patches.size)
    return (
        *towers.conv("patch_embed.proj", shape.hidden, patches.channels, *kernel),
        *towers.stack("blocks", towers.layer(style, shape), shape.num_layers),
        *blocks.norm("merger.ln_q", shape.hidden, bias=style.norm_bias),
        *towers.bridge(("merger.mlp.0", "merger.mlp.2"), (merged_width, merged_width, width)),
    )


def _qwen2_model(config: Config, name: str, shape: Shape, tensors: tuple[Tensor, ...], patches: Patches) -> ModelSpec:
    """The language model's keys stand in the wrapper itself, or in `text_config` since transformers 5."""
    text = read_language(config, name, default_type="qwen2")
    tower = towers.tower(Role.VISION, "visual.", tensors, media=qwen2_media(shape, patches))
    return wrap(config, text, (tower,))


def _qwen3_model(config: Config, text: ModelSpec, *, deepstack: tuple[int, ...]) -> ModelSpec:
    vision = merged(config, "vision_config", {"patch_size": 16})
    shape = towers.read_shape(vision, hidden=1152, intermediate=4304, num_layers=27, num_heads=16)
    patches = read_patches(vision)
    width = vision.int("out_hidden_size", default=3584)
    taps = len(vision.ints("deepstack_visual_indexes", default=deepstack))
    kernel = (patches.frames, patches.size, patches.size)
    tensors = (
        *towers.conv("patch_embed.proj", shape.hidden, patches.channels, *kernel, bias=True),
        towers.table("pos_embed", vision.int("num_position_embeddings", default=2304), shape.hidden),
        *towers.stack("blocks", towers.layer(_QWEN3, shape), shape.num_layers),
        *towers.under("merger.", _qwen3_merger(shape.hidden, patches.merge, width, after=False)),
        *towers.stack("deepstack_merger_list", _qwen3_merger(shape.hidden, patches.merge, width, after=True), taps),
    )
    image = patches.tokens(_QWEN3_IMAGE_PIXELS)
    video = patches.tokens(_QWEN3_VIDEO_PIXELS // patches.frames)
    media = (
        towers.image(shape, tokens=image, patches=image * patches.merge**2),
        towers.video(shape, step_tokens=video, step_patches=video * patches.merge**2, max_steps=1, bounded=False),
    )
    tower = towers.tower(Role.VISION, "model.visual.", tensors, media=media)
    return wrap(config, text, (tower,), model="model.language_model")


def _qwen3_merger(hidden: int, merge: int, width: int, *, after: bool) -> tuple[Tensor, ...]:
    """A merger of neighbouring patches; `after`: its norm works on the merged width."""
    merged_width = hidden * merge**2
    return (
        *blocks.norm("norm", merged_width if after else hidden, bias=True),
        *towers.bridge(("linear_fc1", "linear_fc2"), (merged_width, merged_width, width)),
    )
