"""What can be changed against a cause, as typed for the engine and release at hand; what it brings is worked out
elsewhere.

`options` are memplan's names with their new values, for the budget to be computed again; empty where no budget knows
the
change. `room_bytes` is what the log's own figures say that it frees, where they say it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from math import ceil, floor

from memplan.catalog.rules import parse_release
from memplan.doctor.facts import Facts, oom_free, oom_total
from memplan.domain.diagnosis import Risk
from memplan.errors import MemplanError
from memplan.records import dataclass, field
from memplan.units import GIB, MIB

_MOST_UTILIZATION = 0.97
_STEP = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One change to type. `cures` is true where it mends by what it is, such as ending the other process.

    Changes of one `ladder` are amounts of the same thing, the least first: the least that is enough is told.
    """

    label: str
    risk: Risk
    options: Mapping[str, object] = field(default_factory=dict)
    room_bytes: int | None = None
    needs_share: float | None = None
    cures: bool | None = None
    note: str = ""
    ladder: str = ""


Changes = Callable[[Facts], Iterator[Change]]


def utilization(facts: Facts) -> float:
    """The part that the engine had: as told, else the release's default."""
    return facts.share("gpu_memory_utilization") or (0.92 if release(facts) >= (0, 20, 2) else 0.9)


def release(facts: Facts) -> tuple[int, ...]:
    """The engine's release as numbers; a high one where it is not known."""
    try:
        return parse_release(facts.version) if facts.version else (999, 0, 0)
    except MemplanError:
        return (999, 0, 0)


def raise_utilization(facts: Facts) -> Iterator[Change]:
    """As much as is missing, with a little over, up to what leaves room for contexts and graphs."""
    now, total = utilization(facts), oom_total(facts)
    missing = (facts.needed_bytes or 0) - (facts.available_bytes or 0)
    wanted = now + (max(0.0, missing) / total if total else 0.0) + 0.01
    new = min(_MOST_UTILIZATION, ceil(round(wanted * 100, 4)) / 100) if total and missing > 0 else 0.95
    if new > now + 0.005:
        yield Change(
            label=f"--gpu-memory-utilization {new:.2f}",
            risk="low" if new <= 0.95 else "medium",
            options={"gpu_memory_utilization": new},
            room_bytes=int((new - now) * total) if total else None,
            note="from " + f"{now:g}" + ("; little is left for contexts and graphs" if new > 0.95 else ""),
        )


def lower_utilization(facts: Facts) -> Iterator[Change]:
    """By what was missing when memory ran out, and something over."""
    now, total = utilization(facts), oom_total(facts)
    wanted, free = facts.wanted_bytes or 0, oom_free(facts) or 0
    less = max(0.02, ceil(100 * (max(0, wanted - free) + 512 * MIB) / total) / 100) if total else 0.05
    new = max(0.05, floor(round((now - less) * 100, 4)) / 100)
    yield Change(
        label=f"--gpu-memory-utilization {new:.2f}",
        risk="low",
        options={"gpu_memory_utilization": new},
        room_bytes=int((now - new) * total) if total else None,
        cures=True if total and wanted else None,
        note=f"from {now:g}; the cache shrinks by as much",
    )


def fit_free(facts: Facts) -> Iterator[Change]:
    """The part of the GPU that is free, where something else holds the rest."""
    free, total = facts.free_bytes, facts.total_bytes
    if free and total:
        new = floor(100 * free / total - 1) / 100
        if new >= 0.05:
            yield Change(
                label=f"--gpu-memory-utilization {new:.2f}",
                risk="low",
                options={"gpu_memory_utilization": new},
                room_bytes=int((utilization(facts) - new) * total),
                cures=True,
                note="what is free now; weights and a step must fit into it",
            )
        if release(facts) >= (0, 10, 2):
            yield Change(
                label="--kv-cache-memory-bytes SIZE",
                risk="medium",
                note="names the cache outright and skips the comparison with the whole GPU: `memplan estimate` "
                "gives SIZE",
            )


