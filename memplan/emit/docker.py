"""`docker run`: a script that writes the engine's config beside itself and starts the container with what it needs."""

from __future__ import annotations

import shlex

from memplan.domain.emission import Emission, EmitSubject, EmittedFile
from memplan.emit import sizing
from memplan.emit.launch import CACHE_FOLDER, CONFIG_FOLDER, Launch, launch, tensor_count_words
from memplan.emit.words import header
from memplan.emit.yaml_text import comment
from memplan.errors import UsageError
from memplan.units import GIB

_END = "END_OF_CONFIG"


def emit(subject: EmitSubject) -> Emission:
    """Return a bash script. Raises: UsageError for what cannot be started in a container."""
    start = launch(subject)
    name = sizing.service_name(subject)
    lines = ["#!/usr/bin/env bash", *comment(header(subject, f"bash {name}.sh")), "set -euo pipefail", ""]
    lines += _config(start, name)
    lines += ["options=("]
    for why, words in _options(subject, start, name):
        lines += comment([why], sign="  #") if why else []
        lines.append("  " + " ".join(word if word.startswith('"') else shlex.quote(word) for word in words))
    lines += [")", f'docker run "${{options[@]}}" {shlex.quote(start.image)} \\']
    lines += [f"  {shlex.join(start.command[1:])}", ""]
    lines += comment([f"Ready when this answers: curl -fs http://127.0.0.1:{start.port}{start.health_path}"])
    file = EmittedFile(name=f"{name}.sh", text="\n".join(lines) + "\n", media_type="text/x-shellscript")
    return Emission(files=(file,), notes=start.notes)


def _config(start: Launch, name: str) -> list[str]:
    if start.config is None:
        return []
    if _END in start.config.text:
        raise UsageError(f"the config holds the word {_END}", hint="rename what is called so")
    return [
        f"mkdir -p {name}",
        f"cat > {name}/{start.config.name} <<'{_END}'",
        start.config.text.rstrip("\n"),
        _END,
        "",
    ]


def _options(subject: EmitSubject, start: Launch, name: str) -> list[tuple[str, tuple[str, ...]]]:
    """Every option of `docker run` with the sentence above it."""
    shm, limit = sizing.shared_memory(subject), sizing.host_limit(subject)
    options: list[tuple[str, tuple[str, ...]]] = [
        ("", ("--detach", "--name", name)),
        ("three tries: a server that does not fit would start over for ever", ("--restart", "on-failure:3")),
        ("the first word of the command, whatever the image starts by itself", ("--entrypoint", start.command[0])),
        (tensor_count_words(subject), _devices(subject)),
        (shm.why, ("--shm-size", f"{shm.value // GIB}g")),
        (limit.why, ("--memory", f"{limit.value // GIB}g")),
        ("this machine alone can reach it; put a proxy with keys in front of it", _published(start.port)),
        ("weights and compiled code outlive the container", ("--volume", f"{name}-cache:{CACHE_FOLDER}")),
    ]
    if start.config:
        options.append(("", ("--volume", f'"$PWD/{name}":{CONFIG_FOLDER}:ro')))
    if start.model_folder:
        options.append(("the model is on this machine", ("--volume", f"{start.model_folder}:{start.model_folder}:ro")))
    options += [("", ("--env", f"{key}={value}")) for key, value in start.environment]
    options.append(("taken from the shell, so that no file holds it", ("--env", "HF_TOKEN")))
    options.append(("requests in flight may end", ("--stop-timeout", str(sizing.DRAIN_S + 15))))
    options.append(("", ("--security-opt", "no-new-privileges", "--ulimit", "memlock=-1")))
    return options


def _published(port: int) -> tuple[str, ...]:
    return ("--publish", f"127.0.0.1:{port}:{port}")


def _devices(subject: EmitSubject) -> tuple[str, ...]:
    if subject.gpu.vendor == "nvidia":
        return ("--gpus", str(subject.budget.num_gpus))
    if subject.gpu.vendor == "amd":
        return ("--device", "/dev/kfd", "--device", "/dev/dri", "--group-add", "video")
    return ("--device", "/dev/dri")
