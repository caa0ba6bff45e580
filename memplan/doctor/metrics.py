"""A server's own figures, as Prometheus reads them: how full its cache is, what waited, what was computed twice.

Only what is needed is read, line by line: a name, its labels, a number. Two scrapes give rates and drift.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from memplan.doctor.secrets import redact
from memplan.records import dataclass, field

_LINE = re.compile(
    r"([a-zA-Z_:][\w:]{0,200})(?:\{([^\n]{0,4000})\})? ([-+]?(?:[\d.]+(?:[eE][-+]?\d+)?|NaN|Inf|inf))(?: \d+)?\s*$"
)
_LABEL = re.compile(r'(\w{1,100})="((?:[^"\\]|\\.){0,400})"')
_ENGINES = (
    ("vllm:", "vllm"),
    ("sglang:", "sglang"),
    ("sglang_", "sglang"),
    ("trtllm_", "tensorrt-llm"),
    ("nv_trt_llm_", "tensorrt-llm"),
    ("llamacpp:", "llama.cpp"),
    ("tgi_", "tgi"),
)
# Triton has one name for several figures: which of them it is stands in a label.
_TOLD_BY_LABEL = {
    "nv_trt_llm_request_metrics": "request_type",
    "nv_trt_llm_kv_cache_block_metrics": "kv_cache_block_type",
}
# Names by engine, older ones last; each is what it means. Source: catalog/engine_metrics.yaml; sglang's
# observability/metrics_collector.py at v0.5.23 and metrics/collector.py before; trtllm-serve's metrics/collector.py and
# Triton's backend of TensorRT-LLM; server-task.cpp of llama.cpp; TGI's reference of metrics.
_NAMES: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "vllm": {
        "usage": ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"),
        "preemptions": ("vllm:num_preemptions_total", "vllm:num_preemptions"),
        "running": ("vllm:num_requests_running",),
        "waiting": ("vllm:num_requests_waiting",),
        "prompt_tokens": ("vllm:prompt_tokens_total",),
        "output_tokens": ("vllm:generation_tokens_total",),
        "hits": ("vllm:prefix_cache_hits_total", "vllm:gpu_prefix_cache_hits_total"),
        "queries": ("vllm:prefix_cache_queries_total", "vllm:gpu_prefix_cache_queries_total"),
        "queue_sum": ("vllm:request_queue_time_seconds_sum",),
        "queue_count": ("vllm:request_queue_time_seconds_count",),
        "finished": ("vllm:request_success_total",),
    },
    "sglang": {
        "usage": ("sglang:token_usage",),
        "preemptions": ("sglang:num_retracted_requests_total",),
        "put_back_now": ("sglang:num_retracted_reqs",),
        "running": ("sglang:num_running_reqs",),
        "waiting": ("sglang:num_queue_reqs",),
        "capacity": ("sglang:max_total_num_tokens",),
        "blocks": ("sglang:num_pages",),
        "block_tokens": ("sglang:page_size",),
        "queue_sum": ("sglang:queue_time_seconds_sum",),
        "queue_count": ("sglang:queue_time_seconds_count",),
        "finished": ("sglang:num_requests_total",),
        "prompt_tokens": ("sglang:prompt_tokens_total",),
        "output_tokens": ("sglang:generation_tokens_total",),
    },
    "tensorrt-llm": {
        "usage": ("trtllm_kv_cache_utilization", "nv_trt_llm_kv_cache_block_metrics{fraction}"),
        "running": ("trtllm_num_requests_running", "nv_trt_llm_request_metrics{scheduled}"),
        "waiting": ("trtllm_num_requests_waiting", "nv_trt_llm_request_metrics{waiting}"),
        "blocks": ("trtllm_kv_cache_max_blocks", "nv_trt_llm_kv_cache_block_metrics{max}"),
        "block_tokens": ("trtllm_kv_cache_tokens_per_block", "nv_trt_llm_kv_cache_block_metrics{tokens_per}"),
        "prompt_tokens": ("trtllm_prompt_tokens_total",),
        "output_tokens": ("trtllm_generation_tokens_total",),
        "queue_sum": ("trtllm_request_queue_time_seconds_sum",),
        "queue_count": ("trtllm_request_queue_time_seconds_count",),
        "finished": ("trtllm_request_success_total",),
    },
    "tgi": {
        "running": ("tgi_batch_current_size",),
        "waiting": ("tgi_queue_size",),
        "prompt_tokens": ("tgi_request_input_length_sum",),
        "output_tokens": ("tgi_request_generated_tokens_sum",),
        "queue_sum": ("tgi_request_queue_duration_sum",),
        "queue_count": ("tgi_request_queue_duration_count",),
        "finished": ("tgi_request_success",),
    },
    "llama.cpp": {
        "usage": ("llamacpp:kv_cache_usage_ratio",),
        "running": ("llamacpp:requests_processing",),
        "waiting": ("llamacpp:requests_deferred",),
        "output_tokens": ("llamacpp:tokens_predicted_total",),
        "prompt_tokens": ("llamacpp:prompt_tokens_total",),
    },
}
_COUNTERS = ("preemptions", "prompt_tokens", "output_tokens", "hits", "queries", "queue_sum", "queue_count", "finished")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scrape:
    """One look at a server. `values` are by meaning: counters summed over labels, gauges the fullest replica's.

    `info` holds the labels of cache_config_info: block size, number of blocks, cache type.
    """

    engine: str | None
    model: str | None = None
    values: Mapping[str, float] = field(default_factory=dict)
    info: Mapping[str, str] = field(default_factory=dict)
    process_bytes: int | None = None
    num_lines: int = 0

    def get(self, meaning: str) -> float | None:
        """A figure by its meaning; None where the server does not export it."""
        return self.values.get(meaning)

    @property
    def capacity_tokens(self) -> int | None:
        """What the cache holds, as the server says it: outright, else its blocks times their size."""
        told = _whole(self.info.get("kv_cache_size_tokens")) or _whole(self.values.get("capacity"))
        if told:
            return told
        blocks, block = self.blocks, self.block_tokens
        return blocks * block if blocks and block else None

    @property
    def blocks(self) -> int | None:
        """How many blocks the cache really has."""
        return _whole(self.info.get("num_gpu_blocks", self.info.get("num_pages", self.values.get("blocks"))))

    @property
    def block_tokens(self) -> int | None:
        """Tokens of a block."""
        return _whole(self.info.get("block_size", self.info.get("page_size", self.values.get("block_tokens"))))


def read_metrics(lines: Iterator[str]) -> Scrape:
    """Return what a page of metrics says; lines that are none are passed over."""
    engine: str | None = None
    model: str | None = None
    raw: dict[str, list[float]] = {}
    info: dict[str, str] = {}
    process: float | None = None
    count = 0
    for line in lines:
        count += 1
        match = _LINE.match(line) if not line.startswith("#") else None
        if match is None:
            continue
        name, labels, text = match[1], match[2] or "", match[3]
        engine = engine or next((owner for prefix, owner in _ENGINES if name.startswith(prefix)), None)
        if name.endswith("cache_config_info") and not info:
            info = {key: redact(value) for key, value in _LABEL.findall(labels)}
        if model is None and (found := re.search(r'model_name="([^"]{1,200})"', labels)):
            model = redact(found[1])
        if name == "process_resident_memory_bytes":
            process = _float(text)
        if (label := _TOLD_BY_LABEL.get(name)) is not None:
            name = f"{name}{{{dict(_LABEL.findall(labels)).get(label, '')}}}"
        number = _float(text)
        if number is not None and name in _WANTED:
            raw.setdefault(name, []).append(number)
    values = _meant(engine, raw)
    return Scrape(
        engine=engine,
        model=model,
        values=values,
        info=info,
        process_bytes=None if process is None else int(process),
        num_lines=count,
    )


_WANTED = frozenset(name for names in _NAMES.values() for group in names.values() for name in group)


def _meant(engine: str | None, raw: Mapping[str, list[float]]) -> dict[str, float]:
    values: dict[str, float] = {}
    for meaning, names in _NAMES.get(engine or "", {}).items():
        figures = next((raw[name] for name in names if name in raw), None)
        if figures:
            values[meaning] = sum(figures) if meaning in (*_COUNTERS, "running", "waiting") else max(figures)
    return values


def _float(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if abs(number) < 1e30 else None


def _whole(value: str | float | None) -> int | None:
    if value is None:
        return None
    number = _float(str(value))
    return int(number) if number is not None and number > 0 else None
