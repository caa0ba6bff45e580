"""What goes wrong between a right setup and a running engine: traps of config files, containers and manifests.

They are checked on the text that is about to be written, whoever wrote it.
Source: vllm#51401 (false is dropped), vllm#43252 (`--config=`), AReaL PR#827, vllm#34199 (a Service named vllm),
vllm#1710, vllm#6574, production-stack#44 and #899 (shared memory).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from memplan.domain.emission import Emission, EmitSubject
from memplan.emit.finding import Finding, refused
from memplan.errors import UsageError

_FALSE = re.compile(r"^\s*([\w.-]+):\s*(?:false|False|FALSE|no|off)\s*(?:#.*)?$", re.MULTILINE)
_QUOTED = re.compile(r"""^\s*([\w.-]+):\s*["'](?:true|True)["']\s*(?:#.*)?$""", re.MULTILINE)
_NULL = re.compile(r"^\s*([\w.-]+):\s*(?:null|Null|~)?\s*(?:#.*)?$", re.MULTILINE)
_ONE_WORD = re.compile(r"--(?:config|extra_llm_api_options)=\S+")
_SHM = re.compile(r"/dev/shm|shm_size:|--shm-size|--ipc[= ]host|ipc:\s*host")
_UNPINNED = re.compile(r"^[^#\n]*\b(vllm/vllm-openai|lmsysorg/sglang)(?::latest|(?=[\s\"']|$))", re.MULTILINE)
_SERVICE = re.compile(r"kind:\s*Service\n(?:.*\n)*?\s*name:\s*(\S+)")


def check_files(subject: EmitSubject, format_name: str, emission: Emission) -> tuple[Finding, ...]:
    """Return what is wrong with the files of one format."""
    findings: list[Finding] = []
    for file in emission.files:
        code = "\n".join(line for line in file.text.splitlines() if not line.lstrip().startswith("#"))
        findings += _config_traps(code) if file.name == "vllm.yaml" else ()
        findings += _plumbing(code)
        if format_name in _CONTAINERS:
            findings += _CONTAINERS[format_name](code)
    return tuple(findings)


def refuse_traps(subject: EmitSubject, format_name: str, emission: Emission) -> Emission:
    """Return the emission itself. Raises: UsageError when it would fall into a trap."""
    for finding in check_files(subject, format_name, emission):
        raise UsageError(finding.reason, hint=finding.hint)
    return emission


def _config_traps(code: str) -> Iterator[Finding]:
    """What vLLM's reader of `--config` drops, or takes for something else."""
    for match in _FALSE.finditer(code):
        hint = f"write no-{match[1]}: true"
        yield refused("config-file", f"vLLM drops `{match[0].strip()}` without a word", hint)
    for match in _QUOTED.finditer(code):
        yield refused("config-file", f"`{match[0].strip()}` names the model to vLLM", "leave the quotes out")
    for match in _NULL.finditer(code):
        if not re.search(rf"^\s*{re.escape(match[1])}:\s*\n\s+\S", code, re.MULTILINE):
            yield refused("config-file", f"`{match[0].strip()}` has no value", "leave the key out")


def _plumbing(code: str) -> Iterator[Finding]:
    for match in _ONE_WORD.finditer(code):
        option = match[0].partition("=")[0]
        yield refused("config-option", f"`{match[0]}` is not read by the engine", f"write {option} FILE, as two words")
    for match in _UNPINNED.finditer(code):
        yield refused("image", f"the image {match[1]} has no release in its tag", "name the release that was checked")


def _shared_memory(code: str) -> Iterator[Finding]:
    """Ranks exchange tensors through /dev/shm, of which a container has 64 MiB by itself."""
    if not _SHM.search(code):
        yield refused("shared-memory", "the container has 64 MiB of /dev/shm", "give it a size: --shm-size, shm_size")


def _manifest(code: str) -> Iterator[Finding]:
    yield from _shared_memory(code)
    if "enableServiceLinks: false" not in code:
        yield refused("service-links", "variables of Services reach the engine", "set enableServiceLinks: false")
    for match in _SERVICE.finditer(code):
        if match[1].strip("\"'") == "vllm":
            reason = "a Service named vllm sets VLLM_PORT to an address, and vLLM takes it for its port"
            yield refused("service-name", reason, "name it otherwise")
    if "startupProbe:" not in code:
        yield refused("probes", "liveness ends a server that still loads its weights", "add a startupProbe")


_CONTAINERS: dict[str, Callable[[str], Iterator[Finding]]] = {
    "docker": _shared_memory,
    "compose": _shared_memory,
    "kubernetes": _manifest,
}
