"""vLLM's settings with every default filled in, as the named release fills them.

Source: vllm/engine/arg_utils.py and the config classes of the releases that catalog/engines/vllm.yaml names.
"""

from __future__ import annotations

from typing import Literal

from memplan.budget.kv_cache import KvFormat, kv_format
from memplan.catalog.rules import Rules
from memplan.domain.attention import LatentAttention, LinearState, SlidingWindow
from memplan.domain.dtypes import DType, parse_compute_dtype
from memplan.domain.gpu import GpuSpec
from memplan.domain.model import ModelSpec
from memplan.domain.serving import ParallelLayout, ServingSettings
from memplan.errors import UsageError
from memplan.records import dataclass
from memplan.units import GIB

_TOKENS_V0 = 2048
_LARGEST_GPU_GIB = 320
_SEQS_V0 = 256
_TOKENS_POOLING = 32768
_LATENTS_EXPANDED = ("minicpm3",)


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmSettings:
    """What a vLLM start-up works with. `batched_tokens` are the tokens of one step, which is what it profiles.

    `hybrid_groups` is false where windows are kept like full attention, `latent_expanded` true for a model whose latent
    attention vLLM runs on expanded keys and values, `fitted_length` where the context is as long as the cache holds.
    """

    version: str
    generation: Literal["v0", "v1"]
    runner: Literal["v1", "v2"]
    layout: ParallelLayout
    dtype: DType
    kv: KvFormat
    utilization: float
    context_tokens: int
    max_num_seqs: int
    batched_tokens: int
    chunked_prefill: bool
    prefix_caching: bool
    eager: bool
    block_size: int | None
    async_scheduling: bool
    kv_cache_memory_bytes: int | None
    offline_batch: bool
    gpu_family: str = "hopper"
    speculative_tokens: int = 0
    hybrid_groups: bool = True
    latent_expanded: bool = False
    fitted_length: bool = False

    def as_dict(self) -> dict[str, object]:
        """The settings under vLLM's option names, for a budget to show."""
        return {
            "tensor_parallel_size": self.layout.tensor,
            "pipeline_parallel_size": self.layout.pipeline,
            "data_parallel_size": self.layout.data,
            "enable_expert_parallel": self.layout.expert,
            "dtype": self.dtype.value,
            "kv_cache_dtype": self.kv.name,
            "gpu_memory_utilization": self.utilization,
            "kv_cache_memory_bytes": self.kv_cache_memory_bytes,
            "max_model_len": self.context_tokens,
            "max_num_seqs": self.max_num_seqs,
            "max_num_batched_tokens": self.batched_tokens,
            "enable_chunked_prefill": self.chunked_prefill,
            "enable_prefix_caching": self.prefix_caching,
            "async_scheduling": self.async_scheduling,
            "enforce_eager": self.eager,
            "block_size": self.block_size,
            "engine_generation": self.generation,
        }


def resolve(spec: ModelSpec, gpu: GpuSpec, asked: ServingSettings, rules: Rules) -> VllmSettings:
    """Fill in what the user left open, as vLLM at that release would on that GPU.

    Raises: UsageError for values that vLLM refuses.
    """
    dtype = _dtype(spec, asked)
    generation = _generation(spec, gpu, asked, rules)
    context_tokens = asked.workload.context_tokens or spec.max_context_tokens
    chunked = _chunked_prefill(spec, asked, rules, generation, context_tokens)
    tokens, seqs = _batch(spec, gpu, asked, rules, generation, context_tokens, chunked)
    if not chunked and tokens < context_tokens and spec.is_generative and not _has_latent(spec):
        raise UsageError(
            f"--max-num-batched-tokens {tokens} is below --context {context_tokens} and chunked prefill is off",
            hint="raise the one, lower the other, or leave chunked prefill on",
        )
    return VllmSettings(
        version=rules.version,
        generation=generation,
        runner=_runner(spec, gpu, asked, rules),
        layout=asked.layout,
        dtype=dtype,
        kv=kv_format(_kv_dtype(spec, asked, rules), dtype),
        utilization=asked.gpu_memory_utilization or rules["utilization"],
        context_tokens=context_tokens,
        max_num_seqs=seqs,
        batched_tokens=tokens,
        chunked_prefill=chunked,
        prefix_caching=_prefix_caching(spec, asked, rules, generation),
        eager=bool(asked.eager) or not rules["has_graphs"],
        block_size=asked.block_size,
        async_scheduling=_async_scheduling(asked, rules, generation),
        kv_cache_memory_bytes=asked.kv_cache_memory_bytes,
        offline_batch=asked.offline_batch,
        gpu_family=_family(gpu),
        speculative_tokens=asked.num_speculative_tokens,
        hybrid_groups=not asked.engine_options.get("disable_hybrid_kv_cache_manager"),
        latent_expanded=spec.model_type in _LATENTS_EXPANDED,
    )


