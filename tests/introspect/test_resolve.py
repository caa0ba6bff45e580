import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoint_files import GgufBytes, write_safetensors

from memplan.domain.attention import FullAttention, LatentAttention, NoCache
from memplan.errors import CorruptFile, MemplanError, Offline, SourceNotFound, UnsupportedModel, UsageError
from memplan.introspect.resolve import resolve_model

CONFIG: dict[str, object] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 256,
    "max_position_embeddings": 512,
    "torch_dtype": "bfloat16",
}


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def write_config(folder: Path, **changes: object) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps({**CONFIG, **changes}))
    return path


def llama_tensors() -> dict[str, tuple[str, tuple[int, ...], int]]:
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (256, 64), "model.norm.weight": (64,)}
    shapes["lm_head.weight"] = (256, 64)
    for index in range(2):
        layer = f"model.layers.{index}"
        shapes |= {f"{layer}.{name}.weight": (64,) for name in ("input_layernorm", "post_attention_layernorm")}
        shapes |= {f"{layer}.self_attn.{name}.weight": (64, 64) for name in ("q_proj", "o_proj")}
        shapes |= {f"{layer}.self_attn.{name}.weight": (32, 64) for name in ("k_proj", "v_proj")}
        shapes |= {f"{layer}.mlp.{name}.weight": (128, 64) for name in ("gate_proj", "up_proj")}
        shapes[f"{layer}.mlp.down_proj.weight"] = (64, 128)
    return {name: ("BF16", shape, 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)) for name, shape in shapes.items()}


def write_gguf(path: Path) -> Path:
    file = GgufBytes().key("general.architecture", "llama").key("llama.block_count", 1).key("general.file_type", 15)
    file.key("llama.embedding_length", 64).key("llama.attention.head_count", 2)
    file.tensor("token_embd.weight", (32, 64), 1, 4096).tensor("blk.0.attn_q.weight", (64, 64), 1, 8192)
    path.write_bytes(file.build())
    return path


def test_a_directory_with_config_and_weights_is_exact(tmp_path: Path) -> None:
    write_config(tmp_path)
    write_safetensors(tmp_path / "model.safetensors", llama_tensors())
    spec = resolve_model(str(tmp_path))
    assert spec.weights_source == "headers"
    assert spec.stored_bytes == 2 * spec.parameters
    assert spec.name == tmp_path.name
    assert spec.source == str(tmp_path)
    assert resolve_model(str(tmp_path / "model.safetensors")) == spec


def test_a_directory_is_found_relative_to_where_one_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_config(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert resolve_model(".").name == tmp_path.name
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve_model("~").model_type == "llama"


def test_a_config_alone_is_enough(tmp_path: Path) -> None:
    path = write_config(tmp_path)
    spec = resolve_model(str(path))
    assert (spec.weights_source, spec.stored_bytes, spec.source) == ("config", None, str(path))
    assert resolve_model(str(tmp_path)).parameters == spec.parameters


def test_the_quantization_file_beside_a_config_is_passed_on(tmp_path: Path) -> None:
    path = write_config(tmp_path)
    quantization = {
        "producer": {"name": "modelopt"},
        "quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8"},
    }
    (tmp_path / "hf_quant_config.json").write_text(json.dumps(quantization))
    for name in (path, tmp_path):
        spec = resolve_model(str(name))
        assert spec.quantization == "fp8"
        assert spec.kv_cache_scheme == "fp8"


def test_the_quantization_file_of_an_older_tool_is_read(tmp_path: Path) -> None:
    write_config(tmp_path)
    (tmp_path / "quantize_config.json").write_text(json.dumps({"bits": 4, "group_size": 128, "desc_act": False}))
    assert str(resolve_model(str(tmp_path)).quantization).startswith("gptq-int4")


