"""Start-ups of TensorRT-LLM that were printed in public, its defaults, and what it refuses."""

from dataclasses import dataclass, field, replace

import pytest

from memplan.catalog.gpus import find_gpu
from memplan.domain.budget import MemoryBudget
from memplan.domain.gpu import GpuSpec
from memplan.domain.serving import ParallelLayout, ServingSettings, Workload
from memplan.engines.registry import load_engine
from memplan.engines.tensorrt_llm.engine import TENSORRT_LLM
from memplan.errors import UsageError
from memplan.introspect.resolve import resolve_model
from memplan.units import GIB

LLAMA = "meta-llama/Llama-3.1-8B-Instruct"


@dataclass(frozen=True)
class Run:
    """One start-up: what was set and what was printed."""

    model: str
    gpu: str
    version: str
    tokens: int
    total_gib: float | None = None
    weights_gib: float | None = None
    options: dict[str, object] = field(default_factory=dict)
    percent: float = 1.0


RUNS = [
    Run("nvidia/Llama-3.1-8B-Instruct-FP8", "h100", "0.20.0", 896_736, 79.18, 8.55, {
        "backend": "pytorch", "free_gpu_memory_fraction": 0.8, "max_num_tokens": 4608, "max_batch_size": 2048,
        "max_seq_len": 269, "kv_cache_dtype": "fp8", "cuda_graph_max_batch_size": 8192}),
    Run("TinyLlama/TinyLlama-1.1B-Chat-v1.0", "l40s", "1.1.0", 1_871_136, 47.37),
    Run("Qwen/Qwen3-Reranker-0.6B", "h100", "1.1.0", 643_136),
    Run("openai/gpt-oss-120b", "gb10", "1.1.0", 86_720, 119.70, 63.52, {
        "max_batch_size": 64, "outside_torch": "48.72GiB"}, 3.0),
    Run("Qwen/Qwen1.5-7B-Chat", "a100-40g", "0.13.0", 40_384, 39.39, None, {"free_memory_before_cache": 21.89}, 0.0),
]  # fmt: skip


def sized(name: str, total_gib: float | None) -> GpuSpec:
    gpu = find_gpu(name)
    if total_gib is None:
        return gpu
    size = round(total_gib * GIB)
    return replace(gpu, memory_bytes=size, visible_low_bytes=size, visible_high_bytes=size)


def estimate(
    model: str = LLAMA, gpu: str = "h100", tensor: int = 1, version: str | None = None, **options: object
) -> MemoryBudget:
    settings = ServingSettings(layout=ParallelLayout(tensor=tensor), engine_options=options)
    return TENSORRT_LLM.estimate(resolve_model(model, offline=True), find_gpu(gpu), settings, version)


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.model)
def test_a_real_start_up_is_predicted(run: Run) -> None:
    spec, gpu = resolve_model(run.model, offline=True), sized(run.gpu, run.total_gib)
    budget = TENSORRT_LLM.estimate(spec, gpu, ServingSettings(engine_options=run.options), run.version)
    capacity = budget.kv
    assert capacity.capacity_tokens == pytest.approx(run.tokens, rel=run.percent / 100 + 1e-9)
    assert capacity.low_tokens is not None
    assert capacity.high_tokens is not None
    assert capacity.low_tokens <= run.tokens <= capacity.high_tokens
    if run.weights_gib is not None:
        assert budget.group_bytes("weights") / GIB == pytest.approx(run.weights_gib, rel=0.01)


def test_the_registry_knows_the_engine() -> None:
    assert load_engine("tensorrt-llm") is TENSORRT_LLM


def test_a_context_that_does_not_fit_is_cut_and_said_so() -> None:
    budget = estimate(LLAMA, "rtx-4090", max_seq_len=131_072)
    assert budget.verdict == "does_not_fit"
    assert any(warning.startswith("max_seq_len is cut to") for warning in budget.warnings)


def test_every_layer_is_kept_at_full_length_unless_windows_are_given() -> None:
    full = estimate("openai/gpt-oss-120b", "h200")
    cut = estimate("openai/gpt-oss-120b", "h200", max_attention_window="[128, 131072]")
    assert full.kv.blocks is not None
    cache = next(line.size_bytes for line in full.lines if line.name == "KV cache")
    assert cache == full.kv.blocks * 32 * 36 * 8 * 2 * 64 * 2
    assert any("max_attention_window" in warning for warning in full.warnings)
    assert not any("max_attention_window" in warning for warning in cut.warnings)
    assert cut.kv.capacity_tokens is not None
    assert full.kv.capacity_tokens is not None
    assert cut.kv.capacity_tokens > 1.9 * full.kv.capacity_tokens


