"""Scales of a cache in a checkpoint: what vLLM looks for is there, and the weights are as they were."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

from safetensors import safe_open  # noqa: E402 - after the skip
from safetensors.torch import save_file  # noqa: E402

from memplan.errors import UnsupportedModel, UsageError  # noqa: E402
from memplan.quantize.checkpoint import Checkpoint  # noqa: E402
from memplan.quantize.kv_rounding import KvScales  # noqa: E402
from memplan.quantize.kv_scale_files import SCALES_NAME, check_kv_scales, write_kv_scales  # noqa: E402

SCALES = {layer: KvScales(k_scale=0.25 + layer, v_scale=0.5 + layer) for layer in range(2)}
WEIGHTS = tuple(f"model.layers.{layer}.self_attn.{name}_proj.weight" for layer in range(2) for name in "kv")


def checkpoint(folder: Path, names: tuple[str, ...] = WEIGHTS, *, method: str = "compressed-tensors") -> Path:
    """A folder with small weights of these names, in one file."""
    folder.mkdir()
    save_file({name: torch.ones(2) for name in names}, folder / "model.safetensors")
    quantization = {"quant_method": method, "ignore": ["lm_head"]}
    config = {"model_type": "llama"} | ({"quantization_config": quantization} if method else {})
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_the_scales_are_read_back_through_the_index_and_the_weights_are_untouched(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model")
    before = (folder / "model.safetensors").read_bytes()
    check_kv_scales(folder, kv_dtype="fp8", force=False)
    assert write_kv_scales(folder, SCALES) == folder / SCALES_NAME
    assert (folder / "model.safetensors").read_bytes() == before
    read = Checkpoint(folder)
    assert read.files() == ("model.safetensors", SCALES_NAME)
    for layer, each in SCALES.items():
        stored = read.read(f"model.layers.{layer}.self_attn.k_scale")
        assert (stored.tolist(), stored.dtype) == ([each.k_scale], torch.float32)
        assert read.read(f"model.layers.{layer}.self_attn.v_scale").tolist() == [each.v_scale]
    with safe_open(folder / SCALES_NAME, framework="pt") as file:
        assert len(list(file.keys())) == 4
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "llama"
    assert config["quantization_config"]["ignore"] == ["lm_head"]
    scheme = {"num_bits": 8, "type": "float", "strategy": "tensor", "symmetric": True, "dynamic": False}
    assert config["quantization_config"]["kv_cache_scheme"] == scheme
    assert {path.name for path in folder.iterdir()} == {
        "config.json", "model.safetensors", "model.safetensors.index.json", SCALES_NAME
    }  # fmt: skip


def test_an_index_of_shards_keeps_its_shards_and_counts_the_scales_once(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model")
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    index = {"metadata": {"total_size": 32}, "weight_map": dict.fromkeys(WEIGHTS, "model-00001-of-00001.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    for _ in range(2):
        write_kv_scales(folder, SCALES)
    written = json.loads((folder / "model.safetensors.index.json").read_text())
    assert written["metadata"]["total_size"] == 32 + 4 * 4
    assert {name: file for name, file in written["weight_map"].items() if file != SCALES_NAME} == index["weight_map"]


def test_scales_that_are_there_are_replaced_with_force_alone(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model")
    write_kv_scales(folder, SCALES)
    with pytest.raises(UsageError, match="has scales already"):
        check_kv_scales(folder, kv_dtype="fp8", force=False)
    check_kv_scales(folder, kv_dtype="fp8", force=True)
    write_kv_scales(folder, {layer: KvScales(k_scale=3.0, v_scale=0.0) for layer in range(2)})
    read = Checkpoint(folder)
    assert read.read("model.layers.1.self_attn.k_scale").tolist() == [3.0]
    assert read.read("model.layers.1.self_attn.v_scale").tolist() == [1.0]  # of zeros: any but zero


def test_scales_among_the_weights_are_left_alone_even_with_force(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model", (*WEIGHTS, "model.layers.0.self_attn.k_scale"))
    with pytest.raises(UsageError, match=r"among the weights of model\.safetensors"):
        check_kv_scales(folder, kv_dtype="fp8", force=True)


@pytest.mark.parametrize(
    ("method", "kv_dtype", "complaint"),
    [
        ("", "fp8", "has no quantization_config: vLLM reads"),
        ("gptq", "fp8", "a quantization_config of gptq: vLLM reads"),
        ("compressed-tensors", "int8", "no engine reads stored scales of a cache in int8"),
    ],
)
def test_a_checkpoint_that_vllm_reads_no_scales_of_is_refused(
    tmp_path: Path, method: str, kv_dtype: str, complaint: str
) -> None:
    with pytest.raises(UsageError, match=complaint):
        check_kv_scales(checkpoint(tmp_path / "model", method=method), kv_dtype=kv_dtype, force=False)


@pytest.mark.parametrize(
    "names",
    [
        ("transformer.h.0.attn.c_attn.weight",),
        ("model.layers.0.self_attn.kv_a_proj_with_mqa.weight",),
        ("first.layers.0.self_attn.k_proj.weight", "second.layers.0.self_attn.k_proj.weight"),
    ],
)
def test_a_family_whose_attention_is_not_plain_is_refused(tmp_path: Path, names: tuple[str, ...]) -> None:
    with pytest.raises(UnsupportedModel):
        check_kv_scales(checkpoint(tmp_path / "model", names), kv_dtype="fp8", force=False)


def test_the_layers_of_a_vision_tower_get_no_scales(tmp_path: Path) -> None:
    seen = "vision_tower.encoder.layers.0.self_attn.k_proj.weight"
    folder = checkpoint(tmp_path / "model", (seen, *WEIGHTS))
    write_kv_scales(folder, SCALES)
    assert "vision_tower.encoder.layers.0.self_attn.k_scale" not in Checkpoint(folder)
