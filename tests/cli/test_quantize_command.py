"""`memplan quantize` from the command line: forecasts, refusals, and a small model from end to end."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from memplan_in_process import Memplan
from small_llama import save_small_llama

from memplan.quantize.backends import BACKENDS

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("compressed_tensors")

SCHEMAS = Path(__file__).resolve().parents[2] / "docs" / "schemas"
FEW = ("--num-samples", "6", "--window", "64", "--batch-size", "3")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random Llama with a tokenizer of its own."""
    return save_small_llama(tmp_path_factory.mktemp("model") / "small")


def valid(text: str, name: str) -> dict[str, object]:
    """The JSON of an answer, held against its schema."""
    content = json.loads(text)
    jsonschema.validate(content, json.loads((SCHEMAS / f"memplan.{name}.json").read_text()))
    return dict(content)


def test_a_model_goes_from_weights_to_a_checkpoint_that_emit_config_knows(model: Path, memplan_here: Memplan) -> None:
    done = memplan_here(
        "quantize", str(model), "--method", "awq", "--group-size", "32", *FEW, "--json", "-o", "small-awq"
    )
    assert done.returncode == 0, done.stderr
    found = valid(done.stdout, "quantization")
    assert found["verdict"] == "passed"
    assert valid(Path("small-awq/quantization_report.json").read_text(), "quantization") == found
    assert not Path("small-awq.partial").exists()
    again = memplan_here("quantize", str(model), "--method", "awq", "--group-size", "32", *FEW, "-o", "small-awq")
    assert again.returncode == 2
    assert "--force" in again.stderr
    emitted = memplan_here("emit-config", "--gpu", "l4", "--context", "256")
    assert emitted.returncode == 0, emitted.stderr
    assert "what was quantized here" in emitted.stderr
    assert f"model: {Path('small-awq').absolute()}\n" in emitted.stdout
    estimated = memplan_here("estimate", "small-awq", "--gpu", "t4", "--json")
    assert estimated.returncode == 0, estimated.stderr


def test_a_mix_fits_the_size_and_is_measured_once(model: Path, memplan_here: Memplan) -> None:
    asked = ("quantize", str(model), "--method", "auto", "--group-size", "32", *FEW, "--json", "-o", "small-auto")
    asked = (*asked, "--max-perplexity-increase", "50%")
    found = {}
    for target in ("150KB", "200KB"):
        done = memplan_here(*asked, "--force", "--target-memory", target)
        assert done.returncode == 0, done.stderr
        assert ("measuring block" in done.stderr) == (target == "150KB")
        estimated = json.loads(memplan_here("estimate", "small-auto", "--gpu", "a100-80g", "--json").stdout)
        found[target] = estimated["per_gpu"]["weights_bytes"]
        mix = valid(done.stdout, "quantization")["mix"]
        assert isinstance(mix, list)
        assert sum(len(unit["layers"]) for unit in mix) == 14
        by_width = {(each["bits"], each["group_size"]): each["damage"] for each in mix[0]["damage_by_width"]}
        assert by_width[mix[0]["bits"], mix[0]["group_size"]] == mix[0]["damage"]
    assert found["150KB"] <= 150_000 < found["200KB"] <= 200_000
    config = json.loads(Path("small-auto/config.json").read_text())["quantization_config"]
    assert config["config_groups"]["group_1"]["targets"]
    for target, code, said in (("10KB", 1, "smallest mix"), ("1MB", 2, "nothing need be done")):
        done = memplan_here(*asked, "--force", "--target-memory", target)
        assert done.returncode == code
        assert said in done.stderr


def test_a_result_that_lost_too_much_is_put_aside(memplan_here: Memplan) -> None:
    done = memplan_here("quantize", "demo", "--method", "rtn", "--bits", "2", "--group-size", "0", "-o", "demo-rtn")
    assert done.returncode == 6
    assert "put aside in demo-rtn.rejected" in done.stderr
    assert Path("demo-rtn.rejected/config.json").is_file()
    assert not Path("demo-rtn").exists()
    assert done.stdout == ""


