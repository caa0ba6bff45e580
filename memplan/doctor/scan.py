"""One pass over a text: everything that any reader knows, with the stage at which memory ran out."""

from __future__ import annotations

import re
from collections.abc import Iterator

from memplan.doctor import (
    read_host,
    read_llama_cpp,
    read_sglang,
    read_tensorrt_llm,
    read_torch,
    read_vllm,
    read_words,
)
from memplan.doctor.lines import CuedLines, as_utf8
from memplan.doctor.phase import Phase, Stage
from memplan.doctor.sightings import Sighting, Sightings, parse_size, see
from memplan.records import dataclass, field

_READERS = (read_torch, read_vllm, read_sglang, read_llama_cpp, read_tensorrt_llm, read_host)
_STRICT = tuple(each for reader in _READERS for each in reader.PATTERNS)
_STACK = b", in "
_CUES = tuple({each.cue.encode() for each in _STRICT} | {_STACK, b" in use"})
_HEAD_BYTES = 1 << 16  # of a text that is read line by line, whatever its lines hold
_LOGGED = re.compile(r"[\[(]?(?:\w{2,12} )?(?:INFO|DEBUG|WARNING)\b|\[?\d{4}-\d\d-\d\d[ T]\d\d:")
_OTHER = re.compile(read_torch.OTHER_PROCESS)
_MOST_PROCESSES = 32
_MOST_WORDS = 400  # lines of prose that are looked at: an issue is short, a log is not
_OOM = ("oom", "oom_short", "oom_driver", "oom_exceeds", "oom_mps", "vllm_sampler", "cublas_alloc", "llama_alloc")
# What was met so often tells no more; only statistics still do. That bounds the work on a log of nothing else.
_MATCHED_OFTEN = 20_000
_COUNTED_ALWAYS = ("_stats", "_preempted", "_retract")


@dataclass(frozen=True, slots=True, kw_only=True)
class OtherProcess:
    """A process that held memory of the same GPU, as PyTorch or nvidia-smi tells it."""

    pid: int
    used_bytes: int
    name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scanned:
    """What one pass has found. `stage` is where memory ran out, `said` the last stage that the engine told of."""

    seen: Sightings
    num_lines: int
    num_bytes: int
    stage: Stage = "unknown"
    said: Stage = "unknown"
    oom_line: int | None = None
    processes: tuple[OtherProcess, ...] = ()
    gpus: tuple[Sighting, ...] = field(default_factory=tuple)
    smi_processes: tuple[Sighting, ...] = field(default_factory=tuple)
    buffers: tuple[Sighting, ...] = field(default_factory=tuple)


def scan(pieces: Iterator[bytes]) -> Scanned:
    """Read a text to its end, whatever its size; what is kept of it does not grow with it."""
    lines = CuedLines(as_utf8(pieces), _CUES, head_bytes=_HEAD_BYTES)
    seen, phase = Sightings(), Phase()
    processes: dict[int, int] = {}
    lists: dict[str, list[Sighting]] = {"smi_memory": [], "smi_process": [], "smi_csv": [], "llama_weights": []}
    oom: tuple[int, Stage] | None = None
    active = _STRICT
    for number, text in lines:
        if " in " in text or "graph" in text:
            phase.stacked(number, text)
        for one in see(active, number, text):
            seen.add(one)
            phase.met(one.name)
            if one.name in _OOM:
                oom = (number, phase.said) if oom is None or one.name == "oom" else oom
            kept = lists.get(one.name)
            if kept is not None and len(kept) < 64:
                kept.append(one)
            if seen.count(one.name) == _MATCHED_OFTEN and not one.name.endswith(_COUNTED_ALWAYS):
                active = tuple(each for each in active if each.name != one.name)
                lines.look_for({each.cue.encode() for each in active} | {_STACK})
        if "has" in text and "Process " in text and len(processes) < _MOST_PROCESSES:
            for match in _OTHER.finditer(text):
                processes[int(match["pid"])] = parse_size(match["used_size"]) or 0
        if seen.count("_prose") < _MOST_WORDS and not _LOGGED.match(text):
            seen.add(Sighting("_prose", number, {}, ""))
            for one in see(read_words.PATTERNS, number, text):
                seen.add(one)
    line = oom[0] if oom else None
    stage: Stage = "unknown"
    if line is not None:
        stage = phase.stack_near(line)
        said = oom[1] if oom else "unknown"
        if stage in ("unknown", "serving") and said != "unknown":
            stage = said
    return Scanned(
        seen=seen,
        num_lines=lines.num_lines,
        num_bytes=lines.num_bytes,
        stage=stage,
        said=phase.said,
        oom_line=line,
        processes=tuple(OtherProcess(pid=pid, used_bytes=used) for pid, used in processes.items()),
        gpus=tuple(lists["smi_memory"] or lists["smi_csv"]),
        smi_processes=tuple(lists["smi_process"]),
        buffers=tuple(lists["llama_weights"]),
    )
