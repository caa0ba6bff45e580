"""The answer to a training question: what one rank holds in every phase of a step, what peaks, and what mends it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from memplan.domain.budget import Provenance, Verdict
from memplan.records import dataclass

if TYPE_CHECKING:
    from memplan.domain.gpu import Price

Category = Literal[
    "weights",
    "adapters",
    "gathered_weights",
    "gradients",
    "optimizer_state",
    "activations",
    "logits_and_loss",
    "workspace",
    "communication_buffers",
    "unused_segments",
    "outside_torch",
]
PhaseName = Literal["load", "forward", "backward", "optimizer", "evaluation", "checkpoint"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingLine:
    """One kind of memory at the fullest moment of the step. Lines sum to what nvidia-smi shows for the process.

    `low_bytes` and `high_bytes` bound a 90 % interval that comes from recorded errors.
    """

    name: str
    category: Category
    size_bytes: int
    low_bytes: int
    high_bytes: int
    provenance: Provenance
    formula: str
    source: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What one operator or state holds at a phase's peak."""

    category: Category
    name: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """One phase: the most that is allocated in it, what that is, and what stays when it is over.

    `held` sums to `peak_bytes`, the largest first. `after_bytes` is None where a phase ends the process' work.
    """

    name: PhaseName
    peak_bytes: int
    after_bytes: int | None
    held: tuple[Held, ...]
    note: str = ""

    def category_bytes(self) -> dict[Category, int]:
        """The sum of each category, the largest first."""
        sums: dict[Category, int] = {}
        for each in self.held:
            sums[each.category] = sums.get(each.category, 0) + each.size_bytes
        return dict(sorted(sums.items(), key=lambda item: -item[1]))


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingRemedy:
    """One change, as the flags to type, and what it does when the whole step is computed again with it.

    `time_percent` is roughly how much longer a token takes (negative: less); None where that is not known. `cost`
    orders remedies: what a change takes from its user, least first.
    """

    change: str
    saves_bytes: int
    verdict: Verdict
    phase: PhaseName
    time_percent: int | None
    note: str
    cost: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingLimits:
    """The largest micro-batch at this length and the longest sequence at this micro-batch that fit; 0 where none."""

    micro_batch: int
    sequence_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class HostLine:
    """Memory of one machine that the run needs, with its working."""

    name: str
    size_bytes: int
    formula: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingBudget:
    """One model, one way of training it, one type of GPU: the answer.

    Sizes are of the fullest rank. `allocated_bytes` is what torch.cuda.max_memory_allocated says, `reserved_bytes`
    max_memory_reserved; `used_bytes` is what nvidia-smi shows at the end. `trained_parameters` is over all ranks.
    """

    model_name: str
    architecture: str
    parameters: int
    active_parameters: int
    trained_parameters: int
    weights_source: str
    gpu_name: str
    num_gpus: int
    gpu_memory_bytes: int
    trainer: str
    settings: dict[str, object]
    lines: tuple[TrainingLine, ...]
    phases: tuple[Phase, ...]
    peak_phase: PhaseName
    allocated_bytes: int
    reserved_bytes: int
    outside_bytes: int
    host: tuple[HostLine, ...]
    verdict: Verdict
    shortfall_bytes: int
    reasons: tuple[str, ...]
    remedies: tuple[TrainingRemedy, ...] = ()
    limits: TrainingLimits | None = None
    warnings: tuple[str, ...] = ()
    facts: tuple[tuple[str, str, str], ...] = ()
    price: Price | None = None

    @property
    def used_bytes(self) -> int:
        """What the GPU holds in all: the sum of all lines."""
        return self.reserved_bytes + self.outside_bytes

    @property
    def host_bytes(self) -> int:
        """What one machine needs beside its GPUs."""
        return sum(each.size_bytes for each in self.host)

    @property
    def cheapest(self) -> TrainingRemedy | None:
        """The change that mends it and takes least; None where it fits, or none does."""
        mended = {"fits": (), "tight": ("fits",), "does_not_fit": ("fits", "tight")}[self.verdict]
        found = [each for each in self.remedies if each.verdict in mended]
        return min(found, key=lambda each: (each.verdict == "tight", each.cost, -each.saves_bytes), default=None)
