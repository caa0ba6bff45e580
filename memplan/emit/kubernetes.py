"""A Kubernetes manifest: the engine's config, a volume for weights, a Deployment that waits for them, and a Service.

Three probes have three meanings: the start-up probe waits for as long as the weights can take, so that liveness never
kills a server that still loads; readiness takes it out of the Service, liveness restarts one that hangs.

Source: the Kubernetes API (apps/v1, v1); docs.vllm.ai on Kubernetes; the probes and stop times of llm-d and of vLLM's
production stack. A Service called `vllm` sets VLLM_PORT to an address and breaks vLLM's start (vllm#34199).
"""

from __future__ import annotations

from memplan.budget.storage import checkpoint_bytes
from memplan.domain.emission import Emission, EmitSubject, EmittedFile
from memplan.emit import sizing
from memplan.emit.launch import CACHE_FOLDER, CONFIG_FOLDER, Launch, launch, tensor_count_words
from memplan.emit.nested_yaml import Fields, Items, Text, document, field
from memplan.emit.words import header
from memplan.emit.yaml_text import Entry
from memplan.units import GIB, round_up

_RESOURCE = {"nvidia": "nvidia.com/gpu", "amd": "amd.com/gpu", "intel": "gpu.intel.com/xe"}
_USUAL_NODE_GPUS = 8


def emit(subject: EmitSubject) -> Emission:
    """Return kubernetes.yaml. Raises: UsageError for what cannot be started in a container."""
    start = launch(subject)
    name = sizing.service_name(subject)
    documents = [_config_map(name, start)] if start.config else []
    documents += [_claim(subject, name), _deployment(subject, start, name), _service(start, name)]
    top = header(subject, "kubectl apply --filename kubernetes.yaml")
    text = "---\n".join(document(top if index == 0 else (), fields) for index, fields in enumerate(documents))
    notes = list(start.notes)
    if subject.budget.num_gpus > _USUAL_NODE_GPUS:
        notes.append(
            f"one pod asks for {subject.budget.num_gpus} GPUs of one node; over several nodes, use LeaderWorkerSet"
        )
    file = EmittedFile(name="kubernetes.yaml", text=text, media_type="application/yaml")
    return Emission(files=(file,), notes=tuple(notes))


def _meta(name: str) -> Entry:
    return field("metadata", (field("name", name), field("labels", (field("app", name),))))


def _config_map(name: str, start: Launch) -> Fields:
    assert start.config is not None
    data = (field(start.config.name, Text(text=start.config.text)),)
    return (field("apiVersion", "v1"), field("kind", "ConfigMap"), _meta(f"{name}-config"), field("data", data))


def _claim(subject: EmitSubject, name: str) -> Fields:
    """The volume of weights and compiled code: without it every restart downloads and compiles again."""
    size = round_up(round(1.5 * checkpoint_bytes(subject.spec)) + 20 * GIB, 10 * GIB)
    why = "one and a half times the checkpoint, for a second revision, and 20 GiB of compiled code"
    storage = (field("requests", (field("storage", f"{size // GIB}Gi", why),)),)
    spec = (
        field("accessModes", ["ReadWriteOnce"], "ReadWriteMany when replicas run on several nodes"),
        field("resources", storage),
    )
    kind = field("kind", "PersistentVolumeClaim")
    return (field("apiVersion", "v1"), kind, _meta(f"{name}-cache"), field("spec", spec))


def _deployment(subject: EmitSubject, start: Launch, name: str) -> Fields:
    seconds = sizing.startup(subject)
    labels = (field("app", name),)
    annotations = (
        field("prometheus.io/scrape", "true"),
        field("prometheus.io/port", str(start.port)),
        field("prometheus.io/path", start.metrics_path),
    )
    template = (
        field("metadata", (field("labels", labels), field("annotations", annotations))),
        field("spec", _pod(subject, start, name)),
    )
    spec = (
        field("replicas", 1),
        field("strategy", (field("type", "Recreate", "a second pod would wait for the GPUs of the first"),)),
        field("progressDeadlineSeconds", seconds.value + 600, f"{seconds.value} s to start, and the image to pull"),
        field("selector", (field("matchLabels", labels),)),
        field("template", template),
    )
    return (field("apiVersion", "apps/v1"), field("kind", "Deployment"), _meta(name), field("spec", spec))


