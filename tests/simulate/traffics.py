"""Traffic and settings as hypothesis draws them: small pools, so that everything happens."""

from __future__ import annotations

from array import array

from hypothesis import strategies as st

from memplan.domain.simulation import CacheGroup, EqualSteps, MeasuredSteps, ModelledSteps, SimulationSettings, Traffic

_MODELLED = ModelledSteps(
    tokens=(1, 8, 64, 512),
    pass_s=(0.004, 0.005, 0.006, 0.03),
    positions=(0, 40, 200, 4000),
    decode_s=(0.0, 1e-6, 7e-6, 2e-4),
    prompt_s=(0.0, 1e-5, 9e-5, 3e-3),
    sequence_s=2e-6,
)
_MEASURED = MeasuredSteps(
    decode_points=((1, 0, 0.01), (1, 100, 0.012), (8, 0, 0.011), (8, 100, 0.02)),
    prefill_points=((16, 0.02), (128, 0.09)),
)
_WITH_REQUEST = ModelledSteps(
    tokens=(1, 64), pass_s=(0.004, 0.006), positions=(0, 100), decode_s=(0, 1e-6), prompt_s=(0, 1e-5), request_s=0.003
)
STEPS = st.sampled_from([EqualSteps(), _MODELLED, _MEASURED, _WITH_REQUEST])


@st.composite
def traffics(draw: st.DrawFn, *, most: int = 24, closed: bool = True) -> Traffic:
    """A few requests, some with prompts in common, some of one talk, some after others."""
    count = draw(st.one_of(st.integers(1, most), st.just(most)))
    pace = draw(st.sampled_from([0.0, 0.01, 0.01, 0.1, 2.0]))
    arrivals = [draw(st.integers(0, 50)) * pace for _ in range(count)]
    streams = draw(st.booleans())
    prefixes = (((1, 13),), ((1, 13), (2, 20)), ((3, 37),))
    columns: dict[str, list[int]] = {name: [] for name in ("prompt", "output", "prefix", "stream", "follows")}
    for index in range(count):
        columns["prompt"].append(draw(st.integers(1, 70)))
        columns["output"].append(draw(st.one_of(st.integers(1, 4), st.integers(1, 90))))
        columns["prefix"].append(draw(st.integers(-1, 2)))
        columns["stream"].append(draw(st.integers(-1, 2)) if streams else -1)
        columns["follows"].append(draw(st.integers(-1, index - 1)) if closed and index and index % 3 == 0 else -1)
    return Traffic(
        arrivals=array("d", arrivals),
        prompt_tokens=array("q", columns["prompt"]),
        output_tokens=array("q", columns["output"]),
        prefixes=prefixes,
        prefix_of=array("q", columns["prefix"]),
        stream_of=array("q", columns["stream"]),
        follows=array("q", columns["follows"]),
    )


@st.composite
def settings(draw: st.DrawFn, *, plain: bool = False) -> SimulationSettings:
    """Settings of one group of layers that keep everything (`plain`), or anything that the simulation knows."""
    block = draw(st.sampled_from([1, 4, 16]))
    seqs = draw(st.integers(2, 12))
    common = {
        "num_blocks": draw(st.integers(160 // block, 400 // block)),
        "context_tokens": draw(st.sampled_from([120, 160, 1000])),
        "max_num_seqs": seqs,
        "max_num_batched_tokens": draw(st.integers(seqs, 80)),
        "prefix_caching": draw(st.booleans()),
        "chunked_prefill": draw(st.booleans()),
        "watermark_fraction": draw(st.sampled_from([0.0, 0.05, 0.2])),
        "reserve_prompt": draw(st.booleans()),
        "max_queue": draw(st.sampled_from([None, None, 3])),
        "replicas": draw(st.sampled_from([1, 1, 1, 2, 3])),
        "routing": draw(st.sampled_from(["round-robin", "least-loaded", "kv-aware"])),
        "prefill_replicas": draw(st.sampled_from([0, 0, 0, 1, 2])),
        "transfer_s": draw(st.sampled_from([0.0, 1e-4])),
        "steps": draw(STEPS),
        "max_points": draw(st.sampled_from([1, 5, 1000])),
    }
    full = CacheGroup(block_tokens=block)
    if plain:
        return SimulationSettings(groups=(full,), async_scheduling=draw(st.booleans()), **common)
    window = CacheGroup(block_tokens=block, window_tokens=draw(st.integers(2, 60)))
    chunk = CacheGroup(block_tokens=block, chunk_tokens=block * draw(st.integers(1, 5)))
    kinds = [(full,), (window,), (full, window), (full, full), (window, full, window), (chunk,)]
    groups = draw(st.sampled_from(kinds))
    ways = {
        "batching": draw(st.sampled_from(["continuous", "continuous", "static"])),
        "allocation": draw(st.sampled_from(["paged", "paged", "contiguous"])),
        "preemption": draw(st.sampled_from(["recompute", "swap"])),
    }
    is_vllm = list(ways.values()) == ["continuous", "paged", "recompute"]
    return SimulationSettings(
        groups=groups,
        partial_reuse=groups == (full,) and draw(st.booleans()),
        async_scheduling=is_vllm and draw(st.booleans()),
        reserve=draw(st.sampled_from(["longest", "power", "exact"])),
        long_prefill_tokens=draw(st.sampled_from([0, 0, 10])),
        **ways,
        host_blocks=draw(st.integers(0, 100)),
        swap_s=draw(st.sampled_from([0.0, 1e-4])),
        window_retention_tokens=draw(st.sampled_from([0, None, block * 4])),
        **common,
    )
