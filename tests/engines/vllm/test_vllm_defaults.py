"""Defaults of vLLM by release, as its source states them at the tags named."""

from __future__ import annotations

import pytest
from vllm_start import DENSE, EMBEDDING, LATENT, RECURRENT, VISION, start

from memplan.errors import UsageError


@pytest.mark.parametrize(
    ("version", "utilization"),
    [("0.2.0", 0.90), ("0.8.5", 0.90), ("0.11.2", 0.90), ("0.19.1", 0.90), ("0.20.0", 0.92), ("0.33.0", 0.92)],
)
def test_utilization(version: str, utilization: float) -> None:
    """Source: CacheConfig.gpu_memory_utilization, at every tag from 0.2.0 to 0.33.0."""
    assert start(version).settings.utilization == utilization


@pytest.mark.parametrize(
    ("version", "gpu", "served", "offline", "sequences"),
    [
        ("0.8.1", "h100", 8192, 16384, 1024),
        ("0.8.1", "a100-80g", 2048, 8192, 1024),
        ("0.8.1", "l4", 2048, 8192, 1024),
        ("0.8.5", "a100-80g", 8192, 16384, 1024),
        ("0.8.5", "h100", 8192, 16384, 1024),
        ("0.8.5", "l40s", 2048, 8192, 256),
        ("0.9.0", "a100-80g", 2048, 8192, 256),
        ("0.9.0", "h100", 8192, 16384, 1024),
        ("0.9.0", "rtx-4090", 2048, 8192, 256),
        ("0.12.0", "mi300x", 8192, 16384, 1024),
        ("0.12.0", "b200", 8192, 16384, 1024),
        ("0.20.1", "b200", 8192, 16384, 1024),
        ("0.20.1", "a100-80g", 2048, 8192, 256),
        ("0.28.0", "b200", 16384, 16384, 1024),
        ("0.28.0", "h200", 8192, 16384, 1024),
        ("0.28.0", "h100", 8192, 16384, 1024),
        ("0.28.0", "l40s", 2048, 8192, 256),
        ("0.33.0", "b300", 16384, 16384, 1024),
        ("0.33.0", "a100-80g", 2048, 8192, 256),
    ],
)
def test_a_step_of_v1_depends_on_the_gpu_and_on_who_asks(
    version: str, gpu: str, served: int, offline: int, sequences: int
) -> None:
    """Source: EngineArgs._set_default_args_v1 at 0.8.1, 0.8.5 and 0.9.0; get_batch_defaults at 0.12.0 to 0.33.0."""
    settings = start(version, gpu).settings
    assert (settings.generation, settings.batched_tokens, settings.max_num_seqs) == ("v1", served, sequences)
    assert start(version, gpu, offline_batch=True).settings.batched_tokens == offline


@pytest.mark.parametrize(
    ("version", "context", "tokens"),
    [
        ("0.2.0", 1024, 2048),
        ("0.2.7", 4096, 4096),
        ("0.4.1", 131072, 131072),
        ("0.5.3", 32768, 32768),
        ("0.5.3", 32769, 512),
        ("0.6.3", 131072, 512),
        ("0.6.3", 8192, 8192),
        ("0.6.5", 131072, 2048),
        ("0.7.3", 131072, 2048),
        ("0.7.3", 32768, 32768),
    ],
)
def test_a_step_of_v0_holds_a_whole_prompt_until_long_contexts_are_cut(version: str, context: int, tokens: int) -> None:
    """Source: SchedulerConfig (vllm/config.py) and EngineArgs.create_engine_config at those tags."""
    settings = start(version, context=context).settings
    assert (settings.generation, settings.batched_tokens, settings.max_num_seqs) == ("v0", tokens, 256)
    assert settings.chunked_prefill == (tokens < context)


@pytest.mark.parametrize(("version", "tokens"), [("0.4.1", 768), ("0.5.1", 512), ("0.6.3", 512), ("0.6.5", 2048)])
def test_chunks_of_v0(version: str, tokens: int) -> None:
    """Source: SchedulerConfig, the value for chunked prefill."""
    assert start(version, context=4096, chunked_prefill=True).settings.batched_tokens == tokens


