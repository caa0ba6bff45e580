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


WORDINGS = {
    "0.4": "RuntimeError: cuda runtime error (2) : out of memory at /pytorch/aten/src/THC/generic/THCStorage.cu:58",
    "1.0": "RuntimeError: CUDA out of memory. Tried to allocate 20.00 MiB (GPU 0; 10.76 GiB total capacity; 9.59 "
    "GiB already"
    " allocated; 17.50 MiB free; 60.34 MiB cached)",
    "1.4": "RuntimeError: CUDA out of memory. Tried to allocate 20.00 MiB (GPU 0; 10.76 GiB total capacity; 9.59 "
    "GiB already"
    " allocated; 17.50 MiB free; 9.67 GiB reserved in total by PyTorch)",
    "1.12 ROCm": "RuntimeError: HIP out of memory. Tried to allocate 20.00 MiB (GPU 0; 10.76 GiB total capacity; "
    "9.59 GiB already"
    " allocated; 17.50 MiB free; 9.67 GiB reserved in total by PyTorch) If reserved memory is >> allocated "
    "memory try setting"
    " max_split_size_mb to avoid fragmentation.",
    "2.1": "torch.cuda.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total "
    "capacty of 10.76 GiB"
    " of which 17.50 MiB is free. Including non-PyTorch memory, this process has 10.70 GiB memory in use. Of the "
    "allocated"
    " memory 9.59 GiB is allocated by PyTorch, and 81.92 MiB is reserved by PyTorch but unallocated.",
    "2.13": "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity "
    "of 10.76 GiB of"
    " which 17.50 MiB is free. Including non-PyTorch memory, this process has 10.70 GiB memory in use. Of the "
    "allocated memory"
    " 9.59 GiB is allocated by PyTorch, with 24.00 MiB allocated in private pools (e.g., CUDA Graphs), and 81.92 "
    "MiB is reserved"
    " by PyTorch but unallocated.",
    "XPU": "torch.OutOfMemoryError: XPU out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity "
    "of 10.76 GiB. Of"
    " the allocated memory 9.59 GiB is allocated by PyTorch, and 81.92 MiB is reserved by PyTorch but unallocated.",
    "MPS": "RuntimeError: MPS backend out of memory (MPS allocated: 9.59 GB, other allocations: 1.02 GB, max "
    "allowed: 10.76 GB)."
    " Tried to allocate 20.00 MB on private pool.",
}


@pytest.mark.parametrize("release", list(WORDINGS))
def test_pytorchs_wordings_of_every_release_are_the_same_failure(release: str) -> None:
    facts = facts_of(WORDINGS[release])
    main = find_causes(facts)[0]
    assert main.cause == "capacity"
    if release != "0.4":
        assert facts.wanted_bytes == 20 << 20
        assert facts.allocated_bytes == round(9.59 * 2**30)
