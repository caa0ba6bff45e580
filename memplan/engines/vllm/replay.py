"""What the profiling run of V0 leaves reserved, for the releases that counted cached blocks as used.

Up to 0.6.3 the cache was sized by free memory after the run, before torch gave its cached blocks back. So the order of
allocations matters: two layers and the sampler are replayed through the allocator. Three habits of those releases
leave more behind than a step needs:

- the AWQ kernel wrote eight partial sums of every output; adding up so many values of 16 bits that 32-bit offsets do
  not reach them, torch keeps a float32 copy of the output beside them;
- on GPUs before Ampere, xformers ran every group of query heads but the first on a CUDA stream of its own. Torch hands
  out 32 streams in turn and keeps the cached blocks of each apart;
- until 0.2.7 a tensor that NCCL had reduced was held until the GPU was done with it, and the host had enqueued the
  whole pass long before.

Source: vllm/worker/worker.py determine_num_available_blocks, 0.2 to 0.6.3; vllm/model_executor/layers/sampler.py;
csrc/quantization/awq/gemm_kernels.cu (the AWQ kernel's partial sums); PyTorch 2.1 aten/src/ATen/native/cuda/Reduce.cuh
(AccumulationBuffer) and c10/cuda/CUDAStream.cpp (kStreamsPerPool); xformers 0.0.23 to 0.0.27, ops/fmha/cutlass.py.
"""

from __future__ import annotations

from memplan.budget.caching import Block, CachingAllocator
from memplan.budget.kv_cache import kept_heads
from memplan.catalog.rules import Rules
from memplan.domain.attention import ChunkedLocal, FullAttention, SlidingWindow
from memplan.domain.dtypes import DType
from memplan.domain.gpu import GpuSpec
from memplan.domain.model import Layer, ModelSpec
from memplan.domain.tensors import Role
from memplan.engines.vllm.profile import unpacks_weights
from memplan.engines.vllm.settings import VllmSettings
from memplan.records import dataclass

_AWQ_PARTIAL_SUMS = 8
_LAYERS = 2
_STREAMS = 32
_REACH_BYTES = 2**31


@dataclass(frozen=True, slots=True, kw_only=True)
class Habits:
    """What a release, on a GPU, leaves behind more than it needs; see the module."""

    splits_awq: bool = False
    groups_on_streams: bool = False
    holds_reduced: bool = False
    sorts_16_bits: bool = False
    copies_attended: bool = False


def habits_of(gpu: GpuSpec, settings: VllmSettings, rules: Rules) -> Habits:
    """The habits of a release on this GPU."""
    is_old = gpu.vendor == "nvidia" and (gpu.cuda_capability or 9.0) < 8.0
    return Habits(
        splits_awq=rules["awq_partial_sums"],
        groups_on_streams=is_old,
        holds_reduced=rules["holds_reduced"] and settings.layout.tensor > 1,
        sorts_16_bits=rules["sorts_16_bits"],
        copies_attended=rules["copies_attended"],
    )


def reserved_by_profiling(
    spec: ModelSpec, layer: Layer, settings: VllmSettings, habits: Habits, num_layers: int = _LAYERS
) -> int:
    """Bytes of segments after a pass of a full step through layers like `layer`, of `num_layers`, and the sampler."""
    run = _Run(spec, layer, settings, habits)
    hidden = run.rows(spec.hidden_size)
    residual = run.rows(spec.hidden_size)
    for _ in range(num_layers if habits.holds_reduced else _LAYERS):
        if run.adds_residual:
            hidden = run.plain_layer(hidden)
        else:
            hidden = run.fused_layer(hidden)
    run.memory.free(residual)
    run.sample(min(settings.max_num_seqs, settings.batched_tokens) * spec.vocab_size, 2 if habits.sorts_16_bits else 4)
    streams = run.stream_bytes(num_layers) if habits.groups_on_streams else 0
    return run.memory.reserved_bytes + streams


def _is_awq(spec: ModelSpec) -> bool:
    return (spec.quantization or "").startswith("awq")


