"""Buffers that stay allocated while the profiling run goes on to the sampler.

Since 0.13 one shared workspace grows to the largest that any layer asks for, and is never freed: the two scratch
tensors of routed experts, the gathered keys of a sparse-attention indexer, or DeepSeek V4's gathered latents. cuBLAS
keeps a workspace of its own; the Triton sampler one row of logits for every multiprocessor.

Source: vllm/v1/worker/workspace.py; fused_moe/modular_kernel.py (_allocate_buffers, workspace_shapes), whose chunks of
16,384 tokens ended with 0.19; sparse_attn_indexer.py; vllm/v1/sample/ops/topk_topp_triton.py; PyTorch's
aten/src/ATen/cuda/CublasHandlePool.cpp for the 32 MiB of Hopper and data-centre Blackwell and the 8.1 MiB of others.
"""

from __future__ import annotations

from memplan.catalog.rules import Rules
from memplan.domain.attention import IndexerKeys
from memplan.domain.gpu import GpuSpec
from memplan.domain.model import Layer, ModelSpec, count_layers
from memplan.domain.tensors import Role
from memplan.engines.vllm.lanes import gathered_bytes, has_lanes
from memplan.engines.vllm.settings import VllmSettings
from memplan.units import MIB

_CUBLAS_BYTES = 8 * MIB + 128 * 1024
_CUBLAS_LARGE_BYTES = 32 * MIB
_CUBLAS_LARGE_CAPABILITIES = (9.0, 10.0, 10.3)
_TRTLLM_CAPABILITIES = (10.0, 10.3)
_CHUNK_TOKENS = 16384
# The indexer gathers the keys of so many requests of the longest length.
_INDEXER_REQUESTS = 40
_INDEXER_BYTES_PER_TOKEN = 132
_DEFAULT_MULTIPROCESSORS = 132


def cublas_bytes(gpu: GpuSpec) -> int:
    """The workspace of cuBLAS on one stream."""
    return _CUBLAS_LARGE_BYTES if gpu.cuda_capability in _CUBLAS_LARGE_CAPABILITIES else _CUBLAS_BYTES


def shared_workspace_bytes(
    layers: tuple[Layer, ...], spec: ModelSpec, gpu: GpuSpec, settings: VllmSettings, rules: Rules
) -> int:
    """What the shared workspace grows to during the profiling run; 0 for releases without one."""
    if not rules["shared_workspace"] or settings.generation == "v0":
        return 0
    experts = max(
        (
            _expert_bytes(layer, spec, settings, rules)
            for layer, _ in count_layers(layers)
            if not _has_own_buffers(layer, spec, gpu)
        ),
        default=0,
    )
    ratios = [cache.ratio for layer in layers for cache in layer.caches if isinstance(cache, IndexerKeys)]
    keys = _INDEXER_REQUESTS * settings.context_tokens // min(ratios) if ratios else 0
    return max(experts, keys * _INDEXER_BYTES_PER_TOKEN, gathered_bytes(layers, settings))


def _expert_bytes(layer: Layer, spec: ModelSpec, settings: VllmSettings, rules: Rules) -> int:
    """Two scratch tensors of tokens x experts per token."""
    mlp = layer.mlp
    if mlp is None or not mlp.num_experts:
        return 0
    tokens = settings.batched_tokens if rules.release >= (0, 19, 0) else min(settings.batched_tokens, _CHUNK_TOKENS)
    inner = mlp.intermediate / (1 if settings.layout.expert else settings.layout.tensor)
    width = max(2 * inner, spec.hidden_size) + max(inner, spec.hidden_size)
    return round(tokens * mlp.experts_per_token * width * settings.dtype.bits / 8)


def _has_own_buffers(layer: Layer, spec: ModelSpec, gpu: GpuSpec) -> bool:
    """Whether the experts' kernels bring buffers of their own: weights of 4 bits, experts without a gate, and
    quantized experts on data-centre Blackwell (TRT-LLM's kernels). DeepSeek V4's MXFP4 runs on Marlin elsewhere, as
    one of the kernels that share the workspace.
    """
    storages = [tensor.storage for tensor in layer.tensors if tensor.role is Role.EXPERT]
    quantized = [storage for storage in storages if storage is not None]
    if layer.mlp and not layer.mlp.gated:
        return True
    if quantized and gpu.cuda_capability in _TRTLLM_CAPABILITIES:
        return True
    return any(storage.bits <= 4 for storage in quantized) and not has_lanes(spec.layers)


def triton_sampler_bytes(gpu: GpuSpec, sequences: int, vocab_size: int) -> int:
    """One float32 row of logits for every program of the Triton top-k and top-p kernel; it is kept."""
    return min(gpu.num_multiprocessors or _DEFAULT_MULTIPROCESSORS, sequences) * vocab_size * 4