@pytest.mark.parametrize(("version", "tokens"), [("0.5.3", 2048), ("0.6.1", 4096), ("0.6.3", 5120), ("0.7.3", 5120)])
def test_a_step_of_v0_has_room_for_an_image(version: str, tokens: int) -> None:
    """Source: _MULTIMODAL_MODEL_MAX_NUM_BATCHED_TOKENS."""
    assert start(version, name=VISION, context=2048).settings.batched_tokens == tokens


def test_a_model_that_does_not_generate_takes_larger_steps() -> None:
    """Source: _EMBEDDING_MODEL_MAX_NUM_BATCHED_TOKENS at 0.6.3."""
    assert start("0.6.3", name=EMBEDDING, context=512).settings.batched_tokens == 32768


@pytest.mark.parametrize(
    ("version", "gpu", "name", "asked", "generation"),
    [
        ("0.7.3", "h100", DENSE, {}, "v0"),
        ("0.8.0", "h100", DENSE, {}, "v1"),
        ("0.8.5", "t4", DENSE, {}, "v0"),
        ("0.11.0", "t4", DENSE, {}, "v1"),
        ("0.8.5", "h100", RECURRENT, {}, "v0"),
        ("0.10.2", "h100", RECURRENT, {}, "v1"),
        ("0.9.0", "h100", DENSE, {"chunked_prefill": False, "context": 8192}, "v0"),
        ("0.8.5", "mi300x", DENSE, {}, "v0"),
        ("0.8.5", "h100", EMBEDDING, {}, "v0"),
        ("0.11.0", "h100", EMBEDDING, {}, "v1"),
    ],
)
def test_v1_falls_back_to_v0_for_what_it_cannot_do_yet(
    version: str, gpu: str, name: str, asked: dict[str, object], generation: str
) -> None:
    """Source: EngineArgs._is_v1_supported_oracle, 0.8.0 to 0.10.2."""
    assert start(version, gpu, name, **asked).settings.generation == generation


@pytest.mark.parametrize(
    ("version", "name", "runner"),
    [
        ("0.21.0", "Qwen/Qwen3-8B", "v1"),
        ("0.22.0", "Qwen/Qwen3-8B", "v2"),
        ("0.22.0", DENSE, "v1"),
        ("0.23.0", DENSE, "v2"),
        ("0.23.0", LATENT, "v1"),
        ("0.25.1", RECURRENT, "v1"),
        ("0.29.0", RECURRENT, "v2"),
    ],
)
def test_the_second_runner_takes_over_model_by_model(version: str, name: str, runner: str) -> None:
    """Source: DEFAULT_V2_MODEL_RUNNER_ARCHITECTURES and VllmConfig.use_v2_model_runner."""
    assert start(version, name=name).settings.runner == runner
    assert start(version, name=name, engine_options={"v2_model_runner": True}).settings.runner == "v2"


def test_a_step_holds_no_more_than_every_request_at_its_longest() -> None:
    """Source: EngineArgs._set_default_max_num_seqs_and_batched_tokens_args, 0.12.0 to 0.33.0."""
    assert start("0.12.0", context=512, max_num_seqs=4).settings.batched_tokens == 4 * 512


def test_sequences_are_no_more_than_the_tokens_of_a_step() -> None:
    """Source: the same function: the default is lowered, a number that was asked for is refused."""
    assert start("0.20.1", max_num_batched_tokens=64).settings.max_num_seqs == 64
    with pytest.raises(UsageError, match="--max-num-batched-tokens 64 is below --max-num-seqs 65"):
        _ = start("0.20.1", max_num_batched_tokens=64, max_num_seqs=65).settings


def test_a_prompt_that_no_step_holds_is_refused_without_chunks() -> None:
    with pytest.raises(UsageError, match="chunked prefill is off"):
        _ = start("0.6.3", context=8192, max_num_batched_tokens=4096).settings


def test_eager_is_what_releases_without_graphs_are() -> None:
    """Source: worker.py of 0.2.5 has no warm-up, 0.2.7 captures."""
    assert start("0.2.5").settings.eager
    assert not start("0.2.7").settings.eager
