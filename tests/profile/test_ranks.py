"""Profiles over two processes of this machine, on the CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers", minversion="5.0")
if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
    pytest.skip("no gloo", allow_module_level=True)

from memplan.cli.profile_ranks import plain, profile_ranks, request_from  # noqa: E402
from memplan.domain.dtypes import DType  # noqa: E402
from memplan.domain.timeline import Category, MemoryTimeline, Phase  # noqa: E402
from memplan.errors import UnsupportedModel, UsageError  # noqa: E402
from memplan.profile.request import TRAINING, ProfileRequest, check_request  # noqa: E402
from memplan.profile.run import profile_model  # noqa: E402
from memplan.records import replace  # noqa: E402
from memplan.report.profile_words import label  # noqa: E402


def request(**options: Any) -> ProfileRequest:
    asked = {"model": "demo", "device": "cpu", "phases": TRAINING, "prompt_tokens": 64, "offline": True}
    return ProfileRequest(**{**asked, **options})


def held(timeline: MemoryTimeline, phase: Phase, category: Category) -> int:
    return next(each for each in timeline.phases if each.phase == phase).by_category.get(category, 0)


@pytest.fixture(scope="module")
def alone() -> MemoryTimeline:
    return profile_model(request())[0]


def test_every_rank_of_ddp_holds_the_whole_model_and_buckets_of_gradients(alone: MemoryTimeline) -> None:
    ranks = profile_ranks(request(sharing="ddp", num_ranks=2))
    assert [(each.rank, each.num_ranks) for each in ranks] == [(0, 2), (1, 2)]
    weights = held(alone, "optimizer", "weights")
    for rank in ranks:
        assert held(rank, "optimizer", "weights") == weights
        assert held(rank, "optimizer", "optimizer_state") == held(alone, "optimizer", "optimizer_state")
        more = rank.peak.peak.allocated_bytes - alone.peak.peak.allocated_bytes
        assert more == pytest.approx(weights, rel=0.1)


def test_a_rank_of_fsdp_holds_its_share_and_gathers_one_layer_at_a_time(alone: MemoryTimeline) -> None:
    for rank in profile_ranks(request(sharing="fsdp", num_ranks=2)):
        for category in ("weights", "gradients", "optimizer_state"):
            share, whole = held(rank, "optimizer", category), held(alone, "optimizer", category)
            assert share == pytest.approx(whole / 2, rel=0.03)
        assert rank.peak.peak.allocated_bytes < 0.7 * alone.peak.peak.allocated_bytes
        after = next(each for each in rank.phases if each.phase == "backward").after.allocated_bytes
        assert after < 1.2 * held(alone, "optimizer", "weights")  # nothing that was gathered stays


def test_a_page_of_ranks_names_each(alone: MemoryTimeline) -> None:
    labels = [label(replace(alone, rank=rank, num_ranks=2)) for rank in range(2)]
    assert [each.rpartition(", ")[2] for each in labels] == ["rank 0 of 2", "rank 1 of 2"]


def test_an_error_of_a_rank_is_the_commands_own(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"model_type": "unheard-of"}))
    with pytest.raises(UnsupportedModel) as caught:
        profile_ranks(request(model=str(path), sharing="fsdp", num_ranks=2))
    assert "Traceback" not in caught.value.message


def test_a_request_goes_to_a_rank_as_it_is() -> None:
    asked = request(dtype=DType.BF16, lora_rank=4, lora_targets=("q_proj",), sharing="ddp", num_ranks=4)
    assert request_from(json.loads(json.dumps(plain(asked)))) == asked


@pytest.mark.parametrize(
    "options",
    [{"device": "simulated", "sharing": "fsdp", "num_ranks": 2}, {"phases": ("forward",), "sharing": "ddp"}],
)
def test_what_ranks_cannot_run_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        check_request(request(**options))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--ddp", "2", "--fsdp", "2"), "exclude each other"),
        (("--ddp", "2", "--save-correction"), "of one process"),
        (("--fsdp", "0"), "not a number of processes: 0"),
        (("--fsdp", "2", "--device", "simulated"), "not simulated"),
    ],
)
def test_ranks_that_make_no_sense_are_one_line(options: tuple[str, ...], said: str) -> None:
    command = [sys.executable, "-m", "memplan", "profile", "demo", "--phase", "training", "--offline", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert said in done.stderr.splitlines()[0]
    assert done.stdout == ""
