"""The check of the simulation against real runs, itself checked on runs of which every address is known."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from traces import traces

from memplan.budget.caching_allocator.settings import parse_settings
from memplan.profile.events import EventLog, Label
from memplan.profile.memviz import snapshot_from

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "profile"))
from allocator_truth import compare, placed

MIB = 1 << 20


def written(tmp_path: Path, snapshot: dict[str, Any]) -> Path:
    path = tmp_path / "run.pickle"
    path.write_bytes(pickle.dumps(snapshot))
    return path


SETTINGS = st.sampled_from(["", "max_split_size_mb:40", "roundup_power2_divisions:4", "expandable_segments:True"])


@given(traces(capture=False, streams=False), SETTINGS)
@settings(max_examples=80)
def test_a_run_recorded_from_its_start_is_met_to_the_byte_and_to_the_address(
    tmp_path: Path, log: EventLog, text: str
) -> None:
    path = written(tmp_path, snapshot_from(log, parse_settings(text)))
    if not log.order:
        return
    assert all(row["reserved_error"] == 0 for row in compare(path, None))
    if "expandable" in text and log.emptied:
        return  # unmapped pages: where the next ones go is for the real driver to say
    (found,) = placed(path)
    assert found["in_place"] == found["requests"] == len(log.sizes)


def test_a_stream_that_asks_for_nothing_in_the_part_recorded_keeps_its_segments_to_itself(tmp_path: Path) -> None:
    log = EventLog()
    label = Label(module="m", operator="aten.mm", where="", shape=(), dtype="")
    log.free(log.allocate(1, label, stream=1))
    log.allocate(1, label)
    snapshot = snapshot_from(log)
    trace = snapshot["device_traces"][0]
    frees = next(number for number, entry in enumerate(trace) if entry["action"] == "free_completed")
    snapshot["device_traces"][0] = trace[frees:]
    (found,) = placed(written(tmp_path, snapshot))
    assert found["in_place"] == found["requests"] == 1


@given(traces(capture=False, streams=False, empties=False), st.integers(0, 100))
@settings(max_examples=150)
def test_a_run_recorded_from_its_middle_is_met_to_the_address(tmp_path: Path, log: EventLog, cut: int) -> None:
    # Blocks that kept a rest of their segment and are gone by the end cannot be told from smaller ones: none are made.
    for number, size in enumerate(log.sizes):
        log.sizes[number] = -(-size // (2 * MIB)) * 2 * MIB if size > MIB else size
    snapshot = snapshot_from(log)
    trace = snapshot["device_traces"][0]
    snapshot["device_traces"][0] = trace[len(trace) * cut // 100 :]
    for found in placed(written(tmp_path, snapshot)):
        assert found["in_place"] == found["requests"]


def test_a_request_that_lands_elsewhere_is_counted(tmp_path: Path) -> None:
    log = EventLog()
    log.begin("load")
    for _ in range(3):
        log.allocate(4 * MIB, Label())
    snapshot = snapshot_from(log)
    snapshot["device_traces"][0][-2]["addr"] += MIB
    (found,) = placed(written(tmp_path, snapshot))
    assert (found["requests"], found["in_place"]) == (3, 2)


@pytest.mark.parametrize("stream", [0, 1])
def test_what_was_there_before_is_taken_over_with_its_stream(tmp_path: Path, stream: int) -> None:
    log = EventLog()
    log.begin("load")
    freed = log.allocate(30 * MIB, Label(), stream=stream)
    log.allocate(30 * MIB, Label(), stream=0)
    log.free(freed)
    log.allocate(30 * MIB, Label(), stream=stream)
    snapshot = snapshot_from(log)
    snapshot["device_traces"][0] = snapshot["device_traces"][0][2:]
    assert placed(written(tmp_path, snapshot))[0]["in_place"] == 2
