"""Training configs, parsed back by the libraries that read them.

accelerate, transformers and torchrun are those of the environment. MEMPLAN_DEEPSPEED_PYTHON and
MEMPLAN_TORCHTITAN_PYTHON name interpreters that have DeepSpeed (and transformers) and torchtitan 0.2.2.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from training_setups import FULL, HOLDERS, SETUPS, written

from memplan.cli.emit_training import training_emission
from memplan.errors import DoesNotFit, UsageError

HERE = Path(__file__).parent
ZERO = ("zero2", "zero3")
# Keys of `zero_optimization` that DeepSpeed 0.19.8 knows, of those that are ever written.
ZERO_KEYS = {
    *("stage", "reduce_bucket_size", "allgather_bucket_size", "contiguous_gradients", "overlap_comm"),
    *("reduce_scatter", "sub_group_size", "stage3_max_live_parameters", "stage3_max_reuse_distance"),
    *("stage3_gather_16bit_weights_on_model_save", "offload_optimizer", "offload_param"),
}

tomllib = pytest.importorskip("tomllib")  # from Python 3.11 on
pytest.importorskip("accelerate")


def read(script: str, python: str, paths: list[Path]) -> Any:
    command = [python, str(HERE / script), *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def other_python(variable: str) -> str:
    where = os.environ.get(variable)
    if not where:
        pytest.skip(f"{variable} is not set: no such library at hand")
    return where


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for every setup and format: `hsdp.accelerate`."""
    root = tmp_path_factory.mktemp("written")
    for format_name, setups in HOLDERS.items():
        for setup in setups:
            here = root / f"{setup}.{format_name}"
            here.mkdir()
            for file in written(setup, format_name).files:
                (here / file.name).write_text(file.text)
    return root


@pytest.fixture(scope="module")
def made(folder: Path) -> dict[str, dict[str, Any]]:
    """What accelerate, transformers and torchrun make of everything that needs no DeepSpeed."""
    paths = [path for path in folder.iterdir() if not path.name.startswith(ZERO) and path.suffix != ".torchtitan"]
    found: dict[str, dict[str, Any]] = read("read_training.py", sys.executable, sorted(paths))
    return found


def test_accelerate_knows_every_key_and_starts_as_many_processes(made: dict[str, dict[str, Any]]) -> None:
    configs = {name: found["accelerate.yaml"] for name, found in made.items() if "accelerate.yaml" in found}
    assert len(configs) == 8
    for name, config in configs.items():
        setup = SETUPS[name.split(".")[0]]
        _, _, count = setup["gpu"].rpartition("x")
        assert config["unknown"] == []
        assert config["processes"] == (int(count) if count.isdigit() and setup["gpu"] != "rtx-4090" else 1)


def test_accelerate_builds_the_plugin_that_was_budgeted(made: dict[str, dict[str, Any]]) -> None:
    second, first = made["fsdp2.accelerate"]["accelerate.yaml"], made["fsdp1.accelerate"]["accelerate.yaml"]
    assert (second["version"], second["reshard"], second["checkpointing"]) == (2, "True", True)
    assert (second["precision"], first["version"], first["reshard"]) == ("bf16", 1, "FULL_SHARD")
    assert made["offload.accelerate"]["accelerate.yaml"]["offload"].startswith("CPUOffloadPolicy")
    assert made["hsdp.accelerate"]["accelerate.yaml"]["layout"] == [8, 8, 1]
    assert made["hsdp.accelerate"]["accelerate.yaml"]["machines"] == 8
    assert made["tensor.accelerate"]["accelerate.yaml"]["layout"] == [1, 8, 2]
    assert made["ddp-lora.accelerate"]["accelerate.yaml"]["type"] == "MULTI_GPU"


def test_training_arguments_hold_what_decides_memory(made: dict[str, dict[str, Any]]) -> None:
    second = made["fsdp2.training-arguments"]["training_arguments.py"]
    assert (second["per_device_train_batch_size"], second["gradient_accumulation_steps"]) == (2, 4)
    assert (second["bf16"], second["tokens"], second["optim"]) == (True, 4096, "OptimizerNames.ADAMW_TORCH_FUSED")
    assert second["fsdp_config"]["activation_checkpointing"] is True
    assert second["gradient_checkpointing"] is False
    assert made["hsdp.training-arguments"]["training_arguments.py"]["layout"] == [8, 8, 1]
    lora = made["ddp-lora.training-arguments"]["training_arguments.py"]
    assert (lora["fsdp"], lora["optim"]) == (None, "OptimizerNames.ADAMW_BNB")
    assert made["qlora.training-arguments"]["training_arguments.py"]["gradient_checkpointing"] is True
    assert second["loads"]


def test_torchrun_and_the_script_parse_the_line(made: dict[str, dict[str, Any]]) -> None:
    second = made["fsdp2.torchrun"]["train.sh"]
    assert (second["processes"], second["script"], second["micro_batch"], second["fsdp"]) == ("8", "train.py", 2, True)
    pipeline = made["pipeline.torchrun"]["train.sh"]
    assert (pipeline["nodes"], pipeline["processes"]) == ("8", "8")
    assert (pipeline["script"], pipeline["module"]) == ("torchtitan.train", True)


