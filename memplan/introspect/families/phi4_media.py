"""Phi-4 Multimodal, in microsoft's own code (`phi4mm`) and in transformers (`phi4_multimodal`).

Source: microsoft's `modeling_phi4mm.py` and `speech_conformer_encoder.py`, transformers 5.23
`models/phi4_multimodal/modeling_phi4_multimodal.py`; vLLM 0.33.0, `model_executor/models/phi4mm.py`: an image has
up to 36 crops of 448 pixels, a clip 241,000 samples. The checkpoint also holds a LoRA for images and one for
speech, which vLLM does not load with it.
"""

from __future__ import annotations

from memplan.domain.model import Layer, ModelSpec, Tower
from memplan.domain.tensors import Role, Tensor
from memplan.errors import UnsupportedModel
from memplan.introspect import blocks, towers
from memplan.introspect.config import Config
from memplan.introspect.families.nested import merged, read_language, wrap
from memplan.introspect.families.vision import Vision, siglip
from memplan.introspect.towers import Shape
from memplan.records import dataclass, replace

_SIGLIP = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "image_size": 448,
    "patch_size": 14,
}
_CROPS = 36
_AUDIO_FRAMES = (241_000 - 400) // 160 + 1
_EXTEND = "model.embed_tokens_extend."


@dataclass(frozen=True, slots=True, kw_only=True)
class _Conformer:
    """The sizes of the audio encoder, however the config names them."""

    shape: Shape
    conv_width: int
    point_width: int
    depth_width: int
    multiplier: int
    kernel: int
    mel_bins: int
    reduction: int
    bias_rows: int
    stored_statistics: bool


def phi4_multimodal(config: Config, name: str) -> ModelSpec:
    """Phi-4 Multimodal as transformers lays it out."""
    part = merged(config, "audio_config", {})
    distance = part.int("bias_max_distance", default=1000)
    conformer = _Conformer(
        shape=towers.read_shape(
            Config({"num_hidden_layers": part.num_layers("num_blocks", default=24), **part.raw()}, path=part.path),
            hidden=1024,
            intermediate=1536,
            num_heads=16,
        ),
        conv_width=part.int("nemo_conv_channels", default=1024),
        point_width=part.int("ext_pw_out_channel", default=1024),
        depth_width=part.int("depthwise_separable_out_channel", default=1024),
        multiplier=part.int("depthwise_multiplier", default=1),
        kernel=part.int("kernel_size", default=3),
        mel_bins=part.int("input_size", default=80),
        reduction=part.int("time_reduction", default=8),
        bias_rows=distance if part.bool("bias_symmetric", default=False) else 2 * distance,
        stored_statistics=False,
    )
    return _join(config, _language(config, name), merged(config, "vision_config", _SIGLIP), conformer)


def phi4mm(config: Config, name: str) -> ModelSpec:
    """Phi-4 Multimodal in its own code: the audio encoder's sizes stand under `audio_processor.config`."""
    processor = config.sub("audio_processor").sub("config")
    bias = merged(processor, "relative_attention_bias_args", {})
    settings = merged(processor, "nemo_conv_settings", {})
    conformer = _Conformer(
        shape=Shape(
            hidden=processor.int("attention_dim", default=1024),
            intermediate=processor.int("linear_units", default=1536),
            num_layers=processor.num_layers("num_blocks", default=24),
            num_heads=processor.int("attention_heads", default=16),
        ),
        conv_width=settings.int("conv_channels", default=1024),
        point_width=processor.int("ext_pw_out_channel", default=1024),
        depth_width=processor.int("depthwise_seperable_out_channel", default=1024),
        multiplier=processor.int("depthwise_multiplier", default=1),
        kernel=processor.int("kernel_size", default=3),
        mel_bins=processor.int("input_size", default=80),
        reduction=processor.int("time_reduction", default=8),
        bias_rows=2 * bias.int("t5_bias_max_distance", default=500),
        stored_statistics=True,
    )
    text = _language(config, name)
    spec = _join(config, text, Config(_SIGLIP, path="img_processor"), conformer)
    adapters = tuple(_adapter(config, text, kind) for kind in ("vision", "speech") if config.has(f"{kind}_lora"))
    return replace(spec, towers=(*spec.towers, *adapters))


def _language(config: Config, name: str) -> ModelSpec:
    return read_language(config, name, default_type="phi3")


def _join(config: Config, text: ModelSpec, vision_config: Config, conformer: _Conformer) -> ModelSpec:
    vision = siglip(vision_config)
    image = f"{_EXTEND}image_embed."
    maps = (
        towers.parameter(f"{image}glb_GN", 1, 1, vision.shape.hidden),
        towers.parameter(f"{image}sub_GN", 1, 1, 1, vision.shape.hidden),
        *towers.bridge(
            (f"{image}img_projection.0", f"{image}img_projection.2"),
            (vision.shape.hidden, text.hidden_size, text.hidden_size),
        ),
    )
    media = (towers.image(vision.shape, tokens=_image_tokens(vision), patches=(_CROPS + 1) * vision.patches),)
    sight = towers.tower(Role.VISION, f"{image}img_processor.", vision.tensors, media=media, whole=True)
    return wrap(config, text, (sight, towers.projector(maps), *_hearing(conformer, text.hidden_size)))


