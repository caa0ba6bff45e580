"""The model of a llama.cpp record, by its shape: the log prints the architecture, layers, heads, widths and parameters.

Names in GGUF metadata are unreliable (`models`, `n/a`), so a record is matched to a known model (a folder of configs
or the catalogue) with the same architecture, layers and key-value widths, and the nearest parameter count. A record
that matches none is rebuilt: for a dense decoder the log says everything but the MLP's width, which follows from the
parameters.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import rebuilt

from memplan.catalog.models import list_models
from memplan.domain.attention import FullAttention, LatentAttention, LinearState
from memplan.domain.model import ModelSpec
from memplan.errors import MemplanError
from memplan.introspect.config import Config
from memplan.introspect.families import build_spec
from memplan.introspect.gguf_arch import gguf_architecture
from memplan.introspect.gguf_convert import to_gguf

Record = Mapping[str, object]

# Architectures that share their layers' shapes: a log may say either.
_SAME = {"bitnet-25": "bitnet-b1.58", "mistral3": "llama"}
# Beyond rounding: ik_llama.cpp counts a latent's expansion twice.
_PARAMETERS_TOLERANCE = 0.0017


def model_of(record: Record, configs: Path) -> ModelSpec:
    """Return the model under ggml's names, in 16 bit.

    Raises: MemplanError when it is neither known nor can be rebuilt.
    """
    found = _nearest(record, configs)
    spec = found if found is not None else rebuilt.rebuild(record)
    vocabulary = record.get("n_vocab")
    if isinstance(vocabulary, int) and vocabulary != spec.vocab_size:
        spec = resize_vocabulary(spec, vocabulary)
    return spec


def _nearest(record: Record, configs: Path) -> ModelSpec | None:
    architecture = str(record.get("arch") or "")
    layers = record.get("n_layer")
    wanted = rebuilt.parameters_of(record)
    best: tuple[tuple[float, float], ModelSpec] | None = None
    for spec in _candidates(configs):
        if spec.num_layers != layers or (architecture and not _is_architecture(spec, architecture)):
            continue
        if not _same_shape(spec, record):
            continue
        stored = to_gguf(spec, splits_latents=not _is_whole(record))
        vocabulary = record.get("n_vocab")
        sized = resize_vocabulary(stored, vocabulary) if isinstance(vocabulary, int) else stored
        off = abs(sized.parameters / wanted - 1) if wanted else 0.0
        if off > _PARAMETERS_TOLERANCE + (_half_a_digit(record) / wanted if wanted else 0.0):
            continue
        rank = round(off, 3), -_likeness(record, spec.name)
        if best is None or rank < best[0]:
            best = rank, stored
    return best[1] if best else None


def _is_whole(record: Record) -> bool:
    """Whether a latent model's file has the up-projection in one piece: the log then prints as many heads as it has."""
    heads = str(record.get("n_head_kv"))
    return heads.isdigit() and int(heads) > 1


def _half_a_digit(record: Record) -> float:
    """Half a unit of the last printed digit of the parameters."""
    number, _, unit = str(record.get("model_params")).replace(",", ".").partition(" ")
    digits = len(number.partition(".")[2])
    return 0.5 * 10.0**-digits * {"K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}[unit.strip()]


def _likeness(record: Record, name: str) -> float:
    """How much of a known model's name a log's names share."""
    words = re.findall(r"[a-z]+|[0-9.]+", name.lower().split("/")[-1])
    text = f"{record.get('gguf_file')} {record.get('model_name')}".lower()
    return sum(word in text for word in words) / max(len(words), 1)


def _is_architecture(spec: ModelSpec, architecture: str) -> bool:
    known = to_gguf(spec).model_type
    return known == architecture or _SAME.get(architecture) == known


def _same_shape(spec: ModelSpec, record: Record) -> bool:
    """Whether hidden size and the first attention layer agree with what was printed."""
    if isinstance(record.get("n_embd"), int) and record["n_embd"] != spec.hidden_size:
        return False
    gqa = record.get("n_embd_k_gqa")
    if not isinstance(gqa, int) or not gqa:
        return True
    for layer in spec.layers:
        for cache in layer.caches:
            if isinstance(cache, LinearState):
                continue
            if isinstance(cache, LatentAttention):
                widths = (cache.num_heads * cache.expanded_key_width, cache.latent_width + cache.rope_width)
                return gqa in widths
            heads, width = getattr(cache, "num_kv_heads", 0), getattr(cache, "key_width", 0)
            if heads * width:
                return gqa == heads * width
    return not spec.is_generative


@lru_cache(maxsize=1)
def _candidates(configs: Path) -> tuple[ModelSpec, ...]:
    return tuple(_read_all(configs))


def _read_all(configs: Path) -> Iterator[ModelSpec]:
    folders = sorted(configs.glob("*/config.json")) if configs.is_dir() else []
    named = [(path.parent.name, lambda path=path: json.loads(path.read_text())) for path in folders]
    named += [(model.name, lambda model=model: dict(model.config)) for model in list_models()]
    for name, load in named:
        try:
            raw = load()
            raw.pop("quantization_config", None)
            if gguf_architecture(str(raw.get("model_type"))):
                yield build_spec(Config(raw), name)
        except MemplanError:
            continue


def resize_vocabulary(spec: ModelSpec, vocabulary: int) -> ModelSpec:
    """The model with another number of vocabulary rows: converters pad and cut them."""
    shared = tuple(
        replace_rows(tensor, vocabulary)
        if tensor.name in ("token_embd.weight", "output.weight", "output.bias")
        else tensor
        for tensor in spec.shared
    )
    return replace(spec, shared=shared, vocab_size=vocabulary)


def replace_rows(tensor: object, rows: int) -> object:
    """A tensor with another first axis."""
    return replace(tensor, shape=(rows, *tensor.shape[1:]))  # type: ignore[type-var,attr-defined]


__all__ = ["FullAttention", "model_of"]
