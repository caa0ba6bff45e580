"""The weights of one rank under TensorRT-LLM, in both of its flows.

    PyTorch flow   the checkpoint's weights as torch allocates them, rotary tables, the halves of a latent's
                   up-projection that attention absorbs, buffers of modules; MXFP4 experts padded to whole tiles
    engine flow    the engine: the same weights, the embedding whole on every rank unless it is built with
                   use_parallel_embedding, a transposed copy of a latent's key projection

Source: tensorrt_llm/_torch/modules (embedding, attention, fused_moe/quantization.py), tensorrt_llm/layers, 0.8 to 1.3.
"""

from __future__ import annotations

from memplan.budget.allocator import allocated_bytes
from memplan.budget.weights import WeightRules, merged_name, stage_layers, tensor_parts
from memplan.catalog.rules import Rules
from memplan.domain.attention import LatentAttention
from memplan.domain.gpu import GpuSpec
from memplan.domain.model import Layer, ModelSpec, count_layers
from memplan.domain.serving import ParallelLayout, ServingSettings
from memplan.domain.tensors import Role, Tensor
from memplan.engines.tensorrt_llm.fitted import Fitted
from memplan.engines.tensorrt_llm.settings import TrtllmSettings
from memplan.engines.tiles import is_tiled, tiled_parts
from memplan.units import MIB, ceil_div

_ATTENTION = frozenset({Role.ATTENTION, Role.INDEXER, Role.STATE, Role.EMBEDDING, Role.POSITION, Role.LM_HEAD})
_DATA_CENTRE_BLACKWELL = (10.0, 10.3)
_ROTARY_BYTES = 4


def rank_weights(
    spec: ModelSpec,
    gpu: GpuSpec,
    asked: ServingSettings,
    settings: TrtllmSettings,
    rules: Rules,
    fitted: Fitted,
    stage: int,
) -> dict[str, int]:
    """Bytes by part of what one rank of a pipeline stage loads."""
    placing = _Placing(gpu, settings, rules)
    layers = stage_layers(spec, settings.layout.pipeline, stage)
    is_first, is_last = stage == 0, stage == settings.layout.pipeline - 1
    if is_first and not asked.language_model_only:
        placing.add([tensor for tower in spec.towers for tensor in tower.tensors])
    placing.add([tensor for tensor in spec.shared if _is_here(tensor, spec, is_first=is_first, is_last=is_last)])
    for layer, copies in count_layers(layers):
        placing.add(layer.tensors, copies=copies)
    if is_last:
        placing.add(_draft_tensors(spec, asked), part="draft model")
    absorbed = _absorbed(layers, settings)
    parts = {**placing.parts, "absorbed latent projections": sum(absorbed)}
    if settings.flow == "pytorch":
        tables = [table.positions * table.width * _ROTARY_BYTES for table in spec.rotary]
        held = allocated_bytes((*placing.requests, *tables, *absorbed))
        parts["rotary tables, rounding"] = held - sum(parts.values())
        parts["buffers of modules"] = round(fitted.loaded_mib * MIB)
    if settings.offload_bytes:
        parts["offloaded to the host"] = -min(settings.offload_bytes, sum(parts.values()))
    return {name: size for name, size in parts.items() if size}


class _Placing:
    """Tensors as parameters of one rank: bytes by part, and the sizes in which they are allocated."""

    def __init__(self, gpu: GpuSpec, settings: TrtllmSettings, rules: Rules) -> None:
        self.parts: dict[str, int] = {}
        self.requests: list[int] = []
        self._settings = settings
        tiles = rules["mxfp4_tile"]
        self._tile = tiles["blackwell" if gpu.cuda_capability in _DATA_CENTRE_BLACKWELL else "other"]

    def add(self, tensors: tuple[Tensor, ...] | list[Tensor], part: str | None = None, copies: int = 1) -> None:
        """Place tensors that may be merged into one parameter each, and `copies` of them."""
        merged: dict[tuple[str, int], int] = {}
        for tensor in tensors:
            sizes = self._sizes(tensor)
            name = part or tensor.role.value
            self.parts[name] = self.parts.get(name, 0) + copies * sum(sizes)
            for index, size in enumerate(sizes):
                key = merged_name(tensor.name), index
                merged[key] = merged.get(key, 0) + size
        self.requests += [*merged.values()] * copies

    def _sizes(self, tensor: Tensor) -> tuple[int, ...]:
        layout = _layout(tensor, self._settings)
        if is_tiled(tensor) and self._settings.flow == "pytorch":
            return tiled_parts(tensor, layout, cut_tile=self._tile, whole_tile=self._tile)
        return tensor_parts(tensor, layout, WeightRules(dtype=self._settings.dtype))


def _layout(tensor: Tensor, settings: TrtllmSettings) -> ParallelLayout:
    """Over how many ranks a tensor is cut: with attention DP, attention, embedding and head are whole."""
    if settings.flow == "tensorrt" and tensor.role is Role.EMBEDDING and not settings.splits_embedding:
        return ParallelLayout()
    if tensor.role in _ATTENTION:
        return ParallelLayout(tensor=settings.attention_ranks)
    whole = settings.layout.expert and tensor.role is Role.EXPERT
    return ParallelLayout(tensor=settings.layout.tensor, expert=whole)


def _is_here(tensor: Tensor, spec: ModelSpec, *, is_first: bool, is_last: bool) -> bool:
    if tensor.role in (Role.EMBEDDING, Role.POSITION):
        return is_first or (is_last and spec.tied_embeddings)
    return is_last


def _draft_tensors(spec: ModelSpec, asked: ServingSettings) -> tuple[Tensor, ...]:
    """A draft model's weights, or the checkpoint's own prediction layers where tokens are predicted without one."""
    if asked.draft is not None:
        return (*asked.draft.shared, *(tensor for layer in asked.draft.layers for tensor in layer.tensors))
    return spec.mtp if asked.num_speculative_tokens else ()


def draft_layers(spec: ModelSpec, asked: ServingSettings) -> tuple[Layer, ...]:
    """The layers that a draft adds to the cache; a prediction layer is like the model's last."""
    if asked.draft is not None:
        return asked.draft.layers
    return spec.layers[-1:] if asked.num_speculative_tokens and spec.mtp else ()


def _absorbed(layers: tuple[Layer, ...], settings: TrtllmSettings) -> list[int]:
    """The halves of a latent's up-projection that are kept in 16 bits beside it; the engine keeps the key's only."""
    element_bytes = settings.dtype.bits // 8
    sizes: list[int] = []
    for layer in layers:
        for cache in layer.caches:
            if isinstance(cache, LatentAttention) and cache.num_heads:
                heads = ceil_div(cache.num_heads, settings.attention_ranks)
                plain = cache.expanded_key_width - cache.rope_width
                sizes.append(heads * cache.latent_width * plain * element_bytes)
                if settings.flow == "pytorch":
                    sizes.append(heads * cache.latent_width * cache.expanded_value_width * element_bytes)
    return sizes
