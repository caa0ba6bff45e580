"""Pipeline stages under V0: which releases run them with V0, what a request needs, and how many graphs are captured."""

from __future__ import annotations

import pytest
from vllm_start import LATENT, start

from memplan.engines.vllm.fitted import load_fitted
from memplan.engines.vllm.graphs import GraphMemory, graph_memory


@pytest.mark.parametrize(
    ("version", "generation"), [("0.7.3", "v0"), ("0.8.5", "v0"), ("0.9.0", "v0"), ("0.9.1", "v1")]
)
def test_stages_ran_with_v0_until_0_9_1(version: str, generation: str) -> None:
    """Source: EngineArgs._is_v1_supported_oracle, which wanted Ray by name."""
    assert start(version, pp=2).settings.generation == generation
    assert start(version).settings.generation == ("v0" if version == "0.7.3" else "v1")


@pytest.mark.parametrize(("version", "queues"), [("0.5.0", 1), ("0.5.1", 2), ("0.8.5", 2), ("0.9.1", 1)])
def test_a_request_has_the_blocks_of_one_stages_queue(version: str, queues: int) -> None:
    """Source: CacheEngine, 0.5.1 to 0.10.2. Two RTX 5090 with 7,299 blocks took 58,384 tokens for one request, and no
    more (vllm-project/vllm#14452).
    """
    asked = {"context": 60000, "gpu_memory_utilization": 0.8}
    one, two, three = (start(version, pp=2, concurrency=requests, **asked).budget.kv for requests in (1, 2, 3))
    assert one.needed_bytes * (3 - queues) == two.needed_bytes
    assert three.needed_bytes == one.needed_bytes * (2 if queues == 2 else 3)
    assert one.blocks is not None
    assert one.block_size is not None
    assert one.max_context_tokens == min(131072, one.blocks // queues * one.block_size)


def graphs(version: str, name: str = LATENT, **asked: object) -> GraphMemory:
    at = start(version, "h100", name, **asked)
    return graph_memory(at.spec, at.spec.layers, at.gpu, at.settings, at.rules, load_fitted())


def test_v0_captures_every_batch_once_for_every_stage() -> None:
    """Source: capture_model of vllm/worker/model_runner.py."""
    assert graphs("0.7.3", pp=2).count == 2 * graphs("0.7.3").count == 70
    assert graphs("0.7.3", pp=2).held_bytes == 2 * graphs("0.7.3").held_bytes


def test_a_latent_layer_with_grouped_experts_is_captured_in_more_kernels_than_a_dense_one() -> None:
    dense = graphs("0.7.3", "meta-llama/Llama-3.1-8B-Instruct")
    routed, latent = graphs("0.7.3", "Qwen/Qwen3-30B-A3B"), graphs("0.7.3")
    for_a_layer = dense.held_bytes / 32
    assert routed.held_bytes / 48 == pytest.approx(for_a_layer * 22 / 12, rel=0.001)
    assert latent.held_bytes / 27 == pytest.approx(for_a_layer * (57 * 26 + 24) / 27 / 12, rel=0.001)
