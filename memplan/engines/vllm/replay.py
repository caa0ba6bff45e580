"""What the profiling run of V0 leaves reserved, for the releases that counted cached blocks as used.

Up to 0.6.3 the cache was sized by free memory after the run, before torch gave its cached blocks back. So the order of
allocations matters: two layers and the sampler are replayed through the allocator.

Source: vllm/worker/worker.py determine_num_available_blocks, 0.2 to 0.6.3; vllm/model_executor/layers/sampler.py;
csrc/quantization/awq/gemm_kernels.cu (the AWQ kernel's partial sums).
"""

from __future__ import annotations

from memplan.budget.caching import Block, CachingAllocator
from memplan.budget.kv_cache import kept_heads
from memplan.domain.attention import ChunkedLocal, FullAttention, SlidingWindow
from memplan.domain.dtypes import DType
from memplan.domain.model import Layer, ModelSpec
from memplan.engines.vllm.profile import unpacks_weights
from memplan.engines.vllm.settings import VllmSettings

_AWQ_PARTIAL_SUMS = 8
_LAYERS = 2


def reserved_by_profiling(spec: ModelSpec, layer: Layer, settings: VllmSettings, *, splits_awq: bool) -> int:
    """Bytes of segments after a pass of a full step through two layers like `layer`, and the sampler."""
    run = _Run(spec, layer, settings, _AWQ_PARTIAL_SUMS if splits_awq and _is_awq(spec) else 0)
    hidden, residual = run.rows(spec.hidden_size), run.rows(spec.hidden_size)
    for _ in range(_LAYERS):
        hidden = run.attention(hidden)
        hidden = run.feed_forward(hidden)
    run.memory.free(residual)
    run.sample(min(settings.max_num_seqs, settings.batched_tokens) * spec.vocab_size)
    return run.memory.reserved_bytes


def _is_awq(spec: ModelSpec) -> bool:
    return (spec.quantization or "").startswith("awq")


class _Run:
    """One replay: the allocator and the widths of a layer on one rank."""

    def __init__(self, spec: ModelSpec, layer: Layer, settings: VllmSettings, partial_sums: int) -> None:
        ranks = settings.layout.tensor
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

    def attention(self, hidden: Block) -> Block:
        """Queries, keys and values, the attention's output, its projection."""
        projected = self.linear(self.projected_width, self.hidden_width, 3)
        attended = self.rows(self.query_width)
        output = self.linear(self.hidden_width, self.query_width)
        for block in (projected, attended, hidden):
            self.memory.free(block)
        return output

    def feed_forward(self, hidden: Block) -> Block:
        """Up projections, their product, the down projection."""
        if self.local_experts:
            return self._experts(hidden)
        up = self.linear(self.up_width, self.hidden_width, self.up_width // self.inner_width)
        inner = self.rows(self.inner_width)
        output = self.linear(self.hidden_width, self.inner_width)
        for block in (up, inner, hidden):
            self.memory.free(block)
        return output

    def _experts(self, hidden: Block) -> Block:
        """Whole experts one after the other, each over all tokens, as quantized Mixtral ran until 0.4."""
        total: Block | None = None
        for _ in range(self.local_experts):
            gate = self.linear(self.expert_width, self.hidden_width)
            active = self.rows(self.expert_width)
            self.memory.free(gate)
            up = self.linear(self.expert_width, self.hidden_width)
            inner = self.rows(self.expert_width)
            output = self.linear(self.hidden_width, self.expert_width)
            for block in (active, up, inner):
                self.memory.free(block)
            if total is None:
                total = output
            else:
                self.memory.free(output)
        self.memory.free(hidden)
        return total or self.rows(self.hidden_width)

    def sample(self, logits: int) -> None:
        """The sampler: logits in two widths, the sort with its indices and scratch, probabilities and their
        logarithms.
        """
        memory = self.memory
        plain, wide = memory.allocate(logits * 2), memory.allocate(logits * 4)
        values, indices = memory.allocate(logits * 4), memory.allocate(logits * 8)
        for scratch in (memory.allocate(logits * 8), memory.allocate(logits * 12)):
            memory.free(scratch)
        masked = [memory.allocate(logits * 4) for _ in range(3)]
        for block in (values, indices, wide, *masked[:2]):
            memory.free(block)
        for block in (memory.allocate(logits * 4), memory.allocate(logits * 4), plain):
            memory.free(block)
