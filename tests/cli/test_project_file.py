"""memplan.yaml: what a command given no MODEL works on."""

from __future__ import annotations

import json

import pytest
from memplan_in_process import Memplan


def write(memplan_here: Memplan, name: str, text: str) -> None:
    (memplan_here.home / name).write_text(text)


def test_an_engine_config_may_be_named_instead_of_a_model(memplan_here: Memplan) -> None:
    write(memplan_here, "serve.yaml", "model: Qwen/Qwen3-8B\nmax-model-len: 4096\nmax-num-seqs: 32\n")
    write(memplan_here, "memplan.yaml", "config: serve.yaml\ngpu: l4\nmax-num-seqs: 16\n")
    done = memplan_here("estimate", "--json", "--context", "2048")
    content = json.loads(done.stdout)
    assert content["model"]["name"] == "Qwen/Qwen3-8B"
    assert content["settings"]["max_num_seqs"] == 16
    assert content["settings"]["max_model_len"] == 2048
    assert "using memplan.yaml: serve.yaml on l4" in done.stderr


def test_what_a_config_said_is_remembered_without_the_config(memplan_here: Memplan) -> None:
    write(memplan_here, "serve.yaml", "model: Qwen/Qwen3-8B\nmax-model-len: 4096\nport: 8000\n")
    memplan_here("estimate", "--config", "serve.yaml", "--gpu", "l4", "-q")
    (memplan_here.home / "serve.yaml").unlink()
    again = memplan_here("estimate", "--json")
    assert json.loads(again.stdout)["settings"]["max_model_len"] == 4096
    assert again.stderr == "using the last command here: Qwen/Qwen3-8B on l4\n"


def test_what_a_recipe_says_of_itself_is_left_aside(memplan_here: Memplan) -> None:
    write(memplan_here, "memplan.yaml", "recipe: {title: A demo, expect: fits}\nmodel: demo\ngpu: l4\n")
    assert memplan_here("estimate", "-q").stdout.startswith("FITS")


@pytest.mark.parametrize("text", ["", "# nothing\n", "gpu: l4\n", "1: 2\nmodel: demo\n", "model: [demo]\n", "\0"])
def test_a_file_that_does_not_say_what_to_estimate_is_refused(memplan_here: Memplan, text: str) -> None:
    write(memplan_here, "memplan.yaml", text)
    done = memplan_here("estimate")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
