"""PyTorch's memory snapshots, read: what was asked for, by whose code, and what the device held."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memplan.budget.caching_allocator.settings import AllocatorSettings
from memplan.errors import CorruptFile, MemplanError, UsageError
from memplan.profile.events import Label
from memplan.profile.replay import replay
from memplan.profile.snapshot import read_snapshot, snapshot_of, timeline_of

MIB = 1 << 20
BASE = 0x7F00_0000_0000
SITE = "/opt/venv/lib/python3.12/site-packages/"


def frame(file: str, line: int, name: str) -> dict[str, object]:
    return {"filename": file, "line": line, "name": name}


FORWARD = [
    frame(SITE + "torch/nn/functional.py", 2373, "silu"),
    frame(SITE + "torch/nn/modules/activation.py", 432, "forward"),
    frame(SITE + "transformers/models/llama/modeling_llama.py", 172, "forward"),
    frame("/home/me/job/train.py", 40, "main"),
]
BACKWARD = [
    frame(SITE + "torch/autograd/graph.py", 824, "_engine_run_backward"),
    frame(SITE + "torch/autograd/__init__.py", 347, "backward"),
    frame("/home/me/job/train.py", 44, "main"),
]
OPTIMIZER = [
    frame(SITE + "torch/optim/adamw.py", 130, "_init_group"),
    frame(SITE + "torch/optim/optimizer.py", 485, "wrapper"),
    frame("/home/me/job/train.py", 45, "main"),
]
CACHE = [
    frame("??", 0, "c10::cuda::CUDACachingAllocator::Native::malloc"),
    frame("??", 0, "at::_ops::empty_memory_format::call(c10::ArrayRef<c10::SymInt>)"),
    frame("??", 0, "at::_ops::cat::call(c10::IListRef<at::Tensor> const&, long)"),
    frame(SITE + "transformers/cache_utils.py", 115, "update"),
]
LOADING = [frame(SITE + "torch/nn/modules/module.py", 927, "_apply"), frame("/home/me/job/train.py", 12, "main")]


def step(action: str, address: int, size: int, frames: list[Any] | None = None, **more: object) -> dict[str, Any]:
    return {"action": action, "addr": BASE + address, "size": size, "stream": 0, "frames": frames or [], **more}


def block(size: int, state: str, requested: int = 0, frames: list[Any] | None = None) -> dict[str, Any]:
    return {"size": size, "state": state, "requested_size": requested, "frames": frames or []}


def segment(address: int, size: int, blocks: list[dict[str, Any]], **more: object) -> dict[str, Any]:
    kind = {"device": 0, "stream": 0, "segment_type": "large", "is_expandable": False, "segment_pool_id": (0, 0)}
    return {**kind, "address": BASE + address, "total_size": size, "blocks": blocks, **more}


def written() -> dict[str, Any]:
    """A process that moved weights to the device before the history began, and freed some memory of that time in it.

    Then a forward pass, whose activation of 3 MiB - 100 bytes is freed, a gradient, and optimizer state that stays.
    """
    return {
        "segments": [
            segment(0, 40 * MIB, [block(40 * MIB, "active_allocated", 39 * MIB + 7, LOADING)]),
            segment(
                100 * MIB,
                20 * MIB,
                [block(4 * MIB, "active_allocated", 4 * MIB, OPTIMIZER), block(16 * MIB, "inactive")],
            ),
        ],
        "device_traces": [
            [
                step("segment_alloc", 100 * MIB, 20 * MIB),
                step("alloc", 100 * MIB, 3 * MIB - 100, FORWARD),
                step("free_requested", 200 * MIB, 10 * MIB),
                step("free_completed", 200 * MIB, 10 * MIB),
                step("segment_free", 200 * MIB, 10 * MIB),
                step("free_requested", 100 * MIB, 3 * MIB - 100),
                step("free_completed", 100 * MIB, 3 * MIB - 100),
                step("alloc", 100 * MIB, 4 * MIB, BACKWARD),
                step("alloc", 104 * MIB, 4 * MIB, OPTIMIZER),
                step("free_requested", 100 * MIB, 4 * MIB),
                step("free_completed", 100 * MIB, 4 * MIB),
                step("free_requested", 104 * MIB, 4 * MIB),
                step("free_completed", 104 * MIB, 4 * MIB),
                step("alloc", 100 * MIB, 4 * MIB, OPTIMIZER),
                step("snapshot", -BASE, 0),
            ],
            [],
        ],
        "allocator_settings": {"PYTORCH_CUDA_ALLOC_CONF": "garbage_collection_threshold:0.8", "max_split_size": -1},
        "external_annotations": [],
    }


def test_a_snapshot_is_a_run_with_what_was_there_before_it() -> None:
    (run,) = snapshot_of(written()).replay.phases
    assert run.phase == "run"
    assert (run.before.allocated_bytes, run.before.reserved_bytes) == (50 * MIB, 50 * MIB)
    assert run.before.requested_bytes == 49 * MIB + 7
    assert (run.after.allocated_bytes, run.after.reserved_bytes) == (44 * MIB, 60 * MIB)
    assert run.after.inactive_split_bytes == 16 * MIB
    # The activation was rounded to 3 MiB: more than 1 MiB was left of its segment.
    assert (run.peak.allocated_bytes, run.peak.reserved_bytes) == (53 * MIB, 70 * MIB)
    assert run.peak.inactive_split_bytes == 17 * MIB
    assert run.peak_reserved_bytes == 70 * MIB
    assert run.num_allocations == 4


def test_whose_code_it_was_and_what_for_is_read_from_the_frames() -> None:
    log = snapshot_of(written()).log
    found = {log.labels[log.label_of[number]].where: log.category(number) for number in range(len(log.sizes))}
    assert found == {
        "": "unknown",
        "me/job/train.py:12 main": "weights",
        "transformers/models/llama/modeling_llama.py:172 forward": "activations",
        "me/job/train.py:44 main": "gradients",
        "me/job/train.py:45 main": "optimizer_state",
    }
    forward = next(label for label in log.labels if "modeling_llama" in label.where)
    assert (forward.module, forward.operator) == ("transformers.models.llama.modeling_llama", "functional.silu")


def test_what_an_optimizer_gives_back_was_only_its_workspace() -> None:
    log = snapshot_of(written()).log
    assert [log.category(number) for number in range(4, 6)] == ["workspace", "optimizer_state"]


def test_frames_of_cpp_name_the_operator() -> None:
    data = written()
    data["device_traces"][0].insert(0, step("alloc", 300 * MIB, 512, CACHE))
    log = snapshot_of(data).log
    number = next(number for number, size in enumerate(log.sizes) if size == 512)
    assert log.labels[log.label_of[number]].operator == "aten.cat"
    assert log.category(number) == "kv_cache"


def test_a_backward_pass_without_python_frames_is_known_by_its_engine() -> None:
    data = written()
    data["device_traces"][0][7]["frames"] = [
        frame("??", 0, "at::_ops::bmm_Tensor::redispatch(c10::DispatchKeySet)"),
        frame("engine.cpp", 0, "torch::autograd::Engine::evaluate_function(std::shared_ptr<torch::autograd::Node>&)"),
    ]
    log = snapshot_of(data).log
    assert log.labels[log.label_of[3]] == Label(operator="aten.bmm")
    assert log.category(3) == "gradients"


def test_what_was_there_before_stays_unknown_and_what_came_and_went_was_an_activation() -> None:
    log = snapshot_of(written()).log
    assert [log.category(number) for number in range(3)] == ["unknown", "weights", "activations"]


def test_what_is_as_large_as_a_gradient_and_was_always_there_is_a_weight() -> None:
    data = written()
    data["segments"].append(segment(600 * MIB, 4 * MIB, [block(4 * MIB, "active_allocated", 4 * MIB)]))
    log = snapshot_of(data).log
    assert [log.category(number) for number, size in enumerate(log.sizes) if size == 4 * MIB] == [
        "weights",
        "gradients",
        "workspace",
        "optimizer_state",
    ]


def test_a_backward_pass_is_told_by_the_forward_pass_that_it_belongs_to() -> None:
    data = written()
    data["device_traces"][0][7]["forward_frames"] = FORWARD
    log = snapshot_of(data).log
    assert "modeling_llama" in log.labels[log.label_of[3]].where
    assert log.category(3) == "gradients"


def test_a_block_that_kept_the_rest_of_its_segment_counts_with_it() -> None:
    data = {
        "segments": [],
        "device_traces": [
            [
                step("segment_alloc", 0, 12 * MIB),
                step("alloc", 0, 11 * MIB, FORWARD),
                step("free_requested", 0, 11 * MIB),
                step("free_completed", 0, 11 * MIB),
                step("segment_free", 0, 12 * MIB),
            ]
        ],
    }
    (run,) = snapshot_of(data).replay.phases
    assert run.peak.allocated_bytes == 12 * MIB
    assert run.peak.requested_bytes == 11 * MIB


def test_annotations_of_the_program_are_its_phases() -> None:
    data = written()
    for time, entry in enumerate(data["device_traces"][0]):
        entry["time_us"] = time
    data["external_annotations"] = [
        {"stage": "START", "name": "Forward 0", "device": 0, "time_us": 0},
        {"stage": "START", "name": "dataloader", "device": 0, "time_us": 3},
        {"stage": "START", "name": "backward", "device": 0, "time_us": 7},
        {"stage": "END", "name": "backward", "device": 0, "time_us": 8},
        {"stage": "START", "name": "Optimizer.step#AdamW.step", "device": 0, "time_us": 8},
    ]
    phases = snapshot_of(data).replay.phases
    assert [phase.phase for phase in phases] == ["forward", "backward", "optimizer"]
    assert [phase.before.allocated_bytes // MIB for phase in phases] == [50, 40, 44]
    assert phases[0].after == phases[1].before


def test_pages_of_expandable_segments_are_followed() -> None:
    data = {
        "segments": [
            segment(
                0,
                40 * MIB,
                [block(5 * MIB, "active_allocated", 5 * MIB), block(35 * MIB, "inactive")],
                is_expandable=True,
            )
        ],
        "device_traces": [
            [
                step("segment_map", 0, 60 * MIB),
                step("alloc", 0, 5 * MIB),
                step("alloc", 5 * MIB, 55 * MIB),
                step("free_requested", 5 * MIB, 55 * MIB),
                step("free_completed", 5 * MIB, 55 * MIB),
                step("segment_unmap", 40 * MIB, 20 * MIB),
            ]
        ],
    }
    (run,) = snapshot_of(data).replay.phases
    assert (run.peak.allocated_bytes, run.peak.reserved_bytes) == (60 * MIB, 60 * MIB)
    assert (run.after.reserved_bytes, run.after.inactive_split_bytes) == (40 * MIB, 15 * MIB)


def test_out_of_memory_is_told_with_the_figures_of_that_moment() -> None:
    data = written()
    data["device_traces"][0].insert(3, {"action": "oom", "size": 900 * MIB, "device_free": 30 * MIB, "frames": FORWARD})
    out = snapshot_of(data).out_of_memory
    assert out is not None
    assert (out.phase, out.wanted_bytes, out.free_bytes) == ("run", 900 * MIB, 30 * MIB)
    assert (out.allocated_bytes, out.reserved_bytes, out.capacity_bytes) == (43 * MIB, 70 * MIB, 100 * MIB)
    assert out.tensor is not None
    assert "modeling_llama" in out.tensor.where


def test_a_free_that_waited_for_a_stream_is_late_in_the_trace_too() -> None:
    data = {
        "segments": [],
        "device_traces": [
            [
                step("alloc", 0, 30 * MIB),
                step("free_requested", 0, 30 * MIB),
                step("alloc", 30 * MIB, 30 * MIB),
                step("free_completed", 0, 30 * MIB),
            ]
        ],
    }
    log = snapshot_of(data).log
    assert log.ready_at == {0: 3}
    assert replay(log, AllocatorSettings()).peak_reserved_bytes == 60 * MIB


def test_where_the_program_emptied_the_cache_it_is_emptied_in_the_replay_too() -> None:
    def log(*after: dict[str, Any], frames: list[Any] | None = None) -> list[int]:
        entries = [
            step("segment_alloc", 0, 30 * MIB),
            step("alloc", 0, 30 * MIB),
            step("free_requested", 0, 30 * MIB),
            step("free_completed", 0, 30 * MIB),
            step("segment_free", 0, 30 * MIB, frames),
            *after,
        ]
        return snapshot_of({"segments": [], "device_traces": [entries]}).log.emptied

    emptying = [frame(SITE + "torch/cuda/memory.py", 224, "empty_cache"), frame("/home/me/job/train.py", 50, "main")]
    new = step("segment_alloc", 0, 40 * MIB)
    assert log(step("alloc", 900 * MIB, 512)) == [2]
    assert log(new, frames=emptying) == [2]
    # A request that found no room gives back the cache by itself.
    assert log(new) == log({"action": "oom", "size": MIB, "device_free": 0}) == []


def test_streams_keep_apart_when_the_trace_is_replayed() -> None:
    entries = [step("alloc", number * MIB, MIB // 2, stream=0x55AA00 + number % 3) for number in range(6)]
    log = snapshot_of({"segments": [], "device_traces": [entries]}).log
    assert list(log.stream_of) == [1, 2, 3, 1, 2, 3]


def test_without_a_history_the_blocks_are_all_there_is() -> None:
    data = written()
    del data["device_traces"]
    snapshot = snapshot_of(data)
    (run,) = snapshot.replay.phases
    assert run.peak == run.before == run.after
    assert (run.peak.allocated_bytes, run.peak.reserved_bytes, run.num_allocations) == (44 * MIB, 60 * MIB, 0)
    assert "no history" in snapshot.warnings[0]
    assert snapshot_of(data["segments"]).replay == snapshot.replay


def test_the_fullest_device_is_read_unless_another_is_named() -> None:
    data = written()
    data["segments"].append(segment(500 * MIB, 900 * MIB, [block(900 * MIB, "active_allocated", 1)], device=1))
    assert snapshot_of(data).device == 1
    assert snapshot_of(data, device=0).replay.peak_reserved_bytes == 70 * MIB
    with pytest.raises(UsageError, match="no device 2") as caught:
        snapshot_of(data, device=2)
    assert caught.value.hint == "it has 0, 1"


def test_settings_are_those_of_the_process_and_odd_ones_are_a_warning() -> None:
    assert snapshot_of(written()).settings.gc_threshold == 0.8
    data = written()
    data["allocator_settings"]["PYTORCH_CUDA_ALLOC_CONF"] = "backend:cudaMallocAsync"
    odd = snapshot_of(data)
    assert odd.settings == AllocatorSettings()
    assert any("cudaMallocAsync" in warning for warning in odd.warnings)


def test_a_snapshot_is_a_timeline_of_a_real_device(tmp_path: Path) -> None:
    (tmp_path / "job.pickle").write_bytes(pickle.dumps(written()))
    timeline = timeline_of(read_snapshot(tmp_path / "job.pickle"), name="job.pickle")
    assert (timeline.device, timeline.device_name, timeline.model_name) == ("cuda", "GPU 0", "job.pickle")
    assert timeline.samples[0].reserved_bytes == 50 * MIB
    assert max(sample.allocated_bytes for sample in timeline.samples) == 53 * MIB


@pytest.mark.parametrize(
    "data",
    [
        {},
        [],
        7,
        {"segments": {}},
        {"segments": [], "device_traces": []},
        {"segments": [3]},
        {"segments": [{}]},
        {"segments": [], "device_traces": 3},
        {"segments": [], "device_traces": [3]},
        {"segments": [], "device_traces": [[3]]},
        {"segments": [], "device_traces": [[{"action": "alloc"}]]},
        {"segments": [], "device_traces": [[step("alloc", -(1 << 60), 3)]]},
        {"segments": [], "device_traces": [[step("segment_map", 0, 1 << 47)]]},
        {"segments": [segment(0, MIB, [{"size": "x"}])]},
        {"segments": [segment(0, 1 << 47, [], is_expandable=True)]},
    ],
)
def test_what_is_no_snapshot_is_one_clear_line(data: object) -> None:
    with pytest.raises(CorruptFile):
        snapshot_of(data)


def test_a_segment_of_a_device_below_zero_is_refused() -> None:
    spoilt = pickle.loads(pickle.dumps(written()))
    for segment in spoilt["segments"]:
        segment["device"] = -3
    with pytest.raises(CorruptFile, match="device -3"):
        snapshot_of(spoilt)


ODD = st.none() | st.integers(-5, 1 << 50) | st.text(max_size=5) | st.lists(st.integers(), max_size=2)


@given(st.data())
@settings(max_examples=300)
def test_a_snapshot_with_any_value_spoilt_is_read_or_refused(data: st.DataObject) -> None:
    spoilt = pickle.loads(pickle.dumps(written()))
    blocks = [entry for each in spoilt["segments"] for entry in each["blocks"]]
    entries = [*spoilt["device_traces"][0], *spoilt["segments"], *blocks, spoilt["allocator_settings"], spoilt]
    for _ in range(data.draw(st.integers(1, 3))):
        entry = data.draw(st.sampled_from(entries))
        entry[data.draw(st.sampled_from(sorted(entry)))] = data.draw(ODD)
    try:
        found = snapshot_of(spoilt)
    except MemplanError:
        return
    assert all(phase.peak.allocated_bytes >= phase.before.allocated_bytes for phase in found.replay.phases)
