"""What engines call the options that memplan has in common for them: their config files and command lines, read back.

SGLang, TensorRT-LLM and transformers take their own names as engine options; only what names the model, its weights
and the cache outright is translated here. `emit-config` writes the same names.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from memplan.catalog.rules import Release
from memplan.errors import UsageError
from memplan.units import GIB

Reader = Callable[[Any], Any]


def _text(value: Any) -> str:
    return str(value)


def _flag(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if str(value).lower() in ("true", "1", "yes", "on"):
        return True
    if str(value).lower() in ("false", "0", "no", "off"):
        return False
    raise ValueError(value)


def _number(value: Any) -> int:
    return int(value)


def _gib(value: Any) -> str:
    return str(int(float(value) * GIB))


def _media(value: Any) -> str:
    """`{"image": 2}`, `{"image": {"count": 2}}` or `image=2,video=0`."""
    limits = json.loads(value) if isinstance(value, str) and value.lstrip().startswith("{") else value
    if not isinstance(limits, Mapping):
        return str(value)
    counts = {name: limit.get("count", 1) if isinstance(limit, Mapping) else limit for name, limit in limits.items()}
    return ",".join(f"{name}={int(count)}" for name, count in counts.items())


# An engine's name for an option -> memplan's, and how its value is read. Names are without dashes in front.
VLLM: Mapping[str, tuple[str, Reader]] = {
    "model": ("model", _text),
    "tensor-parallel-size": ("tp", _number),
    "tp": ("tp", _number),
    "pipeline-parallel-size": ("pp", _number),
    "pp": ("pp", _number),
    "data-parallel-size": ("dp", _number),
    "dp": ("dp", _number),
    "enable-expert-parallel": ("ep", _flag),
    "ep": ("ep", _flag),
    "max-model-len": ("context", _text),
    "max-num-seqs": ("max_num_seqs", _text),
    "max-num-batched-tokens": ("max_num_batched_tokens", _text),
    "gpu-memory-utilization": ("gpu_memory_utilization", float),
    "device-memory-utilization": ("gpu_memory_utilization", float),
    "kv-cache-memory-bytes": ("kv_cache_memory", _text),
    "kv-cache-memory": ("kv_cache_memory", _text),
    "kv-cache-dtype": ("kv_dtype", _text),
    "dtype": ("dtype", _text),
    "block-size": ("block_size", _number),
    "enforce-eager": ("eager", _flag),
    "enable-chunked-prefill": ("chunked_prefill", _flag),
    "enable-prefix-caching": ("prefix_caching", _flag),
    "cpu-offload-gb": ("cpu_offload", _gib),
    "limit-mm-per-prompt": ("limit_mm", _media),
    "language-model-only": ("language_model_only", _flag),
    "offline-batch": ("offline_batch", _flag),
    "max-loras": ("max_loras", _number),
    "max-lora-rank": ("max_lora_rank", _number),
    "revision": ("revision", _text),
}
SGLANG: Mapping[str, tuple[str, Reader]] = {
    "model-path": ("model", _text),
    "model": ("model", _text),
    "revision": ("revision", _text),
    "max-loras-per-batch": ("max_loras", _number),
    "max-lora-rank": ("max_lora_rank", _number),
    "speculative-draft-model-path": ("draft_model", _text),
}
TENSORRT_LLM: Mapping[str, tuple[str, Reader]] = {
    "model": ("model", _text),
    "cuda-graph-config": ("eager", lambda value: value is None),  # null: no graphs
}
TRANSFORMERS: Mapping[str, tuple[str, Reader]] = {
    "model": ("model", _text),
    "revision": ("revision", _text),
    "dtype": ("dtype", _text),
    "quant": ("quant", _text),
    "max-length": ("context", _text),
}
LLAMA_CPP: Mapping[str, tuple[str, Reader]] = {
    "m": ("model", _text),
    "model": ("model", _text),
    "hf": ("model", _text),
    "hf-repo": ("model", _text),
    "c": ("context", _text),
    "ctx-size": ("context", _text),
    "ngl": ("n_gpu_layers", _text),
    "gpu-layers": ("n_gpu_layers", _text),
    "n-gpu-layers": ("n_gpu_layers", _text),
    "b": ("batch_size", _text),
    "batch-size": ("batch_size", _text),
    "ub": ("ubatch_size", _text),
    "ubatch-size": ("ubatch_size", _text),
    "fa": ("flash_attention", _text),
    "flash-attn": ("flash_attention", _text),
    "np": ("parallel", _text),
    "parallel": ("parallel", _text),
}
# Flags that releases turn on by themselves.
_ON_BY_DEFAULT: Mapping[str, tuple[str, ...]] = {
    "vllm": ("enable-chunked-prefill", "enable-prefix-caching", "async-scheduling")
}
# Flags with a --no- form that stay the engine's own options.
_OWN_FLAGS: Mapping[str, tuple[str, ...]] = {"vllm": ("async-scheduling", "disable-hybrid-kv-cache-manager")}
SPELLINGS: Mapping[str, Mapping[str, tuple[str, Reader]]] = {
    "vllm": VLLM,
    "sglang": SGLANG,
    "tensorrt-llm": TENSORRT_LLM,
    "llama.cpp": LLAMA_CPP,
    "transformers": TRANSFORMERS,
}
# vLLM's ways to say: the longest that the cache holds.
_FITTED_LENGTHS = ("auto", "-1")
# llama.cpp's short names for options that its engine knows by their long ones.
LLAMA_CPP_SHORT: Mapping[str, str] = {
    "ctk": "cache_type_k",
    "ctv": "cache_type_v",
    "sm": "split_mode",
    "ts": "tensor_split",
    "kvu": "kv_unified",
    "nkvo": "no_kv_offload",
}


def takes_false(engine: str, name: str, release: Release) -> bool:
    """Whether a line `name: false` of an engine's config file turns a flag off; else it is as if it were not there.

    vLLM's parser made an option of every line: a flag that is false was left out until 0.27, from 0.28 on it becomes
    `--no-name`, which only names written with dashes have. Before 0.8.5 chunked prefill took its value as a word.
    Source: FlexibleArgumentParser.load_config_file (vllm/utils/argparse_utils.py), 0.6.4 to 0.33.
    """
    dashed = name.replace("_", "-")
    if engine != "vllm" or not _is_flag(engine, dashed.removeprefix("no-")):
        return True
    if dashed.startswith("no-"):
        return False
    if dashed == "enable-chunked-prefill" and release < (0, 8, 5):
        return True
    return release >= (0, 28, 0) and name == dashed


def _is_flag(engine: str, dashed: str) -> bool:
    return SPELLINGS[engine].get(dashed, ("", None))[1] is _flag or dashed in _OWN_FLAGS.get(engine, ())


def is_off_unless_given(engine: str, name: str) -> bool:
    """Whether a flag that a file leaves out is off, whatever the release."""
    return name.replace("_", "-") not in _ON_BY_DEFAULT.get(engine, ())


def read_options(engine: str, pairs: Mapping[str, Any], origin: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return memplan's options that an engine's own name, and what is left as the engine's own options.

    Raises: UsageError for a value that does not read.
    """
    spelling = SPELLINGS.get(engine, {})
    common: dict[str, Any] = {}
    own: dict[str, Any] = {}
    for name, value in pairs.items():
        dashed = name.replace("_", "-")
        positive = dashed.removeprefix("no-")
        try:
            if dashed in spelling:
                target, reader = spelling[dashed]
                if engine == "llama.cpp" and target == "context" and str(value) == "0":
                    continue  # llama.cpp's way to say the model's own
                if engine == "vllm" and target == "context" and str(value).strip().lower() in _FITTED_LENGTHS:
                    own["max_model_len"] = "auto"
                    continue
                common[target] = reader(value)
            elif positive in spelling and spelling[positive][1] is _flag:
                common[spelling[positive][0]] = not _flag(value)
            elif dashed != positive and positive in _OWN_FLAGS.get(engine, ()):
                own[positive.replace("-", "_")] = not _flag(value)
            elif engine == "llama.cpp" and name in LLAMA_CPP_SHORT:
                own[LLAMA_CPP_SHORT[name]] = value
            else:
                own[name.replace("-", "_")] = value
        except (ValueError, TypeError, OverflowError):
            raise UsageError(f"{origin}: {name} is `{value}`", hint=f"see {engine}'s documentation of {name}") from None
    return common, own
