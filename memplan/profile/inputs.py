"""What a model is given to run on: tokens, pictures, sound, noise, of the sizes that a request names.

Values do not matter to memory, so tokens are zeros and pictures are noise of one value; shapes are what a data loader
or a pipeline would hand over.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch

from memplan.errors import UnsupportedModel
from memplan.profile.pictures import noise_inputs, text_with_pictures
from memplan.profile.request import ProfileRequest
from memplan.profile.subject import Subject

_SOUND_FRAMES = 3000
_SOUND_SAMPLES = 160_000  # ten seconds
_DEFAULT_RESOLUTION = 224
_LATENT_RATIO = 8


def training_inputs(subject: Subject, request: ProfileRequest) -> dict[str, Any]:
    """Inputs of one forward pass, with labels where the model computes its own loss."""
    if request.images:
        made = text_with_pictures(subject, request)
    else:
        made = _MAKERS[subject.kind](subject, request)
    if request.trains and _computes_loss(subject):
        labels = _labels(subject, made)
        if labels is not None:
            made["labels"] = labels
    return made


def prompt(subject: Subject, request: ProfileRequest) -> dict[str, torch.Tensor]:
    """What generation begins with: tokens and their mask, or what an encoder reads."""
    if subject.kind == "encoder_decoder":
        made = _encoder_side(subject, request)
        return {name: each for name, each in made.items() if isinstance(each, torch.Tensor)}
    return _text(subject, request)


def _tokens(subject: Subject, batch: int, length: int) -> torch.Tensor:
    return torch.zeros((batch, length), dtype=torch.long, device=subject.device)


def _text(subject: Subject, request: ProfileRequest) -> dict[str, Any]:
    tokens = _tokens(subject, request.batch, request.prompt_tokens)
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}


def _encoder_side(subject: Subject, request: ProfileRequest) -> dict[str, Any]:
    if subject.model.main_input_name == "input_features":
        bins = int(getattr(subject.config, "num_mel_bins", 80))
        shape = (request.batch, bins, _SOUND_FRAMES)
        return {"input_features": torch.ones(shape, dtype=subject.dtype, device=subject.device)}
    return _text(subject, request)


def _encoder_decoder(subject: Subject, request: ProfileRequest) -> dict[str, Any]:
    made = _encoder_side(subject, request)
    if not request.trains:
        made["decoder_input_ids"] = _tokens(subject, request.batch, request.output_tokens)
    else:
        made["labels"] = _tokens(subject, request.batch, request.output_tokens)
    return made


def _picture(subject: Subject, request: ProfileRequest) -> torch.Tensor:
    config = getattr(subject.config, "vision_config", None) or subject.config
    side = request.resolution or getattr(config, "image_size", None) or _DEFAULT_RESOLUTION
    height, width = side if isinstance(side, (list, tuple)) else (side, side)
    shape = (request.batch, int(getattr(config, "num_channels", 3)), int(height), int(width))
    return torch.ones(shape, dtype=torch.float32, device=subject.device)


def _vision(subject: Subject, request: ProfileRequest) -> dict[str, Any]:
    made: dict[str, Any] = {"pixel_values": _picture(subject, request)}
    if "input_ids" in _parameters(subject) and hasattr(
        subject.config, "text_config"
    ):  # a model of pictures and texts that belong together, such as CLIP
        longest = int(getattr(subject.config.text_config, "max_position_embeddings", request.prompt_tokens))
        tokens = _tokens(subject, request.batch, min(request.prompt_tokens, longest))
        made |= {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
        if request.trains and "return_loss" in _parameters(subject):
            made["return_loss"] = True
    return made


def _sound(subject: Subject, request: ProfileRequest) -> dict[str, Any]:
    shape = (request.batch, _SOUND_SAMPLES)
    return {"input_values": torch.ones(shape, dtype=subject.dtype, device=subject.device)}


def _denoiser(subject: Subject, request: ProfileRequest) -> dict[str, Any]:
    others = noise_inputs(subject, request)
    if others is not None:
        return others
    config = subject.config
    side = request.resolution // _LATENT_RATIO if request.resolution else int(_first(config.sample_size))
    shape = (request.batch, int(config.in_channels), side, side)
    made: dict[str, Any] = {
        "sample": torch.ones(shape, dtype=subject.dtype, device=subject.device),
        "timestep": torch.ones((request.batch,), dtype=torch.long, device=subject.device),
    }
    width = _first(getattr(config, "cross_attention_dim", None))
    if width is not None:
        size = (request.batch, min(request.prompt_tokens, 77), int(width))
        made["encoder_hidden_states"] = torch.ones(size, dtype=subject.dtype, device=subject.device)
    if getattr(config, "addition_embed_type", None) == "text_time":
        pooled = int(config.projection_class_embeddings_input_dim) - 6 * int(config.addition_time_embed_dim)
        made["added_cond_kwargs"] = {
            "text_embeds": torch.ones((request.batch, pooled), dtype=subject.dtype, device=subject.device),
            "time_ids": torch.ones((request.batch, 6), dtype=subject.dtype, device=subject.device),
        }
    return made


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, (list, tuple)) else value


def _parameters(subject: Subject) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(type(subject.model).forward).parameters


def _computes_loss(subject: Subject) -> bool:
    return "labels" in _parameters(subject)


def _labels(subject: Subject, made: dict[str, Any]) -> torch.Tensor | None:
    if "labels" in made:
        return made["labels"]
    if subject.kind == "vision" and "input_ids" in made:
        return made["input_ids"].clone()
    if subject.kind == "sound":
        return None
    if subject.kind == "vision":
        return _tokens(subject, made["pixel_values"].shape[0], 1)[:, 0].contiguous()
    if "Classification" in subject.architecture and "Token" not in subject.architecture:
        return _tokens(subject, made["input_ids"].shape[0], 1)[:, 0].contiguous()
    return made["input_ids"].clone()


def require_text(subject: Subject) -> None:
    """Refuse to write text with a model that does not. Raises: UnsupportedModel."""
    if subject.kind not in ("decoder", "encoder_decoder"):
        raise UnsupportedModel(
            f"`{subject.name}` writes no text, so it has no prefill and no decode", hint="ask for --phase forward"
        )


_MAKERS = {
    "decoder": _text,
    "encoder": _text,
    "encoder_decoder": _encoder_decoder,
    "vision": _vision,
    "sound": _sound,
    "denoiser": _denoiser,
}
