"""Phi-3 Vision and Phi-3.5 Vision.

Source: microsoft's `modeling_phi3_v.py` and `image_embedding_phi3_v.py`; vLLM 0.33.0,
`model_executor/models/phi3v.py`. The tower is CLIP ViT-L/14 at 336 pixels, whole; sixteen crops are the limit of
Phi-3 Vision's preprocessor config.
"""

from __future__ import annotations

from memplan.domain.model import ModelSpec
from memplan.domain.tensors import Role
from memplan.errors import UnsupportedModel
from memplan.introspect import towers
from memplan.introspect.config import Config
from memplan.introspect.families.nested import read_language, wrap
from memplan.introspect.families.vision import clip

_CLIP_L_336 = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
}
_CROPS = 16


def phi3_v(config: Config, name: str) -> ModelSpec:
    """Phi-3 Vision: crops of 336 pixels, 2 x 2 patches one token, every row of tokens ended by a separator."""
    processor = config.sub("img_processor")
    if (kind := processor.str("name", default="clip_vision_model")) != "clip_vision_model":
        raise UnsupportedModel(f"config key `img_processor.name` names no tower that is known: `{kind}`")
    text = read_language(config, name, default_type="phi3", extra=_without_idle_window(config))
    vision = clip(Config(_CLIP_L_336, path="img_processor"))
    merged_width = processor.int("image_dim_out", default=1024) * 4
    side = vision.side // 2
    rows = (_CROPS + 1) * side
    media = (towers.image(vision.shape, tokens=rows * side + rows + 1, patches=(_CROPS + 1) * vision.patches),)
    embed = "model.vision_embed_tokens."
    projector = (
        towers.parameter(f"{embed}glb_GN", 1, 1, merged_width),
        towers.parameter(f"{embed}sub_GN", 1, 1, 1, merged_width),
        *towers.bridge(
            (f"{embed}img_projection.0", f"{embed}img_projection.2"), (merged_width, text.hidden_size, text.hidden_size)
        ),
    )
    tower = towers.tower(Role.VISION, f"{embed}img_processor.vision_model.", vision.tensors, media=media)
    return wrap(config, text, (tower, towers.projector(projector)))


def _without_idle_window(config: Config) -> dict[str, object]:
    """A window as long as the context never closes: the release's config has one, and its code windows no layer."""
    window = config.optional_int("sliding_window", minimum=1)
    limit = config.int("max_position_embeddings", default=4096)
    return {"sliding_window": None} if window and window >= limit else {}
