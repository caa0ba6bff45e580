"""Pictures beside text, as processors hand them to models of both, and noise for transformers that denoise.

Sizes follow from a config: how many tokens of the text stand for one picture, how patches are cut. Values do not matter
but for the tokens that stand for pictures, whose places a model looks up.

Sources: transformers 5.23, models/qwen2_5_vl, qwen3_vl, qwen3_5, glm4v (patches of all pictures in one tensor, with
their grid), llava, gemma3, internvl (pictures of one size); diffusers 0.42, models/transformers/transformer_flux.py,
transformer_sd3.py, pixart_transformer_2d.py, dit_transformer_2d.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from memplan.errors import UnsupportedModel, UsageError
from memplan.profile.request import ProfileRequest
from memplan.profile.subject import Subject
from memplan.profile.values import with_value

_LATENT_RATIO = 8
_USUAL_SIDE = 448
_MOST_CONDITIONS = {"FluxTransformer2DModel": 512, "SD3Transformer2DModel": 333, "PixArtTransformer2DModel": 300}
_USUAL_LATENTS = 128  # 1,024 pixels


def text_with_pictures(subject: Subject, request: ProfileRequest) -> dict[str, Any]:
    """Tokens, of which those at the beginning of every text stand for its pictures, and the pictures.

    Raises: UnsupportedModel for a model that takes no pictures in a known way; UsageError for a text that is too short.
    """
    config = subject.config
    vision = getattr(config, "vision_config", None)
    token = getattr(config, "image_token_id", None)
    token = getattr(config, "image_token_index", None) if token is None else token
    if vision is None or token is None:
        raise UnsupportedModel(f"{subject.name} takes no pictures beside text", hint="leave out --images")
    is_patched = hasattr(vision, "spatial_merge_size") and hasattr(vision, "temporal_patch_size")
    made, each = (_patches if is_patched else _whole)(subject, request, vision)
    count = each * request.images
    if count > request.prompt_tokens:
        raise UsageError(
            f"{request.images} pictures of {each:,} tokens do not fit into {request.prompt_tokens:,} tokens",
            hint=f"give --seq-len {count + 1} or more, or a smaller --resolution",
        )
    tokens = torch.zeros((request.batch, request.prompt_tokens), dtype=torch.long)
    tokens[:, :count] = int(token)
    made["input_ids"] = with_value(tokens, subject.device)
    made["attention_mask"] = with_value(torch.ones_like(tokens), subject.device)
    if is_patched:
        made["mm_token_type_ids"] = with_value((tokens == int(token)).int(), subject.device)
    return made


def _patches(subject: Subject, request: ProfileRequest, vision: Any) -> tuple[dict[str, Any], int]:
    """All patches in one tensor of rows, with the grid of every picture; positions are those of three axes."""
    merged = int(vision.spatial_merge_size)
    side = max((request.resolution or _USUAL_SIDE) // (int(vision.patch_size) * merged), 1) * merged
    number = request.images * request.batch
    channels = int(getattr(vision, "in_channels", None) or getattr(vision, "in_chans", None) or 3)
    width = channels * int(vision.temporal_patch_size) * int(vision.patch_size) ** 2
    grid = torch.tensor([[1, side, side]] * number)
    places = (3, request.batch, request.prompt_tokens)
    made = {
        "pixel_values": torch.ones((number * side * side, width), dtype=torch.float32, device=subject.device),
        "image_grid_thw": with_value(grid, subject.device),
        "position_ids": torch.zeros(places, dtype=torch.long, device=subject.device),
    }
    return made, side * side // merged**2


def _whole(subject: Subject, request: ProfileRequest, vision: Any) -> tuple[dict[str, Any], int]:
    """Pictures of the model's own size."""
    own = getattr(vision, "image_size", None)
    own = own[0] if isinstance(own, (list, tuple)) else own
    if own is None:
        raise UnsupportedModel(f"pictures are not made for {subject.name}", hint="leave out --images")
    if request.resolution not in (None, own):
        raise UsageError(
            f"{subject.name} takes pictures of {own} pixels alone: {request.resolution}",
            hint=f"give --resolution {own}",
        )
    patch = vision.patch_size[0] if isinstance(vision.patch_size, (list, tuple)) else vision.patch_size
    each = getattr(subject.config, "mm_tokens_per_image", None) or getattr(subject.config, "image_seq_length", None)
    channels = int(getattr(vision, "num_channels", 3))
    shape = (request.images * request.batch, channels, own, own)
    made = {"pixel_values": torch.ones(shape, dtype=torch.float32, device=subject.device)}
    return made, int(each or (own // patch) ** 2)


def noise_inputs(subject: Subject, request: ProfileRequest) -> dict[str, Any] | None:
    """What a transformer that denoises takes: noise of the latents' size, the step, and what it is told of a prompt.

    None for other denoisers.
    """
    maker = _NOISE.get(subject.architecture)
    if maker is None:
        return None
    config = subject.config
    side = request.resolution // _LATENT_RATIO if request.resolution else getattr(config, "sample_size", None)
    return maker(subject, config, request.batch, int(side or _USUAL_LATENTS))


def _ones(subject: Subject, *shape: int) -> torch.Tensor:
    return torch.ones(shape, dtype=subject.dtype, device=subject.device)


def _flux(subject: Subject, config: Any, batch: int, side: int) -> dict[str, Any]:
    """Latents in patches of two by two, packed."""
    rows, told = (side // 2) ** 2, _MOST_CONDITIONS["FluxTransformer2DModel"]
    made = {
        "hidden_states": _ones(subject, batch, rows, int(config.in_channels)),
        "encoder_hidden_states": _ones(subject, batch, told, int(config.joint_attention_dim)),
        "pooled_projections": _ones(subject, batch, int(config.pooled_projection_dim)),
        "timestep": _ones(subject, batch),
        "img_ids": _ones(subject, rows, 3),
        "txt_ids": _ones(subject, told, 3),
    }
    return {**made, "guidance": _ones(subject, batch)} if config.guidance_embeds else made


def _sd3(subject: Subject, config: Any, batch: int, side: int) -> dict[str, Any]:
    told = _MOST_CONDITIONS["SD3Transformer2DModel"]
    return {
        "hidden_states": _ones(subject, batch, int(config.in_channels), side, side),
        "encoder_hidden_states": _ones(subject, batch, told, int(config.joint_attention_dim)),
        "pooled_projections": _ones(subject, batch, int(config.pooled_projection_dim)),
        "timestep": _ones(subject, batch),
    }


def _pixart(subject: Subject, config: Any, batch: int, side: int) -> dict[str, Any]:
    told = _MOST_CONDITIONS["PixArtTransformer2DModel"]
    return {
        "hidden_states": _ones(subject, batch, int(config.in_channels), side, side),
        "encoder_hidden_states": _ones(subject, batch, told, int(config.caption_channels)),
        "timestep": _ones(subject, batch),
        "added_cond_kwargs": {"resolution": _ones(subject, batch, 2), "aspect_ratio": _ones(subject, batch, 1)},
    }


def _dit(subject: Subject, config: Any, batch: int, side: int) -> dict[str, Any]:
    places = torch.zeros((batch,), dtype=torch.long, device=subject.device)
    hidden = _ones(subject, batch, int(config.in_channels), side, side)
    return {"hidden_states": hidden, "timestep": places, "class_labels": places.clone()}


_NOISE: dict[str, Callable[[Subject, Any, int, int], dict[str, Any]]] = {
    "FluxTransformer2DModel": _flux,
    "SD3Transformer2DModel": _sd3,
    "PixArtTransformer2DModel": _pixart,
    "DiTTransformer2DModel": _dit,
}
