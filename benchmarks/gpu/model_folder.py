"""Writes the folder that an engine starts a model from: a config, and for vision models the processor's files.

The config is the catalogue's, with fewer layers and other keys as the point asks. No weights are written: the engine
makes them up (`--load-format dummy`). A text model needs no tokenizer (`skip_tokenizer_init`); a vision model's
processor does, so a tiny one is written whose only entries are the special tokens, under the ids that the config names.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpu_points import BadPoints, ModelChoice

from memplan.catalog.models import find_model

_LAYER_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_FLOAT_TEXT = re.compile(r"-?\d+(\.\d+)?[eE][+-]?\d+")
# Ids that a vision config may leave to its class's defaults; ours name them all, so that files and config agree.
_QWEN_TOKENS = {
    "vision_start_token_id": ("<|vision_start|>", 151652),
    "vision_end_token_id": ("<|vision_end|>", 151653),
    "vision_token_id": ("<|vision_pad|>", 151654),
    "image_token_id": ("<|image_pad|>", 151655),
    "video_token_id": ("<|video_pad|>", 151656),
}


def model_config(choice: ModelChoice) -> dict[str, Any]:
    """Return the Hugging Face config of a model of the sweep. Raises: BadPoints when the catalogue lacks the model."""
    found = find_model(choice.catalogue)
    if found is None:
        raise BadPoints(f"model {choice.name}: the catalogue does not know {choice.catalogue}")
    config: dict[str, Any] = _plain(copy.deepcopy(found.config))
    if choice.layers is not None:
        _shorten(config, choice.layers, choice.name)
    for path in choice.remove:
        _forget(config, path.split("."))
    for path, value in choice.set.items():
        _put(config, path.split("."), value)
    if choice.quantization is not None:
        config["quantization_config"] = dict(choice.quantization)
    if choice.processor == "qwen-vl":
        config |= {key: config.get(key, number) for key, (_, number) in _QWEN_TOKENS.items()}
    return config


def write_model_folder(choice: ModelChoice, parent: Path) -> Path:
    """Write the folder of a model of the sweep under `parent` and return it."""
    folder = parent / choice.name
    folder.mkdir(parents=True, exist_ok=True)
    config = model_config(choice)
    _write(folder / "config.json", config)
    if choice.processor == "qwen-vl":
        _write_qwen_processor(folder, config)
    elif choice.processor is not None:
        raise BadPoints(f"model {choice.name}: no processor files are known for {choice.processor}")
    return folder


def _plain(value: Any) -> Any:
    """Turn numbers that YAML kept as text (`1e-06`) into numbers."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, str) and _FLOAT_TEXT.fullmatch(value):
        return float(value)
    return value


def _shorten(config: dict[str, Any], layers: int, name: str) -> None:
    """Keep the first `layers` layers of the language model: its count, and every list or pattern as long as it."""
    text = next((config[key] for key in ("text_config", "llm_config", "language_config") if key in config), config)
    key = next((key for key in _LAYER_COUNTS if isinstance(text.get(key), int)), None)
    if key is None or layers > text[key]:
        raise BadPoints(f"model {name} has no {layers} layers")
    before = text[key]
    text[key] = layers
    for part in (text, config):
        for other, value in part.items():
            if isinstance(value, (list, str)) and len(value) == before and other != "architectures":
                part[other] = value[:layers]
    indexed = {
        other: value for other, value in text.items() if other.endswith(("_idxs", "_indexes", "mlp_only_layers"))
    }
    for other, value in indexed.items():
        text[other] = [index for index in value if index < layers]


def _forget(config: dict[str, Any], path: list[str]) -> None:
    for key in path[:-1]:
        config = config.get(key, {})
    config.pop(path[-1], None)


def _put(config: dict[str, Any], path: list[str], value: Any) -> None:
    for key in path[:-1]:
        config = config.setdefault(key, {})
    config[path[-1]] = value


def _write_qwen_processor(folder: Path, config: Mapping[str, Any]) -> None:
    """Files from which the image and video processors of the Qwen vision models are made."""
    vision = config["vision_config"]
    is_third = str(config["model_type"]).startswith(("qwen3_vl", "qwen3_5"))
    least, most = (65536, 16777216) if is_third else (3136, 12845056)
    common = {
        "patch_size": vision["patch_size"],
        "merge_size": vision["spatial_merge_size"],
        "temporal_patch_size": vision["temporal_patch_size"],
        "processor_class": "Qwen3VLProcessor" if is_third else "Qwen2_5_VLProcessor",
        "size": {"shortest_edge": least, "longest_edge": most},
    }
    mean, spread = ([0.5] * 3, [0.5] * 3) if is_third else ([0.4815, 0.4578, 0.4082], [0.2686, 0.2613, 0.2758])
    image = {**common, "image_processor_type": "Qwen2VLImageProcessor", "image_mean": mean, "image_std": spread}
    video = {**common, "video_processor_type": "Qwen3VLVideoProcessor" if is_third else "Qwen2VLVideoProcessor"}
    _write(folder / "preprocessor_config.json", image)
    _write(folder / "video_preprocessor_config.json", video)
    tokens = {"<|endoftext|>": 151643, "<|im_start|>": 151644, "<|im_end|>": 151645}
    tokens |= {text: config[key] for key, (text, _) in _QWEN_TOKENS.items()}
    _write_tokenizer(folder, tokens)


def _write_tokenizer(folder: Path, tokens: Mapping[str, int]) -> None:
    """A tokenizer of special tokens and letters: bytes come out as letters, and the ids are those that are given."""
    letters = {chr(code): index for index, code in enumerate(range(33, 127))}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    special = [
        {"id": number, "content": text, "special": True, **flags}
        for text, number in sorted(tokens.items(), key=lambda item: item[1])
    ]
    by_byte = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    _write(
        folder / "tokenizer.json",
        {
            "version": "1.0",
            "added_tokens": special,
            "normalizer": None,
            "pre_tokenizer": by_byte,
            "post_processor": None,
            "decoder": by_byte,
            "model": {"type": "BPE", "vocab": {**letters, **tokens}, "merges": []},
        },
    )
    _write(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "chat_template": "{% for message in messages %}{{ message['content'] }}{% endfor %}",
        },
    )


def _write(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
