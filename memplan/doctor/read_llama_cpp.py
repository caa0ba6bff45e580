"""llama.cpp's log, and that of Ollama, which runs it.

Source: src/llama*.cpp, ggml/src/ggml-alloc.c, ggml-cuda.cu, ggml-metal, ggml-vulkan, tools/server, common/fit.cpp, from
early 2024 to October 2026; ik_llama.cpp prints the older forms. Ollama: llm/server.go, llm/memory.go, server/sched.go.
"""

from __future__ import annotations

from memplan.doctor.sightings import pattern

PATTERNS = (
    pattern(
        "llama_cpp",
        "llama",
        r"llama_(?:model_load|kv_cache|context|new_context|init|load_model|print_system|perf|params)|llama-(?:server|cli|bench|run)|llama\.cpp|llama_cpp|llm_load_",
    ),
    pattern("llama_cpp", "llm_load_", r"llm_load_"),
    pattern("llama_cpp", "ggml_", r"ggml_(?:cuda|backend|metal|vulkan|gallocr|new_object)"),
    pattern("llama_cpp", "load_tensors", r"load_tensors:"),
    pattern("ollama", "ollama", r"\bollama\b"),
    pattern("llama_build", "build", r"\bbuild(?:_info)?[:=]? ?(?:b)?(?P<build>\d{3,5}) \([0-9a-f]{6,}\)"),
    pattern("llama_model", ".gguf", r"(?P<model>[\w./\\:-]{1,200}\.gguf)"),
    pattern("llama_name", "general.name", r"general\.name\s+(?:str\s+)?= ?(?P<name>[^\n]{1,80})"),
    pattern("llama_context", "n_ctx ", r"n_ctx\s+= (?P<context_n>\d+)"),
    pattern("llama_batch", "n_batch", r"n_batch\s+= (?P<batch_n>\d+)"),
    pattern("llama_ubatch", "n_ubatch", r"n_ubatch\s+= (?P<ubatch_n>\d+)"),
    pattern("llama_flash", "flash_attn", r"flash_attn\s+= (?P<flash>\w+)"),
    pattern("llama_offloaded", "layers to GPU", r"offloaded (?P<layers_n>\d+)/(?P<all_n>\d+) layers to GPU"),
    pattern(
        "llama_weights",
        "buffer size",
        r"(?P<device>CUDA\d+|ROCm\d+|Vulkan\d+|SYCL\d+|Metal|MTL\d+|CPU\w*|[A-Z]\w+)(?: model)? (?:model )?buffer size\s+= +(?P<weights_mib>[\d.]+) MiB",
    ),
    pattern("llama_kv", "KV buffer size", r"(?P<device>\w+) KV buffer size = +(?P<kv_mib>[\d.]+) MiB"),
    pattern("llama_kv_self", "KV self size", r"KV self size +=? +(?P<kv_mib>[\d.]+) MiB"),
    pattern("llama_kv_cells", "cells", r"size = +(?P<kv_mib>[\d.]+) MiB \( *(?P<cells_n>\d+) cells"),
    pattern(
        "llama_compute",
        "compute buffer size",
        r"(?P<device>\w+) compute buffer size (?:=|is) +(?P<compute_mib>[\d.]+) MiB",
    ),
    pattern(
        "llama_device",
        "MiB free",
        r"using device (?P<device>\w+) \((?P<gpu>[^()]{1,80}(?:\([^()]{0,40}\))?)\)[^\n]{0,60}? - (?P<free_mib>\d+) MiB free",
    ),
    pattern(
        "llama_device_total",
        "VRAM:",
        r"Device (?P<index>\d+): (?P<gpu>[^,]{1,80}),[^\n]{0,80}VRAM: (?P<total_mib>\d+) MiB",
    ),
    pattern(
        "llama_ready", "listening", r"server is listening|HTTP server listening|all slots are idle|main: model loaded"
    ),
    pattern(
        "llama_train_context",
        "n_ctx_train",
        r"n_ctx(?:_per_seq|_seq)? \((?P<context_n>\d+)\) (?P<than>[<>]) n_ctx_train \((?P<train_n>\d+)\)",
    ),
    # What failed.
    pattern(
        "llama_alloc",
        "Malloc failed",
        r"allocating (?P<wanted_mib>[\d.]+) MiB on device (?P<device>\d+): (?:cuda|hip|musa)Malloc failed",
    ),
    pattern(
        "llama_gallocr",
        "gallocr",
        r"ggml_gallocr_reserve_n(?:_impl)?: failed to allocate (?P<device>\w+) buffer of size (?P<wanted_bytes>\d+)",
    ),
    pattern(
        "llama_kv_failed",
        "kv cache",
        r"failed to allocate buffer for (?:kv|rs) cache|llama_kv_cache_init\(?\)? failed|failed to initialize the memory module|kv[ _]cache (?:allocation )?failed",
    ),
    pattern("llama_kv_failed", "kv_cache_init", r"llama_kv_cache(?:_unified)?(?:_init)?(?:\(\))?:? failed"),
    pattern(
        "llama_compute_failed",
        "compute",
        r"failed to allocate compute (?:pp |tg )?buffers|compute buffer allocation failed",
    ),
    pattern("llama_weights_failed", "unable to allocate", r"unable to allocate (?P<device>\w*) ?(?:backend )?buffer"),
    pattern("llama_retry", "retrying without pipeline", r"retrying without pipeline parallelism"),
    pattern("llama_mmproj", "mmproj", r"mmproj|clip_model_load|clip_ctx"),
    pattern(
        "llama_slot",
        "memory slot",
        r"failed to find (?:a memory slot|free space in the KV cache)(?:[^\n]{0,40}?size (?P<tokens_n>\d+))?",
    ),
    pattern("llama_slot", "free space in the KV cache", r"failed to find free space in the KV cache"),
    pattern(
        "llama_exceeds",
        "exceeds the available context",
        r"(?:request \((?P<tokens_n>\d+) tokens\)|prompt|the request) exceeds the available context size(?:[^\n]{0,60}?(?P<context_n>\d+))?",
    ),
    pattern("llama_metal", "nsufficient Memory", r"Insufficient Memory|kIOGPUCommandBufferCallbackErrorOutOfMemory"),
    pattern(
        "llama_vulkan",
        "DeviceMemory",
        r"ErrorOutOfDeviceMemory|vk::(?:SystemError|OutOfDeviceMemoryError)|Device memory allocation of size (?P<wanted_bytes>\d+) failed",
    ),
    pattern(
        "llama_vulkan", "Device memory allocation", r"Device memory allocation of size (?P<wanted_bytes>\d+) failed"
    ),
    pattern(
        "llama_fit",
        "projected to use",
        r"projected to use (?P<needed_mib>\d+) MiB of device memory vs\. (?P<free_mib>\d+) MiB of free",
    ),
    pattern(
        "llama_cannot_fit",
        "fit",
        r"(?:cannot meet free memory target|failed to fit params|n_ctx_train[^\n]{0,40}cannot fit)",
    ),
    pattern(
        "ollama_system",
        "requires more system memory",
        r"model requires more system memory \((?P<needed_size>[\d.]+ [KMGT]i?B)\) than is available \((?P<free_size>[\d.]+ [KMGT]i?B)\)",
    ),
    pattern(
        "ollama_offload",
        "memory.required.full",
        r"layers\.model=(?P<all_n>\d+) layers\.offload=(?P<layers_n>\d+)[^\n]{0,120}?memory\.available=\"?\[(?P<free_size>[\d.]+ [KMGT]i?B)[^\n]{0,160}?memory\.required\.full=\"(?P<needed_size>[\d.]+ [KMGT]i?B)\"(?:[^\n]{0,160}?memory\.required\.kv=\"(?P<kv_size>[\d.]+ [KMGT]i?B)\")?",
    ),
    pattern("ollama_died", "runner process has terminated", r"llama runner process has terminated"),
)