def test_weights_that_are_not_here_end_in_the_forecast(memplan_here: Memplan) -> None:
    memplan_here("estimate", "llama-70b", "--gpu", "a100-80g")
    done = memplan_here("quantize", "--method", "awq", "--json")
    assert done.returncode == 3
    found = valid(done.stdout, "quantize-forecast")
    assert found["model"] == "meta-llama/Llama-3.3-70B-Instruct"
    assert "not on this disk" in done.stderr


def test_a_folder_without_safetensors_is_told_how_to_make_them(model: Path, memplan_here: Memplan) -> None:
    Path("pickled").mkdir()
    Path("pickled/config.json").write_bytes((model / "config.json").read_bytes())
    Path("pickled/pytorch_model.bin").write_bytes(b"\x80\x04.")
    done = memplan_here("quantize", "pickled", "--method", "rtn")
    assert done.returncode == 3
    assert "weights_only" in done.stderr


def test_a_limit_that_is_too_small_is_said_before_any_work(model: Path, memplan_here: Memplan) -> None:
    done = memplan_here("quantize", str(model), "--method", "gptq", "--group-size", "32", "--max-ram", "100MiB")
    assert done.returncode == 1
    assert "may be used" in done.stderr
    assert not Path("small-gptq.partial").exists()


def test_force_replaces_an_earlier_result_and_nothing_else(model: Path, memplan_here: Memplan, tmp_path: Path) -> None:
    weights = sorted(model.iterdir())
    mine, note = tmp_path / "mine", tmp_path / "note.txt"
    mine.mkdir()
    (mine / "thesis.tex").write_text("years of work")
    note.write_text("remember")
    for place, said in (
        (model, "holds the weights that are to be quantized"),
        (model.parent, "holds the weights"),
        (mine, "--force replaces nothing else"),
        (note, "--force replaces nothing else"),
        (Path(), "names no folder of its own"),
    ):
        done = memplan_here("quantize", str(model), *FEW, "--method", "rtn", "--force", "-o", str(place))
        assert done.returncode == 2
        assert said in done.stderr
    assert sorted(model.iterdir()) == weights
    assert (mine / "thesis.tex").read_text() == "years of work"
    assert note.read_text() == "remember"


