"""The setups whose configs are put before real engines: models of every kind of attention, on cards of every size.

Every setup is what a person would type after `memplan emit-config`, as options by name.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

_MODELS_AND_GPUS: tuple[tuple[str, str, str], ...] = (
    ("llama-8b", "l4", "8k"),
    ("llama-8b", "l40s", "32k"),
    ("llama-8b", "t4x2", "4096"),
    ("llama-8b", "h100", "131072"),
    ("llama-70b", "a100-80gx2", "16k"),
    ("llama-70b", "h100x4", "32k"),
    ("llama-70b", "h200x2", "64k"),
    ("qwen3-8b", "rtx-4090", "16k"),
    ("qwen3-32b", "a100-80g", "16k"),
    ("qwen3-30b-a3b", "h100x2", "32k"),
    ("qwen2.5-7b", "a10g", "16k"),
    ("qwen2-vl-7b", "l40s", "16k"),
    ("mistral-7b", "a100-40g", "16k"),
    ("mixtral-8x7b", "a100-80gx2", "16k"),
    ("gemma-3-27b", "h100", "32k"),
    ("gemma-2-9b", "l40s", "8192"),
    ("phi-4", "l40s", "16k"),
    ("deepseek-v3", "h200x8", "32k"),
    ("deepseek-v2-lite", "l40s", "16k"),
    ("gpt-oss-20b", "h100", "64k"),
)
_VARIANTS: tuple[dict[str, Any], ...] = (
    {},
    {"concurrency": "4", "max_num_seqs": "64", "max_num_batched_tokens": "4096"},
    {"eager": True, "prefix_caching": False, "gpu_memory_utilization": 0.88},
    {"kv_dtype": "fp8", "max_num_seqs": "32"},
)
_SPECIAL: tuple[dict[str, Any], ...] = (
    {"model": "llama-70b", "gpu": "a100-80g"},
    {"model": "llama-8b", "gpu": "l40s", "context": "8k", "max_loras": 4, "max_lora_rank": 32},
    {"model": "llama-8b", "gpu": "l40s", "context": "8k", "cpu_offload": "4GiB"},
    {"model": "llama-8b", "gpu": "l40s", "context": "8k", "kv_cache_memory": "8GiB"},
    {"model": "llama-8b", "gpu": "l40sx4", "context": "8k", "tp": 2, "dp": 2},
    {"model": "llama-8b", "gpu": "l40s", "context": "8k", "block_size": 32, "dtype": "float16"},
    {"model": "qwen2-vl-7b", "gpu": "l40s", "context": "8k", "limit_mm": "image=2,video=0"},
    {"model": "qwen2-vl-7b", "gpu": "l40s", "context": "8k", "language_model_only": True},
    {"model": "mixtral-8x7b", "gpu": "h100x2", "context": "8k", "ep": True},
    {"model": "llama-8b", "gpu": "h100", "context": "8k", "chunked_prefill": False, "max_num_batched_tokens": "8192"},
    {"model": "qwen3-8b", "gpu": "l40s", "context": "8k", "quant": "fp8"},
    {"model": "qwen3-8b", "gpu": "l40s", "context": "8k", "draft_model": "qwen3-0.6b", "num_speculative_tokens": 4},
)


def setups(*, quick: bool = False) -> Iterator[dict[str, Any]]:
    """Yield setups as options; `quick` yields one in seven."""
    every = [
        {"model": model, "gpu": gpu, "context": context, **variant}
        for model, gpu, context in _MODELS_AND_GPUS
        for variant in _VARIANTS
    ]
    every += _SPECIAL
    yield from every[:: 7 if quick else 1]
