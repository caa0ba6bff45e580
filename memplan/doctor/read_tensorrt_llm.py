"""TensorRT-LLM's log: the engine flow of 0.5 to 0.20 and the PyTorch flow of 1.x.

Source: cpp/tensorrt_llm/batch_manager, runtime; tensorrt_llm/_torch/pyexecutor/_util.py, model_loader.py; tags v0.8 to 1.3.
"""

from __future__ import annotations

from memplan.doctor.sightings import pattern

PATTERNS = (
    pattern("trtllm", "TensorRT-LLM", r"\[?TensorRT-LLM\]?"),
    pattern("trtllm", "TRT-LLM", r"\[TRT-LLM\]|TRT-LLM"),
    pattern("trtllm", "trtllm-", r"trtllm-(?:serve|build|bench|eval)"),
    pattern("trtllm", "tensorrt_llm", r"\btensorrt_llm\b"),
    pattern("trtllm_version", "TensorRT-LLM version", r"TensorRT-LLM version:? (?P<version>\d+\.\d+(?:\.\d+)?\w*)"),
    pattern("trtllm_engine", "oaded engine size", r"Loaded engine size: (?P<weights_mib>\d+) MiB"),
    pattern(
        "trtllm_weights", "for model weights", r"(?:Rank \d+ uses|Use) (?P<weights_gib>[\d.]+) GB for model weights"
    ),
    pattern(
        "trtllm_context",
        "execution context memory",
        r"Allocated (?P<context_mib>[\d.]+) MiB for execution context memory",
    ),
    pattern(
        "trtllm_buffers",
        "runtime buffers",
        r"Allocated (?P<buffers_size>[\d.]+ [KMG]i?B) GPU memory for runtime buffers",
    ),
    pattern("trtllm_decoder", "for decoder", r"Allocated (?P<decoder_size>[\d.]+ [KMG]i?B) GPU memory for decoder"),
    pattern(
        "trtllm_available",
        "calculating max tokens in paged kv cache",
        r"total: (?P<total_gib>[\d.]+) GiB, available: (?P<available_gib>-?[\d.]+) GiB",
    ),
    pattern(
        "trtllm_peak",
        "Peak memory during memory usage profiling",
        r"\(torch \+ non-torch\): (?P<peak_gib>[\d.]+) GiB, available KV cache memory when calculating max tokens: (?P<available_gib>-?[\d.]+) GiB, fraction is set (?P<fraction_x>[\d.]+)",
    ),
    pattern("trtllm_blocks", "KV cache primary pool", r"Number of blocks in KV cache primary pool: (?P<blocks_n>\d+)"),
    pattern("trtllm_block_tokens", "tokens per block", r"Number of tokens per block: (?P<tokens_n>\d+)"),
    pattern(
        "trtllm_kv",
        "max tokens in paged KV cache",
        r"Allocated (?P<kv_gib>[\d.]+) GiB for max tokens in paged KV cache(?: \((?P<tokens_n>\d+)\))?",
    ),
    pattern("trtllm_kv", "tokens in paged KV cache", r"Using (?P<tokens_n>\d+) tokens in paged KV cache"),
    pattern("trtllm_kv_bytes", "k/v cache", r"Allocate (?P<kv_bytes>\d+) bytes for k/v cache"),
    pattern("trtllm_reduced", "Adjusted max_seq_len", r"Adjusted max_seq_len to (?P<longest_n>\d+)"),
    pattern(
        "trtllm_reduced",
        "they are reduced to",
        r"too large for at least one sequence to fit in kvCache\. they are reduced to (?P<longest_n>\d+)",
    ),
    pattern("trtllm_length_one", "max sequence length", r"max(?:imum)? sequence length ?= ?(?P<longest_n>\d+)"),
    pattern("trtllm_malloc", "cudaMalloc", r"CUDA runtime error in [^\n]{0,60}cudaMalloc[^\n]{0,200}out of memory"),
    pattern(
        "trtllm_no_kv",
        "KV cache",
        r"(?:Failed to allocate[^\n]{0,40}KV cache|insufficient[^\n]{0,40}KV cache|KV cache[^\n]{0,40}insufficient|[Ii]mpossible to fit [^\n]{0,60}KV)",
    ),
    pattern(
        "trtllm_no_blocks",
        "primary blocks",
        r"(?:primary blocks|blocksInPrimaryPool)[^\n]{0,60}(?:must be|> ?0|not enough|[Nn]eed at least)",
    ),
    pattern(
        "trtllm_fraction",
        "ree_gpu_mem",
        r"(?:kv_cache_)?free_gpu_mem(?:ory)?_fraction['\"]?[=: ]\s?(?P<fraction_x>0?\.\d+|1\.0)",
    ),
    pattern(
        "trtllm_workspace",
        "orkspace",
        r"(?:OutOfMemory|out of memory)[^\n]{0,120}workspace|Could not allocate[^\n]{0,80}workspace",
    ),
    pattern(
        "trtllm_builder",
        "Requested amount of GPU memory",
        r"Requested amount of GPU memory \((?P<wanted_bytes>\d+) bytes\) could not be allocated",
    ),
)
