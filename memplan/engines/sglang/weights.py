"""What loading a model takes from the device under SGLang: whole allocator segments, rotary tables, copies for latents.

SGLang prints the difference of free device memory before and after loading, so what counts are the segments that the
allocator reserved, not the blocks in use: Qwen3-14B on four ranks has 6.88 GiB of weights in 7.08 GiB of segments.

    device = segments(weights, rotary tables, absorbed copies, draft) + modules of the first kernels

With DP attention every group of ranks holds whole attention weights and its own embedding; the MLPs, experts and the
head are cut over all ranks.

Source: sglang/srt/model_executor/model_runner.py load_model, layers/vocab_parallel_embedding.py, models/deepseek_v2.py
(post_load_weights), distributed/utils.py (get_pp_indices), 0.3 to 0.5.23.
Checked by: benchmarks/sglang/score.py.
"""

from __future__ import annotations

from collections.abc import Iterable

from memplan.budget.allocator import allocate
from memplan.budget.weights import WeightRules, merged_name, tensor_parts
from memplan.catalog.rules import Rules
from memplan.domain.attention import FullAttention, LatentAttention, SlidingWindow
from memplan.domain.gpu import GpuSpec
from memplan.domain.model import Layer, ModelSpec
from memplan.domain.serving import LoraSettings, ParallelLayout
from memplan.domain.tensors import Role, Tensor
from memplan.engines.sglang.settings import SglangSettings
from memplan.engines.tiles import is_tiled, tiled_parts
from memplan.records import dataclass, replace
from memplan.units import ceil_div

_PER_GROUP = frozenset({Role.ATTENTION, Role.INDEXER, Role.STATE, Role.EMBEDDING, Role.POSITION})
_LORA_ROLES = frozenset({Role.ATTENTION, Role.MLP, Role.SHARED_EXPERT})


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceWeights:
    """What one rank's device is short of after loading: named parts in bytes, and their total.

    `parts` sum to `total_bytes`. `named_bytes` is what the tensors themselves come to.
    """

    parts: dict[str, int]
    named_bytes: int

    @property
    def total_bytes(self) -> int:
        return sum(self.parts.values())


def stage_layers(spec: ModelSpec, pipeline: int, stage: int) -> tuple[Layer, ...]:
    """The layers of one pipeline stage: what does not divide goes one each to the last stages."""
    base, extra = divmod(spec.num_layers, pipeline)
    first = stage * base + max(0, stage - (pipeline - extra))
    return spec.layers[first : first + base + (1 if stage >= pipeline - extra else 0)]


def device_weights(
    spec: ModelSpec,
    gpu: GpuSpec,
    settings: SglangSettings,
    rules: Rules,
    stage: int,
    *,
    first_kernels_bytes: int,
    lora: LoraSettings,
    draft: ModelSpec | None,
) -> DeviceWeights:
    """What the fullest rank of one stage takes for its weights."""
    parts: dict[str, int] = {}
    tiles = expert_tiles(gpu, rules)
    requests = list(_rank_requests(spec, settings, stage, parts, tiles))
    named = sum(parts.values())
    layers = stage_layers(spec, settings.ranks.pipeline, stage)
    absorbed = _absorbed(layers, settings)
    slots = _lora_slots(layers, settings, lora)
    tables = rotary_bytes(spec, gpu, settings, rules)
    drafted: list[int] = []
    if rules["draft_before_pool"] and stage == settings.ranks.pipeline - 1:
        drafted = draft_requests(spec, draft, settings)
    extras = {
        "absorbed latent projections": sum(absorbed),
        "LoRA slots": sum(slots),
        "draft model": sum(drafted),
        "rotary tables": sum(tables),
    }
    parts.update({name: size for name, size in extras.items() if size})
    held = allocate((*requests, *absorbed, *slots, *tables, *drafted))
    parts["unused parts of segments"] = held.reserved_bytes - sum(parts.values())
    if first_kernels_bytes:
        parts["modules of the first kernels"] = first_kernels_bytes
    if settings.offload_bytes:
        parts["offloaded to the host"] = -min(settings.offload_bytes, named)
    return DeviceWeights(parts=parts, named_bytes=named)


def expert_tiles(gpu: GpuSpec, rules: Rules) -> tuple[int, int]:
    """The multiples to which MXFP4 experts are padded: on the axis that is cut over ranks, and on the other."""
    kind = (
        "amd"
        if gpu.vendor == "amd"
        else {10.0: "blackwell", 10.3: "blackwell", 12.0: "sm120"}.get(gpu.cuda_capability or 0.0, "other")
    )
    cut, whole = rules["mxfp4_tiles"][kind]
    return int(cut), int(whole)


def _rank_requests(
    spec: ModelSpec, settings: SglangSettings, stage: int, parts: dict[str, int], tiles: tuple[int, int]
) -> Iterable[int]:
    """The sizes that one rank asks the allocator for, in order; adds their bytes by role to `parts`."""
    is_first, is_last = stage == 0, stage == settings.ranks.pipeline - 1
    if is_first and settings.reads_media:
        yield from _place((tensor for tower in spec.towers for tensor in tower.tensors), parts, settings, tiles)
    after: list[Tensor] = []
    for tensor in spec.shared:
        at_start = tensor.role in (Role.EMBEDDING, Role.POSITION)
        if at_start and (is_first or (is_last and spec.tied_embeddings)):
            yield from _place((tensor,), parts, settings, tiles)
        elif not at_start and is_last:
            after.append(tensor)
    made: dict[int, tuple[tuple[int, ...], dict[str, int]]] = {}
    for layer in stage_layers(spec, settings.ranks.pipeline, stage):
        if id(layer) not in made:
            own: dict[str, int] = {}
            made[id(layer)] = (_place(layer.tensors, own, settings, tiles), own)
        sizes, own = made[id(layer)]
        for name, size in own.items():
            parts[name] = parts.get(name, 0) + size
        yield from sizes
    yield from _place(after, parts, settings, tiles)


