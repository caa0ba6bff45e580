"""What vLLM's own parser takes, by release, and what memplan refuses in its place."""

from __future__ import annotations

import pytest
from vllm_start import start

from memplan.engines.options import EngineOptions
from memplan.engines.vllm.options import _ALIKE, _KNOWN, unused_options
from memplan.errors import UsageError


@pytest.mark.parametrize(
    ("version", "gpu", "size"),
    [
        ("0.5.4", "a100-80g", 32),
        ("0.5.5", "a100-80g", 128),
        ("0.6.6", "mi300x", 64),
        ("0.10.2", "h100", 1),
        ("0.16.0", "h100", 256),
        ("0.19.1", "h100", 17),  # FlexAttention took any block until 0.20
        ("0.33.0", "h100", 48),
    ],
)
def test_a_block_that_the_release_takes_is_answered(version: str, gpu: str, size: int) -> None:
    assert start(version, gpu, block_size=size, context=2048).budget.kv.block_size == size


@pytest.mark.parametrize(
    ("version", "gpu", "size", "taken"),
    [
        ("0.5.4", "a100-80g", 64, "one of 8, 16, 32"),
        ("0.6.6", "h100", 64, "one of 8, 16, 32"),
        ("0.10.2", "h100", 17, "one of 1, 8, 16, 32, 64, 128"),
        ("0.10.2", "h100", 256, "one of 1, 8, 16, 32, 64, 128"),
        ("0.33.0", "h100", 17, "multiples of 16"),
        ("0.33.0", "h100", 8, "multiples of 16"),
    ],
)
def test_a_block_that_the_release_refuses_is_refused_with_its_choices(
    version: str, gpu: str, size: int, taken: str
) -> None:
    """Source: the choices of --block-size and BlockSize; CacheConfig._verify_args of 0.6.6; kernel block sizes."""
    with pytest.raises(UsageError, match=f"--block-size is {size}") as caught:
        _ = start(version, gpu, block_size=size, context=2048).budget
    assert caught.value.hint == f"vLLM {version} takes {taken}"


def test_an_option_that_memplan_has_is_not_left_aside() -> None:
    with pytest.raises(UsageError, match=r"max_num_seqs is also memplan's --max-num-seqs"):
        unused_options(start("0.33.0", engine_options={"max_num_seqs": 3}).asked)


def test_names_that_are_alike_are_vllm_s_own() -> None:
    for name in _ALIKE:
        with pytest.raises(UsageError, match="unknown"):
            EngineOptions("vLLM", {name: 1}, _KNOWN).unused()
    assert unused_options(start("0.33.0", engine_options=dict.fromkeys(_ALIKE, 1)).asked) == tuple(sorted(_ALIKE))


def test_a_length_that_follows_the_cache_is_the_longest_that_fits_and_leaves_the_step_as_it_was() -> None:
    """Source: _auto_fit_max_model_len: the step was profiled at the model's own length."""
    whole = start("0.33.0", "l4", "Qwen/Qwen3-8B").budget
    fitted = start("0.33.0", "l4", "Qwen/Qwen3-8B", engine_options={"max_model_len": "auto"}).budget
    assert whole.verdict == "does_not_fit"
    assert fitted.verdict == "fits"
    assert fitted.settings["max_model_len"] == whole.kv.max_context_tokens
    assert fitted.lines == whole.lines
    busy = start("0.33.0", "l4", "Qwen/Qwen3-8B", concurrency=4, engine_options={"max_model_len": "auto"}).budget
    assert busy.verdict == "does_not_fit"


def test_no_length_fits_a_card_that_the_weights_fill() -> None:
    budget = start("0.33.0", "l4", "meta-llama/Llama-3.3-70B-Instruct", engine_options={"max_model_len": -1}).budget
    assert budget.verdict == "does_not_fit"
    assert budget.settings["max_model_len"] == 131072


@pytest.mark.parametrize("version", ["0.8.5", "0.10.2"])
def test_v0_may_be_chosen_where_the_release_has_both(version: str) -> None:
    """Source: VLLM_USE_V1, 0.8 to 0.10."""
    chosen = {value: start(version, engine_options={"use_v1": value}).settings.generation for value in (False, True)}
    assert chosen == {False: "v0", True: "v1"}


@pytest.mark.parametrize(("version", "use_v1"), [("0.11.0", False), ("0.7.3", True)])
def test_an_engine_that_the_release_lacks_is_refused(version: str, use_v1: bool) -> None:
    with pytest.raises(UsageError, match=f"use_v1={str(use_v1).lower()} with vLLM {version}"):
        _ = start(version, engine_options={"use_v1": use_v1}).budget


@pytest.mark.parametrize(
    ("version", "default"), [("0.9.2", False), ("0.13.0", False), ("0.14.1", True), ("0.33.0", True)]
)
def test_a_step_is_scheduled_ahead_as_the_release_has_it(version: str, default: bool) -> None:
    """Source: vllm/config/scheduler.py and VllmConfig.__post_init__ at those tags."""
    assert start(version).budget.settings["async_scheduling"] is default
    assert start(version, engine_options={"async_scheduling": False}).budget.settings["async_scheduling"] is False


def test_scheduling_ahead_is_refused_where_the_release_lacks_it() -> None:
    with pytest.raises(UsageError, match="async_scheduling=true with vLLM"):
        _ = start("0.9.2", engine_options={"async_scheduling": True}).budget


@pytest.mark.parametrize("name", ["use_v1", "flashinfer_sampler", "v2_model_runner", "disable_hybrid_kv_cache_manager"])
def test_a_choice_that_is_neither_yes_nor_no_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=f"{name} is `perhaps`"):
        _ = start("0.10.2", engine_options={name: "perhaps"}).budget