def test_an_index_without_any_shard_leaves_the_config_and_says_so(tmp_path: Path) -> None:
    write_config(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    shard = "model-00001-of-00001.safetensors"
    index.write_text(json.dumps({"metadata": {"total_size": 777}, "weight_map": {"a": shard}}))
    spec = resolve_model(str(tmp_path))
    assert spec.weights_source == "config"
    assert any("777 bytes" in note for note in spec.notes)
    with pytest.raises(SourceNotFound, match=r"missing shards .* 1 of 1"):
        resolve_model(str(index))


def test_half_a_download_is_an_error_that_names_the_other_half(tmp_path: Path) -> None:
    write_config(tmp_path)
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    write_safetensors(tmp_path / shards[0], {"a": ("F32", (2,), 8)})
    weight_map = {"a": shards[0], "b": shards[1]}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(SourceNotFound, match=shards[1]):
        resolve_model(str(tmp_path))


def test_pickled_weights_leave_the_config_and_say_so(tmp_path: Path) -> None:
    write_config(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"PK")
    assert any("pickled" in note for note in resolve_model(str(tmp_path)).notes)
    with pytest.raises(UsageError, match="pickled"):
        resolve_model(str(tmp_path / "pytorch_model.bin"))


def test_gguf_files_are_read_by_name_directory_and_content(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "tiny-q4_k_m.gguf")
    spec = resolve_model(str(path))
    assert (spec.quantization, spec.name) == ("gguf:q4_k_m", "tiny-q4_k_m")
    assert resolve_model(str(tmp_path)).quantization == "gguf:q4_k_m"
    blob = path.rename(tmp_path / "sha256-0123abcd")
    assert resolve_model(str(blob)).quantization == "gguf:q4_k_m"


def test_gguf_files_beside_the_originals_config_are_what_is_meant(tmp_path: Path) -> None:
    write_config(tmp_path)
    write_gguf(tmp_path / "tiny-q4_k_m.gguf")
    assert resolve_model(str(tmp_path)).quantization == "gguf:q4_k_m"
    write_safetensors(tmp_path / "model.safetensors", llama_tensors())
    assert resolve_model(str(tmp_path)).quantization is None


def test_weights_without_a_config_give_exact_bytes_and_a_cache_by_their_shapes(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "some.safetensors", llama_tensors())
    spec = resolve_model(str(tmp_path / "some.safetensors"))
    assert spec.stored_bytes == 2 * spec.parameters
    assert [layer.caches for layer in spec.layers] == [(FullAttention(1, 32, 32),)] * 2
    assert (spec.vocab_size, spec.hidden_size) == (256, 64)
    assert spec.is_generative
    assert len(spec.notes) == 2
    assert resolve_model(str(tmp_path)).parameters == spec.parameters


def test_a_latent_projection_shows_its_cache(tmp_path: Path) -> None:
    tensors = {
        "model.layers.0.self_attn.kv_a_proj_with_mqa.weight": ("BF16", (80, 64), 80 * 64 * 2),
        "model.layers.0.self_attn.kv_a_layernorm.weight": ("BF16", (64,), 128),
    }
    write_safetensors(tmp_path / "model.safetensors", tensors)
    (cache,) = resolve_model(str(tmp_path)).layers[0].caches
    assert isinstance(cache, LatentAttention)
    assert (cache.latent_width, cache.rope_width) == (64, 16)


def test_a_fused_projection_shows_its_cache(tmp_path: Path) -> None:
    tensors = {
        "h.0.attn.qkv_proj.weight": ("F16", (128, 64), 128 * 64 * 2),
        "h.0.attn.o_proj.weight": ("F16", (64, 64), 64 * 64 * 2),
    }
    write_safetensors(tmp_path / "model.safetensors", tensors)
    assert resolve_model(str(tmp_path)).layers[0].caches == (FullAttention(1, 32, 32),)


def test_weights_that_show_no_cache_say_so(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "unet.safetensors", {"blocks.0.conv.weight": ("F16", (4, 4), 32)})
    spec = resolve_model(str(tmp_path / "unet.safetensors"))
    assert [layer.caches for layer in spec.layers] == [(NoCache(),)]
    assert any("no cache is counted" in note for note in spec.notes)


def test_an_adapter_names_its_base_model(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "org/base"}))
    write_safetensors(tmp_path / "adapter_model.safetensors", {"a": ("F32", (2,), 8)})
    with pytest.raises(UnsupportedModel) as caught:
        resolve_model(str(tmp_path))
    assert "`org/base`" in str(caught.value.hint)


