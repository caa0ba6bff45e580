"""Prometheus alert rules on the engine's own metrics, with thresholds from the budget.

Source: catalog/engine_metrics.yaml for the engine; kube-state-metrics and NVIDIA's DCGM exporter for the rest.
"""

from __future__ import annotations

from collections.abc import Iterator

from memplan.admission import busy_from
from memplan.domain.emission import Emission, EmitSubject, EmittedFile
from memplan.emit import sizing
from memplan.emit.nested_yaml import Fields, Items, document, field
from memplan.emit.signals import Signals, gpu_limit_mib, kv_threshold, signals
from memplan.emit.words import header
from memplan.records import dataclass

_FIRST_TOKEN_S = 10
_STALL_S = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """One rule: what holds for how long is worth a message, why the threshold is what it is, and what to do."""

    name: str
    expression: str
    lasts: str
    severity: str
    summary: str
    action: str
    why: str


def emit(subject: EmitSubject) -> Emission:
    """Return a file of rules. Raises: UsageError for an engine that exports no metrics."""
    asked = signals(subject)
    alerts = tuple(_alerts(subject, asked))
    group: Fields = (field("name", asked.job), field("rules", Items(of=tuple(_rule(alert, asked) for alert in alerts))))
    text = document(_header(subject, asked), (field("groups", Items(of=(group,))),))
    left_out = [name for name in ("kv_usage", "preemptions", "waiting", "first_token") if not asked.metrics.has(name)]
    notes = list(asked.notes)
    if left_out:
        notes.append(f"{subject.checked_for} does not export {', '.join(left_out)}: no rule is made of it")
    file = EmittedFile(name="alerts.yaml", text=text, media_type="application/yaml")
    return Emission(files=(file,), notes=tuple(notes))


def _header(subject: EmitSubject, asked: Signals) -> tuple[str, ...]:
    path = asked.metrics.path
    return (
        *header(subject, "promtool check rules alerts.yaml; name it under rule_files in prometheus.yml"),
        f"Scrape {path} as job {asked.job}.",
        *asked.notes,
    )


def _rule(alert: Alert, asked: Signals) -> Fields:
    return (
        field("alert", alert.name, alert.why),
        field("expr", alert.expression),
        field("for", alert.lasts),
        field("labels", (field("severity", alert.severity), field("service", asked.job))),
        field("annotations", (field("summary", alert.summary), field("description", alert.action))),
    )


def _alerts(subject: EmitSubject, asked: Signals) -> Iterator[Alert]:
    yield from _cache_alerts(subject, asked)
    yield from _queue_alerts(subject, asked)
    yield from _latency_alerts(asked)
    yield from _process_alerts(subject, asked)


def _cache_alerts(subject: EmitSubject, asked: Signals) -> Iterator[Alert]:
    if asked.metrics.has("kv_usage"):
        threshold, why = kv_threshold(subject)
        yield Alert(
            name="LlmKvCacheNearlyFull",
            expression=f"{asked.fullest()} > {threshold}",
            lasts="5m",
            severity="warning",
            summary="The KV cache is nearly full",
            action="Requests will wait or be preempted. Admit fewer, shorten contexts, or add a replica.",
            why=why,
        )
    if asked.metrics.has("preemptions"):
        yield Alert(
            name="LlmPreemptions",
            expression=f"{asked.rate('preemptions')} > 0.05",
            lasts="10m",
            severity="warning",
            summary="Requests lose their KV cache and are computed again",
            action="More requests are admitted than the cache holds: lower the number of sequences in a step to "
            f"{sizing.admitted(subject).value}, or give the cache more memory.",
            why=f"none is expected: {sizing.admitted(subject).why}; 0.05 a second lets single ones pass",
        )


def _queue_alerts(subject: EmitSubject, asked: Signals) -> Iterator[Alert]:
    if not asked.metrics.has("waiting"):
        return
    waiting = sizing.max_waiting(subject)
    yield Alert(
        name="LlmQueueGrows",
        expression=f"{asked.gauge('waiting')} > {busy_from(waiting.value)}",
        lasts="5m",
        severity="warning",
        summary="Requests wait for a place",
        action="Add a replica, or admit fewer requests.",
        why=f"half of the {waiting.value} that may wait: {waiting.why}",
    )
    yield Alert(
        name="LlmQueueFull",
        expression=f"{asked.gauge('waiting')} >= {waiting.value}",
        lasts="2m",
        severity="critical",
        summary="As many requests wait as are served",
        action="Turn requests away with 429 and Retry-After, or send them to the fallback.",
        why=waiting.why,
    )


def _latency_alerts(asked: Signals) -> Iterator[Alert]:
    if asked.metrics.has("first_token"):
        yield Alert(
            name="LlmSlowFirstToken",
            expression=f"{asked.quantile(0.95, 'first_token')} > {_FIRST_TOKEN_S}",
            lasts="10m",
            severity="warning",
            summary="One request in twenty waits long for its first token",
            action="Look at the queue first, then at the length of prompts.",
            why=f"{_FIRST_TOKEN_S} s is assumed: put your own promise here",
        )
    if asked.metrics.has("inter_token"):
        yield Alert(
            name="LlmSlowTokens",
            expression=f"{asked.quantile(0.95, 'inter_token')} > {_STALL_S}",
            lasts="10m",
            severity="warning",
            summary="Answers stall between tokens",
            action="Long prompts hold up the others: lower the tokens of one step.",
            why=f"{_STALL_S} s is assumed: put your own promise here",
        )


def _process_alerts(subject: EmitSubject, asked: Signals) -> Iterator[Alert]:
    container = f'{{container="engine", pod=~"{asked.job}-.*"}}'
    started = sizing.startup(subject)
    yield Alert(
        name="LlmDown",
        expression=f'up{{job="{asked.job}"}} == 0',
        lasts=f"{started.value // 60 + 1}m",
        severity="critical",
        summary="The engine does not answer",
        action="Look at its log: the last lines name what is missing.",
        why=f"longer than a start takes, {started.value} s: {started.why}",
    )
    yield Alert(
        name="LlmRestarts",
        expression=f"increase(kube_pod_container_status_restarts_total{container}[1h]) > 2",
        lasts="0m",
        severity="critical",
        summary="The engine starts over and over",
        action="A crash on start is most often memory: compare the log with the budget above.",
        why="Kubernetes, by kube-state-metrics: three starts in an hour are no accident",
    )
    yield Alert(
        name="LlmHostOutOfMemory",
        expression=f'max(kube_pod_container_status_last_terminated_reason{{reason="OOMKilled", {container[1:]}) == 1',
        lasts="0m",
        severity="critical",
        summary="The kernel ended the engine for host memory",
        action="Raise the memory limit: it holds the processes, /dev/shm and caches on the host.",
        why=f"the limit is {sizing.host_limit(subject).why}",
    )
    if subject.gpu.vendor == "nvidia":
        limit, why = gpu_limit_mib(subject)
        pod = f'{{exported_pod=~"{asked.job}-.*"}}'
        yield Alert(
            name="LlmGpuMemoryAboveBudget",
            expression=f"max(DCGM_FI_DEV_FB_USED{pod}) > {limit}",
            lasts="5m",
            severity="warning",
            summary="A GPU holds more than the budget says",
            action="Another process is on the card, or a request asks for logprobs or media that were not reserved.",
            why=f"MiB, by the DCGM exporter: {why}",
        )
