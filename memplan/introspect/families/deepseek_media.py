"""DeepSeek-VL2, DeepSeek-OCR and DeepSeek-OCR 2, which share one `model_type`.

Source: deepseek-ai's `modeling_deepseek_vl_v2.py`, `deepencoder.py` and `deepencoderv2.py`; vLLM 0.33.0,
`model_executor/models/{deepseek_vl2,deepencoder,deepseek_ocr,deepseek_ocr2}.py`. The towers are named by the config,
not described: SigLIP SO400M at 384 pixels; SAM ViT-B before CLIP ViT-L/14; SAM ViT-B before Qwen2 0.5B used as an
encoder.
"""

from __future__ import annotations

from memplan.domain.model import MediaInput, ModelSpec, Tower
from memplan.domain.tensors import Role, Tensor
from memplan.errors import UnsupportedModel
from memplan.introspect import blocks, towers
from memplan.introspect.blocks import Heads
from memplan.introspect.config import Config
from memplan.introspect.families.nested import merged, read_language, wrap
from memplan.introspect.towers import TIMM, Shape, Style

_SO400M = Shape(hidden=1152, intermediate=4304, num_layers=27, num_heads=16)
_SO400M_SIDE = 27
_SAM = Shape(hidden=768, intermediate=3072, num_layers=12, num_heads=12)
_SAM_GLOBAL, _SAM_WINDOW, _SAM_GRID = 4, 14, 64
_SAM_LAYER = Style(attention=("attn.qkv", "attn.proj"), mlp=("mlp.lin1", "mlp.lin2"), norms=("norm1", "norm2"))
_CLIP_L = Shape(hidden=1024, intermediate=4096, num_layers=24, num_heads=16)
_CLIP_LAYER = Style(
    attention=("self_attn.qkv_proj", "self_attn.out_proj"),
    mlp=("mlp.fc1", "mlp.fc2"),
    norms=("layer_norm1", "layer_norm2"),
)
_QWEN_HEADS = Heads(hidden=896, num_heads=14, num_kv_heads=2, key_width=64, value_width=64)
_QWEN_LAYERS, _QWEN_INNER = 24, 4864
_QWEN_QUERIES = {768: 144, 1024: 256}  # by the side of the view in pixels


def deepseek_vl_v2(config: Config, name: str) -> ModelSpec:
    """One of the three, by the name of the vision tower."""
    vision = config.sub("vision_config")
    tower = vision.str("model_name", default="siglip_so400m_patch14_384")
    text = read_language(config, name, keys=("language_config", "text_config"), default_type="deepseek_v2")
    if tower == "siglip_so400m_patch14_384":
        return _vl2(config, text)
    if tower == "deeplip_b_l":
        return _ocr(config, text)
    if tower == "deepencoderv2":
        return _ocr2(config, text)
    raise UnsupportedModel(f"unknown vision tower: `{tower}`", hint="try --introspect torch")


def _vl2(config: Config, text: ModelSpec) -> ModelSpec:
    """DeepSeek-VL2: up to nine tiles and the whole image; 2 x 2 patches one token, every row ended by a newline."""
    projector_config = merged(config, "projector_config", {})
    if (kind := projector_config.str("projector_type", default="downsample_mlp_gelu")) != "downsample_mlp_gelu":
        raise UnsupportedModel(f"config key `projector_config.projector_type` is not known here: `{kind}`")
    if config.str("tile_tag", default="2D") != "2D":
        raise UnsupportedModel("config key `tile_tag` must be `2D`")
    depth = projector_config.num_layers("depth", default=2)
    middle = text.hidden_size * projector_config.int("mlp_ratio", default=1)
    maps = [*towers.dense("projector.layers.0", middle, 4 * _SO400M.hidden)]
    for index in range(1, depth - 1):
        maps += towers.dense(f"projector.layers.{2 * index}", middle, middle)
    maps += towers.dense(f"projector.layers.{2 * (depth - 1)}", text.hidden_size, middle)
    marks = (
        towers.parameter("image_newline", text.hidden_size),
        towers.parameter("view_seperator", text.hidden_size),
    )
    sight = timm_siglip(_SO400M, patch=14, positions=_SO400M_SIDE**2)
    tower = towers.tower(Role.VISION, "vision.", sight, media=(_vl2_image(config),), whole=True)
    return wrap(config, text, (tower, towers.projector((*maps, *marks))), prefix="language.")


