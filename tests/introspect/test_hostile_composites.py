"""Whatever stands under any key of a config, only our own errors come out, and soon."""

import copy
import json
import time
from pathlib import Path

import pytest
from composite_cases import WRAPPERS
from encoder_cases import ENCODERS
from hypothesis import given, settings
from hypothesis import strategies as st

from memplan.domain.model import ModelSpec
from memplan.errors import MemplanError
from memplan.introspect.config import Config
from memplan.introspect.families import build_spec
from memplan.introspect.families.composites import COMPOSITES

FACTS = json.loads((Path(__file__).parent / "composite_facts.json").read_text())
CONFIGS = [
    *({**keys, "architectures": [class_name]} for class_name, keys in (*WRAPPERS, *ENCODERS)),
    *(fact["config"] for fact in FACTS),
]
PLAIN = [
    None,
    "",
    "x",
    "9" * 50,
    -1,
    0,
    1,
    7,
    -3.5,
    1.5,
    float("nan"),
    float("inf"),
    True,
    False,
    10**9,
    10**15,
    10**40,
]
NESTED: list[object] = [[], {}, [1], [-1], ["x"], [None], [[1]], [0, 0], [1, 2], [10**9] * 3, {"a": 1}]
JUNK = st.sampled_from([*PLAIN, *NESTED])


def places(config: object, above: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """The path of every key, at any depth."""
    if not isinstance(config, dict):
        return []
    return [path for key, value in config.items() for path in ((*above, key), *places(value, (*above, key)))]


def put(config: dict[str, object], path: tuple[str, ...], value: object) -> None:
    part: object = config
    for key in path[:-1]:
        part = part.get(key) if isinstance(part, dict) else None
    if isinstance(part, dict):
        part[path[-1]] = copy.deepcopy(value)


def read(config: dict[str, object]) -> ModelSpec | MemplanError:
    """What the config describes, or why it was refused; any other error fails the test."""
    try:
        return build_spec(Config(config), "damaged")
    except MemplanError as refusal:
        return refusal


@settings(max_examples=400)
@given(data=st.data())
def test_a_damaged_config_is_read_or_refused_with_our_own_error(data: st.DataObject) -> None:
    config = copy.deepcopy(data.draw(st.sampled_from(CONFIGS)))
    paths = [path for path in places(config) if path != ("model_type",)]
    for _ in range(data.draw(st.integers(1, 3))):
        put(config, data.draw(st.sampled_from(paths)), data.draw(JUNK))
    found = read(config)
    if isinstance(found, MemplanError):
        assert found.message
        assert "\n" not in found.message
        return
    assert found.parameters >= 0
    for tower in found.towers:
        for media in tower.media:
            assert 0 < media.tokens_at(1) <= media.max_tokens
            assert media.patches_at(1 << 30) <= media.patches


@pytest.mark.parametrize("model_type", sorted(COMPOSITES))
def test_a_config_with_a_model_type_alone_is_read_by_defaults_or_refused_with_a_reason(model_type: str) -> None:
    found = read({"model_type": model_type})
    assert found.message if isinstance(found, MemplanError) else found.parameters > 0


def test_every_family_is_read_within_a_few_milliseconds() -> None:
    for fact in FACTS:
        build_spec(Config(fact["config"]), fact["name"])
    started = time.perf_counter()
    for fact in FACTS:
        build_spec(Config(fact["config"]), fact["name"])
    assert (time.perf_counter() - started) / len(FACTS) < 0.02
