"""Traces as snapshot files, as PyTorch's viewers read them."""

from __future__ import annotations

import importlib.util
import pickle
import pickletools
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from traces import traces

from memplan.budget.caching_allocator.settings import AllocatorSettings, parse_settings
from memplan.profile.events import EventLog, Label, Mark
from memplan.profile.memviz import log_from, snapshot_from, write_memviz
from memplan.profile.replay import replay
from memplan.profile.snapshot import read_snapshot, snapshot_of, timeline_of

MIB = 1 << 20
# What the page at pytorch.org/memory_viz can read of a pickle, by the names that pickletools gives.
READABLE = {
    *("PROTO", "FRAME", "STOP", "MARK", "MEMOIZE", "BINGET", "LONG_BINGET", "EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE"),
    *("APPEND", "APPENDS", "SETITEM", "SETITEMS", "TUPLE1", "TUPLE2", "TUPLE3", "NONE", "NEWTRUE", "NEWFALSE"),
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "SHORT_BINUNICODE", "BINUNICODE"),
}
SETTINGS = st.sampled_from(["", "expandable_segments:True", "max_split_size_mb:40", "roundup_power2_divisions:4"])


def training_step() -> EventLog:
    log = EventLog()
    log.begin("load")
    log.allocate(
        30 * MIB, Label(module="model.layers.0", operator="aten.empty", where="model.py:7 __init__"), "weights"
    )
    log.begin("forward")
    saved = log.allocate(5 * MIB, Label("model.layers.0", "aten.mm", "model.py:12 forward", (5, 7), "float32"))
    log.begin("backward")
    log.free(saved)
    log.allocate(30 * MIB, Label(module="model.layers.0", operator="aten.mm"), "gradients")
    return log


