"""How long a training step takes: products, what is computed twice, what goes over links and over the host's bus.

Formulas (docs/training.md, "Time"), for a token through N parameters that multiply and layers of width w:

    forward      2 N + 2 x tokens x w for every layer (causal attention: half of the square)
    backward     twice that; once where weights are frozen (adapters), whose gradients nobody asks for
    checkpoints  full: one more forward; selective: half of the products of one

Products run at the part of the card's dense rate that `Efficiency.compute_fraction` says (fitted on prompts, which are
the same products). Communication that products can hide is hidden but for a tenth; tensor parallelism's is not.
Not modelled: the input pipeline, stragglers, cache flushes of a full allocator, warm-up.
"""

from __future__ import annotations

from memplan.budget.links import all_reduce_s, link_between, pcie_bytes_per_s
from memplan.domain.attention import Cache, ChunkedLocal, FullAttention, LatentAttention, SlidingWindow
from memplan.domain.gpu import GpuSpec
from memplan.domain.model import ModelSpec
from memplan.domain.speed import Efficiency
from memplan.domain.tensors import Role
from memplan.domain.training import GATHERING, TrainingLayout, TrainingSpec
from memplan.records import dataclass

# 4 bit weights are unpacked for every product: about 39 % longer (S. Raschka, LoRA insights, 2023).
_UNPACKING = 1.39
# Assumed: of what could be hidden, this part shows all the same.
_SHOWS = 0.1
_MACHINE = 8
_STATE_PASSES = 3  # read gradient and state, write state and weight
_HALF = 2
_PACKED_BYTES = 0.6  # of a weight of 4 bits with its scales, and the embedding and head that stay in 16 bits


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTime:
    """Seconds of one step on one rank, and what it works. `model_flops` are what training needs of every token of the
    step, over all ranks, whatever is computed twice: 3 forwards, 2 where weights are frozen. MFU counts these.
    """

    compute_s: float
    recompute_s: float
    communication_s: float
    bubble_s: float
    optimizer_s: float
    offload_s: float
    tokens: int
    model_flops: float
    peak_flops_per_s: float

    @property
    def total_s(self) -> float:
        return (
            self.compute_s + self.recompute_s + self.communication_s + self.bubble_s + self.optimizer_s + self.offload_s
        )

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.total_s

    @property
    def mfu(self) -> float:
        """Model FLOPs utilization: of the dense 16 bit rate of all GPUs."""
        return self.model_flops / self.total_s / self.peak_flops_per_s


def step_time(
    spec: ModelSpec, training: TrainingSpec, trained: int, gpu: GpuSpec, efficiency: Efficiency
) -> StepTime | None:
    """Return the time of a step; None for a GPU whose rates are not known."""
    rates = gpu.flops_per_s or {}
    peak = rates.get("bf16") or rates.get("fp16")
    if not peak or not gpu.bandwidth_bytes_per_s:
        return None
    layout = training.layout
    cut = layout.tensor * layout.pipeline * layout.context
    micro_tokens = training.micro_batch * training.sequence_tokens
    forward = micro_tokens * forward_flops(spec, training.sequence_tokens)
    rate = peak * efficiency.compute_fraction / (_UNPACKING if training.method == "qlora" else 1.0)
    passes = 3 if training.method == "full" else 2
    again = {"none": 0.0, "selective": 0.5, "full": 1.0}[training.checkpointing]
    each = forward / cut / rate
    batches = training.accumulation
    compute, recompute = batches * passes * each, batches * again * each
    hidden, shown = _data_parallel(spec, training, trained, gpu, efficiency)
    cuts = _tensor_parallel(spec, training, again, gpu, efficiency)
    cuts += _context_parallel(spec, training, again, gpu, efficiency)
    cuts += _expert_parallel(spec, training, again, gpu, efficiency)
    tokens = micro_tokens * batches * layout.data
    return StepTime(
        compute_s=compute,
        recompute_s=recompute,
        communication_s=_exposed(hidden, compute + recompute) + shown + cuts,
        bubble_s=(layout.pipeline - 1) * (passes + again) * each,
        optimizer_s=_optimizer_s(training, trained, gpu, efficiency),
        offload_s=_offload_s(spec, training, trained, gpu, efficiency, compute + recompute),
        tokens=tokens,
        model_flops=passes * tokens * forward_flops(spec, training.sequence_tokens),
        peak_flops_per_s=peak * layout.ranks,
    )


