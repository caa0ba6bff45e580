"""Every decoder that transformers can build, scaled down: its own modules on the meta device have the same sizes."""

import copy
import json
import logging
import re
from collections import Counter
from collections.abc import Iterator

import pytest
from decoder_cases import FEW_LAYERS, NOT_BUILT, OVERRIDES, Raw

from memplan.domain.attention import ChunkedLocal, FullAttention, LatentAttention, SlidingWindow
from memplan.domain.model import ModelSpec
from memplan.introspect.config import Config
from memplan.introspect.families import build_spec
from memplan.introspect.families.decoders import DECODERS

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
auto = pytest.importorskip("transformers.models.auto.modeling_auto")

CLASSES = auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
TYPES = sorted(family for family in DECODERS if family in CLASSES and family not in NOT_BUILT)
LAYER = re.compile(r"(?:^|\.)(?:layers|blocks|h|layer|block)\.(\d+)\.")
# Blocks that several layers share, which transformers keeps inside the first of them.
SHARED_BLOCKS = {"zamba2"}
# What transformers itself reads from a config without building a decoder of it, or does not tie though it says so.
UNUSUAL = {
    "add_cross_attention",
    ("bailing_hybrid", "tie_word_embeddings"),
    ("doge", "is_moe"),
    ("kimi_linear", "tie_word_embeddings"),
    ("nemotron_h", "attention_bias"),
    ("nemotron_h", "tie_word_embeddings"),
    ("zamba2", "tie_word_embeddings"),
}


@pytest.fixture(autouse=True)
def _quiet_transformers() -> Iterator[None]:
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    yield
    logger.setLevel(level)


def small_config(family: str) -> Raw:
    """The class's own defaults with few layers."""
    overrides = OVERRIDES.get(family, {})
    config_class = transformers.CONFIG_MAPPING[family]
    try:
        config = config_class(**{**FEW_LAYERS, **overrides})
    except Exception:  # the defaults of some classes list every layer
        config = config_class(**overrides)
    return config.to_dict()  # type: ignore[no-any-return]


def build_module(family: str, raw: Raw) -> object:
    """transformers' own module on the meta device."""
    config = transformers.CONFIG_MAPPING[family].from_dict(copy.deepcopy(raw))
    with torch.device("meta"):
        return getattr(transformers, CLASSES[family])(config)


def read(family: str, raw: Raw) -> ModelSpec:
    """Ours, from the JSON that transformers would write."""
    return build_spec(Config(json.loads(json.dumps({**raw, "architectures": [CLASSES[family]]}))), family)


def module_parts(module: object) -> Counter[int | None]:
    """Parameters of every layer by its number, and under None what stands outside the layers."""
    parts: Counter[int | None] = Counter()
    for name, parameter in module.named_parameters():  # type: ignore[attr-defined]
        found = LAYER.search(name)
        parts[int(found[1]) if found else None] += parameter.numel()
    return parts


def spec_parts(spec: ModelSpec) -> Counter[int | None]:
    parts: Counter[int | None] = Counter({index: layer.num_parameters for index, layer in enumerate(spec.layers)})
    parts[None] = sum(tensor.num_parameters for tensor in spec.shared)
    return parts


def window(layer: object) -> int | None:
    """The window of a layer of transformers' cache; None when it grows or is a state."""
    return getattr(layer, "sliding_window", None) if "Sliding" in type(layer).__name__ else None


@pytest.mark.parametrize("family", TYPES)
def test_a_decoder_has_the_parameters_of_transformers_module_in_every_layer(family: str) -> None:
    raw = small_config(family)
    module, spec = build_module(family, raw), read(family, raw)
    theirs, ours = module_parts(module), spec_parts(spec)
    assert ours.total() == theirs.total() == spec.parameters
    if family not in SHARED_BLOCKS:
        assert +ours == +theirs


@pytest.mark.parametrize("family", TYPES)
def test_a_decoder_follows_its_switches_as_transformers_module_does(family: str) -> None:
    raw = small_config(family)
    for key, value in raw.items():
        if not isinstance(value, bool) or key in UNUSUAL or (family, key) in UNUSUAL:
            continue
        flipped = {**raw, key: not value}
        try:
            module = build_module(family, flipped)
        except Exception:  # their class refuses the switch
            continue
        assert read(family, flipped).parameters == module_parts(module).total(), key


@pytest.mark.parametrize("family", TYPES)
def test_the_windows_of_a_decoder_are_those_of_transformers_cache(family: str) -> None:
    raw = small_config(family)
    config = transformers.CONFIG_MAPPING[family].from_dict(copy.deepcopy(raw))
    try:
        theirs = transformers.DynamicCache(config=config).layers
    except Exception:  # no cache, or one of the model's own
        pytest.skip("transformers makes no cache from this config")
    spec = read(family, raw)
    if len(theirs) != len(spec.layers):
        pytest.skip("transformers' cache does not go layer by layer")
    for layer, kept in zip(spec.layers, theirs, strict=True):
        for cache in layer.caches:
            if isinstance(cache, SlidingWindow):
                assert cache.window_tokens == window(kept)
            elif isinstance(cache, ChunkedLocal):
                assert cache.chunk_tokens == window(kept)
            elif isinstance(cache, (FullAttention, LatentAttention)):
                assert window(kept) is None
