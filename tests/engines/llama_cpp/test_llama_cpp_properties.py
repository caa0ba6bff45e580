"""What holds for every start: more costs more, lines sum up, devices agree, and limits are the last that fit."""

from __future__ import annotations

from functools import lru_cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memplan.catalog.gpus import find_gpu
from memplan.domain.budget import MemoryBudget
from memplan.domain.model import ModelSpec
from memplan.domain.serving import ParallelLayout, ServingSettings, Workload
from memplan.engines.llama_cpp import plan
from memplan.engines.llama_cpp.engine import LLAMA_CPP, as_stored, rules_of
from memplan.engines.llama_cpp.limits import largest_gpu_layers
from memplan.engines.llama_cpp.plan import Plan, plan_devices
from memplan.engines.llama_cpp.settings import resolve
from memplan.introspect.resolve import resolve_model
from memplan.pipeline import with_scheme
from memplan.records import replace

MODELS = (
    "Qwen/Qwen3-0.6B",
    "meta-llama/Llama-3.2-1B-Instruct",
    "google/gemma-2-2b-it",
    "Qwen/Qwen3-30B-A3B",
    "deepseek-ai/DeepSeek-V2-Lite",
    "google/gemma-3-27b-it",
    "Qwen/Qwen3-Next-80B-A3B-Instruct",
)
BUILDS = ("b2354", "b3000", "b4404", "b5200", "b5600", "b6500", "b7500", None)


@lru_cache
def _spec(name: str, mix: str = "q4_k_m") -> ModelSpec:
    return with_scheme(resolve_model(name, revision=None, offline=True, introspect="auto"), f"gguf:{mix}")


def _budget(name: str, build: str | None, *, gpu: str = "h200", tensor: int = 1, **options: object) -> MemoryBudget:
    context = options.pop("context", 4096)
    asked = ServingSettings(
        layout=ParallelLayout(tensor=tensor),
        workload=Workload(context_tokens=context),  # type: ignore[arg-type]
        engine_options=options,
    )
    return LLAMA_CPP.estimate(_spec(name), find_gpu(gpu), asked, build)


def _gpu_bytes(budget: MemoryBudget) -> int:
    devices = budget.extra["devices"]
    assert isinstance(devices, list)
    return sum(device["used_bytes"] for device in devices)


def _plan(name: str, **options: object) -> tuple[ModelSpec, Plan]:
    asked = ServingSettings(workload=Workload(context_tokens=4096), engine_options=options)
    rules, spec = rules_of(asked, None), as_stored(_spec(name))
    resolved, _ = resolve(spec, "CUDA", asked, rules)
    return spec, plan_devices(spec, resolved, rules)


@given(
    name=st.sampled_from(MODELS),
    build=st.sampled_from(BUILDS),
    context=st.integers(64, 65536),
    more=st.integers(1, 65536),
    kind=st.sampled_from(("f16", "q8_0")),
)
@settings(max_examples=20)
def test_a_longer_context_never_takes_less(name: str, build: str | None, context: int, more: int, kind: str) -> None:
    options = {"flash_attention": True, "cache_type_k": kind} if build != "b2354" else {}
    short = _budget(name, build, context=context, **options)
    long = _budget(name, build, context=context + more, **options)
    assert long.group_bytes("kv_cache") >= short.group_bytes("kv_cache")
    assert long.group_bytes("weights") == short.group_bytes("weights")


@given(name=st.sampled_from(MODELS), layers=st.integers(0, 50), build=st.sampled_from(BUILDS))
@settings(max_examples=20)
def test_one_more_layer_on_the_gpu_never_takes_fewer_weights_there(name: str, layers: int, build: str | None) -> None:
    fewer, more = (_budget(name, build, n_gpu_layers=count).group_bytes("weights") for count in (layers, layers + 1))
    assert more >= fewer


@pytest.mark.parametrize("name", MODELS)
def test_layers_on_the_host_and_on_the_gpu_add_up_to_the_model(name: str) -> None:
    _, whole = _plan(name)
    for layers in (0, 7, 15):
        _, part = _plan(name, n_gpu_layers=layers)
        assert sum(part.cache.keys_and_values) == sum(whole.cache.keys_and_values)
        # Rotary factors lie on every device.
        assert sum(part.weights.by_device) <= sum(whole.weights.by_device) + 256
        assert part.weights.host_bytes > whole.weights.host_bytes


@pytest.mark.parametrize("name", MODELS)
def test_lines_sum_to_the_fullest_gpu(name: str) -> None:
    budget = _budget(name, None, tensor=2)
    devices = budget.extra["devices"]
    assert isinstance(devices, list)
    assert sum(line.size_bytes for line in budget.lines) == max(device["used_bytes"] for device in devices)


