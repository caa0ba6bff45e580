"""Writing a GGUF from a checkpoint of safetensors, one tensor in memory at a time.

Axes: O out features, I in features.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor

from memplan.quantize.checkpoint import Checkpoint
from memplan.quantize.gguf_file.families import Family, family_of
from memplan.quantize.gguf_file.types import BF16_NUMBER, FILE_TYPES
from memplan.quantize.gguf_file.vocabulary import read_vocabulary
from memplan.quantize.unsupported import UnsupportedHere

# llama.cpp keeps what makes logits in more bits, and so does this: a head, or embeddings that are one.
_ENDS = "Q8_0"


def names_in_file(family: Family, checkpoint: Checkpoint) -> dict[str, str]:
    """The name that every tensor of a checkpoint has in a GGUF. Raises: UnsupportedModel for one that has none."""
    known = gguf.get_tensor_name_map(gguf.MODEL_ARCH[family.architecture.upper()], family.num_layers)
    found = {}
    for name in checkpoint.names():
        if name.endswith("rotary_emb.inv_freq"):
            continue
        written = known.get_name(name, try_suffixes=(".weight", ".bias"))
        if written is None:
            raise UnsupportedHere(f"{name} has no place in a GGUF of {family.architecture}")
        found[name] = written
    return found


def write_gguf(source: Path, place: Path, kind: str, texts: Sequence[str]) -> list[str]:
    """Write the model in `source` as a GGUF of a type of FILE_TYPES, or `bf16`; return what is to be known of it.

    Raises: UnsupportedModel for a family, tensor or tokenizer that is not known here.
    """
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    family, checkpoint = family_of(config), Checkpoint(source)
    names = names_in_file(family, checkpoint)
    vocabulary = read_vocabulary(source, family.vocab_size, texts)
    writer = gguf.GGUFWriter(place, family.architecture)
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(source.name)
    writer.add_file_type(BF16_NUMBER if kind == "bf16" else FILE_TYPES[kind].number)
    if kind != "bf16":
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _add_settings(writer, family)
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.cut)
    writer.add_token_list(list(vocabulary.tokens))
    writer.add_token_types(list(vocabulary.kinds))
    if vocabulary.scores:
        writer.add_token_scores(list(vocabulary.scores))
    gguf.SpecialVocab(source, load_merges=True, n_vocab=family.vocab_size).add_to_gguf(writer, quiet=True)
    factors = _rotary_factors(family)
    types = {name: _type(names[name], checkpoint.shapes[name], kind, names.values()) for name in names}
    for name, written in names.items():
        _announce(writer, written, checkpoint.shapes[name], types[name])
    if factors is not None:
        writer.add_tensor_info("rope_freqs.weight", factors.shape, factors.dtype, factors.nbytes)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name in names:
        weight = turned(checkpoint.read(name).to(torch.float32), family.turned_heads(name))
        writer.write_tensor_data(_stored(weight, types[name]))
    if factors is not None:
        writer.write_tensor_data(factors)
    writer.close()
    return [vocabulary.note] if vocabulary.note else []


def turned(weight: Tensor, heads: int) -> Tensor:
    """Rows of queries or keys with the halves of each head woven together; as they are for 0 heads."""
    if not heads:
        return weight
    woven = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:]).transpose(1, 2)
    return woven.reshape(weight.shape)


def turned_back(weight: Tensor, heads: int) -> Tensor:
    """The inverse of `turned`."""
    if not heads:
        return weight
    halves = weight.reshape(heads, weight.shape[0] // heads // 2, 2, *weight.shape[1:]).transpose(1, 2)
    return halves.reshape(weight.shape)


def _add_settings(writer: Any, family: Family) -> None:
    writer.add_block_count(family.num_layers)
    writer.add_context_length(family.context_tokens)
    writer.add_embedding_length(family.hidden_size)
    writer.add_feed_forward_length(family.intermediate_size)
    writer.add_head_count(family.num_heads)
    writer.add_head_count_kv(family.num_kv_heads)
    writer.add_key_length(family.head_dim)
    writer.add_value_length(family.head_dim)
    writer.add_vocab_size(family.vocab_size)
    writer.add_layer_norm_rms_eps(family.norm_epsilon)
    writer.add_rope_dimension_count(family.head_dim)
    writer.add_rope_freq_base(family.rope_theta)
    kind = family.rotary.get("rope_type", family.rotary.get("type"))
    if kind == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(family.rotary["factor"]))
    if kind == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(float(family.rotary["factor"]))
        writer.add_rope_scaling_orig_ctx_len(int(family.rotary["original_max_position_embeddings"]))


def _rotary_factors(family: Family) -> np.ndarray[Any, Any] | None:
    """What Llama 3.1 divides each frequency by; None for other models."""
    rotary = family.rotary
    if rotary.get("rope_type", rotary.get("type")) != "llama3":
        return None
    factor, low, high = (float(rotary[name]) for name in ("factor", "low_freq_factor", "high_freq_factor"))
    old_tokens = float(rotary["original_max_position_embeddings"])
    places = np.arange(0, family.head_dim, 2, dtype=np.float64) / family.head_dim
    wavelength = 2 * math.pi * family.rope_theta**places
    smooth = np.clip((old_tokens / wavelength - low) / (high - low), 0.0, 1.0)
    return (1.0 / ((1 - smooth) / factor + smooth)).astype(np.float32)


def _type(written: str, shape: tuple[int, ...], kind: str, all_written: Any) -> Any:
    """The type of a tensor: float32 of vectors, more bits of what makes logits and of rows that are no whole blocks."""
    types = gguf.GGMLQuantizationType
    if len(shape) < 2 or written.endswith("_norm.weight"):
        return types.F32
    if kind == "bf16":
        return types.BF16
    makes_logits = written == "output.weight" or (
        written == "token_embd.weight" and "output.weight" not in set(all_written)
    )
    chosen = types[_ENDS if makes_logits else kind.upper()]
    return chosen if shape[-1] % gguf.GGML_QUANT_SIZES[chosen][0] == 0 else types.F16


def _announce(writer: Any, written: str, shape: tuple[int, ...], kind: Any) -> None:
    types = gguf.GGMLQuantizationType
    if kind in (types.F32, types.F16):
        dtype = np.dtype(np.float32 if kind == types.F32 else np.float16)
        writer.add_tensor_info(written, shape, dtype, math.prod(shape) * dtype.itemsize)
        return
    bytes_shape = gguf.quant_shape_to_byte_shape(shape, kind)
    writer.add_tensor_info(written, bytes_shape, np.dtype(np.uint8), math.prod(bytes_shape), raw_dtype=kind)


def _stored(weight: Tensor, kind: Any) -> np.ndarray[Any, Any]:
    types = gguf.GGMLQuantizationType
    value: np.ndarray[Any, Any] = weight.contiguous().numpy()
    if kind in (types.F32, types.F16):
        return np.asarray(value, dtype=np.float32 if kind == types.F32 else np.float16)
    return np.asarray(gguf.quants.quantize(value, kind))
