"""What a monitor asks an engine, as PromQL: one expression for each meaning that the release exports."""

from __future__ import annotations

import json

from memplan.admission import nearly_full
from memplan.catalog.engine_metrics import EngineMetrics, engine_metrics
from memplan.domain.emission import EmitSubject
from memplan.emit import sizing
from memplan.records import dataclass
from memplan.units import MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Signals:
    """The expressions of one server. `selector` picks its series: by the name it serves under, else by its job."""

    metrics: EngineMetrics
    job: str
    selector: str

    @property
    def notes(self) -> tuple[str, ...]:
        """What has to be done for the expressions to find anything."""
        switch = self.metrics.turned_on_by
        return (f"{self.metrics.engine} exports its metrics when it is started with {switch}",) if switch else ()

    def gauge(self, meaning: str) -> str:
        """The sum of a gauge over the replicas."""
        return f"sum({self.metrics[meaning]}{self.selector})"

    def fullest(self) -> str:
        """The part of the cache that is taken, on the fullest replica."""
        return f"max({self.metrics['kv_usage']}{self.selector})"

    def rate(self, meaning: str, window: str = "5m") -> str:
        """A counter's growth per second, over all replicas."""
        return f"sum(rate({self.metrics[meaning]}{self.selector}[{window}]))"

    def quantile(self, share: float, meaning: str) -> str:
        """A quantile of a histogram over the last five minutes."""
        buckets = f"{self.metrics[meaning]}_bucket{self.selector}"
        return f"histogram_quantile({share}, sum by (le) (rate({buckets}[5m])))"


def signals(subject: EmitSubject) -> Signals:
    """Return the expressions of the engine and release of `subject`.

    Raises: UsageError for an engine that exports no metrics.
    """
    generation = subject.budget.settings.get("engine_generation", "v1")
    metrics = engine_metrics(subject.engine, subject.version, generation=generation)
    job = sizing.service_name(subject)
    label, value = (
        (metrics.model_label, subject.model_reference)
        if metrics.model_label and not _is_path(subject)
        else ("job", job)
    )
    return Signals(metrics=metrics, job=job, selector=f"{{{label}={json.dumps(value, ensure_ascii=False)}}}")


def kv_threshold(subject: EmitSubject) -> tuple[float, str]:
    """The part of the cache above which one more request of the whole context has no room, between 0.7 and 0.95."""
    pool, context = sizing.pool_tokens(subject), sizing.context_tokens(subject)
    share, bounded = 1 - context / pool if pool else 0.9, nearly_full(pool, context)
    why = f"above it, one more request of {context:,} tokens has no room in the {pool:,} that the cache holds"
    return bounded, why if bounded == round(share, 2) else f"{why} ({share:.2f}, kept between 0.7 and 0.95)"


def gpu_limit_mib(subject: EmitSubject) -> tuple[int, str]:
    """The MiB on one GPU that the budget allows at the high end of its 90 % interval, as DCGM counts them."""
    high = sum(
        line.size_bytes if line.group == "kv_cache" else max(line.size_bytes, line.high_bytes)
        for line in subject.budget.lines
    )
    limit = min(high, subject.budget.gpu_memory_bytes)
    return limit // MIB, "the budget's lines at the high end of their intervals, the KV cache as reserved"


def _is_path(subject: EmitSubject) -> bool:
    """A model of this machine may be served under another name in a container: the job is the same everywhere."""
    return subject.model_reference.startswith(("/", "."))
