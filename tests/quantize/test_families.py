"""Families of transformers as they are: quantized, read back, and, where transformers can, run by its own code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from small_families import DENSE, EXPERTS, FUSED_EXPERTS, HYBRID, SEEING, UNKNOWN, save_family
from small_models import FAMILIES, save_model, windows

from memplan.errors import MemplanError
from memplan.quantize.forward import Forward, StreamedModel, WholeModel
from memplan.quantize.output import accept, write_checkpoint
from memplan.quantize.pipeline import Quantization
from memplan.quantize.request import POOL_BYTES, quantize_request
from memplan.quantize.workspace import Workspace
from memplan.quantize.written import WrittenCheckpoint, written_model

_METHODS = {**dict.fromkeys([*EXPERTS, *FUSED_EXPERTS], ("gptq", "awq", "int8"))}
_METHODS |= dict.fromkeys([*DENSE, *FAMILIES, *HYBRID, *SEEING], ("awq",))
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture(scope="module", params=_METHODS)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A family's name, and a small model of it."""
    save = save_model if request.param in FAMILIES else save_family
    return request.param, save(request.param, tmp_path_factory.mktemp(request.param) / "model")


def quantized(
    source: Path, output: Path, method: str, *, pool_bytes: int = POOL_BYTES, **settings: object
) -> Quantization:
    """Quantize in groups of 32 from start to end."""
    group = {} if method == "int8" else {"group_size": 32}
    work = Quantization(quantize_request(method, **group, **settings), source, windows())  # type: ignore[arg-type]
    work.pool_bytes = pool_bytes
    workspace = Workspace(output, work.identity())
    workspace.open(resume=False, force=False)
    work.run(workspace)
    accept(workspace, write_checkpoint(work, workspace), output)
    return work


def logits(model: Forward) -> torch.Tensor:
    """Log-probabilities over some windows."""
    return torch.cat(list(model.logits(windows(1, 3, 24)[0]))).float().log_softmax(-1)


def stored(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint of one file."""
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def unpacked(work: Quantization, folder: Path, plain: Path) -> Path:
    """A quantized checkpoint as a plain one, under the same names."""
    checkpoint = WrittenCheckpoint(folder, work.layout, work.request.format)
    save_file({name: checkpoint.read(name).contiguous() for name in checkpoint.names()}, plain / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"]
    (plain / "config.json").write_text(json.dumps(config))
    return plain


def test_a_written_model_predicts_what_its_base_does(family: tuple[str, Path], tmp_path: Path) -> None:
    name, source = family
    want = logits(StreamedModel(source))
    # Experts are multiplied apart here and by slices of one tensor there: another order of the same sums.
    is_apart = "experts" in (source / "config.json").read_text()
    torch.testing.assert_close(want, logits(WholeModel(source)), rtol=0, atol=1e-5 if is_apart else 0)
    for method in _METHODS[name]:
        form = "gptq" if name == "gpt2" else "compressed-tensors"  # layers that are stored in x out
        work = quantized(source, tmp_path / method, method, format=form)
        got = logits(written_model(tmp_path / method, work.layout, work.request.format))
        divergence = float((want.exp() * (want - got)).sum(-1).mean())
        assert 0 < divergence < (0.01 if method == "int8" else 0.08), method
        if name in (*EXPERTS, *DENSE, *FAMILIES) and method == "awq" and name != "gpt2":
            (tmp_path / "plain").mkdir()
            run = logits(WholeModel(unpacked(work, tmp_path / method, tmp_path / "plain")))
            assert torch.allclose(run, got, atol=1e-4), "transformers reads other weights"


@pytest.mark.parametrize("name", SEEING)
def test_only_the_language_part_of_a_model_that_sees_is_rounded(name: str, tmp_path: Path) -> None:
    source = save_family(name, tmp_path / "model")
    work = quantized(source, tmp_path / "out", "rtn")
    before, after = stored(source), stored(tmp_path / "out")
    eyes = [name for name in before if "visi" in name or "visual" in name or "projector" in name]
    assert eyes
    assert all(torch.equal(before[name], after[name]) for name in eyes)
    kept = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]["ignore"]
    matrices = {name.removesuffix(".weight") for name in eyes if name.endswith(".weight") and before[name].dim() == 2}
    layers = {name for name, module in work.skeleton.model.named_modules() if isinstance(module, torch.nn.Linear)}
    assert matrices & layers <= set(kept)
    packed = {name.removesuffix("_packed") for name in after if name.endswith("weight_packed")}
    assert packed
    if name not in ("llama4_vl", "qwen3_vl_moe"):  # these hold experts in one tensor
        assert packed <= set(before)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("dbrx", "layout that is not known here: ffn.experts.mlp.w1"),
        ("jetmoe", "layout that is not known here: mlp.input_linear.weight"),
        ("longcat", "works in a way that is not known here"),
        ("gemma3n", "read keys and values that earlier blocks left"),
        ("mamba", "no layer is left to round"),
    ],
)
def test_what_is_not_known_is_refused_in_one_line(name: str, words: str, tmp_path: Path) -> None:
    source = save_family(name, tmp_path / "model")
    with pytest.raises(MemplanError, match=words) as caught:
        quantized(source, tmp_path / "out", "gptq")
    assert "\n" not in str(caught.value)
    assert set(UNKNOWN) == {"dbrx", "jetmoe", "longcat", "gemma3n", "mamba"}