@pytest.mark.parametrize(
    ("setup", "told"),
    [
        ("fp8", {"backend": "AO", "enable_fsdp_float8_all_gather": True}),
        ("fp8-delayed", {"backend": "TE", "amax_history_len": 1024}),
    ],
)
def test_accelerate_has_every_key_of_its_fp8_recipes(setup: str, told: dict[str, object], tmp_path: Path) -> None:
    # It starts nothing in FP8 where no library for it is installed: its parser is asked.
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import launch_command_parser

    for each in written(setup, "accelerate").files:
        (tmp_path / each.name).write_text(each.text, encoding="utf-8")
    config = load_config_from_file(str(tmp_path / "accelerate.yaml"))
    known = vars(launch_command_parser().parse_args(["train.py"]))
    assert config.mixed_precision == "fp8"
    assert {key if key.startswith("fp8") else f"fp8_{key}" for key in config.fp8_config} <= set(known)
    assert config.fp8_config.items() >= told.items()
    assert "bf16=False" in (tmp_path / "training_arguments.py").read_text(encoding="utf-8")


def test_torchtitan_is_told_the_recipe_of_fp8_and_to_leave_the_head_alone() -> None:
    config = tomllib.loads(written("fp8-rowwise", "torchtitan").files[0].text)
    assert config["quantize"]["linear"]["float8"] == {"recipe_name": "rowwise", "filter_fqns": ["output"]}
    assert config["model"]["converters"] == ["quantize.linear.float8"]


def test_deepspeed_reads_its_json(folder: Path) -> None:
    python = other_python("MEMPLAN_DEEPSPEED_PYTHON")
    two, three = read("read_deepspeed.py", python, [folder / f"{name}.deepspeed" / "deepspeed.json" for name in ZERO])
    assert (two["stage"], two["bucket"], two["batch"], two["offloads"]) == (2, 500_000_000, 8, [None, None])
    assert (three["stage"], three["live"], three["offloads"]) == (3, 1_000_000_000, ["cpu", "cpu"])
    paths = sorted(path for path in folder.iterdir() if path.name.startswith(ZERO))
    found = read("read_training.py", python, paths)
    assert found["zero2.accelerate"]["accelerate.yaml"]["type"] == "DEEPSPEED"
    assert found["zero3.accelerate"]["accelerate.yaml"]["zero3_init"] is True
    assert found["zero2.training-arguments"]["training_arguments.py"]["deepspeed"] == "deepspeed.json"
    assert found["zero3.deepspeed"]["training_arguments.py"]["use_liger_kernel"] is True


def test_deepspeed_json_has_no_key_that_is_not_in_the_table(folder: Path) -> None:
    for name in ZERO:
        config = json.loads((folder / f"{name}.deepspeed" / "deepspeed.json").read_text())
        assert set(config["zero_optimization"]) <= ZERO_KEYS
        assert any("predicted peak" in line for line in config["memplan"])


def test_torchtitan_reads_its_job_config(folder: Path) -> None:
    python = other_python("MEMPLAN_TORCHTITAN_PYTHON")
    names = HOLDERS["torchtitan"]
    paths = [folder / f"{name}.torchtitan" / "torchtitan.toml" for name in names]
    found = dict(zip(names, read("read_torchtitan.py", python, paths), strict=True))
    layout = found["hsdp"]["parallelism"]
    assert (layout["data_parallel_replicate_degree"], layout["data_parallel_shard_degree"]) == (8, 8)
    pipeline = found["pipeline"]["parallelism"]
    assert (pipeline["pipeline_parallel_degree"], pipeline["tensor_parallel_degree"]) == (4, 4)
    assert found["experts"]["model"]["flavor"] == "30B-A3B"
    assert found["experts"]["parallelism"]["expert_parallel_degree"] == 8
    assert found["fsdp2"]["training"]["global_batch_size"] == 64


def test_torchtitan_files_are_toml_with_the_whole_layout(folder: Path) -> None:
    for name in HOLDERS["torchtitan"]:
        config = tomllib.loads((folder / f"{name}.torchtitan" / "torchtitan.toml").read_text())
        layout = config["parallelism"]
        ranks = 1
        for kind in ("data_parallel_replicate", "data_parallel_shard", "tensor_parallel", "context_parallel"):
            ranks *= layout[f"{kind}_degree"]
        _, _, count = SETUPS[name]["gpu"].rpartition("x")
        assert ranks * layout["pipeline_parallel_degree"] == int(count)


def test_every_file_says_the_predicted_peak(folder: Path) -> None:
    for path in folder.rglob("*.*"):
        if path.is_file():
            assert "predicted peak" in path.read_text().replace("\n#", ""), path


def test_what_does_not_fit_is_written_with_the_cheapest_change_that_keeps_the_result(
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = {"model": "llama-8b", "train": "qlora", "gpu": "rtx-4090", "seq_len": "4096", "micro_batch": 4}
    _, emission = training_emission({**given, "offline": True}, {})
    assert "because as asked it is" in capsys.readouterr().err
    assert "NOTE: `--" in emission.files[0].text
    with pytest.raises(DoesNotFit, match="short on 1 x rtx-4090"):
        training_emission({**given, "offline": True, "strict": True}, {})


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"format": "vllm"}, "is of serving"),
        ({"format": "nope"}, "is not known"),
        ({"format": "torchtitan", "trainer": "trl"}, "is not for trl"),
        ({"format": "deepspeed", "sharding": "fsdp2"}, "DeepSpeed has no `fsdp2`"),
        ({"format": "torchtitan", "model": "mistral-7b"}, "no flavor"),
        ({"trainer": "megatron"}, "no config is written for megatron"),
        ({"checkpointing": "selective"}, "no selective checkpointing"),
        ({"optimizer": "muon"}, "no optimizer `muon`"),
        ({"gpu": ""}, "--gpu is empty"),
    ],
)
def test_what_a_format_cannot_hold_is_refused_in_one_line(changes: dict[str, Any], reason: str) -> None:
    given = {**FULL, "offline": True, **changes}
    with pytest.raises(UsageError, match=reason):
        training_emission(given, given)
