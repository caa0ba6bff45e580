"""SGLang's settings with every default filled in, as the named release fills them on that GPU.

Names are SGLang's own; memplan's common options map to them: --max-num-seqs to max_running_requests,
--max-num-batched-tokens to chunked_prefill_size, --gpu-memory-utilization to mem_fraction_static, --block-size to
page_size, --context to context_length. An option of SGLang's own wins.

Source: sglang/srt/server_args.py of the releases that catalog/engines/sglang.yaml names.
"""

from __future__ import annotations

from typing import Literal

from memplan.budget.kv_cache import KvFormat, kv_format
from memplan.catalog.rules import Rules
from memplan.domain.attention import CompressedAttention, IndexerKeys, LatentAttention
from memplan.domain.dtypes import DType, parse_compute_dtype
from memplan.domain.gpu import GpuSpec
from memplan.domain.model import ModelSpec
from memplan.domain.serving import ServingSettings
from memplan.engines.options import EngineOptions
from memplan.engines.sglang.defaults import (
    StepShape,
    chunk_tokens,
    graph_batch,
    memory_fraction,
    prefill_capture_sizes,
)
from memplan.engines.sglang.ranks import Ranks, read_ranks
from memplan.records import dataclass
from memplan.units import MIB, ceil_div

_SPECULATIVE = ("eagle", "eagle3", "nextn", "standalone", "ngram", "dflash", "dspark", "frozen_kv_mtp")
_PREFILL_TOKENS = 16384

# Options that matter only beside others: not every run reads them.
KNOWN_OPTIONS = (
    "cuda_graph_max_bs",
    "cuda_graph_max_bs_decode",
    "cuda_graph_max_bs_prefill",
    "cuda_graph_backend_decode",
    "cuda_graph_backend_prefill",
    "piecewise_cuda_graph_max_tokens",
    "enable_piecewise_cuda_graph",
    "disable_shared_experts_fusion",
    "disable_hybrid_swa_memory",
    "disable_prefill_cuda_graph",
    "max_mamba_cache_size",
    "enable_ep_moe",
)

