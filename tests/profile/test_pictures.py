"""Pictures beside text, and noise: what models that see and denoise are trained on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from memplan.domain.dtypes import DType
from memplan.domain.timeline import PhaseMemory
from memplan.errors import UnsupportedModel, UsageError
from memplan.profile.request import TRAINING, ProfileRequest

pytest.importorskip("torch")
pytest.importorskip("transformers")

TEXT = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
}
MODELS: dict[str, dict[str, Any]] = {
    "patches": {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        **TEXT,
        "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
        "image_token_id": 511,
        "video_token_id": 510,
        "vision_start_token_id": 509,
        "vision_end_token_id": 508,
        "vision_config": {
            "depth": 2,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_heads": 4,
            "out_hidden_size": 64,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": 112,
            "fullatt_block_indexes": [1],
        },
    },
    "whole": {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "image_token_index": 511,
        "image_seq_length": 16,
        "text_config": {"model_type": "llama", **TEXT},
        "vision_config": {
            "model_type": "clip_vision_model",
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "image_size": 56,
            "patch_size": 14,
        },
        "vision_feature_layer": -2,
    },
}


def profiled(folder: Path, config: dict[str, Any], **fields: Any) -> dict[str, PhaseMemory]:
    from memplan.profile.run import profile_model

    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    usual: dict[str, Any] = {"phases": TRAINING, "prompt_tokens": 128, "dtype": DType.BF16, "offline": True}
    timeline, _ = profile_model(ProfileRequest(model=str(folder), **{**usual, **fields}))
    return {each.phase: each for each in timeline.phases}


@pytest.mark.parametrize("kind", MODELS)
def test_pictures_go_through_the_tower_and_are_kept_for_the_backward_pass(kind: str, tmp_path: Path) -> None:
    side = 112 if kind == "patches" else None
    without, one, two = (profiled(tmp_path, MODELS[kind], images=number, resolution=side) for number in (0, 1, 2))
    kept = [each["forward"].after.allocated_bytes for each in (without, one, two)]
    assert kept[0] < kept[1] < kept[2]


def test_patches_grow_with_the_resolution(tmp_path: Path) -> None:
    small, large = (profiled(tmp_path, MODELS["patches"], images=1, resolution=side) for side in (112, 224))
    assert small["forward"].peak.allocated_bytes < large["forward"].peak.allocated_bytes


def test_a_text_that_is_too_short_for_its_pictures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="do not fit into 128 tokens"):
        profiled(tmp_path, MODELS["patches"], images=2, resolution=448)


def test_a_model_of_one_size_of_pictures_takes_no_other(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="56 pixels alone"):
        profiled(tmp_path, MODELS["whole"], images=1, resolution=112)


def test_a_model_of_text_takes_no_pictures(tmp_path: Path) -> None:
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", **TEXT}
    with pytest.raises(UnsupportedModel, match="takes no pictures"):
        profiled(tmp_path, config, images=1)


DENOISERS: dict[str, dict[str, Any]] = {
    "FluxTransformer2DModel": {
        "num_layers": 1,
        "num_single_layers": 1,
        "attention_head_dim": 16,
        "num_attention_heads": 4,
        "joint_attention_dim": 32,
        "pooled_projection_dim": 32,
        "axes_dims_rope": [4, 6, 6],
        "guidance_embeds": True,
    },
    "SD3Transformer2DModel": {
        "num_layers": 2,
        "attention_head_dim": 16,
        "num_attention_heads": 4,
        "joint_attention_dim": 32,
        "caption_projection_dim": 64,
        "pooled_projection_dim": 32,
    },
    "PixArtTransformer2DModel": {
        "num_layers": 2,
        "attention_head_dim": 12,
        "num_attention_heads": 4,
        "cross_attention_dim": 48,
        "caption_channels": 32,
    },
    "DiTTransformer2DModel": {"num_layers": 2, "attention_head_dim": 16, "num_attention_heads": 4},
}


@pytest.mark.parametrize("name", DENOISERS)
def test_a_denoiser_takes_more_at_a_higher_resolution(name: str, tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    config = {"_class_name": name, **DENOISERS[name]}
    small, large = (profiled(tmp_path, config, resolution=side) for side in (128, 256))
    assert small["forward"].peak.allocated_bytes < large["forward"].peak.allocated_bytes
