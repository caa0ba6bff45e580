"""A decoding step in a CUDA graph: what the graph keeps, and what a graph cannot hold."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers", minversion="5.0")

from memplan.domain.timeline import Capture, CaptureBreak, MemoryTimeline, PhaseMemory  # noqa: E402
from memplan.errors import UnsupportedModel, UsageError  # noqa: E402
from memplan.profile.device_memory import RehearsedMemory  # noqa: E402
from memplan.profile.findings import find  # noqa: E402
from memplan.profile.measured import measure  # noqa: E402
from memplan.profile.request import ProfileRequest  # noqa: E402
from memplan.profile.run import profile_model  # noqa: E402
from memplan.profile.step_watch import StepWatch, as_if_capturing, growing, merged  # noqa: E402
from memplan.units import KIB, MIB  # noqa: E402

T5 = {
    "model_type": "t5",
    "architectures": ["T5ForConditionalGeneration"],
    "d_model": 64,
    "d_kv": 16,
    "d_ff": 128,
    "num_layers": 1,
    "num_heads": 4,
    "vocab_size": 512,
    "decoder_start_token_id": 0,
    "pad_token_id": 0,
}
WORKSPACE_BYTES = 8 * MIB + 128 * KIB


def request(**options: object) -> ProfileRequest:
    asked = {
        "model": "demo",
        "phases": ("prefill", "decode"),
        "prompt_tokens": 64,
        "output_tokens": 16,
        "execution": "graph",
        "cache": "static",
        "iterations": 2,
        "offline": True,
    }
    return ProfileRequest(**{**asked, **options})  # type: ignore[arg-type]


def phase(timeline: MemoryTimeline, name: str, iteration: int = 0) -> PhaseMemory:
    return next(each for each in timeline.phases if (each.phase, each.iteration) == (name, iteration))


def test_a_captured_step_keeps_a_pool_and_its_replays_take_nothing_of_it() -> None:
    timeline, _ = profile_model(request())
    assert timeline.capture is not None
    assert timeline.capture.breaks == ()
    # One small segment for the step's tensors, one large one for the workspace of the stream that is captured.
    assert timeline.capture.pool_bytes == 2 * MIB + 20 * MIB
    assert WORKSPACE_BYTES < timeline.capture.live_bytes < WORKSPACE_BYTES + 64 * KIB
    captured, replayed = phase(timeline, "capture"), phase(timeline, "decode", 1)
    assert captured.after.reserved_bytes - captured.before.reserved_bytes == timeline.capture.pool_bytes
    assert replayed.peak_reserved_bytes == captured.after.reserved_bytes
    assert replayed.peak.allocated_bytes - replayed.before.allocated_bytes < 64 * KIB


def test_a_larger_batch_keeps_a_larger_pool() -> None:
    pools = [profile_model(request(batch=batch))[0].capture for batch in (1, 512)]
    assert pools[0] is not None
    assert pools[1] is not None
    assert pools[1].pool_bytes > pools[0].pool_bytes  # type: ignore[operator]


def test_replays_do_the_work_of_the_steps_that_they_stand_for() -> None:
    graph, _ = profile_model(request())
    eager, _ = profile_model(request(execution="eager"))
    replayed, run = phase(graph, "decode", 1).work, phase(eager, "decode", 1).work
    assert replayed is not None
    assert run is not None
    assert replayed.flops == pytest.approx(run.flops, rel=0.02)
    captured = phase(graph, "capture").work
    assert captured is None or captured.flops == 0


def test_a_graph_reuses_its_cache_for_the_next_prompt() -> None:
    timeline, log = profile_model(request(iterations=3))
    sizes = [phase(timeline, "prefill", number).by_category["kv_cache"] for number in range(3)]
    assert sizes[0] == sizes[1] == sizes[2]
    assert "cache-kept" not in {finding.code for finding in find(timeline, log)}


def test_a_cache_that_grows_cannot_be_captured_and_the_line_that_appends_is_named() -> None:
    timeline, _ = profile_model(request(cache="dynamic"))
    assert timeline.capture is not None
    assert timeline.capture.pool_bytes is None
    assert {each.obstacle for each in timeline.capture.breaks} == {"growing-shape"}
    assert {each.operator for each in timeline.capture.breaks} == {"aten.cat"}
    assert all("cache_utils.py" in each.where and each.where.endswith("update") for each in timeline.capture.breaks)
    assert not [each for each in timeline.phases if each.phase == "capture"]
    (finding,) = [each for each in find(timeline) if each.code == "capture"]
    assert "cache_utils.py" in finding.evidence
    assert "--cache static" in finding.mend


def test_a_device_captures_through_the_same_code() -> None:
    timeline, _ = measure(request(device="cuda"), RehearsedMemory())
    assert timeline.capture == Capture(pool_bytes=2 * MIB, live_bytes=timeline.capture.live_bytes)  # type: ignore[union-attr]
    captured = phase(timeline, "capture")
    assert captured.before.reserved_bytes + 2 * MIB == captured.after.reserved_bytes
    assert phase(timeline, "decode", 0).work is None
    assert phase(timeline, "decode", 1).work is not None


def _watched(step: object, device: str = "cpu") -> tuple[CaptureBreak, ...]:
    watches = [StepWatch(device, lambda: "model.layers.3.mlp") for _ in range(2)]
    for watch in watches:
        with watch:
            step()  # type: ignore[operator]
    one, two = watches
    return merged([*two.breaks, *growing(one.made, two.made)])


def test_a_value_that_the_host_reads_is_found_with_its_line() -> None:
    given = torch.ones(4)

    def step() -> None:
        for _ in range(3):
            given.sum().item()

    (found,) = _watched(step)
    assert (found.obstacle, found.module, found.count) == ("host-read", "model.layers.*.mlp", 3)
    assert "test_graphs.py" in found.where
    assert found.where.endswith("step")


@pytest.mark.parametrize(
    "step",
    [
        lambda given: torch.nonzero(given),
        lambda given: given[given > 1],
        lambda given: torch.masked_select(given, given > 1),
        lambda given: torch.unique(given),
    ],
)
def test_a_shape_that_follows_from_values_is_found(step: object) -> None:
    given = torch.arange(4.0)
    assert "data-shape" in {each.obstacle for each in _watched(lambda: step(given))}  # type: ignore[operator]


def test_a_constant_that_comes_from_the_host_is_found() -> None:
    given = torch.ones(4, device="meta")
    assert [each.obstacle for each in _watched(lambda: torch.ones(4).to("meta"), "meta")] == ["host-copy"]
    assert _watched(lambda: given + torch.full((4,), 1.0, device="meta"), "meta") == ()


def test_what_has_one_shape_and_asks_for_nothing_can_be_captured() -> None:
    given = torch.ones(4, 4)
    assert _watched(lambda: torch.where(given > 1, given @ given, given)) == ()


def test_a_model_may_ask_whether_it_is_captured() -> None:
    before = torch.cuda.is_current_stream_capturing
    with as_if_capturing():
        assert torch.cuda.is_current_stream_capturing()
    assert torch.cuda.is_current_stream_capturing is before


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"execution": "eager", "phases": ("capture",)}, "nothing is captured"),
        ({"device": "cpu"}, "are a GPU's"),
        ({"phases": ("prefill",)}, "of a decoding step"),
        ({"phases": ("prefill", "decode", "generate")}, "generate is run without"),
        ({"iterations": 1}, "first run"),
        ({"execution": "compiled"}, "compiled code is not simulated"),
    ],
)
def test_what_cannot_be_captured_or_compiled_is_refused_in_one_line(options: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        profile_model(request(**options))
    assert caught.value.hint


def test_a_model_with_an_encoder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(T5))
    with pytest.raises(UnsupportedModel, match="has an encoder"):
        profile_model(request(model=str(tmp_path), cache="dynamic"))
