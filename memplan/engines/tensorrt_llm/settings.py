"""TensorRT-LLM's settings with every default filled in, as the named release fills them.

Names are TensorRT-LLM's own; memplan's common options map to them: --max-num-seqs to max_batch_size,
--max-num-batched-tokens to max_num_tokens, --context to max_seq_len, --gpu-memory-utilization to
free_gpu_memory_fraction, --block-size to tokens_per_block, --eager to no CUDA graphs. An option of its own wins.

Source: tensorrt_llm/llmapi/llm_args.py and builder.py of the releases that catalog/engines/tensorrt-llm.yaml names.
"""

from __future__ import annotations

from typing import Literal

from memplan.budget.kv_cache import KvFormat, kv_format
from memplan.catalog.rules import Rules
from memplan.domain.attention import ChunkedLocal, FullAttention, SlidingWindow
from memplan.domain.dtypes import DType, parse_compute_dtype
from memplan.domain.model import ModelSpec
from memplan.domain.serving import ParallelLayout, ServingSettings
from memplan.engines.options import EngineOptions
from memplan.errors import UsageError
from memplan.records import dataclass
from memplan.units import ceil_div

_BACKENDS = ("pytorch", "tensorrt", "trt", "torch", "_autodeploy")

_ATTENTION_BACKENDS = ("trtllm", "flashinfer", "vanilla")

# Options that matter only beside others: not every run reads them.
KNOWN_OPTIONS = (
    "max_input_len",
    "free_memory_before_cache",
    "outside_torch",
    "max_attention_window",
    "cuda_graph_max_batch_size",
    "cuda_graph_config.max_batch_size",
    "cuda_graph_config.enable_padding",
    "enable_chunked_prefill",
    "kv_cache_config.enable_block_reuse",
)