@pytest.mark.parametrize(
    "name",
    [
        "./nothing",
        "/no/such/model",
        "~/no-such-model",
        "some/path/model.gguf",
        "config.json",
        "x.safetensors",
        "a/b/c",
        "d/",
    ],
)
def test_a_path_that_is_not_there_says_so(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceNotFound, match="no such file or directory"):
        resolve_model(name)


def test_a_misspelt_path_suggests_what_is_beside_it(tmp_path: Path) -> None:
    write_config(tmp_path)
    with pytest.raises(SourceNotFound) as caught:
        resolve_model(str(tmp_path / "confg.json"))
    assert caught.value.hint == "did you mean config.json?"


@pytest.mark.parametrize("name", ["", "   "])
def test_no_name_is_no_model(name: str) -> None:
    with pytest.raises(UsageError, match="no model named"):
        resolve_model(name)


@pytest.mark.parametrize("name", ["a\x00b", "x" * 5000])
def test_what_can_be_no_name_is_shown_short(name: str) -> None:
    with pytest.raises(UsageError, match=r"not a model's name: `.{1,80}`"):
        resolve_model(name)


def test_the_demo_model_comes_with_memplan() -> None:
    spec = resolve_model("demo", offline=True)
    assert (spec.name, spec.source, spec.architecture) == ("demo", "built in: demo", "LlamaForCausalLM")
    assert 1_000_000 < spec.parameters < 10_000_000


def test_a_revision_of_an_alias_is_one_of_its_repository() -> None:
    with pytest.raises(Offline, match=r"meta-llama/Llama-3\.1-8B-Instruct"):
        resolve_model("llama-3.1-8b-instruct", revision="0123abc", offline=True)


def test_an_unknown_way_to_introspect_is_refused() -> None:
    with pytest.raises(UsageError, match="unknown way to introspect: `magic`"):
        resolve_model("demo", introspect="magic")


def test_a_name_that_nothing_has_is_unknown() -> None:
    with pytest.raises(SourceNotFound, match="unknown model: `no-such-alias-at-all`") as caught:
        resolve_model("no-such-alias-at-all")
    assert caught.value.hint


def test_a_hub_id_without_a_network_is_offline() -> None:
    with pytest.raises(Offline, match="`no-such-org/no-such-model` is not on this disk"):
        resolve_model("no-such-org/no-such-model")


def test_an_empty_directory_says_what_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(SourceNotFound, match="no model in") as caught:
        resolve_model(str(tmp_path))
    assert "config.json" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"", "the file is empty"),
        (b"{", "line 1 column 2"),
        (b"[1, 2]", "a JSON list, not an object"),
        (b"\xff\xfe", "no UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a": ' + b"1" * 10_000 + b"}", "damaged JSON"),
    ],
)
def test_a_config_that_is_no_json_object_is_named_with_the_place(tmp_path: Path, text: bytes, says: str) -> None:
    (tmp_path / "config.json").write_bytes(text)
    with pytest.raises(CorruptFile) as caught:
        resolve_model(str(tmp_path / "config.json"))
    assert says in caught.value.message
    assert "config.json" in caught.value.message


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": None},
        {"hidden_size": "64"},
        {"num_hidden_layers": -1},
        {"num_hidden_layers": 10**9},
        {"num_attention_heads": 0},
        {"vocab_size": [1]},
        {"vocab_size": 1e300},
        {"torch_dtype": 5},
        {"torch_dtype": "complex64"},
        {"architectures": "Llama"},
        {"num_key_value_heads": float("nan")},
        {"model_type": "never-heard-of"},
        {"model_type": 7},
        {"quantization_config": {"quant_method": "magic"}},
        {"quantization_config": "gptq"},
        {"quantization_config": [1]},
    ],
)
def test_a_config_with_nonsense_in_it_is_refused_in_one_line(tmp_path: Path, changes: dict[str, object]) -> None:
    write_config(tmp_path, **changes)
    with pytest.raises(MemplanError) as caught:
        resolve_model(str(tmp_path))
    assert caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.exit_code in (2, 4)