@pytest.fixture(scope="module")
def pytorch_viewer() -> ModuleType:
    """PyTorch's own reader of snapshots on the command line, without the rest of torch."""
    found = importlib.util.find_spec("torch")
    if found is None or found.origin is None:
        pytest.skip("torch is not installed")
    path = Path(found.origin).parent / "cuda" / "_memory_viz.py"
    spec = importlib.util.spec_from_file_location("memory_viz_of_torch", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_file_uses_only_what_the_page_can_read(tmp_path: Path) -> None:
    write_memviz(tmp_path / "trace.pickle", snapshot_from(training_step()))
    data = (tmp_path / "trace.pickle").read_bytes()
    used = {opcode.name for opcode, _, _ in pickletools.genops(data)}
    assert used <= READABLE
    assert next(argument for opcode, argument, _ in pickletools.genops(data) if opcode.name == "PROTO") == 4


def test_every_entry_has_its_frames_innermost_first_and_its_category() -> None:
    made = [entry for entry in snapshot_from(training_step())["device_traces"][0] if entry["action"] == "alloc"]
    assert made[1]["frames"] == [
        {"filename": "operator", "line": 0, "name": "aten.mm float32[5, 7]"},
        {"filename": "model.py", "line": 12, "name": "forward"},
        {"filename": "module", "line": 0, "name": "model.layers.0"},
    ]
    assert [entry["category"] for entry in made] == ["weights", "unknown", "gradients"]


def test_the_page_finds_an_unknown_category_which_it_needs_to_colour_any() -> None:
    log = EventLog()
    log.begin("load")
    log.allocate(MIB, Label(), "weights")
    entries = snapshot_from(log)["device_traces"][0]
    assert "unknown" in {entry["category"] for entry in entries if "category" in entry}


def test_running_out_of_memory_is_the_last_entry() -> None:
    trace = snapshot_from(training_step(), capacity_bytes=50 * MIB)["device_traces"][0]
    assert (trace[-2]["action"], trace[-2]["size"], trace[-2]["device_free"]) == ("oom", 30 * MIB, 20 * MIB)


@given(traces(capture=False), SETTINGS)
@settings(max_examples=60)
def test_pytorchs_own_tools_read_it(pytorch_viewer: ModuleType, log: EventLog, text: str) -> None:
    written = pickle.loads(pickle.dumps(snapshot_from(log, parse_settings(text))))
    assert "segments:" in pytorch_viewer.segsum(written)
    pytorch_viewer.trace_plot(written)
    if "expandable" not in text:  # that tool knows no pages
        assert isinstance(pytorch_viewer.trace(written), str)


@given(traces(), SETTINGS, st.sampled_from([None, 300 * MIB]))
@settings(max_examples=150)
def test_the_page_can_walk_back_from_the_end_to_the_beginning(log: EventLog, text: str, capacity: int | None) -> None:
    written = snapshot_from(log, parse_settings(text), capacity_bytes=capacity)
    live: dict[int, str] = {}
    reserved = 0
    for segment in written["segments"]:
        address = segment["address"]
        for block in segment["blocks"]:
            assert block["address"] == address
            if block["state"] != "inactive":
                live[address] = block["state"]
            address += block["size"]
        reserved += segment["total_size"]
        assert address == segment["address"] + segment["total_size"]
    for entry in reversed(written["device_traces"][0]):
        action, address = entry["action"], entry["addr"]
        if action == "free_completed":
            assert address not in live
            live[address] = "active_pending_free"
        elif action == "free_requested":
            assert live[address] == "active_pending_free"
            live[address] = "active_allocated"
        elif action == "alloc":
            assert live.pop(address) == "active_allocated"
        elif action in ("segment_alloc", "segment_map"):
            reserved -= entry["size"]
        elif action in ("segment_free", "segment_unmap"):
            reserved += entry["size"]
    assert (live, reserved) == ({}, 0)


COMPARED = ("phase", "iteration", "before", "peak", "after", "by_category", "num_allocations", "left_bytes")


@given(traces(capture=False, empties=False, streams=False), SETTINGS)
@settings(max_examples=200)
def test_read_back_it_has_the_levels_of_the_replay(log: EventLog, text: str) -> None:
    # What comes before the first phase is a phase of its own in a file, and one in which nothing happened is none.
    marks = [Mark(0, "run"), *log.marks]
    log.marks = []
    for mark, following in zip(marks, [*marks[1:], Mark(len(log.order), "run")], strict=True):
        if following.position > mark.position:
            again = sum(other.phase == mark.phase for other in log.marks)
            log.marks.append(Mark(mark.position, mark.phase, again))
    if not log.marks:
        return
    chosen = parse_settings(text)
    read = snapshot_of(snapshot_from(log, chosen))
    expected = replay(log, chosen)
    assert read.settings == chosen
    assert list(read.log.sizes) == list(log.sizes)
    assert list(read.log.order) == list(log.order)
    for mine, theirs in zip(read.replay.phases, expected.phases, strict=True):
        assert {name: getattr(mine, name) for name in COMPARED} == {name: getattr(theirs, name) for name in COMPARED}
    assert read.replay.peak_reserved_bytes == expected.peak_reserved_bytes


def test_a_timeline_without_its_trace_keeps_its_curve(tmp_path: Path) -> None:
    write_memviz(tmp_path / "trace.pickle", snapshot_from(training_step()))
    timeline = timeline_of(read_snapshot(tmp_path / "trace.pickle"), name="a step")
    again = replay(log_from(timeline), AllocatorSettings())
    assert [phase.phase for phase in again.phases] == ["load", "forward", "backward"]
    assert again.peak_allocated_bytes == timeline.peak.peak.allocated_bytes


def test_read_back_every_allocation_has_its_label_and_its_category() -> None:
    log = training_step()
    read = snapshot_of(snapshot_from(log)).log
    assert [read.labels[number] for number in read.label_of] == [log.labels[number] for number in log.label_of]
    assert read.category_of == log.category_of


def at_end(written: dict[str, Any]) -> list[str]:
    return [block["state"] for segment in written["segments"] for block in segment["blocks"]]


def test_a_block_that_waits_for_a_stream_says_so() -> None:
    log = EventLog()
    log.begin("backward")
    number = log.allocate(2 * MIB, Label())
    log.used_until(number, 99)
    log.free(number)
    assert at_end(snapshot_from(log)) == ["active_pending_free", "inactive"]
