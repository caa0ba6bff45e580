"""Which format starts where: facts of engines' sources and documentation, and tables that are whole."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from memplan.catalog.gpus import find_gpu, list_gpus
from memplan.catalog.quant_schemes import parse_scheme, scheme_names
from memplan.catalog.rules import parse_release
from memplan.catalog.servable import ENGINES, Support, format_names, kv_support, support
from memplan.catalog.servable_rows import is_on
from memplan.domain.attention import FullAttention, LatentAttention
from memplan.domain.dtypes import DType
from memplan.domain.model import Layer, Mlp, ModelSpec
from memplan.domain.serving import ParallelLayout
from memplan.domain.tensors import Role, Shard, ShardKind, Tensor
from memplan.introspect.config import Config
from memplan.introspect.quantization.traits import read_traits
from memplan.introspect.quantized import quantize_spec
from memplan.records import replace

TABLES = Path(__file__).parents[2] / "memplan" / "catalog" / "servable"
KEYS = {"gpu", "since", "before", "bits", "groups", "unlike", "when", "kernel", "speed", "note", "refused", "use"}
TRAITS = {"desc_act", "asymmetric", "modelopt", "compressed-tensors", "weight-only", "prequantized", "ranks", "experts"}


def model(
    *, quantization: str | None = None, traits: tuple[str, ...] = (), intermediate: int = 14336, experts: int = 0,
    latent: bool = False,
) -> ModelSpec:  # fmt: skip
    """A model of one layer, with the two halves of a feed-forward block."""
    role = Role.EXPERT if experts else Role.MLP
    up = Tensor(
        name="mlp.up_proj.weight",
        shape=(intermediate, 4096),
        role=role,
        shard=Shard(ShardKind.SPLIT, intermediate),
        linear=True,
    )
    down = Tensor(
        name="mlp.down_proj.weight",
        shape=(4096, intermediate),
        role=role,
        shard=Shard(ShardKind.SPLIT, intermediate),
        linear=True,
    )
    cache = LatentAttention(512, 64, 32, 192, 128) if latent else FullAttention(8, 128, 128)
    layer = Layer(
        kind="attention",
        caches=(cache,),
        tensors=(up, down),
        num_heads=32,
        query_width=4096,
        mlp=Mlp(intermediate=intermediate, num_experts=experts),
    )
    return ModelSpec(
        name="made",
        model_type="llama",
        architecture="LlamaForCausalLM",
        dtype=DType.BF16,
        hidden_size=4096,
        vocab_size=32000,
        num_heads=32,
        max_context_tokens=8192,
        layers=(layer,),
        shared=(),
        quantization=quantization,
        quantization_traits=traits,
    )


def asked(
    scheme: str | None, gpu: str, engine: str = "vllm@0.33.0", *, spec: ModelSpec | None = None, kv: str | None = None,
    tp: int = 1,
) -> Support:  # fmt: skip
    name, _, version = engine.partition("@")
    return support(spec or model(), scheme, kv, find_gpu(gpu), ParallelLayout(tensor=tp), name, version or None)


# Facts: scheme, GPU, engine and release, a part of the kernel's name, speed.
RUNS = [
    ("fp8", "h100", "vllm@0.33.0", "CUTLASS", "native"),
    ("fp8", "l4", "vllm@0.6.1", "CUTLASS", "native"),
    ("fp8", "a100-80g", "vllm@0.33.0", "Marlin W8A16", "emulated"),
    ("fp8", "a100-80g", "vllm@0.5.1", "Marlin W8A16", "emulated"),
    ("fp8", "t4", "vllm@0.14.1", "Marlin W8A16", "emulated"),
    ("fp8-channel", "rtx-3090", "vllm@0.5.4", "Marlin W8A16", "emulated"),
    ("fp8-block", "a100-80g", "vllm@0.9.0", "Marlin W8A16", "emulated"),
    ("fp8-block", "h100", "vllm@0.7.0", "DeepGEMM", "native"),
    ("fp8", "mi300x", "vllm@0.33.0", "FP8", "native"),
    ("nvfp4", "b200", "vllm@0.8.0", "NVFP4", "native"),
    ("nvfp4", "h100", "vllm@0.9.0", "Marlin W4A16", "emulated"),
    ("nvfp4", "a100-80g", "vllm@0.33.0", "Marlin W4A16", "emulated"),
    ("mxfp4", "h100", "vllm@0.10.1", "Triton", "native"),
    ("mxfp4", "a100-80g", "vllm@0.11.0", "Marlin", "emulated"),
    ("mxfp4", "b200", "vllm@0.11.0", "FlashInfer", "native"),
    ("w8a8-int8", "a100-80g", "vllm@0.33.0", "CUTLASS INT8", "native"),
    ("w8a8-int8", "t4", "vllm@0.33.0", "CUTLASS INT8", "native"),
    ("gptq-int4-g128", "h100", "vllm@0.33.0", "Machete", "native"),
    ("gptq-int4-g32", "h100", "vllm@0.33.0", "Marlin", "native"),
    ("gptq-int4-g128", "a100-80g", "vllm@0.33.0", "Marlin", "native"),
    ("gptq-int4-g128", "t4", "vllm@0.10.0", "ExLlama", "slow"),
    ("gptq-int4-g128", "v100-32g", "vllm@0.10.0", "ExLlama", "slow"),
    ("gptq-int3-g128", "a100-80g", "vllm@0.20.0", "ExLlama", "slow"),
    ("awq-int4-g128", "a100-80g", "vllm@0.5.4", "Marlin", "native"),
    ("awq-int4-g128", "t4", "vllm@0.10.0", "AWQ GEMM", "slow"),
    ("awq-int4-g128", "t4", "vllm@0.16.0", "Marlin", "native"),
    ("bnb-nf4", "a100-80g", "vllm@0.27.1", "bitsandbytes", "slow"),
    ("gguf:q4_k_m", "a100-80g", "vllm@0.23.0", "ggml", "slow"),
    ("none", "t4", "vllm@0.33.0", "cuBLAS", "native"),
    ("nvfp4", "h100", "sglang@0.5.13", "Marlin", "emulated"),
    ("fp8", "a100-80g", "sglang@0.5.23", "Marlin", "emulated"),
    ("nvfp4", "rtx-5090", "tensorrt-llm@1.0.0", "NVFP4", "native"),
    ("awq-int4-g128", "b200", "tensorrt-llm@1.3.0", "W4A16", "native"),
    ("gguf:q4_k_m", "m4-max", "llama.cpp", "Metal", "native"),
    ("gguf:q4_k_m", "v100-32g", "llama.cpp", "CUDA", "native"),
    ("bnb-nf4", "t4", "transformers", "bitsandbytes", "slow"),
    ("fp8-block", "a100-80g", "transformers", "dequantized", "slow"),
]

# Facts: scheme, GPU, engine and release, a part of the reason, a part of the hint.
REFUSED = [
    ("fp8", "a100-80g", "vllm@0.4.3", "from 0.5.1 on", "vllm@0.5.1"),
    ("fp8", "t4", "vllm@0.13.0", "from 0.14.0 on", "vllm@0.14.0"),
    ("fp8-block", "a100-80g", "vllm@0.8.5", "scale by blocks", "vllm@0.9.0"),
    ("nvfp4", "h100", "vllm@0.8.5", "from 0.9.0 on", "vllm@0.9.0"),
    ("w8a8-int8", "b200", "vllm@0.33.0", "Blackwell", "--quant fp8"),
    ("w8a8-int8", "rtx-5090", "vllm@0.33.0", "Blackwell", "--quant fp8"),
    ("w8a8-int8", "v100-32g", "vllm@0.10.0", "7.5", "--quant"),
    ("awq-int4-g128", "v100-32g", "vllm@0.10.0", "7.5", "gptq-int4-g128"),
    ("gptq-int3-g128", "h100", "vllm@0.33.0", "left in 0.22", "4-bit"),
    ("gptq-int4-g128", "v100-32g", "vllm@0.22.0", "7.5", "vllm@0.21.0"),
    ("bnb-nf4", "a100-80g", "vllm@0.33.0", "left vLLM in 0.28", "vllm-bnb-plugin"),
    ("gguf:q4_k_m", "a100-80g", "vllm@0.33.0", "left vLLM in 0.24", "llama.cpp"),
    ("none", "p100-16g", "vllm@0.33.0", "7.5", "llama.cpp"),
    ("none", "v100-32g", "vllm@0.33.0", "7.5", "llama.cpp"),
    ("mxfp4", "t4", "vllm@0.33.0", "8.0", "--quant"),
    ("mlx-int4-g64", "h100", "vllm@0.33.0", "Apple", "--quant"),
    ("none", "m4-max", "vllm@0.33.0", "vllm-metal", "llama.cpp"),
    ("none", "v100-32g", "sglang@0.5.23", "7.5", "llama.cpp"),
    ("nvfp4", "h100", "sglang@0.5.12", "from 0.5.13 on", "sglang@0.5.13"),
    ("fp8", "a100-80g", "tensorrt-llm@1.3.0", "Ampere", "--quant awq-int4-g128"),
    ("nvfp4", "h100", "tensorrt-llm@1.3.0", "Blackwell", "--quant"),
    ("awq-int4-g128", "b200", "tensorrt-llm@1.0.0", "from 1.2.0 on", "tensorrt-llm@1.2.0"),
    ("awq-int4-g128", "rtx-4090", "llama.cpp", "GGUF", "gguf:q4_k_m"),
    ("nvfp4", "b200", "transformers", "NVFP4", "--quant"),
    ("hqq-int4-g64", "a100-80g", "transformers@5.23.0", "before 5.0.0 only", "--quant"),
]  # fmt: skip


@pytest.mark.parametrize(("scheme", "gpu", "engine", "kernel", "speed"), RUNS)
def test_a_format_that_starts_names_its_kernel(scheme: str, gpu: str, engine: str, kernel: str, speed: str) -> None:
    found = asked(scheme, gpu, engine)
    assert found.runs, found.reason
    assert kernel in found.kernel
    assert found.speed == speed
    assert found.source


@pytest.mark.parametrize(("scheme", "gpu", "engine", "reason", "hint"), REFUSED)
def test_what_is_refused_says_why_and_what_to_use_instead(
    scheme: str, gpu: str, engine: str, reason: str, hint: str
) -> None:
    found = asked(scheme, gpu, engine)
    assert not found.runs
    assert reason in found.reason
    assert hint in found.hint
    assert found.source


def test_modelopts_fp8_computes_in_fp8_only_and_is_refused_on_ampere_before_vllm_0_27() -> None:
    spec = model(quantization="fp8", traits=("prequantized", "modelopt"))
    assert asked(None, "a100-80g", "vllm@0.33.0", spec=spec).kernel == "Marlin W8A16"
    refused = asked(None, "a100-80g", "vllm@0.20.0", spec=spec)
    assert not refused.runs
    assert "W8A8 only" in refused.reason
    assert asked(None, "h100", "vllm@0.20.0", spec=spec).runs


def test_activation_order_is_refused_from_vllm_0_30_on() -> None:
    spec = model(quantization="gptq-int4-g128", traits=("prequantized", "desc_act"))
    assert asked(None, "a100-80g", "vllm@0.29.0", spec=spec).runs
    refused = asked(None, "a100-80g", "vllm@0.30.0", spec=spec)
    assert "desc_act" in refused.reason
    assert "static" in refused.hint
    assert asked("gptq-int4-g128", "a100-80g", "vllm@0.33.0", spec=model()).runs


def test_asymmetric_gptq_is_slow_until_vllm_0_22_and_refused_from_then_on() -> None:
    spec = model(quantization="gptq-int4-g128", traits=("prequantized", "asymmetric"))
    assert asked(None, "a100-80g", "vllm@0.20.0", spec=spec).speed == "slow"
    assert "sym" in asked(None, "a100-80g", "vllm@0.33.0", spec=spec).reason


def test_groups_that_marlin_lacks_are_refused_once_it_is_the_only_kernel() -> None:
    assert asked("gptq-int4-g256", "a100-80g", "vllm@0.20.0").kernel.startswith("ExLlama")
    assert "groups of 32, 64, 128" in asked("gptq-int4-g256", "a100-80g", "vllm@0.33.0").reason


def test_a_bitsandbytes_checkpoint_is_not_cut_over_tensor_parallel_ranks() -> None:
    checkpoint = model(quantization="bnb-nf4", traits=("prequantized",))
    assert asked(None, "a100-80g", "vllm@0.20.0", spec=checkpoint).runs
    refused = asked(None, "a100-80g", "vllm@0.20.0", spec=checkpoint, tp=2)
    assert "tensor-parallel" in refused.reason
    assert "--pp" in refused.hint
    while_loading = quantize_spec(model(), parse_scheme("bnb-nf4"))
    assert asked(None, "a100-80g", "vllm@0.20.0", spec=while_loading, tp=2).runs


def test_groups_that_straddle_ranks_are_refused_with_a_layout_that_works() -> None:
    spec = quantize_spec(model(intermediate=18944), parse_scheme("gptq-int4-g128"))
    assert asked(None, "a100-80g", spec=spec, tp=8).runs, "a checkpoint that is not there yet may be padded"
    spec = replace(spec, quantization_traits=("prequantized",))
    assert asked(None, "a100-80g", spec=spec, tp=4).runs
    refused = asked(None, "a100-80g", spec=spec, tp=8)
    assert "2,368 of 18,944 inputs of `down_proj`" in refused.reason
    assert "--tp 4" in refused.hint


def test_experts_in_blocks_are_cut_whole_or_not_at_all() -> None:
    spec = quantize_spec(model(intermediate=1536, experts=128), parse_scheme("fp8-block"))
    refused = asked(None, "h100", spec=spec, tp=8)
    assert "192 of 1,536 outputs" in refused.reason
    assert "--ep" in refused.hint
    whole = support(spec, None, None, find_gpu("h100"), ParallelLayout(tensor=8, expert=True), "vllm", "0.33.0")
    assert whole.runs


def test_integer_groups_of_experts_have_kernels_with_smaller_groups() -> None:
    spec = quantize_spec(model(intermediate=1536, experts=128), parse_scheme("gptq-int4-g128"))
    assert asked(None, "a100-80g", spec=spec, tp=8).runs


KV = [
    ("fp8", "h100", "vllm@0.33.0", True, "FlashAttention 3"),
    ("fp8_e4m3", "b200", "vllm@0.33.0", True, "FlashInfer"),
    ("fp8", "a100-80g", "vllm@0.33.0", True, "FlashInfer"),
    ("fp8", "t4", "vllm@0.33.0", False, "8.9"),
    ("fp8", "t4", "vllm@0.8.5", True, "V0"),
    ("fp8", "mi300x", "vllm@0.33.0", True, "Triton"),
    ("bfloat16", "t4", "vllm@0.33.0", False, "bfloat16"),
    ("nvfp4", "b200", "vllm@0.20.0", True, "FlashInfer"),
    ("nvfp4", "h100", "vllm@0.20.0", False, "0.32.0"),
    ("int8_per_token_head", "a100-80g", "vllm@0.20.0", True, "Triton"),
    ("fp8_per_token_head", "a100-80g", "vllm@0.33.0", False, "FP8 in hardware"),
    ("mxfp8", "h100", "sglang@0.5.23", False, "Blackwell"),
    ("fp8_e4m3", "h100", "sglang@0.4.1", False, "0.4.2"),
    ("fp8", "a100-80g", "tensorrt-llm@1.3.0", True, "TRT-LLM"),
    ("nvfp4", "h100", "tensorrt-llm@1.3.0", False, "Blackwell"),
    ("q8_0", "rtx-4090", "llama.cpp", True, "flash attention"),
    ("fp8", "rtx-4090", "llama.cpp", False, "no cache"),
    ("fp8", "h100", "transformers@5.0.0", False, "5.21.0"),
]


@pytest.mark.parametrize(("kv_dtype", "gpu", "engine", "runs", "said"), KV)
def test_a_cache_type_starts_where_an_attention_kernel_reads_it(
    kv_dtype: str, gpu: str, engine: str, runs: bool, said: str
) -> None:
    name, _, version = engine.partition("@")
    found = kv_support(model(), kv_dtype, find_gpu(gpu), name, version or None)
    assert found.runs is runs
    assert said in (found.kernel if runs else found.reason)
    assert runs or found.hint


def test_latent_caches_in_fp8_need_hopper_blackwell_or_a_newer_triton_kernel() -> None:
    latent = model(latent=True)
    assert kv_support(latent, "fp8", find_gpu("h100"), "vllm", "0.10.2").kernel == "FlashMLA"
    assert not kv_support(latent, "fp8", find_gpu("a100-80g"), "vllm", "0.33.0").runs
    assert "latent" in kv_support(latent, "fp8", find_gpu("l40s"), "vllm", "0.17.0").reason


def test_a_refused_cache_refuses_the_deployment() -> None:
    found = asked("awq-int4-g128", "t4", kv="fp8")
    assert not found.runs
    assert "--kv-dtype auto" in found.hint


def test_the_checkpoints_own_storage_is_asked_about_when_no_scheme_is_named() -> None:
    assert asked(None, "h100", spec=model(quantization="nvfp4")).kernel == "Marlin W4A16"
    assert asked(None, "h100", spec=model()).kernel == "cuBLAS"


@pytest.mark.parametrize("engine", ENGINES)
def test_every_scheme_and_device_has_an_answer_with_a_reason_and_a_source(engine: str) -> None:
    spec = model()
    for gpu in list_gpus():
        for scheme in (*scheme_names(), "gguf:q4_k_m"):
            found = support(spec, scheme, None, gpu, ParallelLayout(), engine, None)
            assert found.source
            assert found.kernel if found.runs else found.reason


@pytest.mark.parametrize("engine", ENGINES)
def test_rows_have_known_keys_known_traits_and_releases(engine: str) -> None:
    table = yaml.safe_load((TABLES / f"{engine}.yaml").read_text(encoding="utf-8"))
    devices = list_gpus()
    for entry in (*table["weights"].values(), *table["kv"].values()):
        assert entry["source"]
        assert entry["title"]
        for row in entry["rows"]:
            assert set(row) <= KEYS | {"dequantized"}
            assert ("refused" in row) != ("kernel" in row)
            assert "refused" in row or row["speed"] in ("native", "emulated", "slow")
            assert {trait.lstrip("!") for trait in row.get("when", ())} <= TRAITS | {"latent"}
            assert any(is_on(row["gpu"], gpu) for gpu in devices), row
            for bound in ("since", "before"):
                assert bound not in row or parse_release(str(row[bound]))
            if "since" in row and "before" in row:
                assert parse_release(str(row["since"])) < parse_release(str(row["before"]))


def test_a_device_of_which_only_the_size_is_known_is_refused_nothing() -> None:
    bare = replace(find_gpu("h100"), compute_capability=None)
    found = support(model(), "nvfp4", "fp8", bare, ParallelLayout(tensor=2), "vllm", None)
    assert (found.runs, found.kernel) == (True, "")
    assert "not known" in found.reason


def test_the_tables_name_every_format_that_weights_can_be_in() -> None:
    assert {"none", "fp8", "gptq", "awq", "bnb-4bit", "gguf", "other"} <= set(format_names("vllm"))
    assert {"auto", "fp8", "other"} <= set(format_names("sglang", "kv"))


def test_traits_are_read_from_the_quantization_config() -> None:
    gptq = Config({"bits": 4, "group_size": 128, "desc_act": True, "sym": False})
    assert read_traits("gptq", gptq) == ("prequantized", "desc_act", "asymmetric")
    whole_channels = Config({"bits": 4, "group_size": -1, "desc_act": True, "sym": True})
    assert read_traits("gptq", whole_channels) == ("prequantized",)
    weights = {"num_bits": 4, "type": "int", "actorder": "group"}
    groups = Config({"config_groups": {"group_0": {"weights": weights}}})
    assert read_traits("compressed-tensors", groups) == (
        "prequantized",
        "compressed-tensors",
        "desc_act",
        "weight-only",
    )
    assert "modelopt" in read_traits("modelopt", Config({"quant_algo": "FP8"}))