def altered(model: Path, folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """A copy of a model whose tensors, by name, went through `change`."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(model, folder)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_a_checkpoint_that_lacks_a_tensor_is_refused_before_any_work(
    model: Path, memplan_here: Memplan, tmp_path: Path
) -> None:
    broken = altered(model, tmp_path / "broken", lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))
    for command in (("quantize", "--method", "rtn", "--group-size", "32", "-o", "out", *FEW), ("evaluate",)):
        done = memplan_here(command[0], str(broken), *command[1:])
        assert done.returncode == 2
        assert "has no weights for model.layers.1.mlp.up_proj.weight" in done.stderr
    assert not Path("out.partial").exists()


def test_weights_that_are_no_numbers_leave_no_work_in_the_way(
    model: Path, memplan_here: Memplan, tmp_path: Path
) -> None:
    broken = altered(
        model,
        tmp_path / "broken",
        lambda tensors: tensors["model.layers.0.mlp.up_proj.weight"][3, 5].fill_(float("nan")),
    )
    done = memplan_here("quantize", str(broken), *FEW, "--method", "rtn", "--group-size", "32", "-o", "out")
    assert done.returncode == 2
    assert "holds NaN or infinite weights" in done.stderr
    assert not Path("out.partial").exists()


def test_a_gpu_that_is_not_there_is_forecast_for_and_not_worked_on(model: Path, memplan_here: Memplan) -> None:
    if torch.cuda.is_available():
        pytest.skip("a GPU is here")
    asked = ("quantize", str(model), *FEW, "--method", "rtn", "--group-size", "32", "--device", "cuda", "-o", "out")
    assert "GPU memory" in memplan_here(*asked, "--dry-run").stdout
    done = memplan_here(*asked)
    assert done.returncode == 5
    assert "no CUDA device" in done.stderr


def test_a_family_without_rules_is_read_as_transformers_builds_it(
    model: Path, memplan_here: Memplan, tmp_path: Path
) -> None:
    import transformers

    folder = tmp_path / "japanese"
    shutil.copytree(model, folder)
    (folder / "model.safetensors").unlink()
    torch.manual_seed(0)
    config = transformers.GPTNeoXJapaneseConfig(
        vocab_size=300, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=512
    )
    transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    done = memplan_here("quantize", str(folder), *FEW, "--method", "rtn", "--group-size", "32", "-o", "out", "--quiet")
    assert done.returncode == 0, done.stderr
    assert (Path("out") / "model.safetensors").exists()


@pytest.mark.parametrize("library", ["autoawq", "gptqmodel", "llmcompressor"])
def test_a_library_that_is_not_installed_is_named_with_how_to_get_it(
    model: Path, memplan_here: Memplan, library: str
) -> None:
    if find_spec(BACKENDS[library].package):
        pytest.skip(f"{library} is installed")
    done = memplan_here("quantize", str(model), *FEW, "--backend", library, "-o", "out")
    assert done.returncode == 5
    assert f"pip install {library}" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--method", "gtpq"), "did you mean gptq"),
        (("--bits", "9"), "9 bits"),
        (("--format", "ggml"), "unknown format"),
        (("--format", "gguf"), "--method gguf:q8_0"),
        (("--method", "int8", "--format", "gptq"), "compressed-tensors"),
        (("--method", "nvfp4", "--bits", "3"), "leave --bits out"),
        (("--method", "fp8", "--format", "awq"), "compressed-tensors"),
        (("--method", "auto"), "--target-memory 24GiB"),
        (("--backend", "autogptq"), "unknown backend"),
        (("--backend", "gptqmodel", "--method", "awq"), "has no method awq"),
        (("--backend", "llmcompressor", "--format", "gptq"), "writes compressed-tensors alone"),
        (("--backend", "autoawq", "--resume"), "knows no --resume"),
        (("--method", "gptq", "--target-memory", "1GiB"), "is for --method auto"),
        (("--method", "auto", "--target-memory", "1GiB", "--format", "awq"), "holds one width"),
        (("--device", "tpu"), "not a device"),
        (("--max-perplexity-increase", "lots"), "not a rise"),
        (("--num-samples", "0"), "give 1 or more"),
        (("--scale-search", "max"), "use one of inputs, mse, none"),
        (("--keep", "lm_head,*.k_proj", "--group-size", "32"), "engines fuse"),
        (("--method", "gguf:q9_0"), "not a type of GGUF"),
        (("--method", "gguf:q8_0", "--format", "gptq"), "leave --format out"),
        (("--calibration", "bultin"), "did you mean builtin"),
        (("--group-size", "48"), "multiples of 48"),
        (("--group-size", "-1"), "0 for whole rows"),
        (("--keep", "*.mpl.down_proj", "--group-size", "32"), "--keep *.mpl.down_proj is the name of nothing here"),
        (("--method", "int8", "--bits", "4"), "--no-symmetric"),
        (("--window", "4096"), "longer than the model's context of 512"),
        (("--max-gpu-memory", "24GiB"), "without a GPU to work on"),
        (("--json", "--quiet"), "exclude each other"),
    ],
)
def test_a_bad_value_gets_one_line_and_leaves_nothing(
    model: Path, memplan_here: Memplan, arguments: tuple[str, ...], said: str
) -> None:
    done = memplan_here("quantize", str(model), *FEW, *arguments, "-o", "out")
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stdout == ""
    assert not Path("out").exists()
