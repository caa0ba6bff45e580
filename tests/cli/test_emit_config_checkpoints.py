"""Which weights emit-config writes down: the user's own, those that the engine quantizes, none that do not start."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from memplan_in_process import Memplan

from memplan.catalog.models import find_model
from memplan.cli.state import QuantizedOutput, quantized_output, remember_quantized

GROUP = {
    "targets": ["Linear"],
    "weights": {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 128},
}


@pytest.fixture
def own_checkpoint(memplan_here: Memplan) -> Path:
    """A folder like the one that `memplan quantize` writes, remembered as its last."""
    known = find_model("llama-8b")
    assert known is not None
    folder = memplan_here.home / "llama-8b-w4a16"
    folder.mkdir()
    stored = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "ignore": ["lm_head"],
        "config_groups": {"group_0": GROUP},
    }
    (folder / "config.json").write_text(json.dumps({**known.config, "quantization_config": stored}))
    found = QuantizedOutput(
        model=known.name, output=folder, scheme="gptq-int4-g128", quality="perplexity 7.4, 7.2 before"
    )
    remember_quantized(found)
    return folder


ASKED = ("llama-8b", "--gpu", "l4", "--context", "16k", "--concurrency", "4")


def test_what_was_quantized_here_is_the_first_remedy(memplan_here: Memplan, own_checkpoint: Path) -> None:
    assert memplan_here("estimate", *ASKED).returncode == 1
    done = memplan_here("emit-config")
    assert yaml.safe_load(done.stdout)["model"] == str(own_checkpoint)
    said = f"the weights are {own_checkpoint}, quantized here (gptq-int4-g128, perplexity 7.4, 7.2 before), because"
    assert said in done.stderr
    assert said in " ".join(line.lstrip("# ") for line in done.stdout.splitlines() if line.startswith("#"))
    again = memplan_here("emit-config", str(own_checkpoint), *ASKED[1:])
    assert yaml.safe_load(again.stdout) == yaml.safe_load(done.stdout)


def test_a_command_that_names_its_model_does_not_look_for_it(memplan_here: Memplan, own_checkpoint: Path) -> None:
    done = memplan_here("emit-config", *ASKED)
    assert yaml.safe_load(done.stdout)["model"] != str(own_checkpoint)


def test_a_scheme_that_was_asked_for_is_the_one_quantized_here(memplan_here: Memplan, own_checkpoint: Path) -> None:
    memplan_here("estimate", *ASKED)
    done = memplan_here("emit-config", "--quant", "gptq-int4-g128")
    assert yaml.safe_load(done.stdout)["model"] == str(own_checkpoint)


def test_another_model_or_a_folder_that_is_gone_is_no_remedy(memplan_here: Memplan, own_checkpoint: Path) -> None:
    memplan_here("estimate", "qwen3-8b", *ASKED[1:])
    assert str(own_checkpoint) not in memplan_here("emit-config").stdout
    (own_checkpoint / "config.json").unlink()
    assert quantized_output() is None


def test_an_estimate_does_not_forget_what_was_quantized(memplan_here: Memplan, own_checkpoint: Path) -> None:
    memplan_here("estimate", "demo", "--gpu", "l4")
    found = quantized_output()
    assert found is not None
    assert (found.output, found.scheme) == (own_checkpoint, "gptq-int4-g128")


def test_vllm_is_told_to_quantize_with_bitsandbytes_while_it_can(memplan_here: Memplan) -> None:
    asked = ("qwen3-8b", "--gpu", "l4", "--context", "8k", "--quant", "bnb-nf4", "--tp", "2")
    done = memplan_here("emit-config", *asked, "--engine", "vllm@0.27.1")
    config = yaml.safe_load(done.stdout)
    assert config["model"] == "Qwen/Qwen3-8B"
    assert config["quantization"] == config["load-format"] == "bitsandbytes"
    (memplan_here.home / "vllm.yaml").write_text(done.stdout)
    engine = ("--gpu", "l4", "--engine", "vllm@0.27.1")
    again = memplan_here("estimate", "--config", "vllm.yaml", *engine, "--json").stdout
    first = memplan_here("estimate", *asked, *engine[2:], "--json").stdout
    assert json.loads(again)["per_gpu"]["weights_bytes"] == json.loads(first)["per_gpu"]["weights_bytes"]
    twice = memplan_here("emit-config", "--config", "vllm.yaml", *engine)
    assert yaml.safe_load(twice.stdout) == config
    refused = memplan_here("emit-config", *asked, "--engine", "vllm@0.33.0")
    assert refused.returncode == 2
    assert "cannot start: bitsandbytes left vLLM" in refused.stderr


def test_of_several_gpus_the_first_that_starts_is_written(memplan_here: Memplan) -> None:
    done = memplan_here("emit-config", "gpt-oss-20b", "--gpu", "t4,h100", "--context", "8k")
    assert done.returncode == 0
    assert "using the first of 2 that fits: 1 x h100" in done.stderr
