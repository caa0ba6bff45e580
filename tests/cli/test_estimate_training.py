"""`memplan estimate --train` as a person runs it: verbatim commands, formats, refusals, state, speed of imports."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
from memplan_in_process import Memplan
from memplan_process import memplan

SCHEMAS = Path(__file__).resolve().parents[2] / "docs" / "schemas"
VERBATIM = ("llama-3.1-8b", "--train", "lora", "--gpu", "rtx-4090", "--seq-len", "4096", "--micro-batch", "2")
HEAVY = ("torch", "transformers", "numpy", "accelerate", "rich", "yaml")


def schema(name: str) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(json.loads((SCHEMAS / f"{name}.json").read_text(encoding="utf-8")))


def test_the_verbatim_command_names_the_phase_that_peaks_and_the_cheapest_change(tmp_path: Path) -> None:
    done = memplan("estimate", *VERBATIM, home=tmp_path)
    assert (done.returncode, done.stderr) == (1, "")
    assert "DOES NOT FIT" in done.stdout
    assert "the step peaks in backward" in done.stdout
    assert "Cheapest change that mends it: --loss linear" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("hint: run it again with `--loss linear")


def test_what_the_cheapest_change_says_is_what_it_does(memplan_here: Memplan) -> None:
    first = json.loads(memplan_here("estimate", *VERBATIM, "--json").stdout)
    best = first["cheapest_remedy"]
    arguments = dict(zip(VERBATIM[1::2], VERBATIM[2::2], strict=True))
    arguments |= dict(zip(best["change"].split()[::2], best["change"].split()[1::2], strict=True))
    flat = [word for pair in arguments.items() for word in pair]
    done = memplan_here("estimate", VERBATIM[0], *flat, "--json")
    again = json.loads(done.stdout)
    assert (done.returncode, again["verdict"]) == (0, best["verdict"])
    saved = first["per_gpu"]["allocated_bytes"] - again["per_gpu"]["allocated_bytes"]
    assert saved == best["saves_bytes"]


@pytest.mark.parametrize(
    "arguments",
    [
        VERBATIM,
        ("qwen3-8b", "--train", "qlora", "--gpu", "rtx-4090", "--checkpointing", "full"),
        ("llama-3.1-8b", "--train", "full", "--gpu", "h100x8", "--mixed-precision", "bf16"),
        ("llama-70b", "--train", "full", "--gpu", "h100x64", "--trainer", "megatron", "--tp", "8", "--pp", "4"),
        ("mixtral-8x7b", "--train", "dora", "--gpu", "h200x4", "--trainer", "trl"),
        ("llama-3.1-8b", "--train", "full", "--gpu", "a100-80gx8", "--trainer", "deepspeed", "--sharding", "zero3"),
    ],
)
def test_json_follows_its_schema_and_its_sums_are_right(memplan_here: Memplan, arguments: tuple[str, ...]) -> None:
    done = memplan_here("estimate", *arguments, "--json")
    assert done.returncode in (0, 1), done.stderr
    content = json.loads(done.stdout)
    schema("memplan.training-estimate").validate(content)
    per_gpu = content["per_gpu"]
    assert sum(line["bytes"] for line in content["lines"]) == per_gpu["used_bytes"]
    assert [each["name"] for each in content["phases"]] == [
        "load",
        "forward",
        "backward",
        "optimizer",
        "evaluation",
        "checkpoint",
    ]
    for each in content["phases"]:
        assert sum(held["bytes"] for held in each["held"]) == each["peak_bytes"]
        assert sum(each["categories"].values()) == each["peak_bytes"]
    steps = {each["name"]: each["peak_bytes"] for each in content["phases"][:4]}
    assert steps[content["peak_phase"]] == max(steps.values()) == per_gpu["allocated_bytes"]


def test_several_gpus_are_answered_side_by_side(memplan_here: Memplan) -> None:
    done = memplan_here("estimate", "qwen3-8b", "--train", "lora", "--gpu", "l4,h100", "--json")
    content = json.loads(done.stdout)
    schema("memplan.training-estimates").validate(content)
    assert [each["gpu"]["name"] for each in content["estimates"]] == ["l4", "h100"]
    assert "does not fit" in memplan_here("estimate", "qwen3-8b", "--train", "lora", "--gpu", "l4,h100").stdout


def test_without_a_gpu_those_that_hold_it_are_named(memplan_here: Memplan) -> None:
    done = memplan_here("estimate", "qwen3-8b", "--train", "qlora", "--checkpointing", "full", "--json")
    assert done.returncode == 0
    content = json.loads(done.stdout)
    schema("memplan.training-estimates").validate(content)
    assert all(each["verdict"] != "does_not_fit" for each in content["estimates"])
    names = {each["gpu"]["name"] for each in content["estimates"]}
    assert "h100" in names
    assert not names & set(content["left_out"])


@pytest.mark.parametrize("flag", ["--markdown", "--html", "--quiet"])
def test_every_format_says_the_verdict(memplan_here: Memplan, flag: str) -> None:
    done = memplan_here("estimate", *VERBATIM, flag)
    assert done.returncode == 1
    assert "DOES NOT FIT" in done.stdout
    if flag == "--quiet":
        assert len(done.stdout.splitlines()) == 1
    if flag == "--html":
        assert done.stdout.startswith("<!doctype html>")
        assert "<script" not in done.stdout


def test_a_verdict_can_be_let_pass(memplan_here: Memplan) -> None:
    assert memplan_here("estimate", *VERBATIM, "--quiet", "--fail-on", "never").returncode == 0


def test_training_is_remembered_in_its_directory_and_left_when_a_model_is_named(memplan_here: Memplan) -> None:
    memplan_here("estimate", *VERBATIM)
    again = memplan_here("estimate", "--gpu", "h200", "--json")
    assert "using the last command here" in again.stderr
    assert json.loads(again.stdout)["settings"]["seq_len"] == 4096
    serving = memplan_here("estimate", "qwen3-8b", "--gpu", "h100", "--json")
    assert json.loads(serving.stdout)["schema"] == "memplan.estimate/1"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--micro-batch", "2"), "--micro-batch without --train"),
        (("--train", "ful"), "unknown --train: `ful`"),
        (("--train", "lora", "--micro-batch", "0"), "--micro-batch out of range: 0"),
        (("--train", "full", "--quant", "bnb-nf4"), "--quant is of serving"),
        (("--train", "full", "--engine", "vllm"), "--engine is of serving"),
        (("--train", "full", "--context", "4096"), "--context is of serving"),
        (("--train", "full", "--seq-len", "long"), "not a --seq-len: `long`"),
        (("--train", "full", "--offload", "disk"), "unknown --offload: `disk`"),
        (("--train", "full", "--offload", ","), "--offload is empty"),
        (("--train", "full", "--tp", "3"), "does not divide"),
    ],
)
def test_bad_options_are_refused_in_one_line(memplan_here: Memplan, arguments: tuple[str, ...], said: str) -> None:
    done = memplan_here("estimate", "llama-3.1-8b", "--gpu", "h100", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    first, _, hint = done.stderr.strip().splitlines()
    assert first.startswith("error: ")
    assert said in first
    assert hint.startswith("hint: ")


def test_the_options_stand_below_a_heading_of_their_own(memplan_here: Memplan) -> None:
    text = memplan_here("estimate", "--help").stdout
    options, training = text.split("\nTraining:\n")
    assert "--train " in training
    assert "--checkpointing" in training
    assert "--gpu " in options
    assert "--train " not in options


def test_training_is_budgeted_without_a_heavy_import(tmp_path: Path) -> None:
    code = (
        "import sys, json\n"
        "from memplan.cli.app import main\n"
        f"try: main(['estimate', *{VERBATIM!r}])\n"
        "except SystemExit: pass\n"
        "print(json.dumps(sorted(sys.modules)), file=sys.stderr)\n"
    )
    environment = {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path), "PATH": ""}
    for _ in range(2):  # the first one parses the YAML that it needs
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False
        )
    modules = json.loads(done.stderr.splitlines()[-1])
    assert [name for name in HEAVY if name in modules] == []


@pytest.mark.parametrize("command", ["plan", "emit-config"])
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("vit-base", "--train", "full"), "for models that generate no text, such as google/vit-base"),
        (("qwen2.5-vl-3b", "--train", "lora", "--images", "2"), "with pictures: --images and --resolution"),
        (("jamba-mini", "--train", "lora"), "for `mamba1` layers, such as layer 0 of"),
    ],
)
def test_what_a_profile_answers_is_neither_searched_nor_written(
    memplan_here: Memplan, command: str, arguments: tuple[str, ...], said: str
) -> None:
    done = memplan_here(command, *arguments, "--gpu", "h100x8", "--offline")
    assert (done.returncode, done.stdout) == (4, "")
    assert f"error: training is not modelled {said}" in done.stderr
    assert "hint: `memplan estimate --train` asks a profile of the model's own code" in done.stderr
