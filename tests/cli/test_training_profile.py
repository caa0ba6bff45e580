"""`memplan estimate --train` of models whose own code is profiled once: made by a child, remembered, answered."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from memplan_in_process import Memplan

import memplan.cli.training_profile as training_profile

pytest.importorskip("torch")
pytest.importorskip("transformers")
SCHEMAS = Path(__file__).resolve().parents[2] / "docs" / "schemas"
TINY: dict[str, Any] = {
    "architectures": ["ViTModel"],
    "model_type": "vit",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 64,
    "patch_size": 16,
    "num_channels": 3,
    "torch_dtype": "float32",
}


def model(home: Path, config: dict[str, Any]) -> str:
    folder = home / "model"
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return str(folder)


def test_a_vision_model_is_profiled_once_and_then_answered_from_what_is_remembered(memplan_here: Memplan) -> None:
    name = model(memplan_here.home, TINY)
    command = ("estimate", name, "--train", "full", "--gpu", "rtx-4090", "--micro-batch", "4", "--json")
    first = memplan_here(*command)
    assert (first.returncode, first.stderr.count("making a profile")) == (0, 1)
    again = memplan_here(*command)
    assert (again.stdout, again.stderr) == (first.stdout, "")
    answer = json.loads(first.stdout)
    jsonschema.Draft202012Validator(
        json.loads((SCHEMAS / "memplan.training-estimate.json").read_text(encoding="utf-8"))
    ).validate(answer)
    assert answer["settings"]["answered_by"] == "profile"
    assert [each["name"] for each in answer["phases"]] == ["load", "forward", "backward", "optimizer"]
    weights = answer["model"]["parameters"] * 4
    assert abs(answer["phases"][0]["peak_bytes"] - weights) < 64 * 512 * 2
    assert sum(each["bytes"] for each in answer["lines"]) == answer["per_gpu"]["used_bytes"]


def test_what_is_remembered_is_answered_without_torch(memplan_here: Memplan) -> None:
    name = model(memplan_here.home, TINY)
    command = ["estimate", name, "--train", "lora", "--gpu", "rtx-4090", "--quiet"]
    assert memplan_here(*command).returncode == 0
    script = (
        "import sys; from memplan.cli.app import main\n"
        "sys.argv = ['memplan', *sys.argv[1:]]\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print([each for each in ('torch', 'transformers', 'numpy') if each in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script, *command], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "FITS" in done.stdout


def test_without_the_extra_one_line_says_what_makes_it(memplan_here: Memplan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_profile, "find_spec", lambda name: None)
    done = memplan_here("estimate", model(memplan_here.home, TINY), "--train", "full", "--gpu", "rtx-4090")
    assert (done.returncode, done.stdout) == (5, "")
    assert "none is remembered" in done.stderr
    assert "memplan[profile]" in done.stderr


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--mixed-precision", "bf16"), "autocast"),
        (("--loss", "linear"), "`--loss linear`"),
        (("--train", "qlora"), "`--train qlora`"),
        (("--trainer", "torchtitan"), "torchtitan's code"),
        (("--offload", "activations"), "--offload"),
    ],
)
def test_what_a_profile_is_not_asked_is_refused_in_one_line(
    memplan_here: Memplan, options: tuple[str, ...], reason: str
) -> None:
    given = () if "--train" in options else ("--train", "full")
    done = memplan_here("estimate", model(memplan_here.home, TINY), *given, "--gpu", "rtx-4090", *options)
    assert (done.returncode, done.stdout) == (2, "")
    assert reason in done.stderr


def test_an_error_of_the_child_is_told_as_one_line(memplan_here: Memplan) -> None:
    command = ("estimate", "llama-3.2-1b", "--train", "lora", "--gpu", "rtx-4090", "--images", "1", "--offline")
    done = memplan_here(*command)
    assert (done.returncode, done.stdout) == (4, "")
    assert "takes no pictures beside text" in done.stderr


def test_gradients_of_earlier_micro_batches_wait_in_both_passes(memplan_here: Memplan) -> None:
    name = model(memplan_here.home, TINY)
    command = ("estimate", name, "--train", "full", "--gpu", "rtx-4090", "--json")
    once, twice = (json.loads(memplan_here(*command, *more).stdout)["phases"] for more in ((), ("--grad-accum", "2")))
    states = once[3]["peak_bytes"] - once[0]["peak_bytes"]
    assert 0 < twice[1]["peak_bytes"] - once[1]["peak_bytes"] <= states
    assert twice[3] == once[3]
