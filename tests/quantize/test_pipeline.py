"""The pipeline: bounded, resumable to the bit, and written so that other readers see the same model."""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import save_model, windows

from memplan.errors import CorruptFile, UnsupportedModel, UsageError
from memplan.quantize.formats import Layout
from memplan.quantize.forward import StreamedModel
from memplan.quantize.grid import Quantized
from memplan.quantize.methods import METHODS
from memplan.quantize.output import accept, write_checkpoint
from memplan.quantize.pipeline import Quantization
from memplan.quantize.request import QuantizeRequest, quantize_request
from memplan.quantize.statistics import BrokenNumbers
from memplan.quantize.workspace import Workspace
from memplan.quantize.written import written_model

# Methods that leave no choice of width.
FIXED = tuple(
    method.name
    for method in METHODS.values()
    if method.name not in ("int8", "fp8-block") and (method.element != "int" or method.format == "bitsandbytes")
)


class Killed(BaseException):
    """Stands for a signal at a moment of our choosing."""


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama."""
    return save_model("llama", tmp_path_factory.mktemp("llama"))


def asked(method: str, **settings: object) -> QuantizeRequest:
    """A request with groups that divide the small models."""
    if method not in FIXED and method != "int8":
        settings.setdefault("group_size", 32)
    return quantize_request(method, **settings)  # type: ignore[arg-type]


def quantized(source: Path, output: Path, request: QuantizeRequest, *, resume: bool = False) -> Quantization:
    """Quantize from start to end, or go on."""
    work = Quantization(request, source, windows())
    workspace = Workspace(output, work.identity())
    workspace.open(resume=resume, force=False)
    work.run(workspace)
    accept(workspace, write_checkpoint(work, workspace), output)
    return work


def logits(model: StreamedModel) -> torch.Tensor:
    """Log-probabilities over some windows."""
    return torch.cat(list(model.logits(windows(1, 4, 24)[0]))).float().log_softmax(-1)


def divergence(base: StreamedModel, model: StreamedModel) -> float:
    """The mean divergence of a model's predictions from its base's, in nats."""
    want, got = logits(base), logits(model)
    return float((want.exp() * (want - got)).sum(-1).mean())


@pytest.mark.parametrize("method", ["rtn", "gptq", "awq", "awq+gptq", "int8", *FIXED])
def test_a_written_model_predicts_what_its_base_does(llama: Path, tmp_path: Path, method: str) -> None:
    request = asked(method)
    work = quantized(llama, tmp_path / "out", request)
    found = divergence(StreamedModel(llama), written_model(tmp_path / "out", work.layout, request.format))
    assert found < (1e-4 if "int8" in method else 5e-4 if "fp8" in method else 5e-3)


def test_better_methods_are_better(llama: Path, tmp_path: Path) -> None:
    found = {}
    for method in ("rtn", "gptq"):
        request = asked(method, bits=3)
        work = quantized(llama, tmp_path / method, request)
        found[method] = divergence(StreamedModel(llama), written_model(tmp_path / method, work.layout, request.format))
    assert found["gptq"] < 0.8 * found["rtn"]


@pytest.mark.parametrize("family", ["gemma3", "phi3", "cohere", "opt", "gpt_neox"])
def test_other_families_come_through_as_well(tmp_path: Path, family: str) -> None:
    source = save_model(family, tmp_path / "model")
    request = asked("awq+gptq")
    work = quantized(source, tmp_path / "out", request)
    assert divergence(StreamedModel(source), written_model(tmp_path / "out", work.layout, request.format)) < 5e-3


@pytest.mark.parametrize("format", ["gptq", "awq"])
def test_layers_of_gpt2_are_written_out_by_in(tmp_path: Path, format: str) -> None:
    source = save_model("gpt2", tmp_path / "model")
    request = asked("awq", format=format)
    work = quantized(source, tmp_path / "out", request)
    assert divergence(StreamedModel(source), written_model(tmp_path / "out", work.layout, format)) < 5e-3
    with pytest.raises(UsageError, match="Conv1D"):
        Quantization(asked("awq"), source, windows())


@pytest.mark.parametrize(
    ("method", "weights_only"), [("gptq", False), ("int8", True), ("fp8", True), ("fp8", False), ("fp8-static", False)]
)
def test_transformers_loads_the_result_and_sees_the_same_weights(
    llama: Path, tmp_path: Path, method: str, weights_only: bool
) -> None:
    pytest.importorskip("compressed_tensors")
    import transformers

    request = asked(method, weights_only=weights_only)
    work = quantized(llama, tmp_path / "out", request)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    with torch.no_grad():
        got = model(windows(1, 4, 24)[0]).logits.log_softmax(-1)
    want = logits(written_model(tmp_path / "out", work.layout, request.format))
    assert torch.allclose(got, want, atol=1e-4)


def files_of(folder: Path) -> dict[str, bytes]:
    """All files of a folder by name."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize(
    "stopped_at", ["before the first block", "write of a block", "write of inputs", "manifest", "shards"]
)
def test_a_run_that_was_killed_goes_on_to_the_same_bytes(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped_at: str
) -> None:
    request = asked("awq+gptq")
    quantized(llama, tmp_path / "whole", request)
    with monkeypatch.context() as patched:
        _kill(patched, stopped_at)
        with pytest.raises(Killed):
            quantized(llama, tmp_path / "out", request)
    assert not (tmp_path / "out").exists()
    quantized(llama, tmp_path / "out", request, resume=True)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")
    assert not (tmp_path / "out.partial").exists()


