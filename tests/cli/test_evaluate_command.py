"""`memplan evaluate` on the demo model: offline, on the CPU, with the exit codes that scripts rely on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jsonschema
import pytest
from memplan_in_process import Memplan

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from memplan.introspect.resolve import weights_folder  # noqa: E402 - after the skip

SCHEMA = Path(__file__).resolve().parents[2] / "docs" / "schemas" / "memplan.quality.json"
FEW = ("--text", "code", "--max-documents", "1", "--window", "256", "--device", "cpu")


@pytest.fixture
def coarse(tmp_path: Path) -> Path:
    """The demo model with its layers rounded to three levels, which no one would want to use."""
    from safetensors.torch import load_file, save_file

    demo = weights_folder("demo")
    assert demo is not None
    folder = tmp_path / "coarse"
    shutil.copytree(demo, folder)
    tensors = load_file(folder / "model.safetensors")
    for name, weight in tensors.items():
        if name.endswith("proj.weight"):
            step = weight.abs().mean(1, keepdim=True) * 1.5
            tensors[name] = ((weight / step).round().clamp(-1, 1) * step).contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_the_demo_model_is_measured_offline_on_the_cpu(memplan_here: Memplan) -> None:
    done = memplan_here("evaluate", "demo", *FEW, "--offline")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("demo\ntext: code (")
    assert done.stderr == ""


def test_the_json_follows_its_schema_and_gives_the_scales_of_a_rounded_cache(memplan_here: Memplan) -> None:
    done = memplan_here("evaluate", "demo", *FEW, "--kv-dtype", "int8", "--json")
    assert done.returncode == 0, done.stderr
    content = json.loads(done.stdout)
    jsonschema.validate(content, json.loads(SCHEMA.read_text()))
    assert (content["model"], content["base"], content["kv_dtype"]) == ("demo", "demo", "int8")
    assert [each["layer"] for each in content["kv_scales"]] == list(range(6))
    assert content["gate"]["verdict"] == "passed"


def test_a_model_that_lost_too_much_ends_in_exit_code_6_with_the_table(memplan_here: Memplan, coarse: Path) -> None:
    done = memplan_here("evaluate", str(coarse), *FEW, "--against", "demo", "--max-perplexity-increase", "5%")
    assert done.returncode == 6, done.stderr
    assert "missed  code: +" in done.stdout
    assert memplan_here("evaluate", str(coarse), *FEW, "--against", "demo", "--quiet").stdout == "quality missed\n"


def test_a_model_that_does_not_fit_into_memory_gives_the_same_figures(memplan_here: Memplan) -> None:
    whole = json.loads(memplan_here("evaluate", "demo", *FEW, "--json").stdout)
    streamed = json.loads(memplan_here("evaluate", "demo", *FEW, "--json", "--max-ram", "1MiB").stdout)
    assert streamed["domains"] == whole["domains"]
    assert any("one block at a time" in note for note in streamed["notes"])


@pytest.mark.parametrize(
    ("arguments", "code", "complaint"),
    [
        (["demo", "--window", "4096"], 2, "windows of 4,096 tokens are longer than the model's context of 2,048"),
        (["demo", "--window", "0"], 2, "--window is 0"),
        (["demo", "--text", "nothing"], 2, "unknown text set: `nothing`"),
        (["demo", "--text", "c4", "--offline"], 3, "`c4` is allenai/c4 on the hub"),
        (["demo", "--kv-dtype", "fp4"], 2, "not a cache type that can be evaluated: `fp4`"),
        (["demo", "--write-kv-scales"], 2, "--write-kv-scales without a cache that has scales"),
        (["demo", "--write-kv-scales", "--kv-dtype", "fp8"], 2, "would change the shared copy of demo"),
        (["demo", "--device", "tpu"], 2, "not a device to run on: `tpu`"),
        (["demo", "--max-perplexity-increase", "lots", "--against", "demo"], 2, "not a rise of perplexity: `lots`"),
        (["demo", "--max-perplexity-increase", "1%"], 2, "judged against a base"),
        (["demo", "--max-ram", "12"], 2, "--max-ram without a unit"),
        (["llama-70b"], 3, "the weights of `llama-70b` are not on this disk"),
        (["./nowhere"], 3, "no such file or directory"),
        (["demo", "--json", "--quiet"], 2, "--json and --quiet exclude each other"),
    ],
)
def test_what_cannot_be_evaluated_is_one_line_with_a_hint(
    memplan_here: Memplan, arguments: list[str], code: int, complaint: str
) -> None:
    done = memplan_here("evaluate", *arguments)
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr
    assert "\nhint: " in done.stderr


def test_measured_scales_are_written_into_a_quantized_checkpoint_which_is_measured_as_before(
    memplan_here: Memplan, tmp_path: Path
) -> None:
    pytest.importorskip("compressed_tensors")
    from safetensors.torch import load_file

    folder = tmp_path / "int3"
    coarsely = ("--method", "rtn", "--bits", "3", "--max-perplexity-increase", "900%")
    made = memplan_here("quantize", "demo", *coarsely, "--output", str(folder), "--quiet")
    assert made.returncode == 0, made.stderr
    plain = memplan_here("evaluate", str(folder), *FEW, "--quiet").stdout
    missed = memplan_here("evaluate", str(folder), *FEW, "--against", "demo", "--kv-dtype", "fp8", "--write-kv-scales")
    assert missed.returncode == 6, missed.stderr
    assert "the scales were not written" in missed.stderr
    assert not (folder / "model-kv-scales.safetensors").exists()
    done = memplan_here("evaluate", str(folder), *FEW, "--kv-dtype", "fp8", "--write-kv-scales", "--json")
    assert done.returncode == 0, done.stderr
    assert "model-kv-scales.safetensors" in done.stderr
    stored = load_file(folder / "model-kv-scales.safetensors")
    for each in json.loads(done.stdout)["kv_scales"]:
        for name in ("k_scale", "v_scale"):
            assert stored[f"model.layers.{each['layer']}.self_attn.{name}"].item() == pytest.approx(each[name])
    assert memplan_here("evaluate", str(folder), *FEW, "--quiet").stdout == plain
    again = memplan_here("evaluate", str(folder), *FEW, "--kv-dtype", "fp8", "--write-kv-scales")
    assert (again.returncode, again.stdout) == (2, "")
    assert "has scales already" in again.stderr


def test_a_file_that_is_cut_off_is_told(memplan_here: Memplan, coarse: Path) -> None:
    path = coarse / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    done = memplan_here("evaluate", str(coarse), *FEW)
    assert done.returncode == 2
    assert "the file is cut off" in done.stderr


def test_weights_with_a_nan_are_named_and_not_measured(memplan_here: Memplan, coarse: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(coarse / "model.safetensors")
    tensors["model.norm.weight"][7] = float("nan")
    save_file(tensors, coarse / "model.safetensors", metadata={"format": "pt"})
    done = memplan_here("evaluate", str(coarse), *FEW)
    assert done.returncode == 2
    assert "not finite numbers" in done.stderr


def test_two_models_that_cut_text_differently_are_not_compared(memplan_here: Memplan, coarse: Path) -> None:
    path = coarse / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["merges"] = content["model"]["merges"][:1000]
    path.write_text(json.dumps(content))
    done = memplan_here("evaluate", "demo", *FEW, "--against", str(coarse))
    assert done.returncode == 2
    assert "have different tokenizers" in done.stderr
