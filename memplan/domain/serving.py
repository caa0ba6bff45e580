"""What a person asks of a serving engine: the model's layout over GPUs, the limits, the workload.

`None` means "the engine's own default"; an engine resolves every None before it computes anything, and the resolved
settings are what a budget shows.
"""

from __future__ import annotations

from math import ceil, floor
from typing import TYPE_CHECKING

from memplan.domain.model import ModelSpec
from memplan.records import dataclass, field

if TYPE_CHECKING:
    from memplan.domain.correction import Correction


@dataclass(frozen=True, slots=True, kw_only=True)
class ParallelLayout:
    """How a model is cut over ranks: tensor, pipeline, data and expert parallelism.

    `expert` true shards routed experts by whole experts over tensor x data ranks instead of cutting inside each expert.
    """

    tensor: int = 1
    pipeline: int = 1
    data: int = 1
    expert: bool = False

    @property
    def num_ranks(self) -> int:
        return self.tensor * self.pipeline * self.data


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """The requests that must have room at the same time, and how full they really are.

    `context_tokens` is the length one request may reach, `concurrency` how many of them at once. `mean_tokens` is the
    length a request has on average, for the waste of contiguous caches.
    """

    context_tokens: int | None = None
    concurrency: int = 1
    mean_tokens: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraSettings:
    """LoRA adapters served beside the base model: slots on the GPU and their largest rank."""

    max_loras: int = 0
    max_rank: int = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingSettings:
    """Everything that decides an engine's memory, under vLLM's spelling where the field shares it."""

    layout: ParallelLayout = field(default_factory=ParallelLayout)
    workload: Workload = field(default_factory=Workload)
    dtype: str | None = None
    quant: str | None = None
    kv_dtype: str | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    gpu_memory_utilization: float | None = None
    kv_cache_memory_bytes: int | None = None
    block_size: int | None = None
    eager: bool | None = None
    chunked_prefill: bool | None = None
    prefix_caching: bool | None = None
    gpu_free_bytes: int | None = None
    weight_offload_bytes: int = 0
    media_per_prompt: dict[str, int] | None = None
    language_model_only: bool = False
    prompt_logprobs: bool = False
    lora: LoraSettings = field(default_factory=LoraSettings)
    draft: ModelSpec | None = None
    num_speculative_tokens: int = 0
    kv_keep_fraction: float = 1.0
    offline_batch: bool = False
    engine_options: dict[str, object] = field(default_factory=dict)
    corrections: tuple[Correction, ...] = ()

    def kept_tokens(self, tokens: int) -> int:
        """What a request of `tokens` tokens still occupies once its cache is pruned."""
        return tokens if self.kv_keep_fraction == 1.0 else ceil(round(tokens * self.kv_keep_fraction, 6))

    def longest_kept(self, tokens: int, limit: int) -> int:
        """The longest request, up to `limit`, that occupies no more than `tokens` tokens once its cache is pruned."""
        return min(limit, floor(round(tokens / self.kv_keep_fraction, 6)))