Flow = Literal["pytorch", "tensorrt"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrtllmSettings:
    """What a TensorRT-LLM start-up works with.

    `flow` is pytorch, which profiles a step before it sizes the cache, or tensorrt, which takes a part of what is free
    once the engine and its buffers are there. `windows` are the attention windows given, repeated over the layers.
    """

    version: str
    flow: Flow
    layout: ParallelLayout
    attention_dp: bool
    dtype: DType
    kv: KvFormat
    free_fraction: float
    max_batch_size: int
    max_num_tokens: int
    context_tokens: int
    tokens_per_block: int
    graph_batch: int
    max_tokens: int | None
    max_cache_bytes: int | None
    windows: tuple[int, ...]
    state_dtype: DType | None
    attention_backend: str
    splits_embedding: bool
    outside_bytes: int | None
    free_before_cache_bytes: int | None
    offload_bytes: int

    @property
    def attention_ranks(self) -> int:
        """The ranks over which attention and its cache are cut."""
        return 1 if self.attention_dp else self.layout.tensor

    @property
    def num_gpus(self) -> int:
        """GPUs of all replicas."""
        return self.layout.num_ranks

    def as_dict(self) -> dict[str, object]:
        """The settings under TensorRT-LLM's option names, for a budget to show."""
        return {
            "backend": self.flow,
            "tensor_parallel_size": self.layout.tensor,
            "pipeline_parallel_size": self.layout.pipeline,
            "moe_expert_parallel_size": self.layout.tensor if self.layout.expert else 1,
            "enable_attention_dp": self.attention_dp,
            "dtype": self.dtype.value,
            "kv_cache_dtype": self.kv.name,
            "free_gpu_memory_fraction": self.free_fraction,
            "max_batch_size": self.max_batch_size,
            "max_num_tokens": self.max_num_tokens,
            "attn_backend": self.attention_backend,
            "max_seq_len": self.context_tokens,
            "tokens_per_block": self.tokens_per_block,
            "cuda_graph_max_batch_size": self.graph_batch or None,
            "max_tokens": self.max_tokens,
            "max_gpu_total_bytes": self.max_cache_bytes,
            "max_attention_window": list(self.windows) or None,
        }


def resolve(spec: ModelSpec, asked: ServingSettings, options: EngineOptions, rules: Rules) -> TrtllmSettings:
    """Fill in what the user left open, as TensorRT-LLM at that release would.

    Raises: UsageError for values that it refuses.
    """
    flow = _flow(options, rules)
    dtype = _dtype(spec, asked, options)
    layout = _layout(asked, options)
    batch = options.count("max_batch_size") or asked.max_num_seqs or rules["max_batch_size"]
    context = options.count("max_seq_len") or asked.workload.context_tokens or spec.max_context_tokens
    tokens = options.count("max_num_tokens") or asked.max_num_batched_tokens or rules["max_num_tokens"]
    if flow == "tensorrt":
        tokens = min(tokens, batch * context)
    block = options.count("tokens_per_block", "kv_cache_config.tokens_per_block") or asked.block_size
    if block is not None and block & (block - 1):
        raise UsageError(f"tokens_per_block is `{block}`", hint="it must be a power of two, such as 32 or 64")
    fraction = options.fraction("free_gpu_memory_fraction", "kv_cache_config.free_gpu_memory_fraction")
    return TrtllmSettings(
        version=rules.version,
        flow=flow,
        layout=layout,
        attention_dp=bool(options.flag("enable_attention_dp")),
        dtype=dtype,
        kv=kv_format(_kv_dtype(spec, asked, options), dtype),
        free_fraction=fraction or asked.gpu_memory_utilization or rules["free_fraction"],
        max_batch_size=batch,
        max_num_tokens=tokens,
        context_tokens=context,
        tokens_per_block=block or rules[f"tokens_per_block_{'engine' if flow == 'tensorrt' else 'pytorch'}"],
        graph_batch=_graph_batch(asked, options, flow, batch, rules),
        max_tokens=options.count("max_tokens", "kv_cache_config.max_tokens"),
        max_cache_bytes=options.size("max_gpu_total_bytes", "kv_cache_config.max_gpu_total_bytes")
        or asked.kv_cache_memory_bytes,
        windows=_windows(options),
        state_dtype=_state_dtype(options),
        attention_backend=options.word("attn_backend", among=_ATTENTION_BACKENDS) or "trtllm",
        splits_embedding=bool(options.flag("use_parallel_embedding")),
        outside_bytes=options.size("outside_torch"),
        free_before_cache_bytes=options.size("free_memory_before_cache"),
        offload_bytes=asked.weight_offload_bytes,
    )


def _flow(options: EngineOptions, rules: Rules) -> Flow:
    name = options.word("backend", among=_BACKENDS) or rules["backend"]
    return "tensorrt" if name in ("tensorrt", "trt") else "pytorch"


def _layout(asked: ServingSettings, options: EngineOptions) -> ParallelLayout:
    layout = asked.layout
    tensor = options.count("tensor_parallel_size", "tp_size", "tp") or layout.tensor
    pipeline = options.count("pipeline_parallel_size", "pp_size", "pp") or layout.pipeline
    experts = options.count("moe_expert_parallel_size", "ep_size", "ep")
    if experts is not None and tensor % experts:
        raise UsageError(f"moe_expert_parallel_size {experts} does not divide --tp {tensor}", hint="use a divisor")
    whole = layout.expert or (experts is not None and experts == tensor and tensor > 1)
    return ParallelLayout(tensor=tensor, pipeline=pipeline, data=layout.data, expert=whole)


def _dtype(spec: ModelSpec, asked: ServingSettings, options: EngineOptions) -> DType:
    """The compute type: a float32 checkpoint is loaded in 16 bits unless the user insists."""
    name = options.word("dtype") or asked.dtype
    chosen = parse_compute_dtype(name) if name else None
    if chosen:
        return chosen
    return DType.F16 if spec.dtype in (DType.F32, DType.F64) else spec.dtype


def _kv_dtype(spec: ModelSpec, asked: ServingSettings, options: EngineOptions) -> str | None:
    """The cache's type: the checkpoint's own scheme when nothing is asked for."""
    name = (options.word("kv_cache_dtype", "kv_cache_config.dtype") or asked.kv_dtype or "auto").lower()
    return name if name != "auto" else spec.kv_cache_scheme


def _graph_batch(asked: ServingSettings, options: EngineOptions, flow: Flow, batch: int, rules: Rules) -> int:
    """The largest captured batch; 0 without CUDA graphs."""
    if flow == "tensorrt" or asked.eager or options.flag("disable_cuda_graph"):
        return 0
    return min(
        batch, options.count("cuda_graph_max_batch_size", "cuda_graph_config.max_batch_size") or rules["graph_batch"]
    )


def _windows(options: EngineOptions) -> tuple[int, ...]:
    """Read `4096` or `[128, 32768]`.

    Raises: UsageError for anything else.
    """
    text = options.word("max_attention_window") if not options.is_number("max_attention_window") else None
    if text is None:
        single = options.count("max_attention_window")
        return (single,) if single else ()
    parts = [part.strip() for part in text.strip("[]() ").split(",") if part.strip()]
    if not parts or not all(part.isdigit() and int(part) > 0 for part in parts):
        raise UsageError(f"TensorRT-LLM option max_attention_window is `{text}`", hint="write it as [128, 32768]")
    return tuple(int(part) for part in parts)


def _state_dtype(options: EngineOptions) -> DType | None:
    name = options.word("mamba_ssm_cache_dtype")
    return parse_compute_dtype(name) if name else None


def has_windows(spec: ModelSpec) -> bool:
    """Whether some layers attend to a window only, which the cache does not use unless it is told."""
    caches = [cache for layer in spec.layers for cache in layer.caches]
    return any(isinstance(cache, (SlidingWindow, ChunkedLocal)) for cache in caches) and any(
        isinstance(cache, FullAttention) for cache in caches
    )


def blocks_of(tokens: int, settings: TrtllmSettings) -> int:
    """Blocks that so many tokens of one request claim."""
    return ceil_div(tokens, settings.tokens_per_block)