def test_a_fraction_of_its_own_wins_over_the_common_one() -> None:
    spec, gpu = resolve_model(LLAMA, offline=True), find_gpu("h100")
    for options, fraction in (({}, 0.7), ({"free_gpu_memory_fraction": 0.5}, 0.5)):
        asked = ServingSettings(gpu_memory_utilization=0.7, engine_options=dict(options))
        assert TENSORRT_LLM.estimate(spec, gpu, asked, None).settings["free_gpu_memory_fraction"] == fraction


def test_releases_differ_in_flow_and_blocks() -> None:
    old, new = estimate(version="0.12.0").settings, estimate(version="1.1.0").settings
    assert (old["backend"], old["tokens_per_block"], old["cuda_graph_max_batch_size"]) == ("tensorrt", 64, None)
    assert (new["backend"], new["tokens_per_block"], new["cuda_graph_max_batch_size"]) == ("pytorch", 32, 128)


def test_the_engine_flow_sizes_activations_for_the_tokens_a_batch_can_have() -> None:
    small, large = (
        {
            line.name: line.size_bytes
            for line in estimate(
                "Qwen/Qwen2.5-7B-Instruct-AWQ", version="0.18.0", max_batch_size=1, max_seq_len=size
            ).lines
        }["activation peak, execution context"]
        for size in (512, 2048)
    )
    assert large == pytest.approx(4 * small, rel=0.01)
    assert large / GIB == pytest.approx(262 / 1024, rel=0.15)


def test_attention_groups_hold_whole_attention_weights() -> None:
    plain, grouped = (
        {line.name: line.size_bytes for line in estimate("deepseek-ai/DeepSeek-V3", "h200", 8, **more).lines}
        for more in ({}, {"enable_attention_dp": True})
    )
    assert grouped["weights: attention"] > 4 * plain["weights: attention"]


def test_draft_layers_take_their_part_of_the_cache() -> None:
    spec, gpu = resolve_model("deepseek-ai/DeepSeek-V3", offline=True), find_gpu("h200")
    layout = ParallelLayout(tensor=8)
    plain, drafted = (
        TENSORRT_LLM.estimate(spec, gpu, ServingSettings(layout=layout, num_speculative_tokens=count), None)
        for count in (0, 1)
    )
    assert plain.kv.capacity_tokens is not None
    assert drafted.kv.capacity_tokens is not None
    assert drafted.group_bytes("weights") > plain.group_bytes("weights")
    assert drafted.kv.capacity_tokens < plain.kv.capacity_tokens * 61 / 62


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tokens_per_block": 48}, "power of two"),
        ({"free_gpu_memory_fraction": 0}, "above 0"),
        ({"backend": "tensort"}, "tensorrt"),
        ({"max_attention_window": "wide"}, "[128, 32768]"),
        ({"free_gpu_memory_fracton": 0.9}, "did you mean free_gpu_memory_fraction?"),
        ({"moe_expert_parallel_size": 3}, "divisor"),
        ({"attn_backend": "flashinfr"}, "flashinfer"),
    ],
)
def test_bad_options_give_one_line_with_the_remedy(options: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        estimate(LLAMA, "h100", 2, **options)
    assert words in f"{caught.value.hint}"
    assert "\n" not in f"{caught.value}{caught.value.hint}"


def test_a_gpu_of_another_vendor_is_refused() -> None:
    with pytest.raises(UsageError, match="does not run on"):
        estimate(LLAMA, "mi300x")


def test_the_lines_sum_to_what_is_used() -> None:
    for version in ("0.12.0", "1.1.0"):
        budget = estimate(version=version, max_batch_size=64)
        assert sum(line.size_bytes for line in budget.lines) == budget.used_bytes
        assert all(line.low_bytes <= line.size_bytes <= line.high_bytes for line in budget.lines)


def test_more_context_or_users_never_fit_better() -> None:
    spec, gpu = resolve_model(LLAMA, offline=True), find_gpu("rtx-4090")
    order = ("fits", "tight", "does_not_fit")
    for axis in ("context_tokens", "concurrency"):
        base = {"context_tokens": 1024, "concurrency": 2}
        seen = [
            TENSORRT_LLM.estimate(spec, gpu, ServingSettings(workload=Workload(**{**base, axis: size})), None).verdict
            for size in (1, 2, 16, 256, 4096)
        ]
        assert [order.index(verdict) for verdict in seen] == sorted(order.index(verdict) for verdict in seen)
