"""A profile of a real device, rehearsed: passes run on the CPU, the device is the simulated allocator's."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers", minversion="5.0")

from memplan.domain.timeline import MemoryTimeline, PhaseMemory  # noqa: E402
from memplan.errors import MissingExtra, UsageError  # noqa: E402
from memplan.profile.device_memory import CudaMemory, RehearsedMemory  # noqa: E402
from memplan.profile.measured import measure  # noqa: E402
from memplan.profile.request import TRAINING, ProfileRequest  # noqa: E402
from memplan.profile.run import profile_model  # noqa: E402
from memplan.units import MIB  # noqa: E402


def request(**options: object) -> ProfileRequest:
    asked = {"model": "demo", "device": "cuda", "batch": 2, "prompt_tokens": 64, "output_tokens": 5, "offline": True}
    return ProfileRequest(**{**asked, **options})  # type: ignore[arg-type]


def phase(timeline: MemoryTimeline, name: str, iteration: int = 0) -> PhaseMemory:
    return next(each for each in timeline.phases if (each.phase, each.iteration) == (name, iteration))


def test_a_device_run_has_the_phases_and_categories_of_a_run_on_the_cpu() -> None:
    timeline, log = measure(request(), RehearsedMemory())
    real, _ = profile_model(request(device="cpu"))
    assert log is not None
    for name in ("load", "prefill", "decode"):
        found, expected = phase(timeline, name), phase(real, name)
        assert sum(found.by_category.values()) == found.peak.allocated_bytes
        assert found.peak_reserved_bytes >= found.peak.reserved_bytes >= found.peak.allocated_bytes
        assert found.after.allocated_bytes == pytest.approx(expected.after.allocated_bytes, rel=0.02)
    found, expected = phase(timeline, "decode"), phase(real, "decode")
    for category in ("weights", "kv_cache"):
        assert found.by_category[category] == pytest.approx(expected.by_category[category], rel=0.02)


def test_warm_up_is_run_and_not_shown_and_every_iteration_is_timed() -> None:
    timeline, _ = measure(request(warmup=1, iterations=2), RehearsedMemory())
    assert [(each.phase, each.iteration) for each in timeline.phases] == [
        ("load", 0),
        ("prefill", 0),
        ("decode", 0),
        ("prefill", 1),
        ("decode", 1),
    ]
    work = phase(timeline, "prefill", 1).work
    assert work is not None
    assert work.flops > 0
    assert work.seconds is not None
    assert work.seconds > 0


def test_a_training_step_on_a_device_tells_gradients_and_optimizer_state_apart() -> None:
    timeline, _ = measure(request(phases=TRAINING, iterations=2), RehearsedMemory())
    weights = phase(timeline, "load").after.allocated_bytes
    last = phase(timeline, "optimizer", 1)
    assert last.by_category["optimizer_state"] == pytest.approx(2 * weights, rel=0.1)
    assert last.by_category["gradients"] == pytest.approx(weights, rel=0.1)


@pytest.mark.parametrize(("capacity_bytes", "name"), [(4 * MIB, "load"), (60 * MIB, "prefill")])
def test_memory_that_runs_out_ends_the_profile_in_its_phase(capacity_bytes: int, name: str) -> None:
    memory = RehearsedMemory(capacity_bytes=capacity_bytes)
    timeline, _ = measure(request(batch=64, prompt_tokens=512), memory)
    assert timeline.out_of_memory is not None
    assert timeline.out_of_memory.phase == name
    assert timeline.out_of_memory.wanted_bytes > 0
    assert timeline.out_of_memory.capacity_bytes == capacity_bytes
    assert timeline.phases


def test_the_settings_of_the_allocator_are_those_of_the_request() -> None:
    usual, _ = measure(request(phases=("load",)), RehearsedMemory())
    expandable, _ = measure(request(phases=("load",)), RehearsedMemory("expandable_segments:True"))
    assert phase(expandable, "load").peak_reserved_bytes <= phase(usual, "load").peak_reserved_bytes


def test_a_recorder_stops_when_the_device_run_ends() -> None:
    memory = RehearsedMemory()
    measure(request(), memory)
    before = memory.level()
    torch.ones(1000)
    assert memory.level() == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so() -> None:
    with pytest.raises(MissingExtra, match="no GPU"):
        CudaMemory()
    with pytest.raises(MissingExtra, match="no GPU"):
        profile_model(request())


def test_paged_attention_is_not_measured() -> None:
    with pytest.raises(UsageError, match="simulated"):
        profile_model(request(attention="paged"))