def test_a_config_saved_by_a_windows_editor_is_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(CONFIG).encode())
    assert resolve_model(str(tmp_path)).model_type == "llama"


def test_infinity_in_a_config_is_no_damage(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, "time_step_limit": [0.0, float("inf")]}))
    assert resolve_model(str(tmp_path)).model_type == "llama"


def test_an_index_without_a_config_is_exact(tmp_path: Path) -> None:
    shard = "model-00001-of-00001.safetensors"
    tensors = llama_tensors()
    write_safetensors(tmp_path / shard, tensors)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(tensors, shard)}))
    assert resolve_model(str(index)).stored_bytes == sum(size for _, _, size in tensors.values())


def test_shards_without_an_index_are_read_together(tmp_path: Path) -> None:
    write_config(tmp_path)
    tensors = list(llama_tensors().items())
    for number in (1, 2):
        write_safetensors(tmp_path / f"model-0000{number}-of-00002.safetensors", dict(tensors[number - 1 :: 2]))
    assert resolve_model(str(tmp_path)).weights_source == "headers"


def test_a_file_that_may_not_be_read_says_so(tmp_path: Path) -> None:
    path = write_config(tmp_path)
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user reads everything")
    with pytest.raises(SourceNotFound, match="Permission denied"):
        resolve_model(str(path))


def test_resolving_a_path_imports_no_network_and_no_heavy_package(tmp_path: Path) -> None:
    write_config(tmp_path)
    write_safetensors(tmp_path / "model.safetensors", llama_tensors())
    heavy = ("torch", "transformers", "numpy", "http.client", "ssl", "yaml", "huggingface_hub", "gguf", "safetensors")
    code = (
        "import sys; from memplan.introspect.resolve import resolve_model; "
        f"assert resolve_model({str(tmp_path)!r}).weights_source == 'headers'; "
        f"print([name for name in {heavy!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_weights_of_a_pipelines_parts_are_exact(tmp_path: Path) -> None:
    index = {"_class_name": "StableDiffusionPipeline", "text_encoder": ["transformers", "CLIPTextModel"]}
    (tmp_path / "model_index.json").write_text(json.dumps({**index, "scheduler": ["diffusers", "DDIMScheduler"]}))
    (tmp_path / "text_encoder").mkdir()
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_hidden_layers": 3}
    config = {"model_type": "clip_text_model", "architectures": ["CLIPTextModel"], "vocab_size": 100, **sizes}
    (tmp_path / "text_encoder" / "config.json").write_text(json.dumps(config))
    by_config = resolve_model(str(tmp_path))
    assert by_config.weights_source == "config"
    stored = {}
    for tensor in (tensor for tower in by_config.towers for tensor in tower.tensors):
        name = tensor.name.removeprefix("text_encoder/")
        for number in range(tensor.count):
            shape = tensor.shape
            size = 4 * tensor.num_elements // tensor.count
            stored[name.replace("*", str(number))] = ("F32", shape, size)
    write_safetensors(tmp_path / "text_encoder" / "model.safetensors", stored)
    by_headers = resolve_model(str(tmp_path / "model_index.json"))
    assert by_headers.weights_source == "headers"
    assert by_headers.stored_bytes == sum(size for _, _, size in stored.values())
    assert by_headers.parameters == by_config.parameters
    assert by_headers.towers == by_config.towers