def _place(
    tensors: Iterable[Tensor], parts: dict[str, int], settings: SglangSettings, tiles: tuple[int, int] = (1, 1)
) -> tuple[int, ...]:
    """The parameters that hold the tensors: what is computed at once is merged, scales and zeros stand apart."""
    rules = WeightRules(dtype=settings.dtype)
    merged: dict[tuple[str, int], int] = {}
    for tensor in tensors:
        kept, layout = _on_gpu(tensor, settings), _layout(tensor, settings)
        if is_tiled(kept):
            sizes = tiled_parts(kept, layout, cut_tile=tiles[0], whole_tile=tiles[1])
        else:
            sizes = tensor_parts(kept, layout, rules)
        parts[tensor.role.value] = parts.get(tensor.role.value, 0) + sum(sizes)
        name = merged_name(tensor.name)
        for index, size in enumerate(sizes):
            merged[name, index] = merged.get((name, index), 0) + size
    return tuple(merged.values())


def _on_gpu(tensor: Tensor, settings: SglangSettings) -> Tensor:
    """The experts of a stack that stay on the GPU where KTransformers keeps the others on the host."""
    if settings.gpu_experts is None or tensor.role is not Role.EXPERT or tensor.count == 1:
        return tensor
    return replace(tensor, count=min(tensor.count, settings.gpu_experts))


def _layout(tensor: Tensor, settings: SglangSettings) -> ParallelLayout:
    """Over how many ranks a tensor is cut."""
    ranks = settings.ranks
    if settings.embeds_whole and tensor.role is Role.EMBEDDING:
        return ParallelLayout()
    if tensor.role in _PER_GROUP:
        return ParallelLayout(tensor=ranks.attention)
    if tensor.role is Role.EXPERT:
        whole = ranks.experts == ranks.tensor and ranks.experts > 1
        return ParallelLayout(tensor=ranks.tensor, expert=whole)
    by_role = {Role.SHARED_EXPERT: ranks.shared_experts, Role.MLP: ranks.dense, Role.LM_HEAD: ranks.head}
    return ParallelLayout(tensor=by_role.get(tensor.role, ranks.tensor))


def rotary_bytes(spec: ModelSpec, gpu: GpuSpec, settings: SglangSettings, rules: Rules) -> tuple[int, ...]:
    """The rotary tables: FP32 on NVIDIA from 0.4.3 on, the compute type otherwise.

    Gemma 4's tables are as wide as a head of the layers they are for, whatever part of it is rotated.
    """
    wide = rules["float32_rotary"] and gpu.vendor == "nvidia"
    element_bytes = 4 if wide else settings.dtype.bits // 8
    if spec.architecture.startswith("Gemma4") and spec.rotary:
        heads = (cache for layer in spec.layers for cache in layer.caches)
        widths = {cache.key_width for cache in heads if isinstance(cache, (FullAttention, SlidingWindow))}
        return tuple(spec.rotary[0].positions * width * element_bytes for width in sorted(widths))
    return tuple(table.positions * table.width * element_bytes for table in spec.rotary)


def _absorbed(layers: tuple[Layer, ...], settings: SglangSettings) -> tuple[int, ...]:
    """The key and value halves of a latent's up-projection, kept in 16 bits beside the projection for decoding."""
    element_bytes = settings.dtype.bits // 8
    sizes: list[int] = []
    for layer in layers:
        for cache in layer.caches:
            if isinstance(cache, LatentAttention) and cache.num_heads:
                heads = ceil_div(cache.num_heads, settings.ranks.attention)
                plain = cache.expanded_key_width - cache.rope_width
                sizes.append(heads * cache.latent_width * plain * element_bytes)
                sizes.append(heads * cache.latent_width * cache.expanded_value_width * element_bytes)
    return tuple(sizes)


def _lora_slots(layers: tuple[Layer, ...], settings: SglangSettings, lora: LoraSettings) -> tuple[int, ...]:
    """Two stacks of adapters per Linear layer; cut like the layer itself, approximately by half each."""
    if not lora.max_loras:
        return ()
    element_bytes = settings.dtype.bits // 8
    widths = [
        ceil_div(tensor.shape[-2] + tensor.shape[-1], settings.ranks.tensor)
        for layer in layers
        for tensor in layer.tensors
        if tensor.linear and tensor.role in _LORA_ROLES and len(tensor.shape) == 2
    ]
    return tuple(lora.max_loras * lora.max_rank * width * element_bytes for width in widths)


def draft_requests(spec: ModelSpec, draft: ModelSpec | None, settings: SglangSettings) -> list[int]:
    """The draft's weights on one rank: a model of its own, or the checkpoint's own prediction layers.

    A draft that predicts from the target's hidden states shares its embedding and head; a standalone one does not.
    """
    if settings.drafting in (None, "ngram"):
        return []
    if draft is None:
        return list(_place(spec.mtp, {}, settings))
    tensors = [tensor for layer in draft.layers for tensor in layer.tensors]
    if settings.drafting == "standalone":
        tensors = [*draft.shared, *tensors]
    return list(_place(tensors, {}, settings))
