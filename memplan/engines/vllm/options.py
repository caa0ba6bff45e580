"""vLLM's own options, as `--set` and config files give them: which of them memory depends on, and what is refused.

Options that memplan has for all engines reach vLLM as settings and never under their own names.

Source: vllm/engine/arg_utils.py and vllm/config/cache.py, 0.2 to 0.33.
"""

from __future__ import annotations

from memplan.catalog.rules import Rules
from memplan.domain.gpu import GpuSpec
from memplan.domain.serving import ServingSettings
from memplan.engines.options import EngineOptions
from memplan.engines.spelling import VLLM
from memplan.errors import UsageError

_COMMON = {name.replace("-", "_"): target for name, (target, _) in VLLM.items()}
# Read elsewhere, or part of an option of memplan's.
_KNOWN = (
    *_COMMON,
    "async_scheduling",
    "disable_hybrid_kv_cache_manager",
    "enable_lora",
    "flashinfer_sampler",
    "quantization",
    "rocm_use_aiter",
    "speculative_config",
    "use_v1",
    "v2_model_runner",
)
_FLAGS = (
    "async_scheduling",
    "disable_hybrid_kv_cache_manager",
    "flashinfer_sampler",
    "rocm_use_aiter",
    "use_v1",
    "v2_model_runner",
)
# Values of max_model_len for: as long as the cache holds.
_FITTED = ("auto", -1)
# vLLM's own options whose names are nearly one of those.
_ALIKE = ("data_parallel_size_local", "enable_lora_bias", "max_cpu_loras", "max_num_scheduled_tokens")


def unused_options(asked: ServingSettings) -> tuple[str, ...]:
    """The options that the estimate does not depend on.

    Raises: UsageError for one that is nearly the name of one that it depends on, or that memplan has an option for.
    """
    given = {key.lstrip("-").replace("-", "_") for key in asked.engine_options}
    for name in sorted(given & set(_COMMON)):
        if name != "max_model_len" or asked.engine_options[name] not in _FITTED:
            flag = f"--{_COMMON[name].replace('_', '-')}"
            raise UsageError(f"vLLM option {name} is also memplan's {flag}", hint=f"give {flag}")
    plain = {key: value for key, value in asked.engine_options.items() if key not in _ALIKE}
    return tuple(sorted({*EngineOptions("vLLM", plain, _KNOWN).unused(), *(given & set(_ALIKE))}))


def fits_length(asked: ServingSettings) -> bool:
    """Whether the longest request is to be as long as the cache holds. A length that memplan was given wins."""
    return asked.workload.context_tokens is None and asked.engine_options.get("max_model_len") in _FITTED


def check_options(asked: ServingSettings, gpu: GpuSpec, rules: Rules) -> None:
    """Refuse what the release's own parser refuses.

    Raises: UsageError.
    """
    options = EngineOptions("vLLM", asked.engine_options)
    for name in _FLAGS:
        options.flag(name)
    if fits_length(asked) and not rules["fits_length"]:
        raise UsageError(
            f"vLLM {rules.version} does not know max-model-len auto", hint="leave it out for the model's own maximum"
        )
    chosen = options.flag("use_v1")
    if chosen is not None and rules["generation"] == ("v0" if chosen else "v1"):
        raise UsageError(
            f"use_v1={str(chosen).lower()} with vLLM {rules.version}",
            hint="0.8 to 0.10 run V0 or V1, older releases V0 and newer ones V1",
        )
    if options.flag("async_scheduling") and rules["async_scheduling"] is None:
        raise UsageError(f"async_scheduling=true with vLLM {rules.version}", hint="releases from 0.10 on have it")
    size = asked.block_size
    choices, step = rules["block_sizes"], rules["block_step"]
    if choices and gpu.vendor == "nvidia" and rules["cuda_block_limit"]:
        choices = [choice for choice in choices if choice <= rules["cuda_block_limit"]]
    if size is not None and (size not in choices if choices else size % step):
        taken = f"one of {', '.join(map(str, choices))}" if choices else f"multiples of {step}"
        raise UsageError(f"--block-size is {size}", hint=f"vLLM {rules.version} takes {taken}")