def _prefix_caching(spec: ModelSpec, asked: ServingSettings, rules: Rules, generation: str) -> bool:
    """On by default under V1, for models with recurrent states only in newer releases."""
    if asked.prefix_caching is not None:
        return asked.prefix_caching
    caches = [cache for layer in spec.layers for cache in layer.caches]
    recurrent = any(isinstance(cache, LinearState) for cache in caches)
    return generation == "v1" and (not recurrent or bool(rules["caches_state_prefixes"]))


def _async_scheduling(asked: ServingSettings, rules: Rules, generation: str) -> bool:
    """The release's default, off for a pipeline of GPUs, which the first model runner cannot schedule so."""
    chosen = asked.engine_options.get("async_scheduling")
    if isinstance(chosen, bool):
        return chosen
    return generation == "v1" and bool(rules["async_scheduling"]) and asked.layout.pipeline == 1


def _family(gpu: GpuSpec) -> str:
    """What cache layouts depend on: the generation of the GPU's attention kernels."""
    capability = gpu.cuda_capability or 0.0
    if capability < 9.0:
        return "ampere"
    return {9: "hopper", 10: "blackwell"}.get(int(capability), "other")


def _dtype(spec: ModelSpec, asked: ServingSettings) -> DType:
    """The compute type: a float32 checkpoint is loaded in 16 bits unless the user insists."""
    chosen = parse_compute_dtype(asked.dtype) if asked.dtype else None
    if chosen:
        return chosen
    return DType.F16 if spec.dtype in (DType.F32, DType.F64) else spec.dtype


def _kv_dtype(spec: ModelSpec, asked: ServingSettings, rules: Rules) -> str | None:
    if spec.model_type in rules["ignores_kv_dtype"]:
        return None
    if asked.kv_dtype and asked.kv_dtype != "auto":
        return asked.kv_dtype
    return spec.kv_cache_scheme


def _generation(spec: ModelSpec, gpu: GpuSpec, asked: ServingSettings, rules: Rules) -> Literal["v0", "v1"]:
    """V0 or V1: the releases between 0.8 and 0.10 fall back to V0 for what V1 could not do yet, or when told to.

    Source: EngineArgs._is_v1_supported_oracle, 0.8.1 to 0.10.2; VLLM_USE_V1.
    """
    if rules["generation"] in ("v0", "v1"):
        return "v0" if rules["generation"] == "v0" else "v1"
    chosen = asked.engine_options.get("use_v1")
    if isinstance(chosen, bool):
        return "v1" if chosen else "v0"
    release = rules.release
    capability = gpu.cuda_capability or 9.0
    caches = [cache for layer in spec.layers for cache in layer.caches]
    recurrent = any(isinstance(cache, LinearState) for cache in caches)
    falls_back = (
        (gpu.vendor == "nvidia" and capability < 8.0 and release < (0, 10, 2))
        or (asked.kv_dtype not in (None, "auto") and not _runs_fp8_cache(gpu, release) and release < (0, 10, 0))
        or ((spec.quantization or "").startswith("bnb") and release < (0, 8, 3))
        or ((spec.quantization or "").startswith("gguf") and release < (0, 9, 0))
        or (recurrent and release < (0, 10, 0))
        or (asked.weight_offload_bytes > 0 and release < (0, 8, 5))
        or spec.model_type in rules["v0_only"]
        or (not spec.is_generative and release < (0, 9, 2))
        or asked.chunked_prefill is False
        or (gpu.vendor == "amd" and release < (0, 10, 0))
        or (asked.layout.pipeline > 1 and release < (0, 9, 1))  # unless Ray was named
        or (_dtype(spec, asked) is DType.F32 and release < (0, 9, 2))
    )
    return "v0" if falls_back else "v1"


def _runs_fp8_cache(gpu: GpuSpec, release: tuple[int, ...]) -> bool:
    """Whether V1 took an FP8 cache: where FlashAttention 3 did, from 0.8.3 on; under ROCm from 0.9.0 on."""
    if gpu.vendor == "amd":
        return release >= (0, 9, 0)
    return gpu.cuda_capability == 9.0 and release >= (0, 8, 3)


