"""Diffusion pipelines: parts against diffusers' own modules, whole pipelines against published sizes, and bad input."""

import pytest

from memplan.domain.tensors import Role
from memplan.errors import UnsupportedModel
from memplan.introspect.config import Config
from memplan.introspect.families.diffusion import PARTS, build_pipeline

UNET_15 = {
    "block_out_channels": [320, 640, 1280, 1280],
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
    "down_block_types": [*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"],
    "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 3],
}
UNET_XL = {
    "block_out_channels": [320, 640, 1280],
    "cross_attention_dim": 2048,
    "attention_head_dim": [5, 10, 20],
    "transformer_layers_per_block": [1, 2, 10],
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
}
VAE = {
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "latent_channels": 4,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
CLIP_L = {
    "model_type": "clip_text_model",
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "torch_dtype": "float16",
}
CLIP_G = {
    **CLIP_L,
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "projection_dim": 1280,
}
SAFETY = {
    "model_type": "clip",
    "projection_dim": 768,
    "vision_config": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 224,
        "patch_size": 14,
    },
}
INDEX_15 = {
    "_class_name": "StableDiffusionPipeline",
    "feature_extractor": ["transformers", "CLIPImageProcessor"],
    "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
    "scheduler": ["diffusers", "PNDMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
CONFIGS_15 = {"unet": UNET_15, "vae": VAE, "text_encoder": CLIP_L, "safety_checker": SAFETY}
SMALL_UNET = {
    "block_out_channels": [32, 64],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    "layers_per_block": 1,
    "cross_attention_dim": 24,
    "attention_head_dim": 8,
    "norm_num_groups": 8,
}
SMALL_SD3 = {
    "num_layers": 4,
    "attention_head_dim": 16,
    "num_attention_heads": 4,
    "joint_attention_dim": 32,
    "caption_projection_dim": 64,
    "pooled_projection_dim": 24,
    "sample_size": 32,
    "pos_embed_max_size": 16,
    "out_channels": 16,
}
CASES: list[tuple[str, dict[str, object]]] = [
    ("UNet2DConditionModel", UNET_15),
    ("UNet2DConditionModel", UNET_XL),
    ("UNet2DConditionModel", {**SMALL_UNET, "time_cond_proj_dim": 16, "num_class_embeds": 5}),
    ("UNet2DConditionModel", {**SMALL_UNET, "layers_per_block": [1, 2], "transformer_layers_per_block": [1, 3]}),
    (
        "UNet2DConditionModel",
        {
            **SMALL_UNET,
            "mid_block_type": None,
            "class_embed_type": "projection",
            "projection_class_embeddings_input_dim": 10,
        },
    ),
    ("AutoencoderKL", VAE),
    ("AutoencoderKL", {}),
    ("SD3Transformer2DModel", SMALL_SD3),
    ("SD3Transformer2DModel", {**SMALL_SD3, "dual_attention_layers": [0, 1], "qk_norm": "rms_norm"}),
    ("FluxTransformer2DModel", {}),
    ("FluxTransformer2DModel", {"num_layers": 1, "num_single_layers": 2, "guidance_embeds": True}),
]


@pytest.mark.parametrize(("class_name", "keys"), CASES, ids=[case[0] for case in CASES])
def test_a_part_has_the_parameters_of_diffusers_module(class_name: str, keys: dict[str, object]) -> None:
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    with torch.device("meta"):
        module = getattr(diffusers, class_name).from_config(keys)
    tensors = PARTS[class_name](Config(keys, path="part"))
    assert sum(tensor.num_parameters for tensor in tensors) == sum(each.numel() for each in module.parameters())


def test_stable_diffusion_1_5_has_its_published_parts() -> None:
    spec = build_pipeline(INDEX_15, CONFIGS_15, "sd15")
    sizes = {tower.tensors[0].name.split("/")[0]: tower.num_parameters for tower in spec.towers}
    assert sizes == {
        "safety_checker": 303_981_588,
        "text_encoder": 123_060_480,
        "unet": 859_520_964,
        "vae": 83_653_863,
    }
    assert spec.parameters == 1_370_216_895
    assert (spec.layers, spec.is_generative, spec.architecture) == ((), False, "StableDiffusionPipeline")
    assert {tower.role for tower in spec.towers} == {Role.VISION, Role.ENCODER, Role.OTHER}


def test_stable_diffusion_xl_has_two_text_encoders() -> None:
    index = {
        "_class_name": "StableDiffusionXLPipeline",
        "text_encoder": ["transformers", "CLIPTextModel"],
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "image_encoder": [None, None],
    }
    configs = {"unet": UNET_XL, "vae": VAE, "text_encoder": CLIP_L, "text_encoder_2": CLIP_G}
    spec = build_pipeline(index, configs, "sdxl")
    assert [tower.num_parameters for tower in spec.towers] == [123_060_480, 694_659_840, 2_567_463_684, 83_653_863]
    assert spec.dtype.value == "float16"


def test_a_pipeline_without_a_part_s_config_says_which() -> None:
    configs = {part: config for part, config in CONFIGS_15.items() if part != "vae"}
    with pytest.raises(UnsupportedModel, match="no config for its part `vae`"):
        build_pipeline(INDEX_15, configs, "sd15")


def test_a_part_of_a_class_that_is_not_known_is_refused_by_name() -> None:
    index = {"transformer": ["diffusers", "SomeOtherTransformer2DModel"]}
    with pytest.raises(UnsupportedModel, match="SomeOtherTransformer2DModel"):
        build_pipeline(index, {"transformer": {}}, "new")


def test_an_index_without_parts_is_refused() -> None:
    with pytest.raises(UnsupportedModel, match="no part with weights"):
        build_pipeline({"_class_name": "X", "scheduler": ["diffusers", "DDIMScheduler"]}, {}, "empty")


@pytest.mark.parametrize("value", [None, "x", -1, 1.5, [], [0], {}, [None], True, 10**30])
@pytest.mark.parametrize("key", ["block_out_channels", "down_block_types", "cross_attention_dim", "layers_per_block"])
def test_a_damaged_unet_config_is_refused_or_read(key: str, value: object) -> None:
    try:
        spec = build_pipeline(INDEX_15, {**CONFIGS_15, "unet": {**UNET_15, key: value}}, "sd15")
    except UnsupportedModel:
        return
    assert spec.parameters > 0
