"""The model families: which file reads which `model_type`. A literal table, so that one family is imported at a time.

An ordinary family is one entry here and one line in `decoder.py`; an unusual one is a file of its own.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import replace

from memplan.domain.model import ModelSpec
from memplan.errors import UnsupportedModel, did_you_mean
from memplan.introspect.config import Config
from memplan.introspect.rotary import rotary_tables

Build = Callable[[Config, str], ModelSpec]

_HERE = "memplan.introspect.families"
FAMILIES: Mapping[str, str] = {
    "llama": "decoder:LLAMA",
    "mistral": "decoder:MISTRAL",
    "qwen2": "decoder:QWEN2",
    "qwen3": "decoder:QWEN3",
    "mixtral": "decoder:MIXTRAL",
    "qwen3_moe": "decoder:QWEN3_MOE",
    # Wrappers of a language model, encoders, encoder-decoders.
    "llava": "llava:llava",
    "llava_next": "llava:llava_next",
    "llava_next_video": "llava:llava_next",
    "llava_onevision": "llava:llava_onevision",
    "aya_vision": "llava:aya_vision",
    "paligemma": "llava:paligemma",
    "mistral3": "llava:mistral3",
    "gemma3": "gemma_media:gemma3",
    "gemma4": "gemma_media:gemma4",
    "qwen2_vl": "qwen_media:qwen2_vl",
    "qwen2_5_vl": "qwen_media:qwen2_5_vl",
    "qwen3_vl": "qwen_media:qwen3_vl",
    "qwen3_vl_moe": "qwen_media:qwen3_vl",
    "qwen3_5": "qwen_media:qwen3_5",
    "qwen3_5_moe": "qwen_media:qwen3_5",
    "qwen2_audio": "qwen_media:qwen2_audio",
    "bert": "text_encoders:BERT",
    "roberta": "text_encoders:ROBERTA",
    "xlm-roberta": "text_encoders:ROBERTA",
    "camembert": "text_encoders:ROBERTA",
    "mpnet": "text_encoders:MPNET",
    "distilbert": "text_encoders:DISTILBERT",
    "electra": "text_encoders:electra",
    "deberta-v2": "modern_encoders:deberta_v2",
    "modernbert": "modern_encoders:modernbert",
    "nomic_bert": "modern_encoders:nomic_bert",
    "new": "modern_encoders:gte_new",
    "vit": "image_encoders:vit",
    "dinov2": "image_encoders:dinov2",
    "dinov2_with_registers": "image_encoders:dinov2",
    "clip": "image_encoders:clip",
    "clip_text_model": "image_encoders:clip_text",
    "clip_vision_model": "image_encoders:clip_vision",
    "siglip": "image_encoders:siglip",
    "siglip_text_model": "image_encoders:siglip_text",
    "siglip_vision_model": "image_encoders:siglip_vision",
    "siglip2_vision_model": "image_encoders:siglip2_vision",
    "wav2vec2": "speech_encoders:speech",
    "hubert": "speech_encoders:speech",
    "wavlm": "speech_encoders:speech",
    "bart": "seq2seq:BART",
    "mbart": "seq2seq:MBART",
    "pegasus": "seq2seq:PEGASUS",
    "marian": "seq2seq:MARIAN",
    "m2m_100": "seq2seq:M2M_100",
    "t5": "seq2seq:T5",
    "mt5": "seq2seq:MT5",
    "umt5": "seq2seq:UMT5",
    "whisper": "seq2seq:whisper",
}


def build_spec(config: Config, name: str) -> ModelSpec:
    """Return the ModelSpec of a config, by its `model_type`.

    Raises: UnsupportedModel when the family is not known, or a key that it needs is missing.
    """
    model_type = config.str("model_type", default="")
    if not model_type:
        raise UnsupportedModel("the config has no key `model_type`", hint="give a complete config.json")
    if model_type not in FAMILIES:
        known = did_you_mean(model_type, sorted(FAMILIES))
        raise UnsupportedModel(
            f"unknown model family: `{model_type}`", hint=known or "try --introspect torch, which asks transformers"
        )
    spec = load_family(model_type)(config, name)
    return replace(spec, rotary=rotary_tables(config))


def load_family(model_type: str) -> Build:
    """Return the function that builds a family's ModelSpec."""
    module, attribute = FAMILIES[model_type].split(":")
    build: Build = getattr(importlib.import_module(f"{_HERE}.{module}"), attribute)
    return build
