"""The reader of vLLM's start-up logs: every term in every spelling. The lines are made up, in the engine's "
"wording."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "gpu"))
from vllm_logs import read_log

PREFIX = "(EngineCore pid=77) INFO 01-02 03:04:05 [gpu_worker.py:123] "


@pytest.mark.parametrize(
    ("line", "name", "value"),
    [
        ("Loading model weights took 13.5000 GB", "weights_gib", 13.5),
        ("Loading model weights took 13.5000 GiB", "weights_gib", 13.5),
        ("Model loading took 13.5000 GiB and 2.250000 seconds", "weights_gib", 13.5),
        ("Model loading took 13.5 GiB memory and 2.250000 seconds", "weights_gib", 13.5),
        ("Peak GPU memory after loading weights: 13.62 GiB", "peak_load_gib", 13.62),
        ("Available KV cache memory: 41.07 GiB", "kv_cache_gib", 41.07),
        ("Available KV cache memory: -1.5 GiB", "kv_cache_gib", -1.5),
        ("kv_cache_size=6.25GiB gpu_memory_utilization=0.90", "kv_cache_gib", 6.25),
        ("the rest of the memory reserved for KV Cache is 7.25GiB.", "kv_cache_gib", 7.25),
        ("# GPU blocks: 1234, # CPU blocks: 512", "kv_blocks", 1234),
        ("# cuda blocks: 1234, # CPU blocks: 512", "kv_blocks", 1234),
        ("GPU KV cache size: 123,456 tokens", "kv_cache_tokens", 123456),
        ("CPU KV cache size: 8 tokens, Maximum concurrency for 4 tokens per request: 2.00x", "max_concurrency", 2),
        ("Maximum concurrency for 8,192 tokens per request: 15.07x", "max_concurrency", 15.07),
        ("Maximum concurrency for 8,192 tokens per request: 15.07x", "profiled_context_tokens", 8192),
        ("Graph capturing finished in 6 secs, took 0.81 GiB", "cuda_graph_gib", 0.81),
        ("Estimated CUDA graph memory: 0.77 GiB total", "cuda_graph_estimate_gib", 0.77),
        ("CUDA graph pool memory: 0.81 GiB (actual), 0.77 GiB (estimated), difference: 0.04 GiB (4.9%).",
         "cuda_graph_estimate_gib", 0.77),
        ("Chunked prefill is enabled with max_num_batched_tokens=4096.", "max_num_batched_tokens", 4096),
        ("Setting attention block size to 528 tokens to ensure that pages match.", "attention_block_size", 528),
        ("Padding mamba page size by 1.15% to ensure that pages match.", "mamba_padding_percent", 1.15),
        ("Add 3 padding layers, may waste at most 12.50% KV cache memory", "padding_layers", 3),
        ("Using FLASH_ATTN attention backend out of potential backends: ['FLASH_ATTN'].", "attention_backend",
         "FLASH_ATTN"),
        ("Using 'TRITON' Mxfp4 MoE backend.", "moe_backend", "TRITON"),
        ("Using TRITON Unquantized MoE backend out of potential backends: ['TRITON'].", "moe_backend", "TRITON"),
        ("Initializing a V1 LLM engine (v0.26.0) with config: model='x'", "version", "0.26.0"),
    ],
)  # fmt: skip
def test_a_term_is_read_in_each_spelling(line: str, name: str, value: object) -> None:
    assert read_log(PREFIX + line + "\n")[name] == value


def test_the_usage_line_that_splits_weights_from_the_rest_gives_every_term() -> None:
    terms = read_log(
        PREFIX + "Free memory on device (78.50/79.25 GiB) on startup. Desired GPU memory utilization is (0.9, 71.33 "
        "GiB). Actual usage is 15.02 GiB for weight, 1.25 GiB for peak activation, 0.21 GiB for non-torch memory, "
        "and 0.56 GiB for CUDAGraph memory. Replace gpu_memory_utilization config with "
        "`--kv-cache-memory=58000000001` (54.02 GiB) to fit into requested memory, or "
        "`--kv-cache-memory=66000000002` (61.47 GiB) to fully utilize gpu memory. Current kv cache memory in use is "
        "54.85 GiB."
    )
    assert terms == {
        "activation_peak_gib": 1.25,
        "non_torch_gib": 0.21,
        "cuda_graph_gib": 0.56,
        "kv_cache_gib": 54.85,
        "free_at_start_gib": 78.5,
        "gpu_memory_gib": 79.25,
        "gpu_memory_utilization": 0.9,
        "requested_gib": 71.33,
        "suggested_kv_bytes": [58000000001, 66000000002],
    }


def test_the_usage_line_of_newer_releases_counts_graphs_into_the_peak() -> None:
    terms = read_log(
        PREFIX + "Free memory on device (94.05/95.00 GiB) on startup. Desired GPU memory utilization is (0.92, 87.40 "
        "GiB). Actual usage is 56.50 GiB for consumed memory (weights + non-torch), 0.75 GiB for peak activation, "
        "and 0.25 GiB for CUDAGraph memory. Replace gpu_memory_utilization config with `--kv-cache-memory=1` (0.0 "
        "GiB) to fit."
    )
    assert terms["consumed_gib"] == 56.5
    assert terms["peak_with_graph_estimate_gib"] == 0.75
    assert terms["cuda_graph_gib"] == 0.25
    assert "activation_peak_gib" not in terms


def test_the_profiling_line_is_read_before_and_after_it_changed() -> None:
    old = read_log(
        "model weights take 3.00GiB; non_torch_memory takes 0.10GiB; PyTorch activation peak memory takes 1.40GiB;"
    )
    assert (old["non_torch_gib"], old["activation_peak_gib"]) == (0.1, 1.4)
    split = read_log(
        "Memory profiling takes 3.21 seconds. Total non KV cache memory: 16.5GiB; torch peak memory increase: "
        "1.4GiB; non-torch forward increase memory: 0.12GiB; weights memory: 14.98GiB."
    )
    assert (split["non_kv_gib"], split["activation_peak_gib"], split["non_torch_gib"]) == (16.5, 1.4, 0.12)
    consumed = read_log(
        "Memory profiling takes 3.21 seconds. Total non KV cache memory: 16.5GiB; torch peak memory increase: "
        "1.4GiB; total consumed (from mem_get_info): 15.1GiB; weights memory: 14.98GiB."
    )
    assert (consumed["consumed_gib"], consumed["activation_peak_gib"]) == (15.1, 1.4)


def test_captures_are_counted_per_mode_with_what_the_trials_took() -> None:
    terms = read_log(
        PREFIX + "Profiling CUDA graph memory: PIECEWISE=51 (largest=512), FULL=35 (largest=256)\n"
        "DEBUG Estimated PIECEWISE CUDA graph memory: 120.00 MiB first-capture + (51-1) × 6.00 MiB per-graph\n"
        "DEBUG Estimated FULL CUDA graph memory: 260.00 MiB first-capture + (35-1) × 4.50 MiB per-graph\n"
    )
    assert terms["capture_sizes"] == {"PIECEWISE": [51, 512], "FULL": [35, 256]}
    assert terms["graph_profile_mib"] == {"PIECEWISE": [120.0, 6.0], "FULL": [260.0, 4.5]}


def test_captures_are_counted_from_the_progress_bars_when_nothing_else_tells() -> None:
    bars = (
        "Capturing CUDA graphs (mixed prefill-decode, PIECEWISE): 100%|####| 67/67 [00:04<00:00, 15.2it/s]\n"
        "Capturing CUDA graphs (decode, FULL):  51%|##   | 18/35 [00:02<00:02, 9.1it/s]\n"
        "Capturing CUDA graphs (decode, FULL): 100%|####| 35/35 [00:04<00:00, 9.1it/s]\n"
    )
    assert read_log(bars)["capture_sizes"] == {"PIECEWISE": [67, None], "FULL": [35, None]}


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("Using FlashInfer for top-p & top-k sampling.", True),
        ("FlashInfer top-p/top-k sampling disabled via VLLM_USE_FLASHINFER_SAMPLER=0.", False),
        ("FlashInfer top-p/top-k sampling unavailable: unsupported compute capability 7.0; falling back.", False),
        ("FlashInfer top-p/top-k sampling is available but disabled by default.", False),
        ("FlashInfer is not available. Falling back to the PyTorch-native one.", False),
        ("FlashInfer unavailable since package was not found", None),
        ("Using max model len 4096", None),
    ],
)
def test_the_sampler_is_known_when_the_log_names_it(line: str, expected: bool | None) -> None:
    assert read_log(PREFIX + line).get("flashinfer_sampler") is expected


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (
            "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 512.00 MiB. GPU 0 has a total capacity of "
            "23.50 GiB of which 128.00 MiB is free. Including non-PyTorch memory, 23.30 GiB is in use.",
            {"kind": "out_of_memory", "tried_gib": 0.5, "gpu_memory_gib": 23.5, "free_gib": 0.125},
        ),
        (
            "ValueError: To serve at least one request with the models's max seq len (131072), (16.0 GiB KV cache is "
            "needed, which is larger than the available KV cache memory (9.5 GiB). Based on the available memory, "
            "the estimated maximum model length is 77824.",
            {"kind": "kv_too_small", "needed_gib": 16.0, "available_gib": 9.5, "max_context_tokens": 77824},
        ),
        ("ValueError: No available memory for the cache blocks. Try more.", {"kind": "no_kv_memory"}),
        (
            "ValueError: Free memory on device cuda:0 (10.0/23.5 GiB) on startup is less than desired GPU memory "
            "utilization (0.9, 21.15 GiB).",
            {"kind": "not_free"},
        ),
    ],
)
def test_a_refusal_is_read_with_its_figures(line: str, problem: dict[str, object]) -> None:
    assert read_log(line)["problem"] == problem


def test_a_refusal_for_lack_of_free_memory_still_tells_both_sizes() -> None:
    terms = read_log(
        "ValueError: Free memory on device cuda:0 (10.0/23.5 GiB) on startup is less than desired GPU memory "
        "utilization (0.9, 21.15 GiB)."
    )
    assert (terms["free_at_start_gib"], terms["gpu_memory_gib"], terms["requested_gib"]) == (10.0, 23.5, 21.15)


def test_the_arguments_that_were_given_are_read_and_odd_ones_do_no_harm() -> None:
    assert read_log("non-default args: {'max_model_len': 4096, 'enforce_eager': True}")["arguments"] == {
        "max_model_len": 4096,
        "enforce_eager": True,
    }
    assert read_log("non-default args: {'config': <Config object at 0x7f>}")["arguments"] == {}


def test_an_unrelated_log_says_nothing() -> None:
    assert read_log("INFO started\nINFO listening on port 8000\n") == {}