def _vl2_image(config: Config) -> MediaInput:
    """The candidate resolution that becomes most tokens."""
    side = (_SO400M_SIDE + 1) // 2
    most, tiles = 0, 1
    for pair in config.list("candidate_resolutions", default=((384, 384),)):
        good = isinstance(pair, (list, tuple)) and len(pair) == 2 and all(type(each) is int for each in pair)
        if not good or not isinstance(pair, (list, tuple)):
            raise UnsupportedModel("config key `candidate_resolutions` must be a list of pairs of whole numbers")
        high, wide = max(pair[0] // 384, 1), max(pair[1] // 384, 1)
        if (tokens := high * side * (wide * side + 1)) > most:
            most, tiles = tokens, high * wide
    return towers.image(_SO400M, tokens=most + side * (side + 1) + 1, patches=(tiles + 1) * _SO400M_SIDE**2)


def timm_siglip(shape: Shape, *, patch: int, positions: int) -> tuple[Tensor, ...]:
    """A SigLIP tower under timm's names, with its attention pooling."""
    width, inner = shape.hidden, shape.intermediate
    return (
        *towers.conv("patch_embed.proj", width, 3, patch, patch, bias=True),
        towers.parameter("pos_embed", 1, positions, width),
        *towers.stack("blocks", towers.layer(TIMM, shape), shape.num_layers),
        *blocks.norm("norm", width, bias=True),
        towers.parameter("attn_pool.latent", 1, 1, width),
        *towers.dense("attn_pool.q", width, width),
        *towers.dense("attn_pool.kv", 2 * width, width),
        *towers.dense("attn_pool.proj", width, width),
        *blocks.norm("attn_pool.norm", width, bias=True),
        *towers.dense("attn_pool.mlp.fc1", inner, width),
        *towers.dense("attn_pool.mlp.fc2", width, inner),
    )


def _ocr(config: Config, text: ModelSpec) -> ModelSpec:
    """DeepSeek-OCR: SAM over a 1,024 pixel view and tiles of 640, its output read by CLIP, both joined in one map."""
    width = _CLIP_L.hidden
    clip = (
        towers.parameter("embeddings.class_embedding", width),
        *towers.conv("embeddings.patch_embedding", width, 3, 14, 14),
        towers.table("embeddings.position_embedding", 257, width),
        *blocks.norm("pre_layrnorm", width, bias=True),
        *towers.stack("transformer.layers", towers.layer(_CLIP_LAYER, _CLIP_L), _CLIP_L.num_layers),
    )
    projector = (
        *towers.dense("model.projector.layers", text.hidden_size, 2 * width),
        towers.parameter("model.image_newline", text.hidden_size),
        towers.parameter("model.view_seperator", text.hidden_size),
    )
    tokens = 16 * 17 + 20 * 21 + 1
    return wrap(
        config,
        text,
        (
            _sam(last=1024, tokens=tokens, patches=_SAM_GRID**2 + 4 * 40**2),
            towers.tower(Role.VISION, "model.vision_model.", clip),
            towers.projector(projector),
        ),
    )


def _ocr2(config: Config, text: ModelSpec) -> ModelSpec:
    """DeepSeek-OCR 2: a small Qwen2 reads SAM's output and as many learned queries, which become the tokens."""
    hidden = _QWEN_HEADS.hidden
    layer = (
        *blocks.attention(_QWEN_HEADS, qkv_bias=True),
        *blocks.mlp(hidden, _QWEN_INNER),
        *blocks.norms(("input_layernorm", "post_attention_layernorm"), hidden),
    )
    reader = (
        *towers.stack("model.model.layers", layer, _QWEN_LAYERS),
        *blocks.norm("model.model.norm", hidden),
        *(towers.table(f"query_{side}", count, hidden) for side, count in _QWEN_QUERIES.items()),
    )
    projector = (
        *towers.dense("model.projector.layers", text.hidden_size, hidden),
        towers.parameter("model.view_seperator", text.hidden_size),
    )
    tokens = 16 * 16 + 24 * 24 + 1
    return wrap(
        config,
        text,
        (
            _sam(last=hidden, tokens=tokens, patches=_SAM_GRID**2 + 4 * 48**2),
            towers.tower(Role.VISION, "model.qwen2_model.", reader),
            towers.projector(projector),
        ),
    )


def _sam(*, last: int, tokens: int, patches: int) -> Tower:
    """SAM's ViT-B: most layers attend within windows, four to the whole grid, both with relative positions.

    Two strided convolutions behind it leave a sixteenth of the patches, `last` wide.
    """
    width, head = _SAM.hidden, _SAM.hidden // _SAM.num_heads
    windowed = _SAM.num_layers - _SAM_GLOBAL
    tensors = (
        towers.parameter("pos_embed", 1, _SAM_GRID, _SAM_GRID, width),
        *towers.conv("patch_embed.proj", width, 3, 16, 16, bias=True),
        *towers.stack("blocks", (*towers.layer(_SAM_LAYER, _SAM), *_relative(_SAM_WINDOW, head)), windowed),
        *towers.stack("blocks", (*towers.layer(_SAM_LAYER, _SAM), *_relative(_SAM_GRID, head)), _SAM_GLOBAL),
        *towers.conv("neck.0", 256, width, 1, 1),
        *blocks.norm("neck.1", 256, bias=True),
        *towers.conv("neck.2", 256, 256, 3, 3),
        *blocks.norm("neck.3", 256, bias=True),
        *towers.conv("net_2", 512, 256, 3, 3),
        *towers.conv("net_3", last, 512, 3, 3),
    )
    media = (towers.image(_SAM, tokens=tokens, patches=patches),)
    return towers.tower(Role.VISION, "model.sam_model.", tensors, media=media, whole=True)


def _relative(reach: int, width: int) -> tuple[Tensor, ...]:
    return tuple(towers.parameter(f"attn.rel_pos_{axis}", 2 * reach - 1, width) for axis in "hw")
