"""What is the matter with a serving config: the checks of emitted setups, and options that the release does not
have.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from memplan.catalog.rules import parse_release
from memplan.catalog.tables import load_table
from memplan.doctor.secrets import shown
from memplan.doctor.telling import size
from memplan.domain.diagnosis import Diagnosis, Evidence, Mend
from memplan.domain.emission import Emission, EmitSubject, EmittedFile
from memplan.emit.checks import check_setup
from memplan.emit.file_checks import check_files
from memplan.emit.finding import Finding, sequences, setting
from memplan.errors import MemplanError

# Formats that vLLM makes of plain weights while it loads; every other name says how the checkpoint is stored.
_MADE_ONLINE = ("fp8", "bitsandbytes", "experts_int8", "torchao", "online", "inc", "mxfp8")
_LARGEST_GRAPH = 512
_CAUSES = {
    "context": "kv_too_small_for_len",
    "spare-block": "kv_too_small_for_len",
    "graph-capture": "cuda_graph_oom",
    "sampler-warm-up": "sampler_oom",
    "free-memory": "free_memory_below_request",
    "shared-gpu": "gpu_shared",
    "preemption": "preemption",
    "step-tokens": "step_below_context",
    "state-blocks": "state_blocks",
    "media-profile": "profile_oom",
    "logprobs": "runtime_oom",
    "shards": "shards_uneven",
    "shared-memory": "shared_memory",
    "unified-memory": "host_oom",
    "release": "unknown_option",
}


def removed_options(engine: str, version: str, names: Mapping[str, object]) -> Iterator[Diagnosis]:
    """Yield one diagnosis for every option that the release no longer has."""
    table = load_table(Path("engine_options") / "removed.yaml").get(engine, {})
    try:
        release = parse_release(version)
    except MemplanError:
        return
    for name in names:
        dashed = name.replace("_", "-")
        entry = table.get(dashed)
        if entry is None or release < parse_release(str(entry["until"])):
            continue
        instead = str(entry["instead"])
        yield Diagnosis(
            cause="unknown_option",
            severity="error",
            sentence=f"{engine} {version} has no option `{dashed}`: it is gone since {entry['until']}",
            because="an option that is not known ends the start",
            evidence=(Evidence(term="option", value=shown(f"{dashed}: {names[name]}"), unit="text"),),
            mends=(
                Mend(
                    change=f"leave {dashed} out" if instead.startswith("nothing") else f"instead: {instead}",
                    risk="none",
                    basis="rule",
                    mends=True,
                    note=instead.partition(": ")[2] if instead.startswith("nothing: ") else "",
                ),
            ),
        )


def file_traps(subject: EmitSubject | None, engine: str, text: str) -> Iterator[Diagnosis]:
    """Yield what the engine's reader of its config file drops or takes for something else."""
    if engine != "vllm":
        return
    emission = Emission(files=(EmittedFile(name="vllm.yaml", text=text),))
    assert subject is None or subject.engine == engine
    findings = check_files(subject, "vllm", emission) if subject is not None else ()
    for finding in findings:
        yield _diagnosis(finding, "config_trap", "warning")


def setup_findings(subject: EmitSubject) -> Iterator[Diagnosis]:
    """Yield what the fourteen checks of setups find; the fifteenth is `file_traps`."""
    checked = check_setup(subject)
    for finding in checked.findings:
        cause = _CAUSES.get(finding.check, finding.check.replace("-", "_"))
        yield _diagnosis(finding, cause, "note" if finding.action == "noted" else "warning", subject)


def quantization_told(told: str | None, stored: str | None) -> Iterator[Diagnosis]:
    """Yield what `--quantization` says that the checkpoint does not hold."""
    if not told or told in ("None", "none", "auto"):
        return
    if stored is None and told not in _MADE_ONLINE:
        yield Diagnosis(
            cause="not_quantized",
            severity="error",
            sentence=f"quantization {told} is asked of a checkpoint whose weights are plain",
            because="the option names how a checkpoint is stored; this format is not made while loading",
            mends=(
                Mend(change="leave quantization out", risk="none", basis="rule", mends=True),
                Mend(change=f"a checkpoint that is stored as {told}", risk="medium", basis="rule", mends=True),
            ),
        )
    elif stored is not None and not _agrees(told, stored):
        yield Diagnosis(
            cause="quantization_mismatch",
            severity="error",
            sentence=f"quantization {told} is asked of a checkpoint that is stored as {stored}",
            mends=(Mend(change="leave quantization out", risk="none", basis="rule", mends=True),),
        )


