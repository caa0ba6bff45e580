"""Budgets made by hand for the tests of the reports: small, complete, and independent of any engine's constants."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import strategies as st

from memplan.domain.budget import ContextMap, Group, KvCapacity, KvWaste, Line, MemoryBudget, Remedy
from memplan.domain.gpu import Price
from memplan.domain.holders import Holders
from memplan.units import GIB, KIB, MIB

HOSTILE = "<script>alert(1)</script>|`rm -rf`\x1b[31m\n**bold** [x](javascript:0) & \"'"
"""What a config may call its model: tags, table bars, code, an escape code, a line break, a link."""


def line(name: str, group: Group, size_bytes: int, *, spread_bytes: int = 0, formula: str = "a x b") -> Line:
    return Line(
        name=name,
        group=group,
        size_bytes=size_bytes,
        low_bytes=size_bytes - spread_bytes,
        high_bytes=size_bytes + spread_bytes,
        provenance="modelled" if spread_bytes else "exact",
        formula=formula,
        source="made by hand",
    )


def fitting() -> MemoryBudget:
    """A model of 8 B parameters on a GPU of 24 GiB with room to spare, a context map and a mean length."""
    return MemoryBudget(
        model_name="example/Llama-8B",
        architecture="LlamaForCausalLM",
        parameters=8_030_261_248,
        active_parameters=8_030_261_248,
        weights_source="headers",
        gpu_name="rtx-0000",
        num_gpus=1,
        gpu_memory_bytes=24 * GIB,
        engine_name="vllm",
        engine_version="0.10.2",
        settings={
            "max_model_len": 8192,
            "gpu_memory_utilization": 0.9,
            "enforce_eager": False,
            "block_size": None,
            "max_num_seqs": 256,
            "concurrency": 4,
        },
        lines=(
            line("weights: embedding", "weights", GIB, formula="elements x bits"),
            line("weights: attention", "weights", 4 * GIB, formula="elements x bits"),
            line("weights: mlp", "weights", 10 * GIB, formula="elements x bits"),
            line("weights: norms", "weights", MIB // 2, formula="elements x bits"),
            line("activation peak", "activation_peak", GIB // 2, spread_bytes=40 * MIB, formula="sequences x logits"),
            line("CUDA graphs", "cuda_graph", GIB // 4, spread_bytes=90 * MIB),
            line("outside torch", "non_torch", 60 * MIB, spread_bytes=60 * MIB),
            line("KV cache", "kv_cache", 5 * GIB + 800 * MIB, spread_bytes=200 * MIB, formula="what is left"),
            line("outside the budget", "outside_budget", GIB // 2, spread_bytes=100 * MIB),
        ),
        kv=KvCapacity(
            bytes_per_token=128 * KIB,
            capacity_tokens=47_360,
            blocks=2_960,
            block_size=16,
            max_concurrency=5.78,
            max_context_tokens=47_344,
            needed_bytes=4 * GIB,
            needed_tokens=32_768,
            low_tokens=45_760,
            high_tokens=48_960,
        ),
        host_bytes=4 * GIB,
        verdict="fits",
        shortfall_bytes=0,
        remedies=(
            Remedy(change="--kv-dtype fp8", saves_bytes=2 * GIB, verdict="fits", note="check quality first"),
            Remedy(change="--max-num-seqs 256 -> 64", saves_bytes=GIB // 3, verdict="fits"),
        ),
        warnings=("example-8b: taken as example/Llama-8B, the newest well-known release of that name",),
        context_map=ContextMap(
            context_tokens=(1000, 2048, 4096, 8192, 131072), max_concurrency=(47.36, 23.12, 11.56, 5.78, 0.36)
        ),
        kv_waste=KvWaste(
            mean_tokens=1024,
            context_tokens=8192,
            contiguous_wasted_bytes=4 * GIB,
            paged_wasted_bytes=46 * MIB,
            contiguous_requests=5,
            paged_requests=45,
        ),
        weights_scheme="bfloat16",
        price=Price(low=0.4, high=0.7, source="Example Cloud and Another Cloud"),
        extra={"kv_available_bytes": 5 * GIB + 800 * MIB},
    )


def too_large() -> MemoryBudget:
    """A model whose weights alone are larger than the GPU."""
    budget = fitting()
    lines = [each for each in budget.lines if each.group != "kv_cache"]
    lines[2] = line("weights: mlp", "weights", 40 * GIB, formula="elements x bits")
    return replace(
        budget,
        lines=tuple(lines),
        kv=replace(budget.kv, capacity_tokens=0, blocks=0, max_concurrency=0.0, max_context_tokens=0),
        verdict="does_not_fit",
        shortfall_bytes=25 * GIB,
        reasons=(
            "the weights take 45.00 GiB of 23.40 GiB that are free",
            "21.10 GiB are missing before any KV cache",
        ),
        remedies=(
            Remedy(change="--tp 4", saves_bytes=36 * GIB, verdict="fits", note="4 times the GPUs"),
            Remedy(change="--quant awq-int4-g128", saves_bytes=30 * GIB, verdict="fits", note="check quality first"),
            Remedy(change="--quant fp8", saves_bytes=20 * GIB, verdict="does_not_fit", note="check quality first"),
            Remedy(change="--gpu-memory-utilization 0.9 -> 0.95", saves_bytes=GIB, verdict="does_not_fit"),
        ),
        context_map=None,
        kv_waste=None,
        extra={"kv_available_bytes": -21 * GIB},
    )


def tight() -> MemoryBudget:
    """Two GPUs on which the cache is a little too small, by less than the estimate's error."""
    budget = fitting()
    return replace(
        budget,
        num_gpus=2,
        verdict="tight",
        shortfall_bytes=100 * MIB,
        kv=replace(budget.kv, needed_bytes=5 * GIB + 900 * MIB, needed_tokens=49_152, max_concurrency=5.9),
        settings={**budget.settings, "concurrency": 6},
        reasons=("the KV cache gets 5.78 GiB, the requests need 5.88 GiB",),
        context_map=None,
        kv_waste=None,
    )


