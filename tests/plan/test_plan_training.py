"""The search for a way to train: what it finds has room, is remembered, and its order is that of the field."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from memplan.cli.emit_training import training_emission
from memplan.cli.plan_training import as_training_options, plan_training_command, training_request
from memplan.cli.serving_options import parse_devices
from memplan.cli.training_options import training_question
from memplan.domain.training_plan import TrainingPlanAnswer
from memplan.engines.training.answer import TrainingAsked, answer_training
from memplan.errors import UsageError
from memplan.pipeline import load_model
from memplan.plan.training import plan_training
from memplan.report.training_plan_json import training_plan_json
from memplan.report.training_plan_text import markdown_training_plan
from memplan.units import format_gib

SCHEMA = Path(__file__).resolve().parents[2] / "docs" / "schemas" / "memplan.training-plan.json"


def planned(model: str, **given: Any) -> TrainingPlanAnswer:
    spec = load_model(model, revision=None, offline=True, introspect="auto")
    return plan_training(spec, training_request(given))


CASES: list[tuple[str, dict[str, Any]]] = [
    ("llama-8b", {"train": "full", "gpu": "h100x8", "seq_len": "4096", "global_batch": 64}),
    ("llama-8b", {"train": "qlora", "gpu": "rtx-4090", "seq_len": "4096", "global_batch": 16}),
    ("llama-70b", {"train": "full", "gpu": "h100x8", "seq_len": "4096"}),
    ("llama-70b", {"train": "full", "gpu": "h100x64", "seq_len": "8192", "global_batch": 512}),
    ("llama-8b", {"train": "full", "gpu": "h100", "seq_len": "4096", "goal": "memory"}),
]


@pytest.mark.parametrize(("model", "given"), CASES)
def test_a_plan_estimates_again_as_fitting_with_the_same_peak(model: str, given: dict[str, Any]) -> None:
    answer = planned(model, **given)
    assert answer.winner is not None
    options = {**given, **as_training_options(answer.winner)}
    device = parse_devices(options["gpu"], memory=None, free=None)[0]
    spec = load_model(model, revision=None, offline=True, introspect="auto")
    question = training_question(options, num_gpus=device.count)
    budget = answer_training(TrainingAsked(spec=spec, gpu=device.gpu, question=question, with_remedies=False))
    assert budget.verdict == ("tight" if answer.winner.is_tight else "fits")
    assert budget.allocated_bytes == answer.winner.allocated_bytes
    if "global_batch" in given:
        layout = answer.winner.training.layout
        assert question.micro_batch * question.accumulation * layout.data == given["global_batch"]


def test_what_fits_without_being_made_slower_is_not_made_slower() -> None:
    winner = planned("llama-8b", train="full", gpu="h200x8", seq_len="4096").winner
    assert winner is not None
    assert winner.training.checkpointing == "none"
    assert not winner.question.offloaded
    assert winner.question.tensor == 1


def test_offload_is_a_rung_that_is_stepped_on_only_where_nothing_else_has_room() -> None:
    answer = planned("llama-70b", train="full", gpu="h100x8", seq_len="4096")
    assert answer.winner is not None
    assert answer.winner.changes == ("offload",)
    assert answer.asked.verdict == "does_not_fit"
    assert all(each.saves_bytes > 0 for each in answer.changes)
    kept = planned("llama-70b", train="full", gpu="h100x8", seq_len="4096", offload="activations")
    assert kept.winner is None or "offload" not in kept.winner.changes


def test_more_machines_need_no_offload() -> None:
    answer = planned("llama-70b", train="full", gpu="h100x64", seq_len="8192", global_batch=512)
    assert answer.winner is not None
    assert answer.winner.changes == ()
    kinds = {(each.question.tensor, each.question.pipeline) for each in answer.alternatives}
    assert len(kinds) > 2
    assert any("hsdp" in each.region for each in answer.rejections)


def test_goals_choose_what_they_say() -> None:
    given = {"train": "full", "gpu": "h100x8", "seq_len": "4096"}
    fast, small, cheap = (planned("llama-8b", **given, goal=goal).winner for goal in ("throughput", "memory", "cost"))
    assert fast is not None
    assert small is not None
    assert cheap is not None
    assert small.allocated_bytes <= fast.allocated_bytes
    assert fast.tokens_per_s >= small.tokens_per_s
    assert (cheap.usd_per_billion_tokens or 0) <= (fast.usd_per_billion_tokens or 0) * 1.0001


def test_what_was_asked_for_is_kept() -> None:
    answer = planned(
        "llama-8b", train="full", gpu="h100x8", seq_len="4096", sharding="zero3", checkpointing="full", micro_batch=2
    )
    assert answer.winner is not None
    question = answer.winner.question
    assert (question.sharding, question.checkpointing, question.micro_batch) == ("zero3", "full", 2)


def test_json_is_of_its_schema_and_markdown_has_the_winner() -> None:
    schema = json.loads(SCHEMA.read_text())
    Draft202012Validator.check_schema(schema)
    for model, given in CASES[:3]:
        answer = planned(model, **given)
        Draft202012Validator(schema).validate(json.loads(training_plan_json(answer)))
        assert "tokens a second" in markdown_training_plan(answer)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"goal": "latency"}, "unknown goal"),
        ({"global_batch": 0}, "--global-batch out of range"),
        ({"global_batch": 8, "grad_accum": 2}, "exclude each other"),
        ({"gpu": None}, "no GPU was named"),
        ({"gpu": "m4-max:64g"}, "not planned for m4-max"),
    ],
)
def test_bad_requests_are_refused_in_one_line(changes: dict[str, Any], reason: str) -> None:
    given = {"train": "full", "gpu": "h100x8", **changes}
    with pytest.raises(UsageError, match=reason):
        training_request({name: value for name, value in given.items() if value is not None})


@pytest.mark.parametrize("model", ["llama-8b", "mistral-7b", "qwen3-32b"])
def test_emit_config_writes_what_was_planned(model: str) -> None:
    given = {"model": model, "train": "full", "gpu": "h100x8", "seq_len": "4096", "offline": True}
    winner = planned(**given).winner
    assert winner is not None
    name, emission = training_emission({**given, **as_training_options(winner)}, {})
    assert name == ("torchtitan" if winner.question.trainer == "torchtitan" else "accelerate")
    assert f"{format_gib(winner.allocated_bytes)} allocated" in emission.files[0].text.replace("\n# ", " ")
    assert "NOTE" not in emission.files[0].text


@pytest.mark.parametrize(
    ("here", "reason"),
    [
        ({"global_batch": 8}, "--global-batch without --train"),
        ({"train": "full", "max_ttft": "1s"}, "--max-ttft is of serving"),
        ({"train": "full", "engine": "vllm"}, "--engine is of serving"),
        ({"train": "full", "html": True}, "--html is not there"),
    ],
)
def test_options_of_serving_are_refused_beside_training(here: dict[str, Any], reason: str) -> None:
    given = {"model": "llama-8b", "gpu": "h100x8", **here}
    with pytest.raises(UsageError, match=reason):
        plan_training_command(given, given)


def test_a_plan_imports_no_torch() -> None:
    code = (
        "import sys; from memplan.cli.app import main\n"
        "try: main(['plan', 'llama-8b', '--train', 'full', '--gpu', 'h100x8', '--quiet', '--offline'])\n"
        "except SystemExit: pass\n"
        "print([name for name in ('torch', 'numpy', 'transformers') if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.startswith("PLAN:")
    assert "[]" in done.stderr


def test_long_sequences_are_cut_over_ranks_and_that_estimates_again() -> None:
    answer = planned("llama-3.1-8b", train="full", gpu="h100x8", seq_len="131072", trainer="transformers")
    assert answer.winner is not None
    assert answer.winner.training.layout.context > 1
    assert as_training_options(answer.winner)["cp"] == answer.winner.training.layout.context


def test_experts_that_stay_on_some_ranks_are_among_the_ways() -> None:
    answer = planned("olmoe-1b-7b", train="full", gpu="h100x8", trainer="megatron")
    considered = {each.training.layout.expert > 1 for each in answer.alternatives}
    assert considered == {False, True}