Drafting = Literal["eagle", "standalone", "ngram"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SglangSettings:
    """What an SGLang start-up works with. Zero `chunk_tokens` means that prefill is not chunked."""

    version: str
    ranks: Ranks
    dtype: DType
    kv: KvFormat
    mem_fraction: float
    context_tokens: int
    chunk_tokens: int
    max_running: int | None
    max_total_tokens: int | None
    page_size: int
    graph_batch: int
    prefill_graph_tokens: int
    window_ratio: float | None
    pools_windows: bool
    state_ratio: float
    state_slots: int | None
    state_dtype: DType | None
    radix_cache: bool
    drafting: Drafting | None
    draft_tokens: int
    draft_steps: int
    draft_top_k: int
    draft_layers: int
    sparse_attention: bool
    gpu_experts: int | None
    embeds_whole: bool
    reads_media: bool
    avail_before_bytes: int | None
    offload_bytes: int

    @property
    def step_tokens(self) -> int:
        """The tokens of the largest prefill step."""
        return self.chunk_tokens or _PREFILL_TOKENS

    def as_dict(self) -> dict[str, object]:
        """The settings under SGLang's option names, for a budget to show."""
        ranks = self.ranks
        return {
            "tp_size": ranks.tensor,
            "pp_size": ranks.pipeline,
            "dp_size": ranks.attention_groups * ranks.replicas,
            "ep_size": ranks.experts,
            "enable_dp_attention": ranks.attention_groups > 1,
            "dtype": self.dtype.value,
            "kv_cache_dtype": self.kv.name,
            "mem_fraction_static": round(self.mem_fraction, 4),
            "context_length": self.context_tokens,
            "chunked_prefill_size": self.chunk_tokens or -1,
            "max_running_requests": self.max_running,
            "max_total_tokens": self.max_total_tokens,
            "page_size": self.page_size,
            "cuda_graph_max_bs": self.graph_batch or None,
            "disable_cuda_graph": self.graph_batch == 0,
            "disable_radix_cache": not self.radix_cache,
            "speculative_algorithm": self.drafting,
            "avail_mem_before_load_bytes": self.avail_before_bytes,
        }


def resolve(
    spec: ModelSpec, gpu: GpuSpec, asked: ServingSettings, options: EngineOptions, rules: Rules
) -> SglangSettings:
    """Fill in what the user left open, as SGLang at that release would on that GPU.

    Raises: UsageError for values that SGLang refuses.
    """
    ranks = read_ranks(spec, gpu, asked, options, rules)
    gpu_mib = (gpu.driver_memory_bytes or gpu.memory_bytes) / MIB
    dtype = _dtype(spec, asked, options)
    drafting = _drafting(asked, options)
    max_running = options.count("max_running_requests") or asked.max_num_seqs
    if max_running is None and drafting == "eagle":
        max_running = rules["eagle_max_running"]
    step = _step(asked, options, gpu_mib, ranks, rules)
    captured = _graph_batch(asked, options, gpu_mib, ranks, max_running, rules)
    reads_media = _reads_media(spec, asked, options)
    largest_prefill = _prefill_graph_tokens(spec, options, step, ranks, gpu, reads_media, drafting, captured, rules)
    shape = _step_shape(spec, gpu_mib, ranks, step, captured, largest_prefill, drafting, rules)
    given = options.fraction("mem_fraction_static") or asked.gpu_memory_utilization
    context = options.count("context_length", "context_len") or asked.workload.context_tokens
    return SglangSettings(
        version=rules.version,
        ranks=ranks,
        dtype=dtype,
        kv=kv_format(_kv_dtype(spec, gpu, asked, options, rules), dtype),
        mem_fraction=given or memory_fraction(spec, shape, rules, reads_media=reads_media),
        context_tokens=context or spec.max_context_tokens,
        chunk_tokens=step,
        max_running=max_running,
        max_total_tokens=options.count("max_total_tokens"),
        page_size=options.count("page_size") or asked.block_size or _page_size(spec, gpu, rules),
        graph_batch=captured,
        prefill_graph_tokens=largest_prefill,
        window_ratio=options.fraction("swa_full_tokens_ratio"),
        pools_windows=_pools_windows(spec, options, rules),
        state_ratio=options.fraction("mamba_full_memory_ratio", maximum=100.0) or rules["state_ratio"],
        state_slots=options.count("max_mamba_cache_size"),
        state_dtype=_state_dtype(options),
        radix_cache=_radix_cache(asked, options),
        drafting=drafting,
        draft_tokens=options.count("speculative_num_draft_tokens") or asked.num_speculative_tokens,
        draft_steps=options.count("speculative_num_steps", minimum=0) or asked.num_speculative_tokens,
        draft_top_k=options.count("speculative_eagle_topk") or 1,
        draft_layers=asked.draft.num_layers if asked.draft else 1,
        sparse_attention=_is_sparse(spec),
        gpu_experts=options.count("kt_num_gpu_experts", minimum=0),
        embeds_whole=spec.architecture.startswith(tuple(rules["whole_embedding"])),
        reads_media=reads_media,
        avail_before_bytes=options.size("avail_mem_before_load"),
        offload_bytes=options.size("cpu_offload_gb") or asked.weight_offload_bytes,
    )


def _step_shape(
    spec: ModelSpec,
    gpu_mib: float,
    ranks: Ranks,
    step: int,
    captured: int,
    largest_prefill: int,
    drafting: Drafting | None,
    rules: Rules,
) -> StepShape:
    """What the default memory fraction is computed from."""
    return StepShape(
        gpu_mib=gpu_mib,
        ranks=ranks.tensor * ranks.pipeline,
        tensor=ranks.tensor,
        attention_groups=ranks.attention_groups,
        chunk_tokens=step or _PREFILL_TOKENS,
        graph_batch=captured or graph_batch(gpu_mib, ranks.tensor, rules),
        decode_graphs=captured > 0,
        prefill_graph_sizes=prefill_capture_sizes(largest_prefill),
        is_latent=_is_latent(spec),
        speculative=drafting,
    )


def _dtype(spec: ModelSpec, asked: ServingSettings, options: EngineOptions) -> DType:
    """The compute type: a float32 checkpoint is loaded in 16 bits unless the user insists."""
    name = options.word("dtype") or asked.dtype
    chosen = parse_compute_dtype(name) if name else None
    if chosen:
        return chosen
    return DType.F16 if spec.dtype in (DType.F32, DType.F64) else spec.dtype


def _drafting(asked: ServingSettings, options: EngineOptions) -> Drafting | None:
    name = options.word("speculative_algorithm", among=_SPECULATIVE)
    if name in ("standalone", "ngram"):
        return "standalone" if name == "standalone" else "ngram"
    return "eagle" if name or asked.num_speculative_tokens or asked.draft else None


def _step(asked: ServingSettings, options: EngineOptions, gpu_mib: float, ranks: Ranks, rules: Rules) -> int:
    """Tokens of a prefill step; DP attention divided the default over its groups before 0.5.2."""
    given = options.count("chunked_prefill_size", minimum=-1)
    if given is None:
        if asked.chunked_prefill is False:
            return 0
        given = asked.max_num_batched_tokens or chunk_tokens(gpu_mib, rules)
    if given <= 0:
        return 0
    return ceil_div(given, ranks.attention_groups) if ranks.attention_groups > 1 else given


def _graph_batch(
    asked: ServingSettings,
    options: EngineOptions,
    gpu_mib: float,
    ranks: Ranks,
    max_running: int | None,
    rules: Rules,
) -> int:
    """The largest captured batch; 0 without CUDA graphs."""
    if options.flag("disable_cuda_graph", "disable_decode_cuda_graph") or asked.eager:
        return 0
    if options.word("cuda_graph_backend_decode") == "disabled":
        return 0
    given = options.count("cuda_graph_max_bs_decode", "cuda_graph_max_bs")
    if given:
        return given
    default = graph_batch(gpu_mib, ranks.tensor, rules)
    if max_running is None or rules.release < (0, 5, 20):
        return default
    return min(default, max_running)


def _prefill_graph_tokens(
    spec: ModelSpec,
    options: EngineOptions,
    step: int,
    ranks: Ranks,
    gpu: GpuSpec,
    reads_media: bool,
    drafting: Drafting | None,
    captured: int,
    rules: Rules,
) -> int:
    """The largest prefill step that is captured; 0 without prefill graphs."""
    kind = rules["prefill_graphs"]
    asked_for = options.flag("enable_piecewise_cuda_graph")
    switched_off = options.flag("disable_piecewise_cuda_graph", "disable_prefill_cuda_graph")
    if options.word("cuda_graph_backend_prefill") == "disabled" or switched_off or not step:
        return 0
    latent = _is_latent(spec)
    if kind == "off":
        if not asked_for:
            return 0
    elif kind == "dense":
        if reads_media or ranks.pipeline > 1 or ranks.attention_groups > 1 or gpu.vendor != "nvidia":
            return 0
        if drafting and rules.release < (0, 5, 13):
            return 0
    elif captured == 0 or reads_media or ranks.pipeline > 1 or (latent and rules.release < (0, 5, 18)):
        return 0
    largest = options.count("cuda_graph_max_bs_prefill", "piecewise_cuda_graph_max_tokens")
    return largest or (min(step, rules["latent_prefill_graph_tokens"]) if latent else step)


def _is_latent(spec: ModelSpec) -> bool:
    return any(
        isinstance(cache, (LatentAttention, CompressedAttention)) for layer in spec.layers for cache in layer.caches
    )


def _is_sparse(spec: ModelSpec) -> bool:
    return any(isinstance(cache, IndexerKeys) for layer in spec.layers for cache in layer.caches)


def _reads_media(spec: ModelSpec, asked: ServingSettings, options: EngineOptions) -> bool:
    off = asked.language_model_only or options.flag("language_only", "language_model_only")
    return not off and any(tower.media for tower in spec.towers)


def _kv_dtype(
    spec: ModelSpec, gpu: GpuSpec, asked: ServingSettings, options: EngineOptions, rules: Rules
) -> str | None:
    name = (options.word("kv_cache_dtype") or asked.kv_dtype or "auto").lower().removeprefix("torch.")
    name = {"fp8": "fp8_e4m3", "float8_e4m3fn": "fp8_e4m3", "float8_e5m2": "fp8_e5m2", "fp4_e2m1": "nvfp4"}.get(
        name, name
    )
    if name != "auto":
        return "nvfp4" if name.startswith("fp4_") else name
    if _is_sparse(spec):
        return "fp8_e4m3" if is_blackwell(gpu) else None
    scheme = spec.kv_cache_scheme
    return "fp8_e4m3" if scheme and scheme.startswith("fp8") and rules["checkpoint_kv_dtype"] else None


def is_blackwell(gpu: GpuSpec) -> bool:
    """Whether the GPU is a data-centre Blackwell (compute capability 10), whose kernels SGLang treats apart."""
    return gpu.vendor == "nvidia" and (gpu.compute_capability or "").startswith("10.")


def _page_size(spec: ModelSpec, gpu: GpuSpec, rules: Rules) -> int:
    caches = [cache for layer in spec.layers for cache in layer.caches]
    if any(isinstance(cache, CompressedAttention) for cache in caches):
        return 256
    if any(isinstance(cache, IndexerKeys) for cache in caches):
        return 64 if gpu.vendor == "nvidia" else 1
    return int(rules["blackwell_page"]) if is_blackwell(gpu) else 1


def _pools_windows(spec: ModelSpec, options: EngineOptions, rules: Rules) -> bool:
    return spec.architecture in rules["window_pools"] and not options.flag("disable_hybrid_swa_memory")


def _state_dtype(options: EngineOptions) -> DType | None:
    name = options.word("mamba_ssm_dtype")
    return parse_compute_dtype(name) if name else None


def _radix_cache(asked: ServingSettings, options: EngineOptions) -> bool:
    off = options.flag("disable_radix_cache")
    return asked.prefix_caching is not False if off is None else not off