def shorter(facts: Facts) -> Iterator[Change]:
    """The longest request that the cache holds, by what the engine itself said."""
    context = facts.integer("context")
    longest = longest_tokens(facts)
    if longest and context and longest < context:
        yield Change(
            label=f"--max-model-len {longest}",
            risk="low",
            options={"context": str(longest)},
            cures=True,
            needs_share=longest / context,
            note=f"from {context:,}; the longest that the cache holds now",
        )
    elif not longest and context and context > 8192:
        yield Change(label=f"--max-model-len {context // 4}", risk="low", options={"context": str(context // 4)})


def longest_tokens(facts: Facts) -> int | None:
    """The longest request that has room: as told, else by the cache's tokens, else in proportion."""
    if facts.longest_tokens:
        return facts.longest_tokens
    if facts.kv_tokens and "vllm_too_long" in facts.seen:
        return max(1, facts.kv_tokens - 16)
    context = facts.integer("context")
    if facts.needed_bytes and facts.available_bytes and context and facts.available_bytes < facts.needed_bytes:
        longest = int(context * facts.available_bytes / facts.needed_bytes)
        return longest // _STEP * _STEP or longest or None
    return None


def smaller_cache(facts: Facts) -> Iterator[Change]:
    """A cache in 8 bit."""
    if "fp8" not in str(facts.settings.get("kv_dtype", "")):
        yield Change(
            label="--kv-cache-dtype fp8",
            risk="medium",
            options={"kv_dtype": "fp8"},
            needs_share=0.5,
            note="check quality first",
        )


def fewer_requests(facts: Facts) -> Iterator[Change]:
    """Fewer sequences in a step: logits, sampler, graphs and states shrink."""
    now = facts.integer("max_num_seqs") or _told_requests(facts)
    for fewer in (256, 64):
        if now is None or fewer < now:
            yield Change(
                label=f"--max-num-seqs {fewer}",
                risk="low",
                options={"max_num_seqs": str(fewer)},
                note=f"from {now:,}" if now else "",
            )
            return
    if now and now > 8:
        yield Change(label=f"--max-num-seqs {now // 2}", risk="low", options={"max_num_seqs": str(now // 2)})


def _told_requests(facts: Facts) -> int | None:
    number = facts.seen.high("vllm_sampler", "requests")
    return int(number) if number else None


def smaller_steps(facts: Facts) -> Iterator[Change]:
    """Fewer tokens in a step: activations shrink."""
    now = facts.integer("max_num_batched_tokens")
    for fewer in (8192, 2048):
        if now is not None and fewer < now:
            yield _step(fewer, f"from {now:,}")
            return
    if now is None and release(facts) >= (0, 8, 0):
        yield _step(2048, "")
    elif now is None:
        return  # the whole context is a step there: see `chunked`
    elif now > 1024:
        yield _step(now // 2, f"from {now:,}")


def _step(number: int, note: str) -> Change:
    return Change(
        label=f"--max-num-batched-tokens {number}",
        risk="low",
        options={"max_num_batched_tokens": str(number), "chunked_prefill": True},
        note=note or "with chunked prefill",
    )


def chunked(facts: Facts) -> Iterator[Change]:
    """Long prompts in pieces, where the release does not do so by itself."""
    if release(facts) < (0, 8, 0):
        yield Change(
            label="--enable-chunked-prefill --max-num-batched-tokens 2048",
            risk="low",
            options={"chunked_prefill": True, "max_num_batched_tokens": "2048"},
            note="else a step takes the whole context at once",
        )


def no_graphs(facts: Facts) -> Iterator[Change]:
    """No CUDA graphs at all, or fewer of them."""
    if facts.settings.get("eager") is True:
        return
    if release(facts) >= (0, 11, 2):
        yield Change(label="--max-cudagraph-capture-size 64", risk="low", note="larger batches then run without graphs")
    elif release(facts) >= (0, 8, 0):
        yield Change(label="--compilation-config '{\"cudagraph_capture_sizes\": [1, 2, 4, 8, 16, 32, 64]}'", risk="low")
    yield Change(label="--enforce-eager", risk="medium", options={"eager": True}, note="slower decoding")


def more_gpus(facts: Facts) -> Iterator[Change]:
    """Twice the tensor-parallel ranks, and again up to those of one machine."""
    ranks = facts.integer("tp") or 1
    for times, said in ((2, "twice"), (4, "four times"), (8, "eight times")):
        if times * ranks <= 8 or (times == 2 and ranks < 8):
            yield Change(
                label=f"--tensor-parallel-size {times * ranks}",
                risk="medium",
                options={"tp": times * ranks},
                note=f"{said} the GPUs",
                ladder="gpus",
            )


def narrower_weights(facts: Facts) -> Iterator[Change]:
    """A checkpoint with narrower weights."""
    if not facts.settings.get("quantization"):
        yield Change(
            label="a checkpoint in 4 bit (AWQ or GPTQ)",
            risk="medium",
            options={"quant": "awq-int4-g128"},
            note="check quality first: memplan quantize",
        )


def offloaded(facts: Facts) -> Iterator[Change]:
    """Part of the weights in host memory."""
    total = oom_total(facts) or facts.total_bytes
    part = max(4, round((total or 16 * GIB) / GIB / 4))
    yield Change(
        label=f"--cpu-offload-gb {part}",
        risk="high",
        options={"cpu_offload": f"{part}GiB"},
        note="every step reads them over the bus: slow",
    )


def text_only(facts: Facts) -> Iterator[Change]:
    """No media, or fewer, where profiling makes room for them."""
    if "vllm_media" in facts.seen:
        form = '\'{"image": 1, "video": 0}\'' if release(facts) >= (0, 8, 5) else "image=1"
        yield Change(
            label=f"--limit-mm-per-prompt {form}",
            risk="low",
            options={"limit_mm": "image=1,video=0"},
            note="profiling runs as many media as are allowed",
        )


def end_others(facts: Facts) -> Iterator[Change]:
    """Whoever else holds the GPU."""
    pids = [str(each.pid) for each in facts.scanned.processes][:4]
    which = f" (process {', '.join(pids)})" if pids else ""
    room = facts.others_bytes or facts.initial_bytes
    if not room and facts.total_bytes and facts.free_bytes:
        room = facts.total_bytes - facts.free_bytes
    yield Change(
        label=f"end what else runs on the GPU{which}: nvidia-smi shows it",
        risk="none",
        room_bytes=room,
        cures=True,
    )