def _kill(patched: pytest.MonkeyPatch, moment: str) -> None:
    """Die at a moment of the second block, or before the first, or while the result is written."""
    from memplan.quantize import output, workspace

    if moment == "before the first block":
        patched.setattr(Quantization, "_block", _dying(Quantization._block, 1))
    elif moment == "write of a block":
        patched.setattr(workspace, "write_safetensors", _dying(workspace.write_safetensors, 2))
    elif moment == "write of inputs":
        from memplan.quantize.activations import Activations

        patched.setattr(Activations, "write", _dying(Activations.write, 3))
    elif moment == "manifest":
        patched.setattr(workspace, "write_whole", _dying(workspace.write_whole, 3))
    else:
        patched.setattr(output, "write_safetensors", _dying(output.write_safetensors, 1))


def _dying(real: object, call: int) -> object:
    """A function that dies at its so-manieth call."""
    count = 0

    def function(*args: object, **kwargs: object) -> object:
        nonlocal count
        count += 1
        if count == call:
            raise Killed
        return real(*args, **kwargs)  # type: ignore[operator]

    return function


def test_work_of_another_request_or_calibration_is_not_gone_on_with(llama: Path, tmp_path: Path) -> None:
    work = Quantization(asked("rtn"), llama, windows())
    Workspace(tmp_path / "out", work.identity()).open(resume=False, force=False)
    for other in (Quantization(asked("rtn", bits=3), llama, windows()), Quantization(asked("rtn"), llama, windows(2))):
        with pytest.raises(UsageError, match="is of another"):
            Workspace(tmp_path / "out", other.identity()).open(resume=True, force=False)
    with pytest.raises(UsageError, match="unfinished work"):
        Workspace(tmp_path / "out", work.identity()).open(resume=False, force=False)


def test_work_with_rounded_activations_is_not_that_without(llama: Path) -> None:
    both, alone = (
        Quantization(asked("int8", weights_only=only), llama, windows()).identity() for only in (False, True)
    )
    assert both["request"] != alone["request"]


def test_other_weights_and_another_config_are_told_by_what_is_in_them(llama: Path, tmp_path: Path) -> None:
    for name in ("weights", "config"):
        shutil.copytree(llama, tmp_path / name)
    weights = tmp_path / "weights" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    config = json.loads((tmp_path / "config" / "config.json").read_text())
    config["rms_norm_eps"] *= 2
    (tmp_path / "config" / "config.json").write_text(json.dumps(config))
    folders = (llama, tmp_path / "weights", tmp_path / "config")
    models = [Quantization(asked("rtn"), folder, windows()).identity()["model"] for folder in (*folders, llama)]
    assert len(set(models)) == 3
    assert models[0] == models[-1]


