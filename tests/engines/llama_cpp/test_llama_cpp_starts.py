"""Buffers as published logs print them, from the catalogue's facts alone."""

from __future__ import annotations

import pytest
from llama_cpp_starts import STARTS, Start

from memplan.catalog.gpus import find_gpu
from memplan.domain.budget import MemoryBudget
from memplan.domain.serving import ParallelLayout, ServingSettings
from memplan.engines.llama_cpp.engine import LLAMA_CPP
from memplan.introspect.resolve import resolve_model
from memplan.pipeline import with_scheme
from memplan.units import MIB


def _budget(start: Start) -> MemoryBudget:
    spec = resolve_model(start.model, revision=None, offline=True, introspect="auto")
    options = {"ctx_size": start.context, "parallel": 1, "n_gpu_layers": start.gpu_layers, **start.options}
    settings = ServingSettings(layout=ParallelLayout(tensor=start.num_gpus), engine_options=options)
    return LLAMA_CPP.estimate(with_scheme(spec, f"gguf:{start.mix}"), find_gpu(start.gpu), settings, start.build)


def _devices(budget: MemoryBudget, key: str) -> list[float]:
    devices = budget.extra["devices"]
    assert isinstance(devices, list)
    return [device[key] / MIB for device in devices]


def _host(budget: MemoryBudget, name: str) -> float:
    lines = budget.extra["host_lines"]
    assert isinstance(lines, list)
    return sum(line["bytes"] for line in lines if line["name"] == name) / MIB


@pytest.mark.parametrize("start", STARTS, ids=lambda start: start.name)
def test_weights_lie_where_the_log_says(start: Start) -> None:
    budget = _budget(start)
    predicted = [*_devices(budget, "weights_bytes"), _host(budget, "weights on the host")]
    # Files from before April 2025 have a latent's up-projection in one piece.
    assert predicted == pytest.approx(start.weights, rel=4e-4 if "latents" in start.source else 5e-5, abs=0.02)


@pytest.mark.parametrize("start", STARTS, ids=lambda start: start.name)
def test_the_cache_is_exact(start: Start) -> None:
    budget = _budget(start)
    predicted = sum(_devices(budget, "kv_cache_bytes")) + _host(budget, "KV cache on the host")
    assert predicted == pytest.approx(start.cache, abs=0.005)


@pytest.mark.parametrize("start", STARTS, ids=lambda start: start.name)
def test_compute_buffers_are_those_of_the_log(start: Start) -> None:
    budget = _budget(start)
    predicted = [*_devices(budget, "compute_bytes"), _host(budget, "compute buffer on the host")]
    assert predicted == pytest.approx(start.compute, rel=0.006, abs=0.02)
