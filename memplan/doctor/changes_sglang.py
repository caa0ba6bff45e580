"""What can be changed under SGLang: the fraction goes up for a cache that has no room, and down for what lies
outside of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from memplan.doctor import changes as vllm
from memplan.doctor.changes import Change, Changes, release
from memplan.doctor.facts import Facts, oom_free, oom_total
from memplan.units import GIB


def _fraction(facts: Facts, step: float) -> float | None:
    now = facts.share("mem_fraction_static")
    return None if now is None else round(min(0.97, max(0.1, now + step)), 2)


def _raise_fraction(facts: Facts) -> Iterator[Change]:
    total = facts.initial_bytes
    step = 0.05
    if total and facts.weights_bytes and (now := facts.share("mem_fraction_static")):
        step = max(step, round((facts.weights_bytes + 2 * GIB) / total - now, 2))
    new = _fraction(facts, step)
    yield Change(
        label=f"--mem-fraction-static {new:.2f}" if new else "--mem-fraction-static: a larger value",
        risk="low" if not new or new <= 0.92 else "medium",
        options={"set": [f"mem_fraction_static={new}"]} if new else {},
        room_bytes=int(step * total) if total and new else None,
        cures=None,
        note="RAISE it: the static part holds weights and cache",
    )


def _lower_fraction(facts: Facts) -> Iterator[Change]:
    total, wanted = oom_total(facts) or facts.initial_bytes, facts.wanted_bytes or 0
    missing = max(0, wanted - (oom_free(facts) or 0)) + GIB // 2
    step = max(0.03, round(missing / total, 2)) if total else 0.05
    new = _fraction(facts, -step)
    yield Change(
        label=f"--mem-fraction-static {new:.2f}" if new else "--mem-fraction-static: a smaller value",
        risk="low",
        options={"set": [f"mem_fraction_static={new}"]} if new else {},
        room_bytes=int(step * total) if total else None,
        cures=True if total and wanted else None,
        note="LOWER it: what failed lies outside of the static part",
    )


def _fewer_graphs(facts: Facts) -> Iterator[Change]:
    name = "--cuda-graph-max-bs-decode" if release(facts) >= (0, 5, 14) else "--cuda-graph-max-bs"
    yield Change(label=f"{name} 16", risk="low", note="larger batches then run without graphs")
    off = "--cuda-graph-backend-decode disabled" if release(facts) >= (0, 5, 20) else "--disable-cuda-graph"
    yield Change(label=off, risk="medium", note="slower decoding")


def _smaller_chunks(facts: Facts) -> Iterator[Change]:
    now = facts.integer("chunked_prefill_size")
    new = max(512, now // 2) if now and now > 512 else 2048
    yield Change(
        label=f"--chunked-prefill-size {new}",
        risk="low",
        options={"set": [f"chunked_prefill_size={new}"]},
        note=f"from {now:,}" if now else "",
    )


def _fewer_running(facts: Facts) -> Iterator[Change]:
    tokens, now = facts.kv_tokens, facts.integer("max_running_requests")
    new = max(1, min(now // 2 if now else 256, max(1, tokens // 2048) if tokens else 256))
    yield Change(label=f"--max-running-requests {new}", risk="low", options={"set": [f"max_running_requests={new}"]})


def _conservative(facts: Facts) -> Iterator[Change]:
    yield Change(label="--schedule-conservativeness 1.3", risk="low", note="admits as if answers were longer")


def _small_cache_sglang(facts: Facts) -> Iterator[Change]:
    if "fp8" not in str(facts.settings.get("kv_dtype", "")):
        yield Change(
            label="--kv-cache-dtype fp8_e5m2",
            risk="medium",
            options={"kv_dtype": "fp8"},
            needs_share=0.5,
            note="check quality first",
        )


def _ranks_sglang(facts: Facts) -> Iterator[Change]:
    ranks = facts.integer("tp") or 1
    if ranks < 8:
        yield Change(label=f"--tp-size {2 * ranks}", risk="low", options={"tp": 2 * ranks}, note="twice the GPUs")


CHANGES: Mapping[str, tuple[Changes, ...]] = {
    "no_kv_blocks": (_raise_fraction, _small_cache_sglang, _ranks_sglang, vllm.narrower_weights),
    "cuda_graph_oom": (_lower_fraction, _fewer_graphs),
    "runtime_oom": (_lower_fraction, _smaller_chunks, _fewer_running),
    "kv_pool_exhausted": (_fewer_running, _conservative, _raise_fraction, _small_cache_sglang),
    "preemption": (_conservative, _fewer_running, _raise_fraction, _small_cache_sglang),
    "weights_oom": (_ranks_sglang, vllm.narrower_weights),
    "other_process": (vllm.end_others,),
}
