"""A simulation as one JSON object, `memplan.simulation/1`. Its schema is docs/schemas/memplan.simulation.json."""

from __future__ import annotations

from collections.abc import Sequence

from memplan.domain.simulated import SimulatedSetup, SimulationAnswer
from memplan.domain.simulation import Percentiles, Series, SimulationResult, SimulationSettings
from memplan.report import simulation_words as words
from memplan.report.json_report import dump

_MOST_POINTS = 500
_COUNTS = (
    *("requests", "finished", "rejected", "unfinished", "steps", "preemptions", "swaps", "prompt_tokens"),
    *("output_tokens", "computed_prompt_tokens", "recomputed_tokens", "cached_tokens", "copied_blocks"),
    *("most_running", "most_waiting", "most_blocks"),
)
_WASTE = ("tokens", "internal", "reserved", "external", "cached", "free", "shared")
_TIMES = ("mean", "p50", "p90", "p95", "p99", "longest")
_SERIES = ("time_s", "used_blocks", "cached_blocks", "tokens", "running", "waiting", "preemptions")
_SETTINGS = (
    *("num_blocks", "context_tokens", "max_num_seqs", "max_num_batched_tokens", "batching", "allocation", "reserve"),
    *("async_scheduling", "chunked_prefill", "prefix_caching", "watermark_fraction", "max_queue", "preemption"),
    *("host_blocks", "replicas", "routing", "prefill_replicas"),
)


def simulation_json(answer: SimulationAnswer) -> str:
    """Return the whole answer."""
    traffic, promise = answer.traffic, answer.promise
    content: dict[str, object] = {
        "schema": "memplan.simulation/1",
        "model": {"name": answer.model_name, "parameters": answer.parameters},
        "traffic": {
            "source": traffic.source,
            "requests": traffic.requests,
            "requests_per_s": traffic.requests_per_s,
            "mean_prompt_tokens": round(traffic.mean_prompt_tokens, 3),
            "p95_prompt_tokens": traffic.p95_prompt_tokens,
            "mean_output_tokens": round(traffic.mean_output_tokens, 3),
            "p95_output_tokens": traffic.p95_output_tokens,
            "seed": traffic.seed,
        },
        "limits": {"max_ttft_s": promise.max_ttft_s, "max_tpot_s": promise.max_tpot_s, "share": promise.share},
        "setups": [_setup(setup) for setup in answer.setups],
        "least": _setup(answer.least) if answer.least is not None else None,
        "notes": words.notes(answer),
    }
    return dump(content)


def _setup(setup: SimulatedSetup) -> dict[str, object]:
    budget, result = setup.budget, setup.result
    return {
        "name": setup.name,
        "options": setup.options,
        "gpu": {"name": budget.gpu_name, "count": setup.num_gpus, "memory_bytes": budget.gpu_memory_bytes},
        "usd_per_hour": setup.usd_per_hour,
        "engine": {"name": budget.engine_name, "version": budget.engine_version},
        "verdict": budget.verdict,
        "settings": _settings(result.settings),
        "counts": {name: getattr(result.counts, name) for name in _COUNTS},
        "cache": {name: round(getattr(result.waste, name), 6) for name in _WASTE},
        "ttft_s": _percentiles(result.ttft),
        "tpot_s": _percentiles(result.tpot),
        "end_to_end_s": _percentiles(result.end_to_end),
        "queued_s": _percentiles(result.queued),
        "duration_s": result.duration_s,
        "busy_s": result.busy_s,
        "requests_per_s": result.requests_per_s,
        "output_tokens_per_s": result.output_tokens_per_s,
        "goodput": {"requests_per_s": setup.goodput.requests_per_s, "share": setup.goodput.share},
        "keeps_limits": setup.keeps,
        "series": _series(result),
    }


def _settings(settings: SimulationSettings) -> dict[str, object]:
    groups = [
        {"block_tokens": each.block_tokens, "window_tokens": each.window_tokens, "chunk_tokens": each.chunk_tokens}
        for each in settings.groups
    ]
    return {**{name: getattr(settings, name) for name in _SETTINGS}, "groups": groups}


def _percentiles(found: Percentiles | None) -> dict[str, float] | None:
    return None if found is None else {name: getattr(found, name) for name in _TIMES}


def _series(result: SimulationResult) -> dict[str, list[float]]:
    series: Series = result.series
    size = len(series.time_s)
    kept: Sequence[int] = range(size)
    if size > _MOST_POINTS:
        kept = [round(part * (size - 1) / (_MOST_POINTS - 1)) for part in range(_MOST_POINTS)]
    return {name: [getattr(series, name)[place] for place in kept] for name in _SERIES}
