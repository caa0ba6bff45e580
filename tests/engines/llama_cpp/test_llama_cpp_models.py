"""What llama.cpp runs and what it does not: encoders, every model of the catalogue, options that make no sense."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memplan.catalog.gpus import find_gpu
from memplan.catalog.models import list_models
from memplan.domain.budget import MemoryBudget
from memplan.domain.serving import ServingSettings, Workload
from memplan.engines.llama_cpp.engine import LLAMA_CPP
from memplan.engines.llama_cpp.overrides import read_overrides
from memplan.errors import MemplanError, UnsupportedModel, UsageError
from memplan.introspect.resolve import resolve_model
from memplan.pipeline import with_scheme
from memplan.records import replace

ENCODERS = ("BAAI/bge-m3", "intfloat/e5-large-v2", "distilbert/distilbert-base-uncased", "answerdotai/ModernBERT-base")


def _estimate(
    name: str, scheme: str | None = None, version: str | None = None, context: int | None = None, **options: object
) -> MemoryBudget:
    spec = with_scheme(resolve_model(name, revision=None, offline=True, introspect="auto"), scheme)
    asked = ServingSettings(workload=Workload(context_tokens=context), engine_options=options)
    return LLAMA_CPP.estimate(spec, find_gpu("h200"), asked, version)


@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_has_no_cache_and_no_second_embedding(name: str) -> None:
    budget = _estimate(name)
    assert budget.group_bytes("kv_cache") == 0
    assert budget.group_bytes("activation_peak") > 0
    assert not any("head" in line.name for line in budget.lines)
    assert any("-ub" in warning for warning in budget.warnings)
    assert budget.verdict == "fits"


def test_an_encoder_takes_more_for_longer_inputs() -> None:
    peaks = [
        _estimate("BAAI/bge-m3", batch_size=size, ubatch_size=size).group_bytes("activation_peak")
        for size in (512, 2048, 8192)
    ]
    assert peaks == sorted(peaks)
    assert peaks[0] < peaks[-1] / 8


def test_encoders_had_a_cache_that_they_did_not_use() -> None:
    assert _estimate("BAAI/bge-m3", version="b4443", ctx_size=4096).group_bytes("kv_cache") == 384 << 20
    assert _estimate("BAAI/bge-m3", version="b6000", ctx_size=4096).group_bytes("kv_cache") == 0


@pytest.mark.parametrize("name", ["facebook/opt-125m", "google-t5/t5-small", "openai/whisper-base"])
def test_what_llama_cpp_does_not_run_is_refused_with_a_way_out(name: str) -> None:
    with pytest.raises(UnsupportedModel) as refused:
        _estimate(name)
    assert "--engine" in str(refused.value.hint)


def test_every_family_of_the_catalogue_is_budgeted_or_refused() -> None:
    answered, refused = 0, []
    families = {str(dict(model.config).get("model_type")): model for model in list_models()}
    for model in families.values():
        try:
            budget = _estimate(model.name, "gguf:q4_k_m", context=4096)
        except UnsupportedModel as error:
            refused.append(f"{model.name}: {error.message}")
            continue
        answered += 1
        assert budget.group_bytes("weights") > 0, model.name
        assert budget.group_bytes("activation_peak") > 0, model.name
    assert answered > 4 * len(refused), refused


_VALUES = st.one_of(
    st.integers(-(2**40), 2**40), st.floats(allow_nan=True), st.booleans(), st.text(max_size=8), st.none()
)
_NAMES = (
    *("n_gpu_layers", "ctx_size", "parallel", "kv_unified", "batch_size", "ubatch_size", "flash_attention"),
    *("cache_type_k", "cache_type_v", "split_mode", "tensor_split", "main_gpu", "no_kv_offload", "op_offload"),
    *("swa_full", "mmap", "cpu_moe", "n_cpu_moe", "cache_ram_mib", "device", "build", "fork", "mla_attn"),
    "override_tensor",
)


@given(options=st.dictionaries(st.sampled_from(_NAMES), _VALUES, max_size=3))
@settings(max_examples=60)
def test_hostile_options_end_in_an_answer_or_one_clear_line(options: dict[str, object]) -> None:
    try:
        said = [line.name for line in _estimate("Qwen/Qwen3-0.6B", "gguf:q4_k_m", context=2048, **options).lines]
    except MemplanError as error:
        said = error.message.splitlines()[1:] or [error.message]
    assert said


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"cache_type_k": "q9_9"}, "cache type"),
        ({"cache_type_v": "q8_0", "flash_attention": False}, "flash attention"),
        ({"tensor_split": "1,1,1"}, "tensor_split"),
        ({"main_gpu": 3}, "main_gpu"),
        ({"override_tensor": "exps"}, "override_tensor"),
        ({"override_tensor": "exps(=CPU"}, "pattern"),
        ({"override_tensor": "exps=CUDA7"}, "CUDA7"),
        ({"n_gpu_layer": 3}, "n_gpu_layer"),
    ],
)
def test_a_bad_option_is_named(options: dict[str, object], part: str) -> None:
    with pytest.raises(UsageError) as refused:
        _estimate("Qwen/Qwen3-0.6B", **options)
    assert part in refused.value.message
    assert refused.value.hint


def test_flash_attention_is_refused_where_it_did_not_exist() -> None:
    with pytest.raises(UsageError, match="no flash attention"):
        _estimate("Qwen/Qwen3-0.6B", version="b2400", flash_attention=True)


def test_overrides_keep_commas_inside_patterns() -> None:
    first, second = read_overrides(r"blk\.[0-9]{1,2}\.ffn=CPU,output=CUDA1", 2)
    assert (first.pattern, first.device, second.device) == (r"blk\.[0-9]{1,2}\.ffn", 2, 1)
    assert first.matches("blk.12.ffn_up.weight")
    assert not first.matches("blk.123.ffn_up.weight")


def test_a_model_without_room_is_offered_the_layers_that_fit() -> None:
    from memplan.pipeline import Question, answer

    spec = with_scheme(
        resolve_model("meta-llama/Llama-3.3-70B-Instruct", revision=None, offline=True, introspect="auto"),
        "gguf:q4_k_m",
    )
    gpu = find_gpu("rtx-4090")
    asked = ServingSettings(workload=Workload(context_tokens=8192))
    budget = answer(Question(spec=spec, base_spec=spec, gpu=gpu, settings=asked, engine="llama.cpp", version=None))
    offers = {remedy.change: remedy.verdict for remedy in budget.remedies}
    layers = next(int(change.split()[-1]) for change in offers if change.startswith("-ngl"))
    assert 35 <= layers <= 50
    assert offers[f"-ngl 81 -> {layers}"] == "fits"
    assert budget.verdict == "does_not_fit"


@given(data=st.data())
@settings(max_examples=40)
def test_a_model_that_lacks_weights_is_budgeted_or_refused(data: st.DataObject) -> None:
    name = data.draw(
        st.sampled_from(("Qwen/Qwen3-30B-A3B", "Qwen/Qwen3-Next-80B-A3B-Instruct", "google/gemma-4-E2B-it"))
    )
    spec = with_scheme(resolve_model(name, revision=None, offline=True, introspect="auto"), "gguf:q4_k_m")
    names = sorted({tensor.name for layer in spec.layers for tensor in layer.tensors})
    lost = data.draw(st.sets(st.sampled_from(names), min_size=1, max_size=4))
    kept = {
        id(layer): replace(layer, tensors=tuple(tensor for tensor in layer.tensors if tensor.name not in lost))
        for layer in spec.layers
    }
    damaged = replace(spec, layers=tuple(kept[id(layer)] for layer in spec.layers))
    asked = ServingSettings(workload=Workload(context_tokens=2048))
    try:
        said = str(LLAMA_CPP.estimate(damaged, find_gpu("h200"), asked, None).verdict)
    except UnsupportedModel as error:
        said = str(error.hint)
    assert said


def _write_tiny_file(path: Path) -> int:
    """A Llama of two layers with attention in Q8_0 and MLPs in Q4_0; the bytes of its tensors."""
    numpy, package = pytest.importorskip("numpy"), pytest.importorskip("gguf")
    kinds = package.GGMLQuantizationType
    writer = package.GGUFWriter(path, "llama")
    writer.add_block_count(2)
    writer.add_context_length(4096)
    writer.add_embedding_length(256)
    writer.add_feed_forward_length(512)
    writer.add_head_count(8)
    writer.add_head_count_kv(2)
    size = 0

    def add(name: str, shape: tuple[int, ...], kind: object) -> None:
        nonlocal size
        plain = numpy.zeros(shape, dtype=numpy.float32)
        made = plain if kind == kinds.F32 else package.quants.quantize(plain, kind)
        size += made.nbytes
        writer.add_tensor(name, made, raw_dtype=kind)

    for layer in range(2):
        for weight, rows in {"attn_q": 256, "attn_k": 64, "attn_v": 64, "attn_output": 256}.items():
            add(f"blk.{layer}.{weight}.weight", (rows, 256), kinds.Q8_0)
        for weight, shape in {"ffn_gate": (512, 256), "ffn_up": (512, 256), "ffn_down": (256, 512)}.items():
            add(f"blk.{layer}.{weight}.weight", shape, kinds.Q4_0)
        add(f"blk.{layer}.attn_norm.weight", (256,), kinds.F32)
        add(f"blk.{layer}.ffn_norm.weight", (256,), kinds.F32)
    add("token_embd.weight", (1024, 256), kinds.Q8_0)
    add("output_norm.weight", (256,), kinds.F32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return size


def test_a_file_is_budgeted_by_its_own_types(tmp_path: Path) -> None:
    held = _write_tiny_file(tmp_path / "tiny.gguf")
    spec = resolve_model(str(tmp_path / "tiny.gguf"), revision=None, offline=True, introspect="auto")
    on_host = ServingSettings(engine_options={"device": "none"})
    lines = LLAMA_CPP.estimate(spec, find_gpu("rtx-4090"), on_host, None).extra["host_lines"]
    assert isinstance(lines, list)
    assert [line["bytes"] for line in lines if line["name"] == "weights on the host"] == [held]
    on_gpu = LLAMA_CPP.estimate(spec, find_gpu("rtx-4090"), ServingSettings(), None)
    assert all(line.low_bytes == line.high_bytes for line in on_gpu.lines if line.group == "weights")
