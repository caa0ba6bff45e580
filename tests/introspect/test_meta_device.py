"""A model that transformers builds on the meta device is the model that memplan reads from its config."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest
from decoder_cases import FEW_LAYERS, OVERRIDES

from memplan.domain.attention import Cache, NoCache
from memplan.domain.model import Layer
from memplan.introspect.config import Config
from memplan.introspect.families import build_spec

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", minversion="5.0")
auto = pytest.importorskip("transformers.models.auto.modeling_auto")

from memplan.introspect.torch_meta import spec_from_transformers  # noqa: E402

CLASSES = auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
FAMILIES = (
    "llama",
    "gemma3_text",
    "gemma3n_text",
    "gpt2",
    "gpt_oss",
    "qwen3_moe",
    "qwen3_next",
    "deepseek_v3",
    "deepseek_v32",
    "kimi_linear",
    "falcon_h1",
    "mamba2",
    "lfm2",
    "olmo2",
    "phi3",
)


@pytest.fixture(autouse=True)
def _quiet_transformers() -> Iterator[None]:
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    yield
    logger.setLevel(level)


def kept(layer: Layer) -> list[str]:
    caches: list[Cache] = [cache for cache in layer.caches if not isinstance(cache, NoCache)]
    return sorted(map(repr, caches))


@pytest.mark.parametrize("family", FAMILIES)
def test_modules_on_the_meta_device_give_the_same_parameters_and_caches_as_the_config(family: str) -> None:
    config = transformers.CONFIG_MAPPING[family](**{**FEW_LAYERS, **OVERRIDES.get(family, {})})
    raw = json.loads(json.dumps({**config.to_dict(), "architectures": [CLASSES[family]], "dtype": "bfloat16"}))
    ours = build_spec(Config(raw), family)
    theirs = spec_from_transformers(raw, family, source="")
    assert theirs.parameters == ours.parameters
    assert theirs.active_parameters == ours.active_parameters
    assert [kept(layer) for layer in theirs.layers] == [kept(layer) for layer in ours.layers]
    assert (theirs.hidden_size, theirs.vocab_size, theirs.num_heads) == (
        ours.hidden_size,
        ours.vocab_size,
        ours.num_heads,
    )
    assert theirs.tied_embeddings == ours.tied_embeddings