def _pod(subject: EmitSubject, start: Launch, name: str) -> Fields:
    why = f"{sizing.PRESTOP_S} s for the Service to forget the pod, {sizing.DRAIN_S} s for requests, 15 s to spare"
    profile = (field("type", "RuntimeDefault"),)
    return (
        field("enableServiceLinks", False, "a Service's variables can be taken for the engine's own settings"),
        field("automountServiceAccountToken", False),
        field("terminationGracePeriodSeconds", sizing.GRACE_S, why),
        field("securityContext", (field("seccompProfile", profile),)),
        field("containers", Items(of=(_container(subject, start),))),
        field("volumes", Items(of=_volumes(subject, start, name))),
    )


def _container(subject: EmitSubject, start: Launch) -> Fields:
    sleep = (field("command", ["/bin/sleep", str(sizing.PRESTOP_S)]),)
    rights = (
        field("allowPrivilegeEscalation", False),
        field("capabilities", (field("drop", ["ALL"]),)),
    )
    return (
        field("name", "engine"),
        field("image", start.image, f"pinned: {subject.checked_for} is what this was checked for"),
        field("command", [start.command[0]]),
        field("args", list(start.command[1:])),
        field("ports", Items(of=((field("name", "http"), field("containerPort", start.port)),))),
        field("env", Items(of=_environment(start))),
        field("resources", _resources(subject)),
        field("securityContext", rights),
        field("startupProbe", _probe(start, 10, *_startup(subject))),
        field("readinessProbe", _probe(start, 5, 3, "out of the Service after 15 s without an answer")),
        field("livenessProbe", _probe(start, 10, 6, "restarted after a minute without an answer")),
        field("lifecycle", (field("preStop", (field("exec", sleep),)),)),
        field("volumeMounts", Items(of=_mounts(start))),
    )


def _startup(subject: EmitSubject) -> tuple[int, str]:
    probes = sizing.startup_probes(subject)
    return probes.value, probes.why


def _probe(start: Launch, period: int, failures: int, why: str) -> Fields:
    return (
        field("httpGet", (field("path", start.health_path), field("port", "http"))),
        field("periodSeconds", period),
        field("timeoutSeconds", 5),
        field("failureThreshold", failures, why),
    )


def _environment(start: Launch) -> tuple[Fields, ...]:
    secret = (field("name", "hf-token"), field("key", "token"), field("optional", True))
    token = (
        field("name", "HF_TOKEN", "kubectl create secret generic hf-token --from-literal=token=..."),
        field("valueFrom", (field("secretKeyRef", secret),)),
    )
    return (*((field("name", key), field("value", value)) for key, value in start.environment), token)


def _resources(subject: EmitSubject) -> Fields:
    cpus, request, limit = sizing.cpus(subject), sizing.host_memory(subject), sizing.host_limit(subject)
    gpus = field(_RESOURCE[subject.gpu.vendor], str(subject.budget.num_gpus), tensor_count_words(subject))
    return (
        field(
            "requests",
            (
                field("cpu", str(cpus.value), cpus.why),
                field("memory", f"{request.value // GIB}Gi", request.why),
                gpus,
            ),
        ),
        field("limits", (field("memory", f"{limit.value // GIB}Gi", limit.why), gpus)),
    )


def _mounts(start: Launch) -> tuple[Fields, ...]:
    mounts: list[Fields] = [
        (field("name", "cache"), field("mountPath", CACHE_FOLDER)),
        (field("name", "shm"), field("mountPath", "/dev/shm")),
    ]
    if start.config:
        mounts.append((field("name", "config"), field("mountPath", CONFIG_FOLDER), field("readOnly", True)))
    if start.model_folder:
        mounts.append((field("name", "model"), field("mountPath", start.model_folder), field("readOnly", True)))
    return tuple(mounts)


def _volumes(subject: EmitSubject, start: Launch, name: str) -> tuple[Fields, ...]:
    shm = sizing.shared_memory(subject)
    memory = (field("medium", "Memory"), field("sizeLimit", f"{shm.value // GIB}Gi", f"{shm.why}; counted as memory"))
    volumes: list[Fields] = [
        (field("name", "cache"), field("persistentVolumeClaim", (field("claimName", f"{name}-cache"),))),
        (field("name", "shm"), field("emptyDir", memory)),
    ]
    if start.config:
        volumes.append((field("name", "config"), field("configMap", (field("name", f"{name}-config"),))))
    if start.model_folder:
        why = "the model's folder on the node; better a volume that every node has"
        path = (field("path", start.model_folder, why), field("type", "Directory"))
        volumes.append((field("name", "model"), field("hostPath", path)))
    return tuple(volumes)


def _service(start: Launch, name: str) -> Fields:
    port = (field("name", "http"), field("port", 80), field("targetPort", "http"))
    spec = (field("selector", (field("app", name),)), field("ports", Items(of=(port,))))
    return (field("apiVersion", "v1"), field("kind", "Service"), _meta(name), field("spec", spec))
