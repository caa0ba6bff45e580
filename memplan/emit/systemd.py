"""A systemd unit for an engine that is installed on the machine: its limits, its stop, and when to stop trying.

Source: systemd.service(5), systemd.exec(5), systemd.resource-control(5).
"""

from __future__ import annotations

from memplan.domain.emission import Emission, EmitSubject, EmittedFile
from memplan.emit import sizing
from memplan.emit.launch import CACHE_FOLDER, CONFIG_FOLDER, Launch, launch
from memplan.emit.registry import DEFAULT_FORMATS
from memplan.emit.words import header
from memplan.emit.yaml_text import comment
from memplan.units import GIB

Section = list[tuple[str, str, str]]


def emit(subject: EmitSubject) -> Emission:
    """Return the unit, and the engine's config that it reads. Raises: UsageError for an engine that is no server."""
    start = launch(subject)
    name = sizing.service_name(subject)
    lines = [*comment(header(subject, f"systemctl enable --now {name}"))]
    for title, section in (
        ("Unit", _unit(subject)),
        ("Service", _service(subject, start, name)),
        ("Install", [("WantedBy", "multi-user.target", "")]),
    ):
        lines += ["", f"[{title}]"]
        for key, value, why in section:
            lines += [*(comment([why]) if why else []), f"{key}={value}"]
    unit = EmittedFile(name=f"{name}.service", text="\n".join(lines) + "\n", media_type="text/plain")
    notes = list(start.notes)
    if start.config:
        own = DEFAULT_FORMATS[subject.engine]
        notes.append(f"put the config at {_folder(name)}/{start.config.name}: memplan emit-config --format {own}")
    return Emission(files=(unit, *((start.config,) if start.config else ())), notes=tuple(notes))


def _unit(subject: EmitSubject) -> Section:
    return [
        ("Description", _escaped(f"{subject.spec_name} on {subject.checked_for}"), ""),
        ("After", "network-online.target", ""),
        ("Wants", "network-online.target", ""),
        ("StartLimitIntervalSec", "3600", "three tries an hour: a server that does not fit would start over for ever"),
        ("StartLimitBurst", "3", ""),
    ]


def _service(subject: EmitSubject, start: Launch, name: str) -> Section:
    seconds, limit = sizing.startup(subject), sizing.host_limit(subject)
    url = f"http://127.0.0.1:{start.port}{start.health_path}"
    ready = f"until curl --silent --fail --output /dev/null {url}; do sleep 5; done"
    section: Section = [
        ("Type", "exec", ""),
        ("DynamicUser", "yes", ""),
        ("CacheDirectory", name, "weights and compiled code outlive the service"),
        *(("Environment", _quoted(f"{key}={_moved(value, name)}"), "") for key, value in start.environment),
        ("Environment", "PATH=/opt/engine/bin:/usr/local/bin:/usr/bin:/bin", "where the engine is installed"),
        ("EnvironmentFile", f"-{_folder(name)}/secrets.env", "HF_TOKEN=..., readable by root alone"),
        ("ExecStart", " ".join(["/usr/bin/env", *(_quoted(_moved(word, name)) for word in _command(start))]), ""),
        ("ExecStartPost", f"/bin/sh -c {_quoted(ready)}", "started means that it answers"),
        ("TimeoutStartSec", str(seconds.value), seconds.why),
        ("TimeoutStopSec", str(sizing.DRAIN_S + 15), "requests in flight may end"),
        ("Restart", "on-failure", ""),
        ("RestartSec", "10", ""),
        ("RestartPreventExitStatus", "2", "the engine did not understand its options: another try ends the same way"),
        ("MemoryMax", str(limit.value), f"{limit.value // GIB} GiB: {limit.why}"),
        ("LimitMEMLOCK", "infinity", "pinned host memory"),
        ("NoNewPrivileges", "yes", ""),
        ("ProtectSystem", "strict", ""),
        ("ProtectHome", "read-only" if start.model_folder else "yes", ""),
        ("PrivateTmp", "yes", ""),
    ]
    return section


def _command(start: Launch) -> tuple[str, ...]:
    """The command of the image; what lies at a fixed place there is looked up on the path here."""
    return start.command[0].rpartition("/")[2], *start.command[1:]


def _moved(word: str, name: str) -> str:
    """A path of the container at its place on the machine, which alone reaches what listens to every address there."""
    if word == "0.0.0.0":
        return "127.0.0.1"
    for inside, outside in ((CONFIG_FOLDER, _folder(name)), (CACHE_FOLDER, f"/var/cache/{name}")):
        if word.startswith(f"{inside}/"):
            return outside + word[len(inside) :]
    return word


def _folder(name: str) -> str:
    return f"/etc/{name}"


def _quoted(word: str) -> str:
    """One word of a unit's command line: systemd knows double quotes, and expands % and $."""
    text = _escaped(word).replace("$", "$$")
    if text and all(letter.isalnum() or letter in "-_./:=,@+%" for letter in text):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _escaped(text: str) -> str:
    """A value without line breaks, in which systemd sees no specifier."""
    return "".join(letter for letter in text if letter.isprintable()).replace("%", "%%")