def forward_flops(spec: ModelSpec, tokens: int) -> float:
    """FLOPs of one token's forward pass in sequences of so many tokens."""
    looked_up = sum(tensor.num_parameters for tensor in spec.shared if tensor.role is Role.EMBEDDING)
    towers = sum(tower.num_parameters for tower in spec.towers)
    multiplied = spec.active_parameters - towers - (0 if spec.tied_embeddings else looked_up)
    attention = sum(2.0 * tokens * layer.query_width * copies for layer, copies in spec.distinct_layers())
    return 2.0 * multiplied + attention


def _exposed(communication_s: float, compute_s: float) -> float:
    """What shows of communication that runs beside products."""
    return max(communication_s - compute_s, 0.0) + _SHOWS * min(communication_s, compute_s)


def _data_parallel(
    spec: ModelSpec, training: TrainingSpec, trained: int, gpu: GpuSpec, efficiency: Efficiency
) -> tuple[float, float]:
    """Seconds of gathering and reducing: what runs beside products, and what comes after them."""
    layout = training.layout
    ranks = layout.data * layout.context
    if ranks == 1:
        return 0.0, 0.0
    cut = layout.tensor * layout.pipeline
    # Ranks of a data-parallel group lie `cut` apart: whether they are on one machine is a matter of all of them.
    link = link_between(gpu, ranks * cut, efficiency)
    grads = trained / cut * (training.reduce_bytes or training.compute_bytes)
    if training.sharding not in GATHERING:
        rounds = training.accumulation if training.sharding == "zero2" else 1
        return rounds * all_reduce_s(link, ranks, grads), 0.0
    shards = layout.shards
    inner = link_between(gpu, shards * cut, efficiency)
    width = _PACKED_BYTES if training.method == "qlora" else training.compute_bytes
    gathered = (spec.parameters - _moved_experts(spec, layout)) / cut * width
    fraction = (shards - 1) / shards
    latency = 3 * spec.num_layers / layout.pipeline * inner.latency_s
    one = latency + fraction * (2 * gathered + grads) / inner.bytes_per_s
    copies = ranks // shards
    between = all_reduce_s(link, copies, grads / shards) if copies > 1 else 0.0
    return training.accumulation * one + between, 0.0


def _tensor_parallel(
    spec: ModelSpec, training: TrainingSpec, again: float, gpu: GpuSpec, efficiency: Efficiency
) -> float:
    """Two all-reduces of the hidden states in each layer's forward, two in its backward, and again where it is repeated
    (with sequence parallelism as many bytes, gathered and scattered).
    """
    layout = training.layout
    if layout.tensor == 1:
        return 0.0
    link = link_between(gpu, layout.tensor, efficiency)
    size = training.micro_batch * training.sequence_tokens * spec.hidden_size * training.compute_bytes
    layers = spec.num_layers / layout.pipeline
    return training.accumulation * layers * (4 + 2 * again) * all_reduce_s(link, layout.tensor, size)


def _context_parallel(
    spec: ModelSpec, training: TrainingSpec, again: float, gpu: GpuSpec, efficiency: Efficiency
) -> float:
    """Other ranks' keys and values, in each layer's forward and backward pass, and their gradients back."""
    layout = training.layout
    if layout.context == 1:
        return 0.0
    link = link_between(gpu, layout.context * layout.tensor, efficiency)
    tokens = training.micro_batch * training.sequence_tokens / layout.tensor
    widths = sum(_keys_width(cache) for layer in spec.layers for cache in layer.caches)
    size = tokens * widths * training.compute_bytes / layout.pipeline * (layout.context - 1) / layout.context
    latency = spec.num_layers / layout.pipeline * link.latency_s
    return training.accumulation * (3 + again) * (size / link.bytes_per_s + latency)