@pytest.mark.parametrize("name", ["Qwen/Qwen3-30B-A3B", "deepseek-ai/DeepSeek-V2-Lite"])
def test_experts_on_the_host_leave_the_gpu(name: str) -> None:
    sizes = [_gpu_bytes(_budget(name, None, n_cpu_moe=count)) for count in (0, 5, 10, 99)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] == _gpu_bytes(_budget(name, None, cpu_moe=True))


def test_a_pattern_for_experts_is_what_cpu_moe_is() -> None:
    by_flag = _budget("Qwen/Qwen3-30B-A3B", None, cpu_moe=True)
    by_pattern = _budget("Qwen/Qwen3-30B-A3B", None, override_tensor=r"\.ffn_(up|down|gate)_exps=CPU")
    assert [line.size_bytes for line in by_pattern.lines] == [line.size_bytes for line in by_flag.lines]
    assert by_pattern.host_bytes == by_flag.host_bytes


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("gpu_gib", [2, 6, 16])
def test_the_largest_number_of_layers_fits_and_one_more_does_not(name: str, gpu_gib: int) -> None:
    asked = ServingSettings(workload=Workload(context_tokens=4096))
    rules, spec = rules_of(asked, None), as_stored(_spec(name))
    resolved, _ = resolve(spec, "CUDA", asked, rules)
    limit = gpu_gib << 30
    most = largest_gpu_layers(spec, resolved, rules, limit)
    assert most is not None
    assert plan_devices(spec, replace(resolved, n_gpu_layers=most), rules).device_bytes(0) <= limit
    if most < spec.num_layers + 1:
        assert plan_devices(spec, replace(resolved, n_gpu_layers=most + 1), rules).device_bytes(0) > limit


@pytest.mark.parametrize("name", MODELS)
def test_the_layers_that_are_left_out_of_the_graph_change_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    short = _plan(name, n_gpu_layers=9)[1].compute
    plan._planned.cache_clear()
    every = "memplan.engines.llama_cpp.model_graph.representative_layers"
    monkeypatch.setattr(every, lambda spec, placement: range(spec.num_layers))
    full = _plan(name, n_gpu_layers=9)[1].compute
    plan._planned.cache_clear()
    assert full == short


@pytest.mark.parametrize("kind", ["q8_0", "q4_0"])
def test_a_smaller_cache_type_takes_the_bytes_of_its_blocks(kind: str) -> None:
    plain = _budget("Qwen/Qwen3-0.6B", None).group_bytes("kv_cache")
    small = _budget("Qwen/Qwen3-0.6B", None, cache_type_k=kind, cache_type_v=kind).group_bytes("kv_cache")
    assert small * 64 == plain * {"q8_0": 34, "q4_0": 18}[kind]


def test_window_layers_keep_a_window_since_they_have_a_cache_of_their_own() -> None:
    before, after, whole = (
        _budget("google/gemma-3-27b-it", build, context=32768, swa_full=full).group_bytes("kv_cache")
        for build, full in (("b5400", False), ("b5500", False), ("b5500", True))
    )
    assert after < before / 3
    assert whole == before


def test_slots_divide_the_context_or_share_it() -> None:
    apart = _budget("Qwen/Qwen3-0.6B", None, ctx_size=8192, parallel=4)
    shared = _budget("Qwen/Qwen3-0.6B", None, ctx_size=8192, parallel=4, kv_unified=True)
    assert apart.group_bytes("kv_cache") == shared.group_bytes("kv_cache")
    assert (apart.settings["slot_tokens"], shared.settings["slot_tokens"]) == (2048, 8192)


def test_tensor_split_divides_layers_by_share() -> None:
    budget = _budget("Qwen/Qwen3-30B-A3B", None, tensor=2, tensor_split="3,1")
    devices = budget.extra["devices"]
    assert isinstance(devices, list)
    assert [device["layers"] for device in devices] == [37, 12]


def test_split_mode_none_uses_the_main_gpu_alone() -> None:
    budget = _budget("Qwen/Qwen3-0.6B", None, tensor=2, split_mode="none", main_gpu=1)
    devices = budget.extra["devices"]
    assert isinstance(devices, list)
    assert devices[0]["weights_bytes"] == 0
    assert devices[1]["weights_bytes"] == _budget("Qwen/Qwen3-0.6B", None).group_bytes("weights")


def test_flash_attention_does_away_with_the_scores() -> None:
    on, off = (
        _budget("Qwen/Qwen3-0.6B", "b6000", context=32768, flash_attention=state).group_bytes("activation_peak")
        for state in (True, False)
    )
    assert off > on + 16 * 512 * 32768 * 4 // 2


def test_without_a_gpu_nothing_is_on_it() -> None:
    budget = _budget("Qwen/Qwen3-0.6B", None, device="none")
    assert budget.verdict == "fits"
    assert budget.extra["devices"] == []
    assert budget.host_bytes > 300 << 20
