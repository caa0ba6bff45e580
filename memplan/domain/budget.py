"""A memory budget that shows its working: lines that sum to a total, each with its formula, provenance and
interval.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from memplan.records import dataclass, field

if TYPE_CHECKING:
    from memplan.domain.gpu import Price

Provenance = Literal["exact", "derived", "measured", "modelled", "assumed"]
Verdict = Literal["fits", "tight", "does_not_fit"]
GroupKind = Literal["full", "window", "chunk", "state", "cross"]
Group = Literal["weights", "activation_peak", "cuda_graph", "non_torch", "kv_cache", "outside_budget"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One thing that takes memory on the fullest rank.

    `low_bytes` and `high_bytes` bound a 90 % interval that comes from recorded errors. `provenance` is `exact` (read
    from headers), `derived` (a formula over the architecture), `measured` (on a recorded run), `modelled` (a fitted
    constant) or `assumed`.
    """

    name: str
    group: Group
    size_bytes: int
    low_bytes: int
    high_bytes: int
    provenance: Provenance
    formula: str
    source: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolGroup:
    """Layers that share one table of blocks: `block_tokens` tokens of all of them are one block of the pool.

    `kind` is `full` where everything is kept, `window` or `chunk` where only the last `window_tokens` are, `state` or
    `cross` where a request has a fixed number of blocks.
    """

    kind: GroupKind
    block_tokens: int
    window_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class KvCapacity:
    """What the cache holds on the ranks that hold it.

    `bytes_per_token` sums one sequence's cost per token over caching layers, before sharding and windows.
    `capacity_tokens` is what the engine's own log line prints; `needed_bytes` and `needed_tokens` are for the asked
    context x concurrency, in the engine's own pages. `groups` are the tables that share the `blocks` of one replica,
    of which `held_back_blocks` never reach a request; where they are empty, there is one of the whole context.
    """

    bytes_per_token: int
    capacity_tokens: int | None
    blocks: int | None
    block_size: int | None
    max_concurrency: float | None
    max_context_tokens: int | None
    needed_bytes: int
    needed_tokens: int
    low_tokens: int | None = None
    high_tokens: int | None = None
    groups: tuple[PoolGroup, ...] = ()
    held_back_blocks: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Remedy:
    """One change that frees memory, as the flag to type, and what it returns when the budget is computed again with
    it.
    """

    change: str
    saves_bytes: int
    verdict: Verdict
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextMap:
    """How many requests have room at each length: `max_concurrency[i]` requests of `context_tokens[i]` at once.

    Every entry is a budget of its own: what the engine reserves may depend on the length.
    """

    context_tokens: tuple[int, ...]
    max_concurrency: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class KvWaste:
    """What a cache wastes on requests of `mean_tokens` when each may reach `context_tokens`.

    A contiguous cache reserves the whole length for every request; a paged one wastes the end of the last page of each
    group of layers. `requests` are how many fit at the mean length.
    """

    mean_tokens: int
    context_tokens: int
    contiguous_wasted_bytes: int
    paged_wasted_bytes: int
    contiguous_requests: int
    paged_requests: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryBudget:
    """One model, on one GPU type, under one engine, with its answer.

    `weights_scheme` names how the weights are stored, `price` is for one GPU. `extra` is what one engine alone has to
    say: JSON shows it at the top level, where it never takes the place of a key of the contract.
    """

    model_name: str
    architecture: str
    parameters: int
    active_parameters: int
    weights_source: str
    gpu_name: str
    num_gpus: int
    gpu_memory_bytes: int
    engine_name: str
    engine_version: str
    settings: dict[str, object]
    lines: tuple[Line, ...]
    kv: KvCapacity
    host_bytes: int
    verdict: Verdict
    shortfall_bytes: int
    reasons: tuple[str, ...] = ()
    remedies: tuple[Remedy, ...] = ()
    warnings: tuple[str, ...] = ()
    context_map: ContextMap | None = None
    kv_waste: KvWaste | None = None
    weights_scheme: str = ""
    price: Price | None = None
    extra: dict[str, object] = field(default_factory=dict)

    def group_bytes(self, group: Group) -> int:
        """The bytes of all lines of one group."""
        return sum(line.size_bytes for line in self.lines if line.group == group)

    @property
    def used_bytes(self) -> int:
        """What the fullest rank's GPU holds: the sum of all lines."""
        return sum(line.size_bytes for line in self.lines)