def _keys_width(cache: Cache) -> int:
    """Elements of a token's keys and values, as they are multiplied."""
    if isinstance(cache, LatentAttention):
        return cache.num_heads * (cache.expanded_key_width + cache.expanded_value_width)
    if isinstance(cache, (FullAttention, SlidingWindow, ChunkedLocal)):
        return cache.num_kv_heads * (cache.key_width + cache.value_width)
    return 0


def _expert_parallel(
    spec: ModelSpec, training: TrainingSpec, again: float, gpu: GpuSpec, efficiency: Efficiency
) -> float:
    """Tokens to the ranks of their experts and back, in each layer's forward and backward pass."""
    layout = training.layout
    if layout.expert == 1:
        return 0.0
    link = link_between(gpu, layout.expert * layout.tensor, efficiency)
    chosen = sum(layer.mlp.experts_per_token for layer in spec.layers if layer.mlp and layer.mlp.num_experts)
    tokens = training.micro_batch * training.sequence_tokens / layout.context / layout.tensor
    size = tokens * chosen / layout.pipeline * spec.hidden_size * training.compute_bytes
    moved = size * (layout.expert - 1) / layout.expert
    latency = spec.num_layers / layout.pipeline * link.latency_s
    return training.accumulation * (4 + 2 * again) * (moved / link.bytes_per_s + latency)


def _moved_experts(spec: ModelSpec, layout: TrainingLayout) -> float:
    """Parameters of routed experts that other ranks have, which are never gathered here."""
    experts = sum(
        tensor.num_parameters for layer in spec.layers for tensor in layer.tensors if tensor.role is Role.EXPERT
    )
    return experts * (1 - 1 / layout.expert)


def _shard(training: TrainingSpec, trained: int) -> float:
    """Trained parameters whose state one rank keeps."""
    layout = training.layout
    whole = trained / (layout.tensor * layout.pipeline)
    return whole / (layout.shards if training.sharding in (*GATHERING, "zero1", "zero2") else 1)


def _optimizer_s(training: TrainingSpec, trained: int, gpu: GpuSpec, efficiency: Efficiency) -> float:
    if training.offload_optimizer or not gpu.bandwidth_bytes_per_s:
        return 0.0
    kept = training.weight_bytes + 2 * training.state_bytes + training.master_bytes
    moved = _shard(training, trained) * kept * _STATE_PASSES / 2
    return moved / (gpu.bandwidth_bytes_per_s * efficiency.bandwidth_fraction)


def _offload_s(
    spec: ModelSpec, training: TrainingSpec, trained: int, gpu: GpuSpec, efficiency: Efficiency, compute_s: float
) -> float:
    """The bus and the host's own memory, which steps all ranks of a machine."""
    layout = training.layout
    bus = pcie_bytes_per_s(gpu) * efficiency.pcie_fraction
    seconds = 0.0
    if training.offload_optimizer:
        shard = _shard(training, trained)
        seconds += shard * (training.grad_bytes + training.weight_bytes) / bus
        on_host = shard * min(layout.ranks, _MACHINE) * 4 * 4 * 2
        seconds += on_host / (efficiency.host_bytes_per_s * 2)
    beside = 0.0
    if training.offload_parameters:
        cut = layout.tensor * layout.pipeline * layout.shards
        width = _PACKED_BYTES if training.method == "qlora" else training.weight_bytes
        beside += training.accumulation * 2 * spec.parameters * width / cut / bus
    if training.offload_activations:
        tokens = training.micro_batch * training.sequence_tokens * training.accumulation
        beside += 2 * tokens * spec.hidden_size * _HALF * spec.num_layers / layout.pipeline / bus
    return seconds + _exposed(beside, compute_s)
