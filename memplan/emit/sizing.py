"""The numbers around an engine that follow from its budget: how long it starts, what the host needs, how many may wait.

Each number carries the sentence that its comment in a file says.
"""

from __future__ import annotations

import re

from memplan.admission import waiting_limit
from memplan.budget.storage import checkpoint_bytes
from memplan.domain.emission import EmitSubject
from memplan.records import dataclass
from memplan.units import GIB, ceil_div, format_gib, round_up

# Assumed, and said so in every file: a line of 1 Gbit/s, a network volume, and what compiling and capturing take.
_USUAL_TOKENS = 8192  # a long prompt and its answer: an assumption
# A turn of a chat, prompt and answer. Source: traces of conversations have 500 tokens on average (ShareGPT, in vLLM's
# paper) and 1,020 + 129 at the median (Azure's trace of 2023, in Splitwise's).
_CHAT_TOKENS = 1024
_DOWNLOAD_BYTES_PER_S = 100_000_000
_READ_BYTES_PER_S = 500_000_000
_COMPILE_S = 240
_PROBE_PERIOD_S = 10
_RUNTIME_BYTES = 8 * GIB
_MEDIA_CACHE_BYTES = 4 * GIB  # vLLM's mm-processor-cache-gb, per process of the API server
_PROMPT_CACHE_BYTES = 8 * GIB  # llama-server's --cache-ram 8192
_SHM_ONE_BYTES = 2 * GIB
_SHM_EACH_BYTES = 4 * GIB
DRAIN_S = 45
PRESTOP_S = 15
GRACE_S = PRESTOP_S + DRAIN_S + 15


@dataclass(frozen=True, slots=True, kw_only=True)
class Sized:
    """A number, and why it is what it is."""

    value: int
    why: str


def startup(subject: EmitSubject) -> Sized:
    """Seconds until an empty cache, a cold volume and a first compile can have become a server, rounded up to 60."""
    size = checkpoint_bytes(subject.spec)
    download, read = size // _DOWNLOAD_BYTES_PER_S, size // _READ_BYTES_PER_S
    seconds = round_up(download + read + _COMPILE_S, 60)
    return Sized(
        value=seconds,
        why=f"{format_gib(size)} of weights: {download} s to download at 100 MB/s, {read} s to read at 500 MB/s,"
        f" {_COMPILE_S} s to compile and capture (assumed rates)",
    )


def warm_startup(subject: EmitSubject) -> Sized:
    """Seconds until a replica answers whose volume has the weights already, rounded up to 60."""
    read = checkpoint_bytes(subject.spec) // _READ_BYTES_PER_S
    why = f"{read} s to read the weights at 500 MB/s, {_COMPILE_S} s to compile and capture (assumed rates)"
    return Sized(value=round_up(read + _COMPILE_S, 60), why=why)


def startup_probes(subject: EmitSubject) -> Sized:
    """How many start-up probes, 10 seconds apart, may fail."""
    seconds = startup(subject)
    return Sized(value=ceil_div(seconds.value, _PROBE_PERIOD_S), why=f"{seconds.value} s: {seconds.why}")


def shared_memory(subject: EmitSubject) -> Sized:
    """Bytes of /dev/shm: ranks talk through it, and the default of 64 MiB stops NCCL."""
    ranks = subject.budget.num_gpus
    size = _SHM_ONE_BYTES if ranks == 1 else max(2, ranks) * _SHM_EACH_BYTES
    why = "one rank" if ranks == 1 else f"{ranks} ranks that exchange tensors through it"
    return Sized(value=size, why=f"/dev/shm for {why}; the default of 64 MiB is too little")


def host_memory(subject: EmitSubject) -> Sized:
    """Bytes of host memory that the container asks for; what lies in /dev/shm counts against its limit as well."""
    parts = [("the engine's processes", max(_RUNTIME_BYTES, subject.budget.host_bytes))]
    parts.append(("/dev/shm", shared_memory(subject).value))
    if any(tower.media for tower in subject.spec.towers) and not subject.settings.language_model_only:
        parts.append(("the cache of processed media", _MEDIA_CACHE_BYTES))
    if subject.engine == "llama.cpp":
        parts.append(("llama-server's cache of prompts (--cache-ram)", _PROMPT_CACHE_BYTES))
    total = round_up(sum(size for _, size in parts), GIB)
    return Sized(value=total, why=" + ".join(f"{format_gib(size)} for {name}" for name, size in parts))


