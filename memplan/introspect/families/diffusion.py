"""Diffusion pipelines: every part with weights becomes a tower, from `model_index.json` and the parts' own configs.

Source: the layout of diffusers 0.42 pipelines; transformers' classes are read by their own families. The function below
takes parsed JSON and reads no file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from memplan.domain.dtypes import DType
from memplan.domain.model import ModelSpec, Tower
from memplan.domain.tensors import Role, Tensor
from memplan.errors import UnsupportedModel
from memplan.introspect import towers
from memplan.introspect.config import Config
from memplan.introspect.families import FAMILIES, load_family
from memplan.introspect.families.decoder import checkpoint_dtype
from memplan.introspect.families.diffusion_transformer import flux_transformer, sd3_transformer
from memplan.introspect.families.diffusion_unet import unet_2d_condition
from memplan.introspect.families.diffusion_vae import autoencoder_kl
from memplan.introspect.families.nested import merged
from memplan.introspect.families.vision import clip

PARTS: Mapping[str, Callable[[Config], tuple[Tensor, ...]]] = {
    "UNet2DConditionModel": unet_2d_condition,
    "AutoencoderKL": autoencoder_kl,
    "SD3Transformer2DModel": sd3_transformer,
    "FluxTransformer2DModel": flux_transformer,
}
_WITHOUT_WEIGHTS = (
    "Scheduler",
    "Tokenizer",
    "TokenizerFast",
    "Processor",
    "ProcessorFast",
    "FeatureExtractor",
    "Watermarker",
)
_CONCEPTS, _SPECIAL_CONCEPTS = 17, 3


def build_pipeline(index: Mapping[str, object], configs: Mapping[str, Mapping[str, object]], name: str) -> ModelSpec:
    """Return the ModelSpec of a pipeline: no layers, one tower a part, nothing generated token by token.

    `index` is the parsed `model_index.json`, `configs` the parsed config of each part under the part's name (`unet`,
    `vae`, `text_encoder_2`).

    Raises: UnsupportedModel when a part has a class that is not known, or no config.
    """
    pipeline = Config(index, path="model_index.json")
    class_name = pipeline.str("_class_name", default="DiffusionPipeline")
    parts: list[Tower] = []
    dtypes: list[DType] = []
    for part, class_of_part in _parts(index):
        if class_of_part.endswith(_WITHOUT_WEIGHTS):
            continue
        if part not in configs:
            raise UnsupportedModel(f"the pipeline has no config for its part `{part}`", hint=f"add {part}/config.json")
        config = Config(configs[part], path=part)
        if config.has("torch_dtype") or config.has("dtype"):
            dtypes.append(checkpoint_dtype(config))
        parts.append(_tower(part, class_of_part, config))
    if not parts:
        raise UnsupportedModel("the pipeline names no part with weights", hint="give a whole model_index.json")
    return ModelSpec(
        name=name,
        model_type="diffusers",
        architecture=class_name,
        dtype=dtypes[0] if dtypes else DType.F32,
        hidden_size=1,
        vocab_size=0,
        num_heads=1,
        max_context_tokens=1,
        layers=(),
        shared=(),
        towers=tuple(parts),
        is_generative=False,
    )


def _parts(index: Mapping[str, object]) -> list[tuple[str, str]]:
    """The parts and their classes: entries like `"vae": ["diffusers", "AutoencoderKL"]`, null for a part left out."""
    found: list[tuple[str, str]] = []
    for part, entry in index.items():
        if not isinstance(part, str) or part.startswith("_") or not isinstance(entry, (list, tuple)) or len(entry) != 2:
            continue
        if isinstance(entry[1], str):
            found.append((part, entry[1]))
    return found


def _tower(part: str, class_name: str, config: Config) -> Tower:
    prefix = f"{part}/"
    if class_name in PARTS:
        return towers.tower(Role.OTHER, prefix, PARTS[class_name](config), whole=True)
    if class_name == "StableDiffusionSafetyChecker":
        return towers.tower(Role.VISION, prefix, _safety_checker(config), whole=True)
    family = config.str("model_type", default="")
    if family not in FAMILIES:
        raise UnsupportedModel(f"unknown part of a pipeline: `{class_name}`", hint="try --introspect torch")
    raw = {**config.raw(), "architectures": [class_name]}
    spec = load_family(family)(Config(raw, path=part), part)
    role = Role.VISION if "Vision" in class_name else Role.ENCODER
    return towers.tower(role, prefix, _all_tensors(spec), whole=True)


def _all_tensors(spec: ModelSpec) -> tuple[Tensor, ...]:
    """Every tensor of a model under its full name, equal layers as one stack."""
    tensors = [*spec.shared, *(tensor for tower in spec.towers for tensor in tower.tensors)]
    counted: dict[int, int] = {}
    for layer in spec.layers:
        counted[id(layer)] = counted.get(id(layer), 0) + 1
    for layer in {id(layer): layer for layer in spec.layers}.values():
        tensors += towers.stack(spec.layer_prefix.rstrip("."), layer.tensors, counted[id(layer)])
    return tuple(tensors)


def _safety_checker(config: Config) -> tuple[Tensor, ...]:
    """CLIP's vision tower and the concepts that it is compared with."""
    width = config.int("projection_dim", default=512)
    vision = clip(merged(config, "vision_config", {}))
    return (
        *towers.under("vision_model.vision_model.", vision.tensors),
        *towers.dense("visual_projection", width, vision.shape.hidden, bias=False),
        towers.parameter("concept_embeds", _CONCEPTS, width),
        towers.parameter("special_care_embeds", _SPECIAL_CONCEPTS, width),
        towers.parameter("concept_embeds_weights", _CONCEPTS),
        towers.parameter("special_care_embeds_weights", _SPECIAL_CONCEPTS),
    )
