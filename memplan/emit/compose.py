"""A Compose file: the engine as a service, its config inside the file, with a health check that waits for the weights.

Source: the Compose specification (configs with `content` are in Docker Compose 2.23.1 and newer).
"""

from __future__ import annotations

import re

from memplan.domain.emission import Emission, EmitSubject, EmittedFile
from memplan.emit import sizing
from memplan.emit.launch import CACHE_FOLDER, Launch, launch, tensor_count_words
from memplan.emit.nested_yaml import Fields, Items, Text, document, field
from memplan.emit.words import header
from memplan.emit.yaml_text import Entry
from memplan.units import GIB


def emit(subject: EmitSubject) -> Emission:
    """Return compose.yaml. Raises: UsageError for what cannot be started in a container."""
    start = launch(subject)
    name = sizing.service_name(subject)
    fields: Fields = (
        field("name", name),
        field("services", (field("engine", _service(subject, start)),)),
        field("volumes", (field("cache", ()),)),
    )
    if start.config:
        content = Text(text=_kept(start.config.text))
        fields += (field("configs", (field("engine", (field("content", content),)),)),)
    text = document(header(subject, "docker compose up --detach"), fields)
    file = EmittedFile(name="compose.yaml", text=text, media_type="application/yaml")
    return Emission(files=(file,), notes=start.notes)


def _service(subject: EmitSubject, start: Launch) -> Fields:
    shm, limit = sizing.shared_memory(subject), sizing.host_limit(subject)
    fields: list[Entry] = [
        field("image", start.image, f"pinned: {subject.checked_for} is what this was checked for"),
        field("entrypoint", [_kept(start.command[0])]),
        field("command", [_kept(word) for word in start.command[1:]]),
        field("ports", [f"127.0.0.1:{start.port}:{start.port}"], "this machine alone; put a proxy with keys before it"),
        field("environment", _environment(start)),
        field("volumes", Items(of=_volumes(start))),
    ]
    if start.config:
        target = (field("source", "engine"), field("target", start.config_path))
        fields.append(field("configs", Items(of=(target,))))
    fields += [
        field("shm_size", f"{shm.value // GIB}g", shm.why),
        field("mem_limit", f"{limit.value // GIB}g", limit.why),
        field("restart", "on-failure:3", "three tries: a server that does not fit would start over for ever"),
        field("stop_grace_period", f"{sizing.DRAIN_S + 15}s", "requests in flight may end"),
        field("security_opt", ["no-new-privileges:true"]),
        *_devices(subject),
        field("healthcheck", _healthcheck(subject, start)),
    ]
    return tuple(fields)


def _environment(start: Launch) -> Fields:
    """HF_TOKEN comes from the shell or an .env file beside this one."""
    return (*(field(key, _kept(value)) for key, value in start.environment), field("HF_TOKEN", "${HF_TOKEN:-}"))


def _volumes(start: Launch) -> tuple[Fields, ...]:
    cache: Fields = (
        field("type", "volume", "weights and compiled code outlive the container"),
        field("source", "cache"),
        field("target", CACHE_FOLDER),
    )
    if not start.model_folder:
        return (cache,)
    folder = _kept(start.model_folder)
    model = (
        field("type", "bind", "the model is on this machine"),
        field("source", folder),
        field("target", folder),
        field("read_only", True),
    )
    return cache, model


def _devices(subject: EmitSubject) -> tuple[Entry, ...]:
    why = tensor_count_words(subject)
    if subject.gpu.vendor != "nvidia":
        amd = (field("group_add", ["video"]),) if subject.gpu.vendor == "amd" else ()
        return (field("devices", ["/dev/kfd", "/dev/dri"] if amd else ["/dev/dri"], why), *amd)
    device: Fields = (
        field("driver", "nvidia"),
        field("count", subject.budget.num_gpus, why),
        field("capabilities", ["gpu"]),
    )
    nested = (field("reservations", (field("devices", Items(of=(device,))),)),)
    return (field("deploy", (field("resources", nested),)),)


def _healthcheck(subject: EmitSubject, start: Launch) -> Fields:
    seconds = sizing.startup(subject)
    url = f"http://127.0.0.1:{start.port}{start.health_path}"
    if subject.engine == "llama.cpp":
        test = ["CMD", "curl", "-fs", url]
    else:
        test = ["CMD", "python3", "-c", f"import urllib.request as r; r.urlopen('{url}', timeout=4)"]
    return (
        field("test", test),
        field("start_period", f"{seconds.value}s", seconds.why),
        field("interval", "10s"),
        field("timeout", "5s"),
        field("retries", 6),
    )


def _kept(text: str) -> str:
    """Text that Compose does not take for a variable: it reads `$$` as a dollar."""
    return re.sub(r"\$", "$$$$", text)
