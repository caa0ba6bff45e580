"""Which devices an engine answers for, and what every answer repeats of how names were taken."""

from __future__ import annotations

import pytest

from memplan.catalog.gpus import find_gpu
from memplan.domain.gpu import GpuSpec
from memplan.domain.serving import ServingSettings, Workload
from memplan.engines.hardware import RUNS_ON
from memplan.engines.registry import ENGINES, load_engine
from memplan.errors import UsageError
from memplan.introspect.resolve import resolve_model
from memplan.records import replace

VENDORS = {
    "nvidia": find_gpu("h100"),
    "amd": find_gpu("mi300x"),
    "intel": find_gpu("max-1550"),
    "apple": find_gpu("m4-max"),
    "google": find_gpu("tpu-v5e"),
    "aws": find_gpu("trainium2"),
}
SETTINGS = ServingSettings(workload=Workload(context_tokens=2048))


def budget(engine: str, gpu: GpuSpec, model: str = "Qwen/Qwen3-0.6B") -> tuple[str, ...]:
    return load_engine(engine).estimate(resolve_model(model, offline=True), gpu, SETTINGS, None).warnings


@pytest.mark.parametrize("vendor", VENDORS)
@pytest.mark.parametrize("engine", ENGINES)
def test_an_engine_answers_for_the_devices_it_runs_on_and_refuses_others_in_one_line(engine: str, vendor: str) -> None:
    gpu = VENDORS[vendor]
    assert gpu.vendor == vendor
    if vendor in RUNS_ON[engine]:
        budget(engine, gpu)
        return
    with pytest.raises(UsageError, match=f"does not run on {gpu.name}$") as caught:
        budget(engine, gpu)
    others = [name for name, vendors in RUNS_ON.items() if vendor in vendors]
    assert all(f"--engine {name}" in caught.value.hint for name in others)
    assert engine not in caught.value.hint.split()


@pytest.mark.parametrize("engine", ENGINES)
def test_every_answer_says_how_the_names_of_model_and_gpu_were_taken(engine: str) -> None:
    gpu = replace(VENDORS["nvidia"], resolved_note="h: taken as h100")
    warnings = budget(engine, gpu, "llama-1b")
    assert sum(warning.startswith("llama-1b: taken as ") for warning in warnings) == 1
    assert warnings.count("h: taken as h100") == 1
