"""What a vLLM start-up says about memory, read from its log.

One reader for the spellings of 0.2 to 0.33: the same term was called "Loading model weights took", then "Model loading
took"; the terms of the budget moved from one line ("Memory profiling takes") to another ("Actual usage is") and lost
the split of weights from what lies outside torch. A log that ends in a refusal or in running out of memory is read as
far as it goes. Sizes are GiB as printed (what old releases call GB is GiB too); nothing is computed here.

Source: vllm/v1/worker/gpu_worker.py and gpu_model_runner.py, v1/core/kv_cache_utils.py, v1/sample/ops/
topk_topp_sampler.py, utils/mem_utils.py and, before the V1 engine, worker/worker.py, of the releases 0.4 to 0.33.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from typing import Any

Terms = dict[str, Any]

_NUMBER = r"(-?\d+(?:\.\d+)?)"
_GIB = _NUMBER + r"\s*Gi?B"


def _count(text: str) -> int:
    return int(text.replace(",", ""))


# name -> patterns, the newest spelling first; the first group is the value. The first line that matches counts.
_FIRST: dict[str, tuple[Callable[[str], Any], tuple[str, ...]]] = {
    "version": (str, (r"Initializing a V\d LLM engine \(v([\w.+]+)\)", r"vLLM API server version ([\w.+]+)")),
    "weights_gib": (float, (rf"Model loading took {_GIB}", rf"Loading model weights took {_GIB}")),
    "peak_load_gib": (float, (rf"Peak GPU memory after loading weights: {_GIB}",)),
    "activation_peak_gib": (
        float,
        (
            rf"{_GIB} for peak activation, {_NUMBER} GiB for non-torch",
            rf"torch peak memory increase: {_GIB}",
            rf"PyTorch activation peak memory takes {_GIB}",
        ),
    ),
    "peak_with_graph_estimate_gib": (float, (rf"\(weights \+ non-torch\), {_GIB} for peak activation",)),
    "non_torch_gib": (
        float,
        (
            rf"{_GIB} for non-torch memory",
            rf"non-torch forward increase memory: {_GIB}",
            rf"non_torch_memory takes {_GIB}",
            rf"non_torch_memory={_GIB}",
        ),
    ),
    "consumed_gib": (
        float,
        (rf"{_GIB} for consumed memory", rf"total consumed \(from mem_get_info\): {_GIB}"),
    ),
    "non_kv_gib": (float, (rf"Total non KV cache memory: {_GIB}",)),
    "cuda_graph_gib": (
        float,
        (
            rf"{_GIB} for CUDAGraph memory",
            rf"Graph capturing finished in \d+ secs?, took {_GIB}",
            rf"CUDA graph pool memory: {_NUMBER} GiB \(actual\)",
        ),
    ),
    "cuda_graph_estimate_gib": (
        float,
        (rf"Estimated CUDA graph memory: {_GIB} total", rf"\(actual\), {_NUMBER} GiB \(estimated\)"),
    ),
    "encoder_graph_estimate_mib": (float, (rf"Estimated encoder CUDA graph memory: {_NUMBER} MiB",)),
    "kv_cache_gib": (
        float,
        (
            rf"Available KV cache memory: {_GIB}",
            rf"Current kv cache memory in use is {_GIB}",
            rf"rest of the memory reserved for KV Cache is {_GIB}",
            rf"kv_cache_size={_GIB}",
            rf"reserved {_GIB} memory for KV Cache",
            rf"(?:Explicitly|Auto) set \({_NUMBER}/",
        ),
    ),
    "kv_blocks": (_count, (r"# (?:GPU|CPU|cuda|cpu) blocks: ([\d,]+)",)),
    "kv_cache_tokens": (_count, (r"\w+ KV cache size: ([\d,]+) tokens",)),
    "max_concurrency": (float, (rf"Maximum concurrency for [\d,]+ tokens per request: {_NUMBER}x",)),
    "profiled_context_tokens": (_count, (r"Maximum concurrency for ([\d,]+) tokens per request",)),
    "max_num_batched_tokens": (_count, (r"max_num_batched_tokens=(\d+)",)),
    "attention_block_size": (_count, (r"Setting attention block size to (\d+) tokens",)),
    "mamba_padding_percent": (float, (rf"Padding mamba page size by {_NUMBER}%",)),
    "padding_layers": (_count, (r"Add (\d+) padding layers",)),
    "encoder_budget_tokens": (_count, (r"initialized with a budget of (\d+) tokens",)),
    "encoder_profiled_items": (_count, (r"and profiled with (\d+) \w+ items",)),
    "attention_backend": (
        str,
        (r"Using (\w+) attention backend", r"Using (Flash Attention|FlashInfer|Triton) backend"),
    ),
    "moe_backend": (str, (r"Using '?([\w ]+?)'? (?:\w+ )?MoE backend",)),
}

_STARTUP = re.compile(
    rf"Free memory on device[^(]*\({_NUMBER}/{_NUMBER} GiB\) on startup(?:.*?utilization(?: is)? \({_NUMBER},\s*"
    rf"{_NUMBER} GiB\))?"
)
_LEVELS = re.compile(rf"Initial free memory: {_GIB}; Requested memory: {_NUMBER} \(util\), {_GIB}")
_SUGGESTED = re.compile(r"--kv-cache-memory=(\d+)`")
_GRAPH_GROUPS = re.compile(r"Profiling CUDA graph memory: (.+)")
_GRAPH_GROUP = re.compile(r"(\w+)=(\d+) \(largest=(\d+)\)")
_GRAPH_TRIAL = re.compile(
    rf"Estimated (\w+) CUDA graph memory: {_NUMBER} MiB first-capture \+ \(\d+-1\) . {_NUMBER} MiB per-graph"
)
_CAPTURED = re.compile(r"Capturing CUDA graphs \(([^,)]+), (\w+)\): +100%.*?(\d+)/\3\b")
_ARGUMENTS = re.compile(r"non-default args: (\{.*\})")
_SAMPLER = (
    (re.compile(r"Using FlashInfer for top-p & top-k sampling"), True),
    (re.compile(r"FlashInfer top-p/top-k sampling .*(?:disabled|unavailable)"), False),
    (re.compile(r"FlashInfer is not available\. Falling back to the PyTorch"), False),
)
_NEEDED = re.compile(
    rf"{_GIB} KV cache is needed, which is larger than the available KV cache memory \({_GIB}\)"
    r"(?:.*?estimated maximum model length is ([\d,]+))?"
)
_OUT_OF_MEMORY = re.compile(
    rf"CUDA out of memory\. Tried to allocate {_NUMBER} ([MGK])iB\.(?:.*?total capacity of {_GIB})?"
    rf"(?:.*?of which {_NUMBER} ([MGK])iB is free)?"
)
_SCALE = {"K": 1 / 1024**2, "M": 1 / 1024, "G": 1.0}


def read_log(text: str) -> Terms:
    """Return every term that the log prints, by name; what it does not print is absent."""
    terms: Terms = {}
    for name, (convert, patterns) in _FIRST.items():
        for pattern in patterns:
            if match := re.search(pattern, text):
                terms[name] = convert(match[1])
                break
    terms |= _start(text)
    terms |= _graphs(text)
    if suggested := [int(number) for number in _SUGGESTED.findall(text)]:
        terms["suggested_kv_bytes"] = suggested[:2]
    for pattern, is_used in _SAMPLER:
        if pattern.search(text):
            terms["flashinfer_sampler"] = is_used
            break
    if "Using V2 Model Runner" in text:
        terms["model_runner"] = "V2"
    if match := _ARGUMENTS.search(text):
        terms["arguments"] = _literal(match[1])
    if problem := _problem(text):
        terms["problem"] = problem
    return terms


def _start(text: str) -> Terms:
    """Free and total memory that the process found, and what it asked for."""
    terms: Terms = {}
    if match := _LEVELS.search(text):
        terms = {"free_at_start_gib": float(match[1]), "gpu_memory_utilization": float(match[2])}
        terms["requested_gib"] = float(match[3])
    if match := _STARTUP.search(text):
        terms |= {"free_at_start_gib": float(match[1]), "gpu_memory_gib": float(match[2])}
        if match[3]:
            terms |= {"gpu_memory_utilization": float(match[3]), "requested_gib": float(match[4])}
    return terms


def _graphs(text: str) -> Terms:
    """How many sizes are captured per mode, the largest, and what the trial captures took."""
    terms: Terms = {}
    if match := _GRAPH_GROUPS.search(text):
        groups = _GRAPH_GROUP.findall(match[1])
        terms["capture_sizes"] = {mode: [int(count), int(largest)] for mode, count, largest in groups}
    elif bars := _CAPTURED.findall(text):
        terms["capture_sizes"] = {mode: [int(count), None] for _, mode, count in bars}
    if trials := _GRAPH_TRIAL.findall(text):
        terms["graph_profile_mib"] = {mode: [float(first), float(further)] for mode, first, further in trials}
    return terms


def _problem(text: str) -> Terms | None:
    """Why the engine did not start, when it says so in memory terms."""
    if match := _OUT_OF_MEMORY.search(text):
        problem: Terms = {"kind": "out_of_memory", "tried_gib": float(match[1]) * _SCALE[match[2]]}
        if match[3]:
            problem["gpu_memory_gib"] = float(match[3])
        if match[4]:
            problem["free_gib"] = float(match[4]) * _SCALE[match[5]]
        return problem
    if match := _NEEDED.search(text):
        needed = {"kind": "kv_too_small", "needed_gib": float(match[1]), "available_gib": float(match[2])}
        return needed | ({"max_context_tokens": _count(match[3])} if match[3] else {})
    if "No available memory for the cache blocks" in text:
        return {"kind": "no_kv_memory"}
    if re.search(r"Free memory on device.*is less than desired", text):
        return {"kind": "not_free"}
    return None


def _literal(text: str) -> Terms:
    """The arguments that were given; an object that is no literal is left out with everything behind it."""
    try:
        return dict(ast.literal_eval(text))
    except (ValueError, SyntaxError):
        return {}
