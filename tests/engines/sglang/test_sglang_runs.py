"""Start-ups of SGLang that were printed in public: the budget has their weights and their capacity."""

from dataclasses import dataclass, field

import pytest

from memplan.catalog.gpus import find_gpu
from memplan.domain.budget import MemoryBudget
from memplan.domain.serving import ParallelLayout, ServingSettings
from memplan.engines.sglang.engine import SGLANG
from memplan.introspect.resolve import resolve_model
from memplan.units import GIB


@dataclass(frozen=True)
class Run:
    """One start-up: what was set, what was free before loading, and what was printed."""

    model: str
    gpu: str
    version: str
    tokens: int
    weights_gib: float | None = None
    tensor: int = 1
    options: dict[str, object] = field(default_factory=dict)
    percent: float = 0.5


RUNS = [
    Run("Qwen/Qwen3-8B", "b200", "0.5.10", 992_896, 15.28, options={"avail_mem_before_load": 177.57}),
    Run("Qwen/Qwen3-14B", "rtx-4090", "0.5.9", 298_447, 7.08, 4, {
        "avail_mem_before_load": 23.08, "mem_fraction_static": 0.8}),
    Run("Qwen/Qwen2.5-7B-Instruct", "a100-40g", "0.4.3", 372_945, 14.38, options={"avail_mem_before_load": 38.97}),
    Run("meta-llama/Llama-3.1-8B-Instruct", "rtx-4090", "0.4.9", 38_141, 15.02, options={
        "avail_mem_before_load": 22.39}),
    Run("Qwen/Qwen3-30B-A3B-FP8", "h100", "0.5.18", 392_920, 29.15, options={"avail_mem_before_load": 78.48}),
    Run("ibm-granite/granite-4.0-h-micro", "rtx-4080", "0.5.8", 399_740, 5.98, options={
        "avail_mem_before_load": 15.24, "cuda_graph_max_bs": 8}),
    Run("meta-llama/Meta-Llama-3-8B-Instruct", "mi300x", "0.3.3", 1_256_440, 15.0, options={
        "avail_mem_before_load": 191.33}),
    Run("deepseek-ai/DeepSeek-R1", "mi308x", "0.4.6", 720_206, 81.66, 8, {
        "avail_mem_before_load": 185.27, "mem_fraction_static": 0.7, "chunked_prefill_size": 130_172}, 2.0),
    Run("nvidia/DeepSeek-V3.2-NVFP4", "b200", "0.5.13", 1_375_168, None, 4, {"kv_cache_dtype": "fp8_e4m3"}, 2.0),
]  # fmt: skip

# Runs that no constant was fitted on, and that nothing was changed for.
UNSEEN = [
    Run("LiquidAI/LFM2-700M", "rtx-5060-ti-16g", "0.5.7", 473_854, 1.52, options={
        "avail_mem_before_load": 15.33, "cuda_graph_max_bs": 8}),
    Run("Qwen/Qwen3.5-9B", "rtx-3090", "0.5.10", 327_310, 8.85, 2, {
        "avail_mem_before_load": 22.93, "mem_fraction_static": 0.8}),
    Run("meta-llama/Llama-3.3-70B-Instruct", "h200", "0.5.3", 2_795_207, None, 8, {"avail_mem_before_load": 137.29}),
    Run("deepseek-ai/DeepSeek-R1", "mi300x", "0.4.2", 1_061_980, None, 8, percent=2.0),
]  # fmt: skip


def estimate(run: Run) -> MemoryBudget:
    settings = ServingSettings(layout=ParallelLayout(tensor=run.tensor), engine_options=run.options)
    return SGLANG.estimate(resolve_model(run.model, offline=True), find_gpu(run.gpu), settings, run.version)


@pytest.mark.parametrize("run", [*RUNS, *UNSEEN], ids=lambda run: f"{run.model}-{run.gpu}-x{run.tensor}")
def test_a_real_start_up_is_predicted(run: Run) -> None:
    budget = estimate(run)
    assert budget.kv.capacity_tokens == pytest.approx(run.tokens, rel=run.percent / 100)
    if run.weights_gib is not None:
        assert budget.group_bytes("weights") / GIB == pytest.approx(run.weights_gib, rel=0.007)


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.model)
def test_the_capacity_lies_in_its_interval(run: Run) -> None:
    capacity = estimate(run).kv
    assert capacity.low_tokens is not None
    assert capacity.high_tokens is not None
    assert capacity.low_tokens <= run.tokens <= capacity.high_tokens
