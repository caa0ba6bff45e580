"""Kimi-VL, Kimi K2.5 and Kimi K3: a MoonViT tower for any resolution, patches merged two by two, one projector.

Source: vLLM 0.33.0, `model_executor/models/{moonvit,kimi_vl,kimi_k25,kimi_k25_vit}.py` and
`models/kimi_k3/common/mm_preprocess.py`. The largest image follows from the size that vLLM profiles with and the patch
limits of the releases' preprocessor configs: 4,096 patches (Kimi-VL), 16,384 (K2.5, K2.6), 65,536 (K3).
"""

from __future__ import annotations

from memplan.domain.model import ModelSpec
from memplan.domain.tensors import Role, Tensor
from memplan.introspect import blocks, towers
from memplan.introspect.config import Config
from memplan.introspect.families.nested import merged, read_language, wrap
from memplan.introspect.towers import Shape, Style
from memplan.records import dataclass, replace

_BLOCK = Style(attention=("wqkv", "wo"), mlp=("mlp.fc0", "mlp.fc1"), norms=("norm0", "norm1"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Largest:
    """Tokens and patches of the largest image that vLLM profiles with."""

    tokens: int
    patches: int


_KIMI_VL = Largest(tokens=1089, patches=4356)  # 1,024 x 1,024 pixels under 4,096 patches
_KIMI_K25 = Largest(tokens=4225, patches=16900)  # 3,000 x 3,000 under 16,384
_KIMI_K3 = Largest(tokens=16817, patches=67268)  # the size with most tokens under 65,536


def kimi_vl(config: Config, name: str) -> ModelSpec:
    """Kimi-VL: MoonViT and a projector behind a norm."""
    vision = merged(config, "vision_config", {})
    shape = _shape(vision)
    text = read_language(config, name, default_type="deepseek_v3")
    width = shape.hidden * _merge(vision)
    projector = (
        *blocks.norm("multi_modal_projector.pre_norm", shape.hidden, bias=True),
        *towers.bridge(
            ("multi_modal_projector.linear_1", "multi_modal_projector.linear_2"), (width, width, text.hidden_size)
        ),
    )
    return _join(config, text, vision, shape, projector, _KIMI_VL)


def kimi_k25(config: Config, name: str) -> ModelSpec:
    """Kimi K2.5 and later K2 releases: MoonViT over chunks of four frames; positions in time are computed."""
    vision = merged(config, "vision_config", {})
    shape = _shape(vision)
    text = read_language(config, name, default_type="deepseek_v3")
    width = shape.hidden * _merge(vision)
    projector = (
        *blocks.norm("mm_projector.pre_norm", shape.hidden, bias=True),
        *towers.bridge(("mm_projector.proj.0", "mm_projector.proj.2"), (width, width, text.hidden_size)),
    )
    return _join(config, text, vision, shape, projector, _KIMI_K25)


def kimi_k3(config: Config, name: str) -> ModelSpec:
    """Kimi K3: no biases, RMS norms, attention wider than the tower, a norm after the projector."""
    vision = merged(config, "vision_config", {})
    shape = _shape(vision)
    text = read_language(config, name, default_type="kimi_linear")
    width = shape.hidden * _merge(vision)
    projector = (
        *towers.bridge(("mm_projector.proj.0", "mm_projector.proj.2"), (width, width, text.hidden_size), bias=False),
        *blocks.norm("mm_projector.post_norm", text.hidden_size),
    )
    return _join(config, text, vision, shape, projector, _KIMI_K3)


def _shape(vision: Config) -> Shape:
    """The tower's widths, with the prefix that K2.5 gives them or without."""
    num_heads = vision.int("vt_num_attention_heads", "num_attention_heads", default=16)
    hidden = vision.int("vt_hidden_size", "hidden_size", default=1152)
    inner = vision.int("qkv_hidden_size", default=hidden)
    return Shape(
        hidden=hidden,
        intermediate=vision.int("vt_intermediate_size", "intermediate_size", default=4304),
        num_layers=vision.num_layers("vt_num_hidden_layers", "num_hidden_layers", default=27),
        num_heads=num_heads,
        head_width=blocks.exact_div(inner, num_heads, "the tower's attention width", "heads"),
    )


def _merge(vision: Config) -> int:
    """Patches that become one token."""
    high, wide = (*vision.ints("merge_kernel_size", default=(2, 2)), 2, 2)[:2]
    return max(high, 1) * max(wide, 1)


def _tensors(vision: Config, shape: Shape) -> tuple[Tensor, ...]:
    patch = towers.read_square(vision, "patch_size", 14)
    high = vision.int("init_pos_emb_height", "pos_emb_height", default=64)
    wide = vision.int("init_pos_emb_width", "pos_emb_width", default=64)
    layer_norm = vision.str("norm_type", default="layernorm") == "layernorm"
    bias = vision.bool("attn_bias", default=True)
    style = replace(
        _BLOCK,
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=vision.bool("linear_bias", default=True),
        norm_bias=layer_norm,
    )
    proj_bias = vision.bool("patch_embed_proj_bias", default=True)
    return (
        *towers.conv("patch_embed.proj", shape.hidden, 3, patch, patch, bias=proj_bias),
        towers.parameter("patch_embed.pos_emb.weight", high, wide, shape.hidden),
        *towers.stack("encoder.blocks", towers.layer(style, shape), shape.num_layers),
        *blocks.norm("encoder.final_layernorm", shape.hidden, bias=layer_norm),
    )


def _join(
    config: Config,
    text: ModelSpec,
    vision: Config,
    shape: Shape,
    projector: tuple[Tensor, ...],
    largest: Largest,
) -> ModelSpec:
    media = (towers.image(shape, tokens=largest.tokens, patches=largest.patches),)
    tower = towers.tower(Role.VISION, "vision_tower.", _tensors(vision, shape), media=media)
    return wrap(config, text, (tower, towers.projector(projector)), prefix="language_model.")
