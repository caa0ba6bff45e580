"""The answer of a simulation: one setup, others beside it under the same traffic, and which keeps the promise."""

from __future__ import annotations

from typing import Any

from memplan.domain.budget import MemoryBudget
from memplan.domain.simulation import SimulationResult
from memplan.records import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Promise:
    """The longest wait for the first token and for each further one; None promises nothing.

    A setup keeps the promise when `share` of all requests, those that were turned away among them, are served so.
    """

    max_ttft_s: float | None = None
    max_tpot_s: float | None = None
    share: float = 0.95

    @property
    def is_made(self) -> bool:
        return self.max_ttft_s is not None or self.max_tpot_s is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Goodput:
    """The requests that were served as promised: how many a second, and their share of all."""

    requests_per_s: float
    share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedSetup:
    """One deployment under the traffic. `options` ask `memplan estimate` and `emit-config` for it, `name` says in
    words how it differs from what was asked; `budget` is what its blocks come from.
    """

    name: str
    options: dict[str, Any]
    budget: MemoryBudget
    result: SimulationResult
    goodput: Goodput
    keeps: bool | None = None

    @property
    def num_gpus(self) -> int:
        return self.budget.num_gpus

    @property
    def usd_per_hour(self) -> float | None:
        return self.budget.price.low * self.num_gpus if self.budget.price else None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrafficSummary:
    """The requests in words and figures: where they come from, and how long they are."""

    source: str
    requests: int
    requests_per_s: float | None
    mean_prompt_tokens: float
    p95_prompt_tokens: int
    mean_output_tokens: float
    p95_output_tokens: int
    seed: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulationAnswer:
    """What was asked, the setup as asked, the what-ifs behind it, and the least that keeps the promise.

    `least` is None where nothing was promised, or nothing that was looked at keeps it.
    """

    model_name: str
    parameters: int
    traffic: TrafficSummary
    promise: Promise
    setups: tuple[SimulatedSetup, ...]
    least: SimulatedSetup | None = None
    notes: tuple[str, ...] = field(default=())
