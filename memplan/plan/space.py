"""The search space: which layouts, weight schemes and cache types there are to try for an engine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from memplan.catalog.rules import parse_release
from memplan.domain.attention import LinearState
from memplan.domain.model import ModelSpec
from memplan.domain.plan import PlanRequest
from memplan.domain.serving import ParallelLayout

# Schemes that people serve, by engine. None is the checkpoint's own storage. GPTQ with groups of 128 has the size and
# the kernels of AWQ: it is searched when it is named.
_GPU_SCHEMES = ("fp8", "w8a8-int8", "awq-int4-g128", "nvfp4")
SCHEMES: Mapping[str, tuple[str | None, ...]] = {
    "vllm": (None, *_GPU_SCHEMES),
    "sglang": (None, *_GPU_SCHEMES),
    "tensorrt-llm": (None, "fp8", "awq-int4-g128", "nvfp4"),
    "llama.cpp": ("gguf:bf16", "gguf:q8_0", "gguf:q6_k", "gguf:q5_k_m", "gguf:q4_k_m"),
    "transformers": (None, "bnb-int8", "bnb-nf4"),
}
KV_DTYPES: Mapping[str, tuple[str | None, ...]] = {
    "vllm": (None, "fp8"),
    "sglang": (None, "fp8_e4m3"),
    "tensorrt-llm": (None, "fp8"),
    "llama.cpp": (None, "q8_0"),
    "transformers": (None,),
}
# Engines that put whole layers on each GPU, one after the other.
LAYER_SPLIT = frozenset({"llama.cpp", "transformers"})
# Engines that serve one batch at a time: no continuous batching.
STATIC_BATCHING = frozenset({"transformers"})
# Engines that keep weights in host memory and bring them over the bus.
OFFLOADS = frozenset({"vllm"})
# Engines that serve with prefill and decode apart, from which release on. Source: vLLM's KV connectors (NIXL, 0.9.1),
# SGLang's disaggregation modes (0.4.6), TensorRT-LLM's disaggregated serving (1.0).
APART: Mapping[str, str] = {"vllm": "0.9.1", "sglang": "0.4.6", "tensorrt-llm": "1.0"}
# GPU types up to which pools are searched without being asked for.
_FEW_OFFERS = 4
_NODE = 8
LADDER = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)


def schemes(spec: ModelSpec, request: PlanRequest, engine: str) -> tuple[str | None, ...]:
    """The weight schemes to try: those that were named, the checkpoint's own if it is quantized, else the engine's."""
    if request.schemes:
        return request.schemes
    return (None,) if spec.quantization else SCHEMES[engine]


def kv_dtypes(request: PlanRequest, engine: str) -> tuple[str | None, ...]:
    """The cache types to try, the largest first."""
    return request.kv_dtypes or KV_DTYPES[engine]


def layouts(spec: ModelSpec, request: PlanRequest, engine: str, num_gpus: int) -> Iterator[ParallelLayout]:
    """Every way to cut the model over `num_gpus`, tensor parallelism within a node of eight.

    Whether the model can be cut so is the engine's to say.
    """
    if request.layout is not None:
        if request.layout.num_ranks == num_gpus:
            yield request.layout
        return
    if engine in LAYER_SPLIT:
        yield ParallelLayout(pipeline=num_gpus)
        return
    routed = any(layer.mlp and layer.mlp.num_experts for layer in spec.layers)
    for tensor in _divisors(num_gpus):
        if tensor > _NODE:
            continue
        for pipeline in _divisors(num_gpus // tensor):
            if pipeline > spec.num_layers:
                continue
            data = num_gpus // tensor // pipeline
            yield ParallelLayout(tensor=tensor, pipeline=pipeline, data=data)
            if routed and tensor * data > 1:
                yield ParallelLayout(tensor=tensor, pipeline=pipeline, data=data, expert=True)


def pools(
    spec: ModelSpec, request: PlanRequest, engine: str, version: str | None, num_gpus: int
) -> Iterator[tuple[ParallelLayout, ParallelLayout]]:
    """Every way to share `num_gpus` of up to two machines between replicas that prefill and replicas that decode.

    Without being asked, only where a limit on waits is given: that is what a pool of its own is good for. Only the
    engine that is named first is searched, with tensor parallelism, for models that cache keys and values.
    """
    wanted = request.apart
    if wanted is None:
        limits = request.limits
        wanted = (
            limits.max_ttft_s is not None or (limits.max_tpot_s is not None and not limits.tpot_is_assumed)
        ) and len(request.offers) <= _FEW_OFFERS
    since = APART.get(engine)
    if not wanted or since is None or engine != request.engines[0][0] or not 2 <= num_gpus <= 2 * _NODE:
        return
    if version is not None and parse_release(version) < parse_release(since):
        return
    traffic = request.traffic
    if request.layout is not None or min(traffic.prompt_tokens, traffic.output_tokens) < 2 or _has_states(spec):
        return
    sizes = [size for size in _divisors(_NODE) if size < num_gpus]
    for prefill in sizes:
        for decode in sizes:
            for replicas in range(1, (num_gpus - decode) // prefill + 1):
                rest = num_gpus - replicas * prefill
                if rest % decode == 0:
                    yield (
                        ParallelLayout(tensor=prefill, data=replicas),
                        ParallelLayout(tensor=decode, data=rest // decode),
                    )


def _has_states(spec: ModelSpec) -> bool:
    return any(isinstance(cache, LinearState) for layer, _ in spec.distinct_layers() for cache in layer.caches)


def _divisors(number: int) -> list[int]:
    return [size for size in range(1, number + 1) if number % size == 0]
