"""What profiles of a model, or start-ups of an engine, have shown of estimates on a GPU: how far terms were off.

A correction moves a term to the mean of what was found and keeps an interval around it. The estimate itself counts as
one run, so that a single profile does not pass for certainty: with n profiles the half-width is the estimate's own over
the root of n + 1, and it never leaves out what was really found.
"""

from __future__ import annotations

from math import sqrt
from typing import Literal

from memplan.records import dataclass

Term = Literal["activations", "fragments", "activation_peak", "non_torch", "cuda_graph"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Correction:
    """Factors of one term in one phase, under one attention kernel: profiled over estimated, one for each profile.

    `is_measured` is whether all of them ran on the device; else some were simulated. Profiles give `activations` and
    `fragments`; an engine's start-ups give the groups of its budget, whatever the phase and the kernel.
    """

    term: Term
    phase: str
    attention: str
    factors: tuple[float, ...]
    is_measured: bool

    @property
    def factor(self) -> float:
        """What the term is multiplied with."""
        return sum(self.factors) / len(self.factors)

    def half_width(self, share: float) -> float:
        """The half-width of the corrected term's interval, as a share of it, where the estimate's own was `share`."""
        farthest = max(abs(each - self.factor) for each in self.factors) / max(self.factor, 1e-9)
        return max(share / sqrt(len(self.factors) + 1), farthest)
