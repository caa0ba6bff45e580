"""Known models that are more than a decoder: parameters, cache and largest inputs that were published or measured.

The facts are one JSON object a model: what its config says that its class would not, and what follows.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from memplan.domain.attention import Cache, ChunkedLocal, FullAttention, LatentAttention, SlidingWindow
from memplan.domain.model import ModelSpec
from memplan.domain.tensors import Role
from memplan.introspect.config import Config
from memplan.introspect.families import build_spec
from memplan.introspect.families.composites import COMPOSITES

FACTS = json.loads((Path(__file__).parent / "composite_facts.json").read_text())


def cache_bytes(cache: Cache) -> int:
    """What one token leaves behind at 16 bit, in the layers that grow or slide."""
    if isinstance(cache, (FullAttention, SlidingWindow, ChunkedLocal)):
        return 2 * cache.num_kv_heads * (cache.key_width + cache.value_width)
    if isinstance(cache, LatentAttention):
        return 2 * (cache.latent_width + cache.rope_width)
    return 0


def read(fact: Mapping[str, object]) -> ModelSpec:
    return build_spec(Config(fact["config"]), str(fact["name"]))


def label(fact: Mapping[str, object]) -> str:
    return str(fact["name"])


@pytest.mark.parametrize("fact", FACTS, ids=label)
def test_a_known_model_has_its_parameters(fact: Mapping[str, object]) -> None:
    assert read(fact).parameters == fact["parameters"]


@pytest.mark.parametrize("fact", FACTS, ids=label)
def test_a_known_model_keeps_as_many_bytes_for_a_token(fact: Mapping[str, object]) -> None:
    kept = sum(cache_bytes(cache) for layer in read(fact).layers for cache in layer.caches)
    assert kept == fact["kv_bytes_per_token"]


@pytest.mark.parametrize("fact", FACTS, ids=label)
def test_the_largest_input_of_a_known_model_becomes_as_many_tokens(fact: Mapping[str, object]) -> None:
    found = {
        media.modality: [media.tokens_at(32768), media.patches_at(32768)]
        for tower in read(fact).towers
        for media in tower.media
    }
    assert found == fact["media_at_32768"]


def test_every_family_has_a_known_model_or_a_case_against_transformers() -> None:
    from composite_cases import WRAPPERS
    from encoder_cases import ENCODERS

    seen = {fact["config"]["model_type"] for fact in FACTS} | {keys["model_type"] for _, keys in (*WRAPPERS, *ENCODERS)}
    alike = {"camembert": "roberta", "llava_next_video": "llava_next", "qwen2_5_omni_thinker": "qwen2_5_omni"}
    assert {alike.get(family, family) for family in COMPOSITES} <= seen


def test_tower_tensors_carry_the_tower_s_role_and_a_full_name() -> None:
    for fact in FACTS:
        for tower in read(fact).towers:
            for tensor in tower.tensors:
                assert tensor.role is tower.role
                assert tensor.name.count("*") <= 2
                assert not tensor.name.startswith(".")


def test_a_speech_generator_is_a_part_that_engines_leave_out() -> None:
    omni = next(fact for fact in FACTS if fact["config"]["model_type"] == "qwen2_5_omni")
    parts = [tower for tower in read(omni).towers if tower.optional]
    assert [tower.role for tower in parts] == [Role.OTHER, Role.OTHER]
    assert sum(tower.num_parameters for tower in parts) == 1_800_411_520


def test_a_video_grows_with_the_context_up_to_its_limit() -> None:
    qwen = read(next(fact for fact in FACTS if fact["config"]["model_type"] == "qwen2_vl"))
    video = next(media for media in qwen.towers[0].media if media.modality == "video")
    assert [video.tokens_at(tokens) for tokens in (1024, 32768, 40000, 1 << 20)] == [16384, 32768, 32768, 114688]
    assert video.patches_at(32768) == 4 * 32768


def test_a_wrapper_saved_under_its_language_model_s_type_is_read_as_a_wrapper() -> None:
    fact = next(fact for fact in FACTS if fact["name"] == "Ministral-3-3B-Instruct-2512")
    assert fact["config"]["model_type"] == "ministral3"
    assert {tower.role for tower in read(fact).towers} == {Role.VISION, Role.PROJECTOR}