def test_an_output_that_exists_is_left_alone_without_force(llama: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("kept")
    work = Quantization(asked("rtn"), llama, windows())
    with pytest.raises(UsageError, match="exists"):
        Workspace(tmp_path / "out", work.identity()).open(resume=False, force=False)
    assert (tmp_path / "out" / "mine").read_text() == "kept"


def test_a_truncated_file_of_inputs_is_told(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = Quantization(asked("gptq"), llama, windows())
    workspace = Workspace(tmp_path / "out", work.identity())
    workspace.open(resume=False, force=False)
    with monkeypatch.context() as patched:
        patched.setattr(Quantization, "_block", _dying(Quantization._block, 2))
        with pytest.raises(Killed):
            work.run(workspace)
    path = workspace.inputs_file(1)
    path.write_bytes(path.read_bytes()[:-10])
    again = Workspace(tmp_path / "out", work.identity())
    again.open(resume=True, force=False)
    with pytest.raises(CorruptFile, match="expected"):
        Quantization(asked("gptq"), llama, windows()).run(again)


@pytest.mark.parametrize("method", ["rtn", "gptq", "int8"])
def test_a_block_is_let_go_of_before_it_is_written(llama: Path, tmp_path: Path, method: str) -> None:
    def held() -> int:
        return sum(type(each) is Quantized for each in gc.get_objects())

    work, before = Quantization(asked(method), llama, windows()), held()

    class Watched(Workspace):
        def finish_block(self, index: int, tensors: Mapping[str, torch.Tensor], facts: dict[str, Any]) -> None:
            block = work.skeleton.model.get_submodule(work.skeleton.blocks[index])
            assert {value.device.type for value in block.parameters()} == {"meta"}
            assert held() <= before + 1  # the last that was packed
            assert tensors
            super().finish_block(index, tensors, facts)

    workspace = Watched(tmp_path / "out", work.identity())
    workspace.open(resume=False, force=False)
    work.run(workspace)
    assert len(workspace.blocks) == len(work.skeleton.blocks)


def test_shards_and_tied_heads_come_through(tmp_path: Path) -> None:
    source = save_model("gemma3", tmp_path / "model", max_shard="60KB")
    assert (source / "model.safetensors.index.json").exists()
    quantized(source, tmp_path / "out", asked("rtn"))
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["quantization_config"]["ignore"] == ["lm_head"]


def test_layers_that_are_kept_stay_as_they_were(llama: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    quantized(llama, tmp_path / "out", asked("gptq", keeps=("*.down_proj", "model.layers.0")))
    before, after = load_file(llama / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    kept = [name for name in before if "down_proj" in name or "layers.0." in name]
    assert kept
    assert all(torch.equal(before[name], after[name]) for name in kept)
    assert "model.layers.1.mlp.up_proj.weight_packed" in after


@pytest.mark.parametrize("keep", ["*.q_proj", "model.layers.0.mlp.up_proj"])
def test_a_part_of_what_engines_fuse_cannot_be_kept(llama: Path, keep: str) -> None:
    with pytest.raises(UsageError, match="engines fuse"):
        Quantization(asked("gptq", keeps=(keep,)), llama, windows())


def test_groups_that_divide_nothing_are_refused_before_any_work(llama: Path) -> None:
    with pytest.raises(UsageError, match="do not divide the 64 in features"):
        Quantization(quantize_request("gptq"), llama, windows())


def test_a_model_that_is_quantized_already_is_refused(llama: Path, tmp_path: Path) -> None:
    quantized(llama, tmp_path / "out", asked("rtn"))
    with pytest.raises(UnsupportedModel, match="quantized already"):
        Quantization(asked("rtn"), tmp_path / "out", windows())


def test_weights_that_are_not_numbers_are_refused(llama: Path, tmp_path: Path) -> None:
    source = _broken(llama, tmp_path / "broken", "model.layers.1.mlp.up_proj.weight", float("nan"))
    with pytest.raises(CorruptFile, match="NaN"):
        quantized(source, tmp_path / "out", asked("rtn"))


def test_activations_that_overflow_are_refused(llama: Path, tmp_path: Path) -> None:
    source = _broken(llama, tmp_path / "broken", "model.layers.0.mlp.down_proj.weight", 3e38)
    with pytest.raises(BrokenNumbers, match="activations"):
        quantized(source, tmp_path / "out", asked("gptq"))


def _broken(source: Path, folder: Path, name: str, value: float) -> Path:
    """A copy of a model with some bad weights."""
    from safetensors.torch import load_file, save_file

    folder.mkdir()
    (folder / "config.json").write_bytes((source / "config.json").read_bytes())
    tensors = load_file(source / "model.safetensors")
    tensors[name][:2] = value
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_the_layout_says_what_was_kept(llama: Path) -> None:
    work = Quantization(asked("gptq"), llama, windows())
    assert work.layout == Layout(
        method=asked("gptq").method, bits=4, group_size=32, symmetric=True, damping=0.01, kept=("lm_head",)
    )
