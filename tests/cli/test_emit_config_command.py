"""emit-config from the command line: what goes to stdout, to stderr and to files, and with which exit code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator
from memplan_in_process import Memplan

SCHEMAS = Path(__file__).resolve().parents[2] / "docs" / "schemas"


def test_the_answer_is_the_file_and_nothing_else(memplan_here: Memplan) -> None:
    done = memplan_here("emit-config", "llama-8b", "--gpu", "l40s", "--context", "16k")
    assert done.returncode == 0
    config = yaml.safe_load(done.stdout)
    assert config["model"] == "meta-llama/Llama-3.1-8B-Instruct"
    assert config["max-model-len"] == 16000
    assert "note:" not in done.stdout


def test_without_a_model_it_takes_the_last_estimate_of_the_directory(memplan_here: Memplan) -> None:
    memplan_here("estimate", "llama-8b", "--gpu", "l40s", "--context", "16k", "--max-num-seqs", "32")
    done = memplan_here("emit-config")
    config = yaml.safe_load(done.stdout)
    assert (config["max-model-len"], config["max-num-seqs"]) == (16000, 32)
    assert "using the last command here: llama-8b on l40s" in done.stderr


def test_what_does_not_fit_is_written_as_the_published_checkpoint_that_does(memplan_here: Memplan) -> None:
    memplan_here("estimate", "llama-70b", "--gpu", "a100-80g")
    done = memplan_here("emit-config")
    assert done.returncode == 0
    config = yaml.safe_load(done.stdout)
    assert config["model"] == "casperhansen/llama-3.3-70b-instruct-awq"
    assert config["tensor-parallel-size"] == 1
    for text in ("a published awq-int4-g128 checkpoint", "GiB short"):
        assert text in done.stderr
        assert text in " ".join(line.lstrip("# ") for line in done.stdout.splitlines() if line.startswith("#"))
    (memplan_here.home / "vllm.yaml").write_text(done.stdout)
    again = memplan_here("estimate", "--config", "vllm.yaml", "--gpu", "a100-80g", "--json")
    assert again.returncode == 0
    assert json.loads(again.stdout)["verdict"] == "fits"


def test_a_length_that_was_asked_for_is_kept_and_gpus_are_added(memplan_here: Memplan) -> None:
    done = memplan_here("emit-config", "llama-70b", "--gpu", "a100-80g", "--context", "131072")
    config = yaml.safe_load(done.stdout)
    assert config["max-model-len"] == 131072
    assert config["tensor-parallel-size"] > 1
    assert "GPUs instead of 1" in done.stderr


def test_a_card_that_is_in_use_gets_the_part_that_is_free(memplan_here: Memplan) -> None:
    done = memplan_here("emit-config", "llama-8b", "--gpu", "l40s", "--gpu-free", "30GiB", "--context", "8k")
    config = yaml.safe_load(done.stdout)
    assert config["gpu-memory-utilization"] * 44.4 < 30
    assert "because no more of the GPU is free" in done.stderr


def test_strict_refuses_what_does_not_fit(memplan_here: Memplan) -> None:
    done = memplan_here("emit-config", "llama-70b", "--gpu", "a100-80g", "--strict")
    assert done.returncode == 1
    assert done.stdout == ""
    assert "short on 1 x a100-80g" in done.stderr


def test_the_command_in_the_file_makes_the_same_file_elsewhere(memplan_here: Memplan) -> None:
    first = memplan_here("emit-config", "llama-70b", "--gpu", "a100-80g", "--set", "port=8000").stdout
    lines = [line.lstrip("# ") for line in first.splitlines() if line.startswith("#")]
    start = next(number for number, line in enumerate(lines) if line.startswith("Made by: memplan"))
    words = " ".join(lines[start:]).removeprefix("Made by: memplan ").split()
    words = words[: words.index("--format") + 2]
    second = memplan_here(*words).stdout
    assert yaml.safe_load(second) == yaml.safe_load(first)


def test_a_file_is_written_once_unless_forced(memplan_here: Memplan) -> None:
    arguments = ("emit-config", "llama-8b", "--gpu", "l40s", "--context", "8k", "--output", "vllm.yaml")
    assert memplan_here(*arguments).stdout == ""
    before = Path("vllm.yaml").read_text()
    refused = memplan_here(*arguments)
    assert (refused.returncode, Path("vllm.yaml").read_text()) == (2, before)
    assert "--force" in refused.stderr
    assert memplan_here(*arguments, "--force").returncode == 0


def test_all_files_of_a_format_go_into_a_directory(memplan_here: Memplan) -> None:
    Path("out").mkdir()
    arguments = (
        "emit-config",
        "llama-8b",
        "--gpu",
        "l40s",
        "--context",
        "8k",
        "--quant",
        "gguf:q4_k_m",
        "-f",
        "ollama",
    )
    done = memplan_here(*arguments, "--output", "out")
    assert done.returncode == 0
    assert sorted(path.name for path in Path("out").iterdir()) == ["Modelfile", "ollama.env"]
    assert memplan_here(*arguments, "--output", "out").returncode == 2


def test_json_has_every_file_and_keeps_its_schema(memplan_here: Memplan) -> None:
    done = memplan_here("emit-config", "llama-8b", "--gpu", "l40s", "--context", "8k", "--json")
    found = json.loads(done.stdout)
    schema = json.loads((SCHEMAS / "memplan.emission.json").read_text())
    Draft202012Validator(schema).validate(found)
    assert found["files"][0]["name"] == "vllm.yaml"


def test_the_formats_are_listed_without_a_model(memplan_here: Memplan) -> None:
    done = memplan_here("emit-config", "--format", "list")
    assert done.returncode == 0
    assert {"vllm", "sglang", "tensorrt-llm", "llama.cpp", "ollama", "tgi"} <= {
        line.split()[0] for line in done.stdout.splitlines()
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("llama-8b",), "no GPU was named"),
        ((), "no model was named"),
        (("llama-8b", "--gpu", "l40s", "--format", "yaml5"), "unknown format: `yaml5`"),
        (("llama-8b", "--gpu", "l40s", "--format", "sglang", "--engine", "vllm"), "not for vllm"),
        (("gemma-2-9b", "--gpu", "l40s", "--context", "32k"), "takes 8,192 tokens at most"),
        (("llama-8b", "--gpu", "l40s", "--quant", "gptq-int3-g32"), "no published gptq-int3-g32 checkpoint"),
    ],
)
def test_a_bad_wish_is_one_line_and_writes_nothing(
    memplan_here: Memplan, arguments: tuple[str, ...], message: str
) -> None:
    done = memplan_here("emit-config", *arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert message in done.stderr
    assert "Traceback" not in done.stderr