def host_limit(subject: EmitSubject) -> Sized:
    """The bytes at which the kernel ends the container: room above the request for loading a shard and for peaks."""
    request = host_memory(subject).value
    shard = min(checkpoint_bytes(subject.spec), 8 * GIB)
    return Sized(
        value=round_up(request + shard, GIB), why=f"{format_gib(request)} and {format_gib(shard)} while weights load"
    )


def cpus(subject: EmitSubject) -> Sized:
    """CPU cores: an API server, a scheduler, and a process for every GPU that must never wait for a core."""
    return Sized(value=2 + subject.budget.num_gpus, why="the API server, the scheduler, and one core for every GPU")


def admitted(subject: EmitSubject) -> Sized:
    """How many requests of the whole context the cache holds at once, by the low end of the estimate."""
    kv, settings = subject.budget.kv, subject.budget.settings
    if kv.max_concurrency is None or not kv.capacity_tokens:
        seqs = settings.get("max_num_seqs")
        return Sized(value=seqs if isinstance(seqs, int) else 1, why="requests in one step; nothing is cached")
    part = (kv.low_tokens or kv.capacity_tokens) / kv.capacity_tokens
    return Sized(
        value=max(1, int(kv.max_concurrency * part)),
        why=f"the cache holds {pool_tokens(subject):,} tokens at the low end of the estimate,"
        f" {kv.max_concurrency:,.2f} requests of {context_tokens(subject):,} tokens at its middle",
    )


def max_waiting(subject: EmitSubject) -> Sized:
    """How many requests may wait: as many as run, so that nobody waits for longer than one turn."""
    count = waiting_limit(admitted(subject).value)
    return Sized(value=count, why=f"one turn: as many as are served at once ({admitted(subject).why})")


def pool_tokens(subject: EmitSubject) -> int:
    """The tokens that the caches of all replicas hold at the low end of the estimate; 0 when nothing is cached."""
    kv, replicas = subject.budget.kv, subject.budget.settings.get("data_parallel_size", 1)
    return (kv.low_tokens or kv.capacity_tokens or 0) * (replicas if isinstance(replicas, int) else 1)


def context_tokens(subject: EmitSubject) -> int:
    """The tokens that one request may reach."""
    asked = max(1, subject.settings.workload.concurrency)
    return subject.budget.kv.needed_tokens // asked or subject.spec.max_context_tokens


def mean_tokens(subject: EmitSubject) -> Sized:
    """The tokens that a request has on average: as given, else half of what it may reach, as far as that is usual.

    Without a bound, the 131,072 tokens that a model could take would leave room for two requests of a chat.
    """
    mean = subject.settings.workload.mean_tokens
    if mean:
        return Sized(value=min(mean, context_tokens(subject)), why="the mean length that was given")
    half = max(1, context_tokens(subject) // 2)
    if half > _USUAL_TOKENS:
        return Sized(value=_USUAL_TOKENS, why="assumed: give --mean-length")
    return Sized(value=half, why="half of the context (assumed: give --mean-length)")


def short_tokens(subject: EmitSubject) -> Sized:
    """The tokens that a request has on average: as given, else those of a chat's turn.

    What is admitted is bounded by this, not by `mean_tokens`: a bound that is too low leaves the cache empty while
    requests wait, whatever they are; one that is too high costs some requests that are put back and computed again.
    """
    if subject.settings.workload.mean_tokens:
        return mean_tokens(subject)
    why = "a turn of a chat, assumed: give --mean-length"
    return Sized(value=min(_CHAT_TOKENS, context_tokens(subject)), why=why)


def service_name(subject: EmitSubject) -> str:
    """A name for containers, services and units: letters, digits and dashes, at most 50, and never `vllm`, for which
    Kubernetes would set VLLM_PORT to an address that vLLM reads as its port.
    """
    words = re.sub(r"[^a-z0-9]+", "-", subject.spec_name.rpartition("/")[2].lower()).strip("-")
    return f"llm-{words}"[:50].rstrip("-")
