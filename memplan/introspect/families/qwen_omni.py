"""Qwen2.5-Omni: a thinker that sees, hears and writes, a talker that turns its output into speech codes, and a vocoder.

Source: transformers 5.23, `models/qwen2_5_omni/modeling_qwen2_5_omni.py`; vLLM 0.33.0,
`model_executor/models/qwen2_5_omni_thinker.py`, which loads the thinker alone.
"""

from __future__ import annotations

from memplan.domain.model import ModelSpec, Tower
from memplan.domain.tensors import Role
from memplan.introspect import towers
from memplan.introspect.config import Config
from memplan.introspect.families.audio import encoder_shape, whisper_encoder
from memplan.introspect.families.nested import merged, read_language, wrap
from memplan.introspect.families.qwen_media import (
    AUDIO_FRAMES,
    AUDIO_TOKENS,
    QWEN2_5,
    qwen2_5_vision,
    qwen2_media,
    read_patches,
)
from memplan.introspect.families.qwen_vocoder import token2wav
from memplan.records import replace

_VISION = replace(QWEN2_5, attention=("attn.q", "attn.k", "attn.v", "attn.proj"))
_TALKER = {
    "hidden_size": 896,
    "intermediate_size": 18944,
    "num_hidden_layers": 24,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "vocab_size": 8448,
    "max_position_embeddings": 32768,
}


def qwen2_5_omni(config: Config, name: str) -> ModelSpec:
    """Both halves; the talker and the vocoder are optional towers."""
    spec = _thinker(config, config.sub("thinker_config"), name, prefix="thinker.")
    if not config.bool("enable_audio_output", default=True):
        return spec
    vocoder = merged(config, "token2wav_config", {})
    speech = (
        _talker(merged(config, "talker_config", {}), name),
        towers.tower(Role.OTHER, "token2wav.", token2wav(vocoder), optional=True),
    )
    return replace(spec, towers=(*spec.towers, *speech))


def thinker(config: Config, name: str) -> ModelSpec:
    """The thinker as a model of its own (`qwen2_5_omni_thinker`)."""
    return _thinker(config, config, name, prefix="")


def _thinker(config: Config, part: Config, name: str, *, prefix: str) -> ModelSpec:
    raw = {"torch_dtype": config.get("torch_dtype", "dtype"), **part.raw()}
    text = read_language(Config(raw, path=part.path), name, default_type="qwen2")
    vision = merged(part, "vision_config", {})
    shape, tensors = qwen2_5_vision(vision, _VISION)
    sight = towers.tower(Role.VISION, f"{prefix}visual.", tensors, media=qwen2_media(shape, read_patches(vision)))
    return wrap(config, text, (sight, _hearing(part, prefix)), prefix=prefix)


def _hearing(part: Config, prefix: str) -> Tower:
    """Whisper's encoder with computed positions, and its map into the language model."""
    audio = merged(part, "audio_config", {})
    shape = encoder_shape(audio, hidden=1280, intermediate=5120, num_layers=32, num_heads=20)
    width = audio.int("output_dim", default=3584)
    encoder = (
        *whisper_encoder(shape, mel_bins=audio.int("num_mel_bins", default=128), positions=0, last_norm="ln_post"),
        towers.table("audio_bos_eos_token", 2, width),
        *towers.dense("proj", width, shape.hidden),
    )
    media = (towers.audio(shape, tokens=AUDIO_TOKENS, patches=AUDIO_FRAMES),)
    return towers.tower(Role.AUDIO, f"{prefix}audio_tower.", encoder, media=media)


def _talker(config: Config, name: str) -> Tower:
    """A small Qwen2 over speech codes, whose inputs are as wide as the thinker."""
    source = config.int("embedding_size", default=3584)
    raw = {**_TALKER, **config.raw(), "model_type": "qwen2", "tie_word_embeddings": False}
    spec = read_language(Config({"text_config": raw}, path=config.path), name)
    table, *rest = spec.shared
    layers = towers.stack("model.layers", spec.layers[0].tensors, spec.num_layers)
    shared = (replace(table, shape=(table.shape[0], source)), *rest)
    renamed = (replace(each, name=each.name.replace("lm_head", "codec_head")) for each in shared)
    tensors = (*towers.dense("thinker_to_talker_proj", spec.hidden_size, source), *layers, *renamed)
    return towers.tower(Role.OTHER, "talker.", tensors, optional=True)
