"""Every model of the catalogue is answered by the engines that serve it, and none by a guess that has no lines."""

from __future__ import annotations

import pytest
from questions import gpu_of

from memplan.catalog.models import list_models
from memplan.domain.serving import ServingSettings
from memplan.engines.registry import load_engine
from memplan.introspect.resolve import resolve_model

MODELS = [model.name for model in list_models()]


@pytest.mark.parametrize("initial", sorted({name[0].lower() for name in MODELS}))
def test_every_model_has_weights_and_room_or_a_reason(initial: str) -> None:
    for name in MODELS:
        if name[0].lower() != initial:
            continue
        spec = resolve_model(name, offline=True)
        for engine in ("vllm", "sglang", "tensorrt-llm"):
            budget = load_engine(engine).estimate(spec, gpu_of("h200"), ServingSettings(), None)
            assert budget.group_bytes("weights") > 0.2 * spec.parameters, name
            assert budget.used_bytes == sum(line.size_bytes for line in budget.lines), name
            assert (budget.verdict == "fits") is not bool(budget.reasons), name
            assert budget.kv.needed_bytes > 0 or budget.kv.capacity_tokens is None, name
