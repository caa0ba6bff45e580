"""CUDA graphs: which sizes are captured, and whether they are charged."""

from __future__ import annotations

import pytest
from vllm_start import DENSE, LATENT, start

from memplan.engines.vllm.fitted import load_fitted
from memplan.engines.vllm.graphs import GraphMemory, capture_sizes, graph_memory


def graphs(version: str, gpu: str = "h100", name: str = DENSE, **asked: object) -> GraphMemory:
    at = start(version, gpu, name, **asked)
    return graph_memory(at.spec, at.spec.layers, at.gpu, at.settings, at.rules, load_fitted())


@pytest.mark.parametrize("version", ["0.8.5", "0.9.2"])
def test_early_v1_captures_every_eighth_size_in_pieces(version: str) -> None:
    """Source: VllmConfig._set_cudagraph_sizes at 0.8.5 and cuda_graph_sizes of SchedulerConfig at 0.9.2."""
    at = start(version)
    assert capture_sizes(at.settings, at.rules) == ((1, 2, 4, *range(8, 513, 8)), ())


def test_later_v1_steps_by_sixteen_above_256_and_captures_decoding_whole() -> None:
    """Source: VllmConfig._set_cudagraph_sizes at 0.12.0: 51 sizes up to 512, as start-ups print."""
    at = start("0.12.0")
    pieces, full = capture_sizes(at.settings, at.rules)
    assert pieces == full == (1, 2, 4, *range(8, 256, 8), *range(256, 513, 16))
    assert len(pieces) == 51


@pytest.mark.parametrize(("sequences", "largest"), [(1, 2), (8, 16), (100, 200), (128, 256), (256, 512), (1024, 512)])
def test_the_largest_size_is_twice_the_sequences_up_to_512(sequences: int, largest: int) -> None:
    at = start("0.20.1", max_num_seqs=sequences)
    pieces, full = capture_sizes(at.settings, at.rules)
    assert pieces[-1] == largest
    assert full[-1] <= sequences


def test_sizes_are_no_larger_than_a_step() -> None:
    at = start("0.12.0", max_num_batched_tokens=64, max_num_seqs=64)
    assert capture_sizes(at.settings, at.rules)[0][-1] == 64


def test_v0_captures_35_sizes_for_256_sequences() -> None:
    """Source: _BATCH_SIZES_TO_CAPTURE of vllm/worker/model_runner.py: 1, 2, 4 and every eighth up to 256."""
    assert graphs("0.6.3").count == 35
    assert graphs("0.6.3", max_num_seqs=16).count == 5


def test_eager_has_no_graphs() -> None:
    assert graphs("0.20.1", eager=True) == GraphMemory()


@pytest.mark.parametrize(
    ("version", "gpu", "charged"),
    [
        ("0.6.3", "h100", False),
        ("0.12.0", "h100", False),
        ("0.19.1", "h100", False),
        ("0.20.0", "h100", True),
        ("0.20.0", "mi300x", False),
        ("0.27.1", "mi300x", True),
        ("0.25.1", "h100", False),  # the second runner estimates nothing
        ("0.29.0", "h100", True),
    ],
)
def test_graphs_are_charged_from_0_20_on(version: str, gpu: str, charged: bool) -> None:
    """Source: VLLM_MEMORY_PROFILER_ESTIMATE_CUDAGRAPHS (vllm/envs.py), false at 0.18.1 and true at 0.20.0."""
    memory = graphs(version, gpu)
    assert (memory.charged_bytes > 0) is charged
    assert memory.held_bytes > 0


def test_more_layers_and_more_sizes_hold_more() -> None:
    small, large = graphs("0.19.0", max_num_seqs=16), graphs("0.19.0", max_num_seqs=256)
    assert small.held_bytes < large.held_bytes
    assert graphs("0.19.0", name="Qwen/Qwen3-0.6B").held_bytes < graphs("0.19.0", name="Qwen/Qwen3-32B").held_bytes


def test_split_buffers_are_those_of_hopper() -> None:
    assert (
        graphs("0.19.0", "h100", LATENT).held_bytes > graphs("0.19.0", "a100-80g", LATENT, max_num_seqs=1024).held_bytes
    )