def _runner(spec: ModelSpec, gpu: GpuSpec, asked: ServingSettings, rules: Rules) -> Literal["v1", "v2"]:
    """Which model runner serves the model, unless the `v2_model_runner` option says.

    Source: VllmConfig.use_v2_model_runner, 0.22 to 0.33.
    """
    chosen = asked.engine_options.get("v2_model_runner")
    if isinstance(chosen, bool):
        return "v2" if chosen else "v1"
    rule = rules["v2_runner"]
    named = spec.architecture in rule["architectures"]
    caches = [cache for layer in spec.layers for cache in layer.caches]
    recurrent = any(isinstance(cache, LinearState) for cache in caches)
    routed = any(layer.mlp and layer.mlp.num_experts for layer in spec.layers)
    if rule["takes"] == "all":
        taken = True
    elif not spec.is_generative or gpu.vendor != "nvidia":
        taken = False
    elif rule["takes"] == "dense":
        taken = named or not (recurrent or routed or not caches)
    else:
        taken = named and not (rule["takes"] == "plain" and (routed or spec.quantization))
    return "v2" if taken else "v1"


def _chunked_prefill(
    spec: ModelSpec, asked: ServingSettings, rules: Rules, generation: str, context_tokens: int
) -> bool:
    if asked.chunked_prefill is not None:
        return asked.chunked_prefill
    if generation == "v1":
        return True
    threshold = rules["chunks_above_tokens"]
    caches = [cache for layer in spec.layers for cache in layer.caches]
    blocked = bool(spec.towers) or _has_latent(spec) or all(isinstance(cache, SlidingWindow) for cache in caches)
    return bool(threshold and context_tokens > threshold and not blocked)


def _starts_chunked(spec: ModelSpec, rules: Rules, context_tokens: int) -> bool:
    """Before 0.8 a long context of a latent model chose the small step of chunked prefill, which was turned off
    later.
    """
    threshold = rules["chunks_above_tokens"]
    return bool(_has_latent(spec) and threshold and context_tokens > threshold and rules.release < (0, 8, 0))


def _has_latent(spec: ModelSpec) -> bool:
    return any(isinstance(cache, LatentAttention) for layer in spec.layers for cache in layer.caches)


def _batch(
    spec: ModelSpec,
    gpu: GpuSpec,
    asked: ServingSettings,
    rules: Rules,
    generation: str,
    context_tokens: int,
    chunked: bool,
) -> tuple[int, int]:
    """Tokens and sequences of one step."""
    if generation == "v0":
        small_steps = chunked or _starts_chunked(spec, rules, context_tokens)
        default_tokens = _tokens_v0(spec, rules, context_tokens, small_steps)
        default_seqs = _SEQS_V0
    else:
        default_tokens, default_seqs = _tier(gpu, asked, rules)
    tokens = asked.max_num_batched_tokens or default_tokens
    seqs = asked.max_num_seqs or default_seqs
    if generation == "v1" and asked.max_num_batched_tokens is None:
        if not chunked:
            tokens = max(tokens, context_tokens)
        if rules.release >= (0, 11, 1):
            tokens = min(tokens, seqs * context_tokens)
    if asked.max_num_seqs is None:
        seqs = min(seqs, tokens)
    if tokens < seqs:
        raise UsageError(
            f"--max-num-batched-tokens {tokens} is below --max-num-seqs {seqs}",
            hint="vLLM refuses to start: every sequence needs a token of each step",
        )
    return tokens, seqs


def _tokens_v0(spec: ModelSpec, rules: Rules, context_tokens: int, chunked: bool) -> int:
    tokens = rules["chunked_tokens_v0"] if chunked else max(context_tokens, _TOKENS_V0)
    if not spec.is_generative:
        tokens = max(tokens, _TOKENS_POOLING)
    if spec.towers:
        tokens = max(tokens, rules["multimodal_tokens_v0"])
    return int(tokens)


def _tier(gpu: GpuSpec, asked: ServingSettings, rules: Rules) -> tuple[int, int]:
    """V1's defaults by device memory. Source: EngineArgs.get_batch_defaults.

    A size that no GPU has stands for one that is not known; vLLM gives a device it cannot read the last tier.
    """
    for kind, least_gib, serving, offline, seqs in rules["batch_tiers"]:
        if least_gib and not least_gib * GIB <= gpu.memory_bytes <= _LARGEST_GPU_GIB * GIB:
            continue
        if kind == "hopper" and not gpu.name.startswith(("h100", "h200", "gh200")):
            continue
        if kind == "not_a100" and gpu.name.startswith("a100"):
            continue
        return (offline if asked.offline_batch else serving), seqs
    raise AssertionError("the last tier takes every GPU")