def _image_tokens(vision: Vision) -> int:
    """Crops one above the other, every 2 x 2 patches a token and every row ended by one; the whole image before
    them.
    """
    side = vision.side // 2
    rows = (_CROPS + 1) * side
    return rows * side + rows + 1


def _hearing(conformer: _Conformer, hidden: int) -> tuple[Tower, Tower]:
    shape, audio = conformer.shape, f"{_EXTEND}audio_embed."
    tensors = (
        *_subsampling(conformer),
        towers.table("relative_attention_bias_layer.bias_values", conformer.bias_rows, shape.num_heads),
        *_statistics(conformer),
        *towers.stack("encoders", _layer(conformer), shape.num_layers),
    )
    tokens = -(-_AUDIO_FRAMES // conformer.reduction)
    media = (towers.audio(shape, tokens=tokens, patches=tokens),)
    maps = tuple(
        tensor
        for kind in ("speech", "vision")
        for tensor in towers.bridge(
            (f"{audio}audio_projection.{kind}.0", f"{audio}audio_projection.{kind}.2"), (shape.hidden, hidden, hidden)
        )
    )
    return towers.tower(Role.AUDIO, f"{audio}encoder.", tensors, media=media, whole=True), towers.projector(maps)


def _subsampling(conformer: _Conformer) -> tuple[Tensor, ...]:
    """A strided convolution, then pairs of a depthwise one and a pointwise one, until time is reduced."""
    steps = conformer.reduction.bit_length() - 1
    if 1 << steps != conformer.reduction or not 1 <= steps <= 16:
        raise UnsupportedModel(f"the audio encoder's time reduction is no power of two: {conformer.reduction}")
    width, bins = conformer.conv_width, conformer.mel_bins
    tensors = [*towers.conv("embed.conv.0", width, 1, 3, 3, bias=True)]
    for step in range(steps):
        bins = (bins + 1) // 2
        if step:
            tensors += towers.conv(f"embed.conv.{3 * step - 1}", width, 1, 3, 3, bias=True)
            tensors += towers.conv(f"embed.conv.{3 * step}", width, width, 1, 1, bias=True)
    return (*tensors, *towers.dense("embed.out", conformer.shape.hidden, width * bins))


def _statistics(conformer: _Conformer) -> tuple[Tensor, ...]:
    names = ("global_mean", "global_invstd") if conformer.stored_statistics else ()
    return tuple(
        replace(towers.parameter(f"encoder_embedding.{name}", conformer.mel_bins), is_buffer=True) for name in names
    )


def _layer(conformer: _Conformer) -> tuple[Tensor, ...]:
    """A conformer layer: half an MLP, attention, a gated convolution, the other half MLP."""
    shape, point = conformer.shape, conformer.point_width
    hidden, deep = shape.hidden, shape.hidden * conformer.multiplier
    halves = tuple(
        tensor
        for half in ("feed_forward_in", "feed_forward_out")
        for tensor in (
            *blocks.norm(f"{half}.layer_norm", hidden, bias=True),
            *towers.dense(f"{half}.gate_up_proj", 2 * shape.intermediate, hidden),
            *towers.dense(f"{half}.down_proj", hidden, shape.intermediate),
        )
    )
    return (
        *halves,
        *(tensor for part in "qkvo" for tensor in towers.dense(f"self_attn.{part}_proj", hidden, hidden)),
        *blocks.norms(("conv.layer_norm", "layer_norm_att", "layer_norm"), hidden, bias=True),
        towers.parameter("conv.glu.b1", 1, point, 1),
        towers.parameter("conv.glu.b2", 1, point, 1),
        *towers.conv("conv.glu.ext_pw_conv_1d", 2 * point, hidden, 1, bias=True),
        *towers.conv("conv.dw_sep_conv_1d.dw_conv", deep, 1, conformer.kernel, bias=True),
        *towers.conv("conv.dw_sep_conv_1d.pw_conv", conformer.depth_width, deep, 1, bias=True),
        *towers.conv("conv.ext_pw_conv_1d", point, hidden, 1, bias=True),
    )


def _adapter(config: Config, text: ModelSpec, kind: str) -> Tower:
    """A LoRA on every linear map of the language model."""
    rank = config.sub(f"{kind}_lora").int("r")
    tensors = towers.stack("model.layers", _low_rank(text.layers[0], rank, kind), text.num_layers)
    return towers.tower(Role.OTHER, "", tensors, optional=True)


def _low_rank(layer: Layer, rank: int, kind: str) -> tuple[Tensor, ...]:
    return tuple(
        towers.parameter(f"{tensor.name.removesuffix('.weight')}.lora_{side}.{kind}.weight", *shape)
        for tensor in layer.tensors
        if tensor.linear
        for side, shape in (("A", (rank, tensor.shape[1])), ("B", (tensor.shape[0], rank)))
    )
