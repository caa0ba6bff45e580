"""Recorded vLLM start-ups as questions to memplan.

A record is one JSON object a line: the model (`config` names a folder of configs, `model` the name as reported), the
settings that were printed (null: the engine's default), and in `truth` what the run logged per GPU, in GiB. A record
that names V0 and no release is asked for the newest release that had V0 by default. A drafter is not asked for:
records name it and not how its weights are stored.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from memplan.catalog.rules import load_rules
from memplan.cli.serving_options import parse_devices
from memplan.domain.budget import MemoryBudget
from memplan.domain.gpu import GpuSpec
from memplan.domain.model import ModelSpec
from memplan.domain.serving import ParallelLayout, ServingSettings, Workload
from memplan.engines.registry import load_engine
from memplan.pipeline import load_model, with_scheme
from memplan.units import GIB

Record = dict[str, Any]
UNKNOWN_GPU_GIB = 1000  # the run did not print its GPU: only terms that do not depend on it are compared
_NEWEST_V0 = "0.7.3"


@dataclass(frozen=True, kw_only=True)
class Question:
    """A record, ready to be estimated again and again."""

    record: Record
    spec: ModelSpec
    gpu: GpuSpec
    settings: ServingSettings

    def ask(self) -> MemoryBudget:
        """Return memplan's budget."""
        return load_engine("vllm").estimate(self.spec, self.gpu, self.settings, version_of(self.record))


def read_records(path: Path) -> list[Record]:
    """Read a file of records."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def question(record: Record, configs: Path) -> Question:
    """Turn a record into a question. Raises: MemplanError for a model or a setting that memplan does not take."""
    name = str(configs / record["config"] / "config.json") if record.get("config") else record["model"]
    spec = _model(name, record.get("quant"))
    memory = record.get("gpu_memory_gib")
    if not memory and not record.get("gpu_key"):
        memory = UNKNOWN_GPU_GIB
    device = parse_devices(record.get("gpu_key"), memory=f"{memory}GiB" if memory else None, free=None)[0]
    kv_dtype = (record.get("kv_dtype") or "auto").split()[0].rstrip("?")
    settings = ServingSettings(
        layout=_layout(record),
        workload=Workload(context_tokens=record.get("max_model_len")),
        dtype=record.get("dtype"),
        kv_dtype=None if kv_dtype == "auto" else kv_dtype,
        max_num_seqs=record.get("max_num_seqs"),
        max_num_batched_tokens=record.get("max_num_batched_tokens"),
        block_size=record.get("block_size"),
        gpu_memory_utilization=record.get("gpu_memory_utilization"),
        eager=record.get("eager") or None,
        chunked_prefill=record.get("chunked_prefill"),
        prefix_caching=record.get("prefix_caching"),
        media_per_prompt=record.get("limit_mm"),
        language_model_only=bool(record.get("language_model_only")),
        offline_batch=bool(record.get("offline")),
        engine_options=_options(record),
    )
    return Question(record=record, spec=spec, gpu=device.gpu, settings=settings)


def version_of(record: Record) -> str | None:
    """The release that is asked for."""
    version = record.get("version")
    return version or (_NEWEST_V0 if record.get("engine_generation") == "V0" else None)


def _layout(record: Record) -> ParallelLayout:
    tensor, pipeline = record.get("tp") or 1, record.get("pp") or 1
    return ParallelLayout(tensor=tensor, pipeline=pipeline, data=record.get("dp") or 1, expert=bool(record.get("ep")))


def _options(record: Record) -> dict[str, object]:
    """What the run chose by environment variables, where its release had a choice."""
    options: dict[str, object] = {}
    if record.get("flashinfer_sampler") is not None:
        options["flashinfer_sampler"] = record["flashinfer_sampler"]
    if record.get("model_runner"):
        options["v2_model_runner"] = record["model_runner"] == "V2"
    release = load_rules("vllm", version_of(record))
    if record.get("engine_generation") == "V0" and release["generation"] == "mixed":
        options["use_v1"] = False
    return options


@lru_cache(maxsize=256)
def _model(name: str, scheme: str | None) -> ModelSpec:
    return with_scheme(load_model(name, revision=None, offline=True, introspect="auto"), scheme)


def real_kv_gib(record: Record, budget: MemoryBudget) -> float | None:
    """The real cache in GiB: as printed, else from the printed tokens or blocks by memplan's bytes for one of them."""
    truth, predicted = record["truth"], budget.group_bytes("kv_cache") / GIB
    if truth.get("kv_cache_gib"):
        return float(truth["kv_cache_gib"])
    for key, ours in (("kv_cache_tokens", budget.kv.capacity_tokens), ("kv_blocks", budget.kv.blocks)):
        if truth.get(key) and ours:
            return predicted * float(truth[key]) / ours
    return None