def _agrees(told: str, stored: str) -> bool:
    """Whether an option's name can be of a stored scheme: engines have several kernels for one."""
    families = (("awq", "awq"), ("gptq", "gptq"), ("fp8", "fp8"), ("bitsandbytes", "bnb"), ("mxfp4", "mxfp4"))
    for name, scheme in families:
        if name in told:
            return scheme in stored
    return True  # containers such as compressed-tensors or modelopt hold several


def graph_note(subject: EmitSubject) -> Iterator[Diagnosis]:
    """Yield which batches run without CUDA graphs.

    Source: VllmConfig._set_cudagraph_sizes, 0.8 to 0.33: up to twice max-num-seqs, and 512 at most (1,024 on compute
    capability 10 from 0.28 on).
    """
    if subject.engine != "vllm":
        return
    requests = sequences(subject)
    if setting(subject, "enforce_eager") is True:
        yield _note(
            "graphs_off", "no CUDA graphs are used (enforce-eager): small batches decode slower", "leave it out"
        )
        return
    told = subject.settings.engine_options.get("max_cudagraph_capture_size")
    is_new = "blackwell" in subject.gpu.architecture.lower() and parse_release(subject.version) >= (0, 28, 0)
    largest = told if isinstance(told, int) else 1024 if is_new else _LARGEST_GRAPH
    if requests is not None and requests > largest:
        sentence = (
            f"batches of more than {largest:,} requests run without CUDA graphs, and max-num-seqs is {requests:,}"
        )
        yield _note("graphs_partly", sentence, f"--max-num-seqs {largest}")


def _note(cause: str, sentence: str, change: str) -> Diagnosis:
    return Diagnosis(
        cause=cause,
        severity="note",
        sentence=sentence,
        mends=(Mend(change=change, risk="low", basis="rule"),),
    )


def _diagnosis(finding: Finding, cause: str, severity: str, subject: EmitSubject | None = None) -> Diagnosis:
    """A finding of the checks: what it would be set to is the mend, computed by the check itself."""
    mends: tuple[Mend, ...] = ()
    if finding.action == "mended":
        mends = (Mend(change=_change(finding, subject), risk="low", basis="budget", mends=True),)
    elif finding.hint:
        mends = (Mend(change=finding.hint, risk="low", basis="rule"),)
    return Diagnosis(
        cause=cause,
        severity="note" if severity == "note" else "error" if finding.action == "refused" else "warning",
        sentence=finding.reason,
        evidence=(Evidence(term="check", value=finding.check, unit="text"),),
        mends=mends,
    )


def _change(finding: Finding, subject: EmitSubject | None) -> str:
    """The settings that a check changed, as flags."""
    new, old = finding.settings, subject.settings if subject else None
    if new is None:
        return finding.hint or finding.reason
    flags = []
    for flag, name in (
        ("--gpu-memory-utilization", "gpu_memory_utilization"),
        ("--max-num-seqs", "max_num_seqs"),
        ("--max-num-batched-tokens", "max_num_batched_tokens"),
        ("--kv-cache-memory-bytes", "kv_cache_memory_bytes"),
        ("--limit-mm-per-prompt", "media_per_prompt"),
    ):
        value = getattr(new, name)
        if value is not None and (old is None or value != getattr(old, name)):
            flags.append(f"{flag} {value:g}" if isinstance(value, float) else f"{flag} {value}")
    context = new.workload.context_tokens
    if context is not None and (old is None or context != old.workload.context_tokens):
        flags.append(f"--max-model-len {context}")
    return " ".join(flags) or finding.hint or finding.reason


def room(subject: EmitSubject) -> str:
    """What a setup that is fine has room for, in words."""
    kv = subject.budget.kv
    held = f"{kv.capacity_tokens:,} tokens" if kv.capacity_tokens is not None else size(kv.needed_bytes)
    most = f", {kv.max_concurrency:.2f} requests of the longest length at once" if kv.max_concurrency else ""
    return f"the KV cache holds {held}{most}"