def encoder() -> MemoryBudget:
    """A model without a cache."""
    budget = fitting()
    nothing = KvCapacity(
        bytes_per_token=0,
        capacity_tokens=None,
        blocks=None,
        block_size=None,
        max_concurrency=None,
        max_context_tokens=512,
        needed_bytes=0,
        needed_tokens=0,
    )
    lines = tuple(each for each in budget.lines if each.group in ("weights", "activation_peak"))
    return replace(
        budget, lines=lines, kv=nothing, remedies=(), warnings=(), context_map=None, kv_waste=None, price=None, extra={}
    )


def hostile() -> MemoryBudget:
    """A budget in which every text is hostile."""
    budget = too_large()
    return replace(
        budget,
        model_name=HOSTILE,
        architecture=HOSTILE,
        gpu_name=HOSTILE,
        engine_name=HOSTILE,
        engine_version=HOSTILE,
        weights_scheme=HOSTILE,
        settings={**budget.settings, HOSTILE: HOSTILE},
        lines=tuple(replace(each, name=HOSTILE, formula=HOSTILE, source=HOSTILE) for each in budget.lines),
        reasons=(HOSTILE,),
        remedies=tuple(replace(each, change=f"--quant {HOSTILE}", note=HOSTILE) for each in budget.remedies),
        warnings=(HOSTILE,),
        price=Price(low=1.0, high=2.0, source=HOSTILE),
        context_map=fitting().context_map,
        kv_waste=fitting().kv_waste,
        extra={"hostile": HOSTILE},
    )


def several() -> list[MemoryBudget]:
    """Budgets that differ in GPU, scheme, engine and verdict."""
    first, second, third = fitting(), too_large(), tight()
    return [
        replace(first, weights_scheme="awq-int4-g128"),
        replace(second, gpu_name="a-gpu-with-a-long-name-80g", num_gpus=8, price=None),
        replace(third, engine_name="sglang", engine_version="0.5.1"),
    ]


def holders() -> Holders:
    """The answer without a GPU: three that hold the model, two that do not."""
    budget = fitting()
    return Holders(
        model_name=budget.model_name,
        parameters=budget.parameters,
        weights_bytes=15 * GIB,
        running_bytes=GIB,
        kv_bytes=4 * GIB,
        kv_bytes_per_token=128 * KIB,
        context_tokens=8192,
        concurrency=4,
        budgets=(
            replace(budget, gpu_name="no-price-48g", gpu_memory_bytes=48 * GIB, price=None),
            replace(budget, gpu_name="dear-80g", gpu_memory_bytes=80 * GIB, price=Price(low=3, high=4, source="Cloud")),
            replace(budget, gpu_name="cheap-16g", gpu_memory_bytes=16 * GIB, num_gpus=2),
        ),
        left_out=("tiny-4g", "small-8g"),
    )


_TEXTS = st.text(max_size=60)
_GROUPS = ("weights", "activation_peak", "cuda_graph", "non_torch", "kv_cache", "outside_budget")
_VERDICTS = ("fits", "tight", "does_not_fit")
_SIZES = st.integers(min_value=0, max_value=2 << 40)


@st.composite
def _lines(draw: st.DrawFn) -> Line:
    size, spread = draw(_SIZES), draw(st.integers(min_value=0, max_value=1 << 36))
    return Line(
        name=draw(st.text(min_size=1, max_size=60)),
        group=draw(st.sampled_from(_GROUPS)),
        size_bytes=size,
        low_bytes=max(0, size - spread),
        high_bytes=size + spread,
        provenance=draw(st.sampled_from(("exact", "derived", "measured", "modelled", "assumed"))),
        formula=draw(_TEXTS),
        source=draw(_TEXTS),
    )


@st.composite
def any_budget(draw: st.DrawFn) -> MemoryBudget:
    """A strategy: any budget that an engine could compute, with any texts."""
    base = draw(st.sampled_from((fitting(), too_large(), tight(), encoder())))
    lengths = sorted(draw(st.sets(st.integers(min_value=1, max_value=1 << 21), min_size=1, max_size=14)))
    numbers = st.floats(min_value=0, max_value=1e9) | st.just(float("inf"))
    limits = tuple(draw(numbers) for _ in lengths)
    return replace(
        base,
        model_name=draw(_TEXTS),
        gpu_name=draw(_TEXTS),
        engine_name=draw(_TEXTS),
        num_gpus=draw(st.integers(min_value=1, max_value=4096)),
        gpu_memory_bytes=draw(st.integers(min_value=1, max_value=1 << 40)),
        lines=tuple(draw(st.lists(_lines(), max_size=8))),
        verdict=draw(st.sampled_from(_VERDICTS)),
        shortfall_bytes=draw(_SIZES),
        reasons=tuple(draw(st.lists(_TEXTS, max_size=3))),
        warnings=tuple(draw(st.lists(_TEXTS, max_size=3))),
        context_map=ContextMap(context_tokens=tuple(lengths), max_concurrency=limits),
    )
