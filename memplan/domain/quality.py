"""What was measured of a model's quality: how well it predicts text, alone or beside the model it was made from.

Losses are in nats per token, means over the scored tokens. A standard error says how far the figure may be off because
the text is a sample; of a difference it is that of the paired difference over the same tokens, which is far smaller
than that of either figure.
"""

from __future__ import annotations

from math import exp, log

from memplan.records import dataclass

OVERALL = "all"


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A mean and its standard error."""

    mean: float
    standard_error: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A model beside its base over the same tokens.

    `loss_increase` is the mean of the paired difference in loss; `kl_divergence` is of the base's next-token
    distribution from the model's, in nats; `top1_agreement` is the part of tokens at which both rank the same token
    first.
    """

    base_loss: Figure
    loss_increase: Figure
    kl_divergence: Figure
    top1_agreement: Figure

    @property
    def base_perplexity(self) -> float:
        """The perplexity of the base."""
        return exp(self.base_loss.mean)

    @property
    def perplexity_increase(self) -> float:
        """By what part the perplexity is above the base's: 0.02 is 2 %."""
        return exp(self.loss_increase.mean) - 1

    @property
    def perplexity_increase_standard_error(self) -> float:
        """The standard error of `perplexity_increase`, to first order."""
        return exp(self.loss_increase.mean) * self.loss_increase.standard_error


@dataclass(frozen=True, slots=True, kw_only=True)
class DomainQuality:
    """The quality over the text of one domain, or of all (`OVERALL`, tokens weighing alike)."""

    domain: str
    tokens: int
    text_bytes: int
    loss: Figure
    difference: Difference | None = None

    @property
    def perplexity(self) -> float:
        """The exponential of the mean loss."""
        return exp(self.loss.mean)

    @property
    def perplexity_standard_error(self) -> float:
        """The standard error of the perplexity, to first order."""
        return exp(self.loss.mean) * self.loss.standard_error

    @property
    def bits_per_byte(self) -> float:
        """The loss per byte of text, which models with different tokenizers can be compared by."""
        return self.loss.mean * self.tokens / (log(2) * self.text_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class QualityReport:
    """One evaluation: what of which model on which text, and how.

    `text_digest` is of the scored documents in their order. `stride_tokens` equals `window_tokens` where windows do
    not overlap. `kv_dtype` is empty where the cache keeps the model's own type.
    """

    model: str
    base: str | None
    text_set: str
    text_digest: str
    window_tokens: int
    stride_tokens: int
    domains: tuple[DomainQuality, ...]
    overall: DomainQuality
    kv_dtype: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskScore:
    """What a benchmark's own code gave: a metric of a task, after a `filter` of the answers, over its documents.

    `base` is the same of the model that this one was made from.
    """

    task: str
    metric: str
    filter: str
    documents: int
    score: Figure
    base: Figure | None = None
