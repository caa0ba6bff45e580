"""The model families: which file reads which `model_type`. A literal table, so that one family is imported at a time.

Text decoders have a table of their own, `decoders`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping

from memplan.domain.model import ModelSpec
from memplan.errors import UnsupportedModel, did_you_mean
from memplan.introspect.bytesource import show
from memplan.introspect.config import Config
from memplan.introspect.consistency import check_consistent
from memplan.introspect.families.composites import COMPOSITES, WRAPPERS_BY_CLASS
from memplan.introspect.families.decoders import DECODERS
from memplan.introspect.rotary import rotary_tables
from memplan.records import replace

Build = Callable[[Config, str], ModelSpec]

_HERE = "memplan.introspect.families"
FAMILIES: Mapping[str, str] = {
    **DECODERS,
    **COMPOSITES,
}


def build_spec(config: Config, name: str) -> ModelSpec:
    """Return the ModelSpec of a config, by its `model_type`.

    Raises: UnsupportedModel when the family is not known, or a key is missing or contradicts another.
    """
    model_type = config.str("model_type", default="")
    if not model_type:
        raise UnsupportedModel("the config has no key `model_type`", hint="give a complete config.json")
    if model_type not in FAMILIES:
        known = did_you_mean(model_type, sorted(FAMILIES))
        raise UnsupportedModel(
            f"unknown model family: `{show(model_type)}`",
            hint=known or "try --introspect torch, which asks transformers",
        )
    check_consistent(config.raw())
    if model_type in DECODERS and config.has("text_config"):
        model_type = _wrapper_family(config, model_type)
    spec = load_family(model_type)(config, name)
    return replace(spec, rotary=rotary_tables(config))


def _wrapper_family(config: Config, model_type: str) -> str:
    """The wrapper that the architecture class names, for a config that goes by its language model's `model_type`."""
    classes = config.strs("architectures", default=())
    return WRAPPERS_BY_CLASS.get(classes[0], model_type) if classes else model_type


def load_family(model_type: str) -> Build:
    """Return the function that builds a family's ModelSpec."""
    module, attribute = FAMILIES[model_type].split(":")
    build: Build = getattr(importlib.import_module(f"{_HERE}.{module}"), attribute)
    return build
