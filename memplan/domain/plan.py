"""A plan: how to serve a model, found by search; what was asked, what was found, and what was left aside and why.

Costs are US dollars per hour of all GPUs of a plan. Times are seconds. Quality is the part by which perplexity rises.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

from memplan.domain.budget import MemoryBudget
from memplan.domain.gpu import GpuSpec
from memplan.domain.lengths import FixedLength, Lengths
from memplan.domain.model import ModelSpec
from memplan.domain.serving import ParallelLayout, ServingSettings
from memplan.domain.speed import ServingSpeed
from memplan.records import dataclass

Goal = Literal["cost", "throughput", "latency", "long-context", "multi-tenant", "single-gpu"]
GOALS: tuple[Goal, ...] = get_args(Goal)

Limit = Literal[
    "servable", "precision", "quality", "budget", "shape", "memory", "ttft", "tpot", "rate", "goal", "dominated"
]
"""What ruled a region out. `shape`: the model cannot be cut so. `dominated`: another plan is as good on every axis."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """The requests to serve. `concurrency` None leaves their number to the search; a rate decides it by Little's law.

    `context_tokens` is what a request may reach and the cache must hold, `prompt_tokens` and `output_tokens` what it
    has on average, `shared_prefix_tokens` how much of its prompt every request has in common. `prompt` and `output` are
    how lengths are spread; None, or a fixed length, is all alike.
    """

    context_tokens: int
    prompt_tokens: int
    output_tokens: int
    concurrency: int | None = None
    request_per_s: float | None = None
    shared_prefix_tokens: int = 0
    prompt: Lengths | None = None
    output: Lengths | None = None

    @property
    def is_spread(self) -> bool:
        """Whether requests differ in length, so that the cache holds their mean and not all at their longest."""
        return any(not isinstance(side, (FixedLength, type(None))) for side in (self.prompt, self.output))


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a plan must keep to; None is no limit. `weight_bits` are the widths of weights that are allowed.

    `tpot_is_assumed` marks a `max_tpot_s` that nobody asked for: the pace at which people read.
    """

    max_ttft_s: float | None = None
    max_tpot_s: float | None = None
    tpot_is_assumed: bool = False
    max_perplexity_increase: float | None = None
    max_usd_per_hour: float | None = None
    weight_bits: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuOffer:
    """One GPU type, and the numbers of it that may be taken."""

    gpu: GpuSpec
    counts: tuple[int, ...]
    is_owned: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Speculation:
    """A way to draft tokens: `name` as `--draft-model` takes it, `mtp` for the model's own predictors.

    `acceptance` is the part of drafted tokens that are accepted while all before them were; `engines` are those that
    run it, with the first release that does.
    """

    name: str
    spec: ModelSpec
    num_tokens: int
    acceptance: float
    source: str
    engines: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRequest:
    """A whole question: what to serve, for what, on which GPUs, within which limits.

    `settings` holds what the user fixed; the search fills in what is None. Empty `schemes` or `kv_dtypes` mean all
    that an engine has. `layout` None searches layouts. `drafts` are tried beside no draft, unless `needs_draft`.
    `apart` asks for pools of their own for prefill and decode, or for none; None leaves it to the search. `measured` is
    the quality that was measured of weights, by their scheme (None: as they are).
    """

    goal: Goal
    traffic: Traffic
    limits: Limits
    offers: tuple[GpuOffer, ...]
    engines: tuple[tuple[str, str | None], ...]
    settings: ServingSettings
    schemes: tuple[str | None, ...] = ()
    kv_dtypes: tuple[str | None, ...] = ()
    layout: ParallelLayout | None = None
    drafts: tuple[Speculation, ...] = ()
    needs_draft: bool = False
    apart: bool | None = None
    measured: tuple[tuple[str | None, Quality], ...] = ()

    @property
    def demand_is_fixed(self) -> bool:
        """Whether the load is given, so that speed beyond it earns nothing."""
        return self.traffic.concurrency is not None or self.traffic.request_per_s is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """The published rise of perplexity under a scheme, as a part of the unquantized model's; `level` in words."""

    perplexity_increase: float
    level: Literal["none", "very low", "low", "medium", "high"]
    provenance: Literal["published", "interpolated", "assumed", "measured"]
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefillPool:
    """GPUs that only read prompts, beside a plan's own that only write answers. `layout.data` counts its replicas.

    `transfer_s` is how long one prompt's cache takes to the other pool over `link`, `shared_tpot_s` what the prompts of
    others would add to every token in a single pool, `busy_fraction` how much of the time the pool works.
    """

    layout: ParallelLayout
    settings: ServingSettings
    budget: MemoryBudget
    link: str
    transfer_s: float
    shared_tpot_s: float
    busy_fraction: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingPlan:
    """One way to serve, complete: everything an engine is started with, what it takes, how fast it is, what it costs.

    `concurrency` are the requests in flight, which `settings` may hold at their mean length; `headroom_bytes` is what
    is left on the fullest GPU once they have their cache. `output_tokens_per_s` counts all requests, prefill time
    included. With a `prefill` pool, layout, settings and budget are those of the GPUs that decode, and `num_gpus`
    counts both.
    """

    engine: str
    version: str
    gpu: GpuSpec
    num_gpus: int
    layout: ParallelLayout
    scheme: str | None
    weights_scheme: str
    kv_dtype: str | None
    concurrency: int
    settings: ServingSettings
    budget: MemoryBudget
    speed: ServingSpeed
    quality: Quality
    kernel: str
    headroom_bytes: int
    output_tokens_per_s: float
    usd_per_hour: float | None
    usd_per_million_tokens: float | None
    speculation: Speculation | None = None
    prefill: PrefillPool | None = None
    reasons: tuple[str, ...] = ()

    @property
    def headroom_fraction(self) -> float:
        return self.headroom_bytes / self.gpu.memory_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejection:
    """A region of the search space that was ruled out: by which limit, why, and how many candidates it held."""

    limit: Limit
    region: str
    reason: str
    candidates: int
    source: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Nearest:
    """The plan that would exist if one limit were given up: the flag to change, and what it becomes."""

    limit: Limit
    change: str
    plan: ServingPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanAnswer:
    """The outcome of a search. `front` is the Pareto front, the winner first; empty when nothing serves the request."""

    model_name: str
    parameters: int
    request: PlanRequest
    front: tuple[ServingPlan, ...]
    runner_up_loses_by: tuple[str, ...]
    rejections: tuple[Rejection, ...]
    considered: int
    estimated: int
    binding: tuple[Limit, ...] = ()
    nearest: tuple[Nearest, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def winner(self) -> ServingPlan | None:
        return self.front[0] if self.front else None

    @property
    def runner_up(self) -> ServingPlan | None:
        return self.front[1] if len(self.front) > 1 else None
