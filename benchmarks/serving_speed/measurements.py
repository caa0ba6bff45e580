"""One published measurement as a question to the speed model: what a row of published.jsonl means.

A row names model, scheme, GPU, layout, lengths and concurrency as its source does. `metric` is what was measured:

    prompt_tokens_per_s      one prompt, read alone
    ttft_ms                  mean or median time to the first token
    generation_tokens_per_s  one sequence, without its prompt
    tpot_ms                  mean time of a token after the first
    latency_s                a whole batch, prompts and output
    output_tokens_per_s      output tokens of all requests, their prompts included in the time
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from memplan.budget.kv_cache import KvFormat, kv_format
from memplan.budget.speed import serving_speed
from memplan.catalog.efficiency import efficiency_from
from memplan.catalog.gpus import find_gpu
from memplan.domain.dtypes import DType, parse_compute_dtype
from memplan.domain.gpu import GpuSpec
from memplan.domain.model import ModelSpec
from memplan.domain.serving import ParallelLayout
from memplan.domain.speed import ServingSpeed, SpeedWorkload
from memplan.pipeline import load_model, with_scheme

PUBLISHED = Path(__file__).with_name("published.jsonl")
PHASES = ("prefill", "decode", "serving", "offload")
_PHASE_OF = {
    "prompt_tokens_per_s": "prefill",
    "ttft_ms": "prefill",
    "generation_tokens_per_s": "decode",
    "tpot_ms": "decode",
    "latency_s": "serving",
    "output_tokens_per_s": "serving",
}
# llama.cpp computes prompts 512 tokens at a time (its `ubatch`), the others as many as their step allows.
_BATCHED_TOKENS = {"llama.cpp": 512}


@dataclass(frozen=True)
class Measurement:
    """A row with everything that does not depend on efficiencies looked up."""

    row: Mapping[str, Any]
    spec: ModelSpec
    gpu: GpuSpec
    layout: ParallelLayout
    form: KvFormat
    dtype: DType
    workload: SpeedWorkload

    @property
    def phase(self) -> str:
        return "offload" if self.row.get("offload_bytes") else _PHASE_OF[self.row["metric"]]

    @property
    def group(self) -> tuple[str, ...]:
        """Rows that say much the same: one source, one model, one GPU, one scheme."""
        return (self.row["source"], self.row["model"], self.row["gpu"], self.row["quant"], self.row["engine"])

    def speed(self, table: Mapping[str, Any]) -> ServingSpeed:
        """The model's answer under a table of efficiencies."""
        return serving_speed(
            self.spec,
            self.gpu,
            self.layout,
            self.form,
            self.dtype,
            self.workload,
            efficiency_from(table, self.row["engine"], self.gpu),
            offload_bytes=int(self.row.get("offload_bytes", 0)),
            with_working=False,
        )

    def predicted(self, table: Mapping[str, Any]) -> float:
        """The predicted value, in the unit of the row's metric."""
        speed = self.speed(table)
        metric = self.row["metric"]
        if metric == "prompt_tokens_per_s":
            return self.workload.prompt_tokens / speed.ttft_s
        if metric == "ttft_ms":
            return speed.ttft_s * 1e3
        if metric == "generation_tokens_per_s":
            return 1.0 / speed.tpot_s
        if metric == "tpot_ms":
            return speed.tpot_s * 1e3
        if metric == "latency_s":
            return self.workload.concurrency / speed.request_per_s
        return speed.decode_tokens_per_s

    def error(self, table: Mapping[str, Any]) -> float:
        """log(predicted / measured): the same size for twice as much and half as much."""
        return math.log(self.predicted(table) / self.row["value"])


def read_measurements(path: Path = PUBLISHED) -> list[Measurement]:
    """Return every row of the file, with its model and GPU looked up."""
    return [measurement_of(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def measurement_of(row: Mapping[str, Any]) -> Measurement:
    """Look up what a row names."""
    spec = _spec(row["model"], row["quant"])
    dtype = parse_compute_dtype(row.get("dtype", "auto")) or spec.dtype
    return Measurement(
        row=row,
        spec=spec,
        gpu=_gpu(row["gpu"]),
        layout=ParallelLayout(tensor=row["tensor"], pipeline=row["pipeline"], expert=row["expert"]),
        form=kv_format(row["kv_dtype"], dtype),
        dtype=dtype,
        workload=SpeedWorkload(
            prompt_tokens=row["prompt_tokens"],
            output_tokens=row["output_tokens"],
            concurrency=row["concurrency"],
            arrival=row["arrival"],
            batched_tokens=_BATCHED_TOKENS.get(row["engine"], 8192),
        ),
    )


@lru_cache(maxsize=64)
def _spec(model: str, scheme: str) -> ModelSpec:
    spec = load_model(model, revision=None, offline=True, introspect="auto")
    return spec if spec.quantization == scheme or scheme == "none" else with_scheme(spec, scheme)


@lru_cache(maxsize=64)
def _gpu(name: str) -> GpuSpec:
    return find_gpu(name)
