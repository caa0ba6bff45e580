"""Replicas by what is scarce: the KV cache and the queue, never the GPU's utilization, which is high with one request.

Two files: a ScaledObject for KEDA, which asks Prometheus itself, and a HorizontalPodAutoscaler for a cluster with the
Prometheus adapter. A cluster runs one of them.

Source: keda.sh, the Prometheus scaler; the Kubernetes API autoscaling/v2.
"""

from __future__ import annotations

from memplan.domain.emission import Emission, EmitSubject, EmittedFile
from memplan.emit import sizing
from memplan.emit.nested_yaml import Fields, Items, document, field
from memplan.emit.signals import Signals, signals
from memplan.emit.words import header
from memplan.errors import UsageError

_MAX_REPLICAS = 4
_USAGE = 0.75


def emit(subject: EmitSubject) -> Emission:
    """Return autoscaling.yaml for KEDA, and hpa.yaml.

    Raises: UsageError for an engine that exports neither its cache nor its queue.
    """
    asked = signals(subject)
    if not asked.metrics.has("waiting"):
        raise UsageError(
            f"{subject.checked_for} does not export its queue", hint="a newer release does: name it with --engine"
        )
    keda = document(
        (*header(subject, "kubectl apply --filename autoscaling.yaml, with KEDA installed"), *_advice(subject)),
        _scaled_object(subject, asked),
    )
    hpa = document(
        header(subject, "kubectl apply --filename hpa.yaml, with the Prometheus adapter"), _hpa(subject, asked)
    )
    files = tuple(
        EmittedFile(name=name, text=text, media_type="application/yaml")
        for name, text in (("autoscaling.yaml", keda), ("hpa.yaml", hpa))
    )
    notes = (f"at most {_MAX_REPLICAS} replicas are assumed, {_MAX_REPLICAS * subject.budget.num_gpus} GPUs",)
    return Emission(files=files, notes=notes)


def _advice(subject: EmitSubject) -> tuple[str, ...]:
    return (
        f"A new replica answers after {sizing.warm_startup(subject).value} s: scale early, let requests wait for it.",
        "The volume of the cache must be ReadWriteMany, or each replica needs one of its own.",
    )


def _queue_threshold(subject: EmitSubject) -> tuple[int, str]:
    waiting = max(1, sizing.max_waiting(subject).value // 4)
    return waiting, f"a quarter of the {sizing.max_waiting(subject).value} that may wait for one replica"


def _scaled_object(subject: EmitSubject, asked: Signals) -> Fields:
    started = sizing.warm_startup(subject).value
    waiting, why = _queue_threshold(subject)
    triggers = [_trigger(asked.gauge("waiting"), str(waiting), why)]
    if asked.metrics.has("kv_usage"):
        groups = subject.settings.layout.data  # every one of them has a cache and a gauge of its own
        usage = f"sum({asked.metrics['kv_usage']}{asked.selector})" + (f" / {groups}" if groups > 1 else "")
        triggers.append(
            _trigger(usage, str(_USAGE), f"replicas are added until each has {_USAGE:.0%} of its cache taken")
        )
    spec: Fields = (
        field("scaleTargetRef", (field("name", asked.job),)),
        field("minReplicaCount", 1, "one stays: an empty server needs its whole start-up before it answers"),
        field("maxReplicaCount", _MAX_REPLICAS, f"{_MAX_REPLICAS * subject.budget.num_gpus} GPUs; assumed"),
        field("pollingInterval", 15),
        field("cooldownPeriod", max(300, started)),
        field("advanced", (field("horizontalPodAutoscalerConfig", (field("behavior", _behavior(started)),)),)),
        field("triggers", Items(of=tuple(triggers))),
    )
    return (
        field("apiVersion", "keda.sh/v1alpha1"),
        field("kind", "ScaledObject"),
        field("metadata", (field("name", asked.job),)),
        field("spec", spec),
    )


def _trigger(query: str, threshold: str, why: str) -> Fields:
    metadata: Fields = (
        field("serverAddress", "http://prometheus-operated.monitoring.svc:9090", "where your Prometheus answers"),
        field("query", query),
        field("threshold", threshold, why),
    )
    return (field("type", "prometheus"), field("metricType", "AverageValue"), field("metadata", metadata))


def _behavior(started: int) -> Fields:
    """Up one replica per start-up time, because the last one does not help before; down slowly, because it is dear."""
    up = (field("type", "Pods"), field("value", 1), field("periodSeconds", min(1800, started)))
    down = (field("type", "Pods"), field("value", 1), field("periodSeconds", 300))
    window = min(3600, max(300, 2 * started))
    return (
        field(
            "scaleUp",
            (
                field("stabilizationWindowSeconds", 30),
                field("policies", Items(of=(up,)), "one at a time: it starts slowly"),
            ),
        ),
        field(
            "scaleDown",
            (
                field("stabilizationWindowSeconds", window, "twice the start-up, so that a lull does not cost a start"),
                field("policies", Items(of=(down,))),
            ),
        ),
    )


def _hpa(subject: EmitSubject, asked: Signals) -> Fields:
    waiting, why = _queue_threshold(subject)
    metrics = [_pods_metric(asked.metrics["waiting"], str(waiting), why)]
    if asked.metrics.has("kv_usage"):
        metrics.append(
            _pods_metric(asked.metrics["kv_usage"], f"{round(_USAGE * 1000)}m", f"{_USAGE:.0%} of the cache")
        )
    target = (field("apiVersion", "apps/v1"), field("kind", "Deployment"), field("name", asked.job))
    spec: Fields = (
        field("scaleTargetRef", target),
        field("minReplicas", 1),
        field("maxReplicas", _MAX_REPLICAS, f"{_MAX_REPLICAS * subject.budget.num_gpus} GPUs; assumed"),
        field("metrics", Items(of=tuple(metrics))),
        field("behavior", _behavior(sizing.warm_startup(subject).value)),
    )
    return (
        field("apiVersion", "autoscaling/v2"),
        field("kind", "HorizontalPodAutoscaler"),
        field("metadata", (field("name", asked.job),)),
        field("spec", spec),
    )


def _pods_metric(name: str, average: str, why: str) -> Fields:
    """The adapter has to serve the metric under a name without a colon."""
    target = (field("type", "AverageValue"), field("averageValue", average, why))
    pods = (field("metric", (field("name", name.replace(":", "_")),)), field("target", target))
    return (field("type", "Pods"), field("pods", pods))
