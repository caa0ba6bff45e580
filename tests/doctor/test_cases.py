"""Real failures, short: the cause that is named is the one that the thread ended on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from memplan.doctor.causes import find_causes
from memplan.doctor.diagnose_log import report_of
from memplan.doctor.facts import Facts, gather
from memplan.doctor.scan import scan

CASES: list[dict[str, Any]] = yaml.safe_load((Path(__file__).parent / "cases.yaml").read_text(encoding="utf-8"))


def facts_of(text: str) -> Facts:
    return gather(scan(iter([text.encode()])))


@pytest.mark.parametrize("case", CASES, ids=[case["id"] for case in CASES])
def test_the_cause_is_the_one_that_the_thread_ended_on(case: dict[str, Any]) -> None:
    found = find_causes(facts_of(case["log"]))
    assert found
    assert found[0].cause == case["cause"]
    assert found[0].sentence


@pytest.mark.parametrize("case", [case for case in CASES if "engine" in case], ids=lambda case: case["id"])
def test_the_engine_is_told_by_the_log_itself(case: dict[str, Any]) -> None:
    told = facts_of(case["log"]).engine
    assert told in (case["engine"], None)


@pytest.mark.parametrize("case", CASES, ids=[case["id"] for case in CASES])
def test_every_failure_has_a_mend(case: dict[str, Any]) -> None:
    main = report_of(facts_of(case["log"])).main
    assert main is not None
    assert main.mends or main.cause == "starts"


def test_there_are_at_least_sixty_cases_each_with_its_source() -> None:
    assert len(CASES) >= 60
    assert len({case["id"] for case in CASES}) == len(CASES)
    assert all(case["source"] for case in CASES)


def test_messages_that_sound_alike_get_opposite_cures() -> None:
    by_id = {case["id"]: case for case in CASES}
    changes = {
        name: " ".join(
            mend.note for diagnosis in report_of(facts_of(by_id[name]["log"])).diagnoses for mend in diagnosis.mends
        )
        for name in ("s02", "s03", "s04", "s05", "s11")
    }
    assert all("RAISE" in changes[name] and "LOWER" not in changes[name] for name in ("s02", "s03"))
    assert all("LOWER" in changes[name] and "RAISE" not in changes[name] for name in ("s04", "s05", "s11"))


def test_a_capture_that_failed_for_another_reason_is_not_told_to_free_memory() -> None:
    text = (
        "sglang/srt/model_executor/cuda_graph_runner.py\nException: Capture cuda graph failed: no kernel "
        "image is available"
    )
    assert find_causes(facts_of(text))[0].cause == "graph_capture_failed"