class _Run:
    """One replay: the allocator and the widths of a layer on one rank."""

    def __init__(self, spec: ModelSpec, layer: Layer, settings: VllmSettings, habits: Habits) -> None:
        ranks = settings.layout.tensor
        partial_sums = _AWQ_PARTIAL_SUMS if habits.splits_awq and _is_awq(spec) else 0
        caches = [c for c in layer.caches if isinstance(c, (FullAttention, SlidingWindow, ChunkedLocal))]
        self.memory = CachingAllocator()
        self.tokens = settings.batched_tokens
        self.element_bytes = settings.dtype.bits // 8
        self.partial_sums = partial_sums
        self.unpacks = unpacks_weights(spec)
        self.casts = settings.dtype is not DType.BF16
        self.hidden_width = spec.hidden_size
        self.query_width = max(1, layer.query_width // ranks)
        keys = sum(kept_heads(c.num_kv_heads, ranks) * (c.key_width + c.value_width) for c in caches)
        self.projected_width = self.query_width + keys
        mlp = layer.mlp
        self.inner_width = max(1, (mlp.intermediate if mlp else spec.hidden_size) // ranks)
        self.up_width = self.inner_width * (2 if mlp is None or mlp.gated else 1)
        self.local_experts = mlp.num_experts // ranks if mlp and partial_sums else 0
        self.expert_width = mlp.intermediate if mlp else 0
        heads = max((kept_heads(c.num_kv_heads, ranks) for c in caches), default=1)
        shares_heads = layer.num_heads // ranks > heads
        self.groups = heads if habits.groups_on_streams and shares_heads else 1
        self.holds_reduced, self.copies_attended = habits.holds_reduced, habits.copies_attended
        biases = [tensor for tensor in layer.tensors if tensor.name.endswith(".bias")]
        self.adds_residual = any(tensor.role is Role.NORM for tensor in biases)
        self.adds_biases = ranks > 1 and any(tensor.role is Role.MLP for tensor in biases)

    def rows(self, width: int) -> Block:
        """A buffer of one row of `width` elements per token."""
        return self.memory.allocate(self.tokens * width * self.element_bytes)

    def linear(self, width: int, source: int, shards: int = 1) -> Block:
        """The output of a linear map from `source` to `width` elements: after the partial sums that an AWQ kernel makes
        of it, or shard by shard from weights that are unpacked first.
        """
        if self.unpacks:
            return self._unpacked(width, source, shards)
        if self.partial_sums:
            sums = self.memory.allocate(self.tokens * width * self.element_bytes * self.partial_sums)
            output = self.rows(width)
            if sums.size > _REACH_BYTES:
                self.memory.free(self.memory.allocate(self.tokens * width * 4))
            self.memory.free(sums)
            return output
        return self.rows(width)

    def _unpacked(self, width: int, source: int, shards: int) -> Block:
        """Every shard is multiplied by unpacked weights and copied into the output, which is cast at last."""
        computed = self.rows(source) if self.casts else None
        output = self.rows(width)
        for _ in range(shards):
            weight = self.memory.allocate(width // shards * source * 2)
            part = self.rows(width // shards)
            self.memory.free(weight)
            self.memory.free(part)
        if computed is None:
            return output
        cast = self.rows(width)
        self.memory.free(output)
        self.memory.free(computed)
        return cast

    def fused_layer(self, hidden: Block) -> Block:
        """A layer whose norms add the residual in place."""
        attended = self.attention(hidden)
        self.drop(hidden)
        output = self.feed_forward(attended)
        self.drop(attended)
        return output

    def plain_layer(self, hidden: Block) -> Block:
        """A layer whose norms and sums write tensors of their own; `hidden` is the residual."""
        for half in (self.attention, self.feed_forward):
            normed = self.rows(self.hidden_width)
            output = half(normed)
            self.memory.free(normed)
            total = self.rows(self.hidden_width)
            self.drop(output)
            self.memory.free(hidden)
            hidden = total
        return hidden

    def drop(self, block: Block) -> None:
        """Free a block that NCCL reduced, unless the release holds it."""
        if not self.holds_reduced:
            self.memory.free(block)

    def attention(self, hidden: Block) -> Block:
        """Queries, keys and values, the attention's output, its projection."""
        projected = self.linear(self.projected_width, self.hidden_width, 3)
        attended = self.rows(self.query_width)
        if self.groups > 1:  # the first group, and all of them put together
            first, joined = self.rows(self.query_width // self.groups), self.rows(self.query_width)
            self.memory.free(first)
            self.memory.free(joined)
        elif self.copies_attended:
            self.memory.free(self.rows(self.query_width))
        output = self._reduced(self.linear(self.hidden_width, self.query_width))
        for block in (projected, attended):
            self.memory.free(block)
        return output

    def feed_forward(self, hidden: Block) -> Block:
        """Up projections, their product, the down projection."""
        if self.local_experts:
            return self._experts(hidden)
        up = self.linear(self.up_width, self.hidden_width, self.up_width // self.inner_width)
        inner = self.rows(self.inner_width)
        output = self._reduced(self.linear(self.hidden_width, self.inner_width))
        for block in (up, inner):
            self.memory.free(block)
        return output

    def _reduced(self, partial: Block) -> Block:
        """The sum over the ranks, in place, and with its bias."""
        if not self.adds_biases:
            return partial
        output = self.rows(self.hidden_width)
        self.memory.free(partial)
        return output

    def stream_bytes(self, num_layers: int) -> int:
        """The cached blocks of the streams that groups of heads ran on: one output of a group for each."""
        stream = CachingAllocator()
        stream.allocate(self.tokens * self.query_width // self.groups * self.element_bytes)
        return min(_STREAMS, (self.groups - 1) * num_layers) * stream.reserved_bytes

    def _experts(self, hidden: Block) -> Block:
        """Whole experts one after the other, each over all tokens, as quantized Mixtral ran until 0.4.

        What an expert added stays until the next one is done.
        """
        total: Block | None = None
        added: Block | None = None
        for _ in range(self.local_experts):
            gate = self.linear(self.expert_width, self.hidden_width)
            active = self.rows(self.expert_width)
            self.memory.free(gate)
            up = self.linear(self.expert_width, self.hidden_width)
            inner = self.rows(self.expert_width)
            output = self.linear(self.hidden_width, self.expert_width)
            for block in (inner, active, up):
                self.memory.free(block)
            if added is not None:
                self.memory.free(added)
            added = output if total is not None else None
            total = total or output
        if added is not None:
            self.memory.free(added)
        return total or self.rows(self.hidden_width)

    def sample(self, logits: int, logit_bytes: int) -> None:
        """The sampler: the sort with its indices and second buffers, masks and sums over sorted values, the way back to
        the order of tokens, probabilities and their logarithms.
        """
        take, drop = self.memory.allocate, self.memory.free
        plain = take(logits * 2)
        asked = take(logits * logit_bytes) if logit_bytes > 2 else None
        values, indices = take(logits * logit_bytes), take(logits * 8)
        order = take(logits * 8)
        drop(take(logits * (logit_bytes + 8)))
        drop(order)
        masked = [take(logits), take(logits * logit_bytes), take(logits * logit_bytes), take(logits)]
        inverse, output = take(logits * 8), take(logits * logit_bytes)
        for block in (values, indices, *masked, inverse):
            drop(block)
        if asked is not None:
            drop(asked)
        last = [take(logits * 4) for _ in range(4)]
        for block in (*last, output, plain):
            drop(block)
