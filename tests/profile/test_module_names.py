"""Which module runs: of a device that keeps its own history as of one that is recorded."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers", minversion="5.0")

from memplan.domain.timeline import MemoryTimeline, PhaseMemory  # noqa: E402
from memplan.profile.attach import Attached  # noqa: E402
from memplan.profile.device_memory import RehearsedMemory  # noqa: E402
from memplan.profile.measured import measure  # noqa: E402
from memplan.profile.request import INFERENCE, TRAINING, ProfileRequest  # noqa: E402
from memplan.profile.run import profile_model  # noqa: E402


def request(**options: object) -> ProfileRequest:
    asked = {"model": "demo", "prompt_tokens": 64, "output_tokens": 4, "batch": 2, "offline": True}
    return ProfileRequest(**{**asked, **options})  # type: ignore[arg-type]


def phase(timeline: MemoryTimeline, name: str) -> PhaseMemory:
    return next(each for each in timeline.phases if each.phase == name)


@pytest.mark.parametrize(("phases", "options"), [(INFERENCE, {}), (TRAINING, {}), (TRAINING, {"checkpointing": True})])
def test_a_device_and_a_recorder_find_the_same_modules(phases: tuple[str, ...], options: dict[str, object]) -> None:
    on_device, _ = measure(request(device="cuda", phases=phases, **options), RehearsedMemory())
    recorded, _ = profile_model(request(device="cpu", phases=phases, **options))
    for name in set(phases) - {"load", "optimizer"}:  # a GPU's optimizer is another one
        found, expected = phase(on_device, name), phase(recorded, name)
        # To be told of the modules takes no memory.
        assert found.peak.requested_bytes == pytest.approx(expected.peak.allocated_bytes, rel=1e-4)
        apart = sum(
            abs(found.by_module.get(module, 0) - expected.by_module.get(module, 0))
            for module in {*found.by_module, *expected.by_module}
        )
        assert apart < 0.01 * expected.peak.allocated_bytes, name
        assert sum(found.by_module.values()) == found.peak.allocated_bytes


def test_weights_on_a_device_are_those_of_their_modules() -> None:
    timeline, _ = measure(request(device="cuda", phases=("load",)), RehearsedMemory())
    layers = [name for name in phase(timeline, "load").by_module if name.startswith("model.layers.")]
    assert len(layers) == 6


def test_a_program_on_a_device_has_modules_in_both_directions() -> None:
    with Attached("mine", memory=RehearsedMemory()) as recording:
        model = torch.nn.Sequential(torch.nn.Linear(256, 256), torch.nn.Tanh(), torch.nn.Linear(256, 256))
        model(torch.ones(8, 256)).sum().backward()
    assert recording.timeline is not None
    weights, outputs = 257 * 256 * 4, 8 * 256 * 4
    forward, backward = (phase(recording.timeline, name).by_module for name in ("forward", "backward"))
    assert forward["1"] == outputs
    assert forward["2"] == pytest.approx(weights + outputs, abs=1024)
    assert backward["0"] == backward["2"] == pytest.approx(2 * weights, abs=2048)


def test_what_names_modules_is_put_back() -> None:
    before = torch.nn.Module.__call__, torch.autograd.backward
    measure(request(device="cuda"), RehearsedMemory())
    assert (torch.nn.Module.__call__, torch.autograd.backward) == before
