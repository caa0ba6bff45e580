"""The tables of docs/memory-model.md, computed by memplan itself: one function per table, named in the page.

`benchmarks/render_docs.py` writes them into the page; tests/contracts/test_memory_model_page.py holds the page to them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache

from memplan.budget.activations import ForwardRules, forward_peak_bytes
from memplan.budget.allocator import allocate
from memplan.budget.caching import CachingAllocator
from memplan.budget.kv_cache import growing_token_bytes, kept_heads, kv_format, model_token_bytes, sequence_bytes
from memplan.budget.kv_waste import kv_waste
from memplan.budget.storage import bits_per_weight, checkpoint_bytes
from memplan.budget.weights import WeightRules, rank_weights
from memplan.catalog.gpus import find_gpu
from memplan.catalog.quant_schemes import parse_scheme
from memplan.catalog.rules import load_rules
from memplan.domain.attention import FullAttention
from memplan.domain.budget import MemoryBudget
from memplan.domain.dtypes import DType
from memplan.domain.model import ModelSpec
from memplan.domain.serving import ParallelLayout, ServingSettings, Workload
from memplan.introspect.ggml_types import GGML_TYPES
from memplan.pipeline import Question, answer, load_model, with_scheme
from memplan.units import GIB, KIB, MIB, parse_size_bytes

Row = tuple[str, ...]
_CONTEXT = 32768


@cache
def model(name: str) -> ModelSpec:
    """A model of the catalogue."""
    return load_model(name, revision=None, offline=True, introspect="auto")


def gib(size: float) -> str:
    """GiB with two digits."""
    return f"{size / GIB:,.2f}"


def budget(
    name: str,
    gpu: str,
    engine: str = "vllm",
    version: str | None = None,
    *,
    context: int | None = None,
    **settings: object,
) -> MemoryBudget:
    """A budget on one GPU, without remedies."""
    workload = Workload(context_tokens=context)
    return answer(
        Question(
            spec=model(name),
            base_spec=model(name),
            gpu=find_gpu(gpu),
            settings=ServingSettings(workload=workload, **settings),  # type: ignore[arg-type]
            engine=engine,
            version=version,
            with_remedies=False,
        )
    )


def units_table() -> list[Row]:
    """What a size written both ways is."""
    rows: list[Row] = [("written", "bytes", "in GiB", "in GB")]
    for text in ("1 GB", "1 GiB", "24 GB", "24 GiB", "80 GB", "80 GiB"):
        size = parse_size_bytes(text)
        rows.append((text, f"{size:,}", f"{size / GIB:.2f}", f"{size / 1e9:.2f}"))
    return rows


def cards_table() -> list[Row]:
    """What cards are sold as, and what programs see of them."""
    rows: list[Row] = [("card", "sold as", "`nvidia-smi` says", "a program sees")]
    for name in ("rtx-4090", "l4", "a100-40g", "a100-80g", "h100", "h200", "b200"):
        gpu = find_gpu(name)
        rows.append(
            (
                f"`{name}`",
                f"{round((gpu.nominal_memory_bytes or 0) / GIB)} GB",
                f"{gib(gpu.driver_memory_bytes or 0)} GiB",
                f"{gib(gpu.memory_bytes)} GiB",
            )
        )
    return rows


def schemes_table() -> list[Row]:
    """Bits per weight of a 4,096 x 4,096 matrix, and of whole models."""
    rows: list[Row] = [
        ("scheme", "bits in the name", "bits of a matrix", "Llama-3.1-8B, GiB", "bits", "Llama-3.1-70B, GiB", "bits")
    ]
    for name, bits in _SCHEMES.items():
        scheme = parse_scheme(name)
        matrix = bits_per_weight((4096, 4096), scheme.linear) if scheme.linear else 16.0
        cells = [f"`{name}`", str(bits), f"{matrix:.3f}"]
        for plain in (model("llama-3.1-8b"), model("llama-3.1-70b")):
            size = checkpoint_bytes(with_scheme(plain, name))
            cells += [gib(size), f"{8 * size / plain.parameters:.2f}"]
        rows.append(tuple(cells))
    return rows


_SCHEMES: Mapping[str, int] = {
    "none": 16,
    "fp8": 8,
    "fp8-block": 8,
    "w8a8-int8": 8,
    "bnb-int8": 8,
    "mxfp8": 8,
    "gptq-int4-g128": 4,
    "gptq-int4-g32": 4,
    "gptq-int3-g128": 3,
    "awq-int4-g128": 4,
    "awq-int4-g64": 4,
    "ct-int4-g128": 4,
    "bnb-nf4": 4,
    "bnb-nf4-dq": 4,
    "hqq-int4-g64": 4,
    "mlx-int4-g64": 4,
    "mxfp4": 4,
    "nvfp4": 4,
}


def ggml_table() -> list[Row]:
    """Blocks of ggml's types."""
    rows: list[Row] = [("type", "elements in a block", "bytes", "bits an element")]
    by_name = {kind.name: kind for kind in GGML_TYPES.values()}
    for name in ("q8_0", "q6_k", "q5_k", "q5_0", "q4_k", "q4_1", "q4_0", "iq4_xs", "q3_k", "q2_k", "iq2_xxs"):
        kind = by_name[name]
        rows.append((name, str(kind.block), str(kind.block_bytes), f"{8 * kind.block_bytes / kind.block:.4g}"))
    return rows


def ranks_table() -> list[Row]:
    """Llama-3.1-70B over tensor-parallel ranks: weights, heads and cache of each."""
    spec, form = model("llama-3.1-70b"), kv_format("bfloat16", DType.BF16)
    rows: list[Row] = [("ranks", "weights of each, GiB", "KV heads on each", "cache of a token on each", "on all")]
    for ranks in (1, 2, 4, 8, 16):
        weights = rank_weights(spec, ParallelLayout(tensor=ranks), WeightRules(dtype=DType.BF16), 0)
        cache_of = spec.layers[0].caches[0]
        assert isinstance(cache_of, FullAttention)
        token = sum(sequence_bytes(each, form, 1, ranks) for layer in spec.layers for each in layer.caches)
        rows.append(
            (
                str(ranks),
                gib(weights.total_bytes),
                str(kept_heads(cache_of.num_kv_heads, ranks)),
                f"{token / KIB:g} KiB",
                f"{token * ranks / KIB:g} KiB",
            )
        )
    return rows


def caches_table() -> list[Row]:
    """What models of every kind keep per token, and of a sequence of 32,768 tokens."""
    form = kv_format("bfloat16", DType.BF16)
    rows: list[Row] = [("model", "kind", "per token, all layers", "of it growing", "32,768 tokens, GiB")]
    for name, kind in _CACHED.items():
        spec = model(name)
        sequence = sum(sequence_bytes(each, form, _CONTEXT) for layer in spec.layers for each in layer.caches)
        rows.append(
            (
                spec.name.partition("/")[2],
                kind,
                f"{model_token_bytes(spec, form):,} B",
                f"{growing_token_bytes(spec, form):,} B",
                gib(sequence),
            )
        )
    return rows


_CACHED: Mapping[str, str] = {
    "llama-2-7b": "multi-head",
    "llama-3.1-70b": "grouped, 8 of 64 heads",
    "falcon-7b": "multi-query, 1 of 71 heads",
    "deepseek-v3": "latent (MLA)",
    "deepseek-v3.2": "latent and indexer (DSA)",
    "gemma-3-27b": "sliding window, every 6th full",
    "gpt-oss-20b": "sliding window, every 2nd full",
    "llama-4-scout": "chunks, every 4th full",
    "qwen3-next-80b-a3b": "gated delta net, every 4th full",
    "jamba-mini": "Mamba, every 8th full",
    "falcon-mamba-7b": "Mamba alone",
}


def kv_types_table() -> list[Row]:
    """Cache types of vLLM's names, for Llama-3.1-70B."""
    spec = model("llama-3.1-70b")
    rows: list[Row] = [("`--kv-dtype`", "bits an element", "scales beside it", "Llama-3.1-70B, per token")]
    for name, beside in _KV_TYPES.items():
        form = kv_format(name, DType.BF16)
        rows.append((name, f"{form.element_bits:g}", beside, f"{model_token_bytes(spec, form):,} B"))
    return rows


_KV_TYPES: Mapping[str, str] = {
    "float16": "-",
    "fp8": "one for a layer, not counted",
    "mxfp8": "8 bits for 32, inside",
    "nvfp4": "8 bits for 16, inside",
    "int8_per_token_head": "32 bits for a head's key, 32 for its value",
    "int4_per_token_head": "32 bits for a head's key, 32 for its value",
}


def wrong_table() -> list[Row]:
    """Llama-3.1-70B at 4,096 tokens, and what forgetting something makes of it."""
    right = 80 * 8 * (128 + 128) * 2 * 4096
    rows: list[Row] = [("what is printed", "working", "bytes", "GiB", "of the real size")]
    for what, working, size in (
        ("right", "80 x 8 x (128 + 128) x 2 x 4,096", right),
        ("forgets that there are values beside keys", "80 x 8 x 128 x 2 x 4,096", right // 2),
        ("takes FP16 for one byte", "80 x 8 x (128 + 128) x 4,096", right // 2),
        ("hidden size for the heads, and the factor 2 left out", "80 x 8,192 x 2 x 4,096", 80 * 8192 * 2 * 4096),
        ("hidden size for the heads", "2 x 80 x 8,192 x 2 x 4,096", 2 * 80 * 8192 * 2 * 4096),
        ("`0.5 GB`", "0.5 x 10^9", 500_000_000),
    ):
        rows.append((what, working, f"{size:,}", gib(size), f"{size / right:.2f}"))
    return rows


def forward_table() -> list[Row]:
    """The peak of a pass through Llama-3.1-70B, and what a sum over layers would claim."""
    spec = model("llama-3.1-70b")
    rows: list[Row] = [("tokens of the step", "ranks", "peak, GiB", "80 times that, GiB")]
    for tokens, ranks in ((2048, 1), (8192, 1), (8192, 4), (16384, 8)):
        peak = forward_peak_bytes(spec.layers, spec, tokens, ranks, 2, ForwardRules())
        rows.append((f"{tokens:,}", str(ranks), gib(peak), gib(peak * spec.num_layers)))
    return rows


def sampler_table() -> list[Row]:
    """vLLM's activation peak of Llama-3.1-8B on an H100 by release and batch."""
    rows: list[Row] = [("vLLM", "256 sequences, GiB", "1,024 sequences, GiB", "the larger set by")]
    for version in ("0.5.4", "0.6.3", "0.10.2", "0.18.0", "0.22.0", "0.33.0"):
        found = [
            budget(
                "llama-3.1-8b", "h100", version=version, context=8192, max_num_seqs=seqs, max_num_batched_tokens=8192
            )
            for seqs in (256, 1024)
        ]
        peaks = [next(line for line in each.lines if line.group == "activation_peak") for each in found]
        cause = peaks[1].formula.rpartition("set by the ")[2]
        rows.append((version, *(gib(peak.size_bytes) for peak in peaks), cause))
    return rows


def requests_table() -> list[Row]:
    """What one request takes of vLLM's pool, by context and by the tokens of a step."""
    rows: list[Row] = [("model", "tokens of a step", "8K, GiB", "32K, GiB", "128K, GiB")]
    for name in ("gpt-oss-20b", "gemma-3-27b", "llama-3.1-8b"):
        for tokens in (8192, 2048):
            needs = [
                budget(name, "h100", context=context, max_num_batched_tokens=tokens, max_num_seqs=256).kv.needed_bytes
                for context in (8192, 32768, 131072)
            ]
            rows.append((model(name).name.partition("/")[2], f"{tokens:,}", *map(gib, needs)))
    return rows


def waste_table() -> list[Row]:
    """Requests of a mean length in a cache of 32 GiB, contiguous and paged: Llama-3.1-8B up to 32,768 tokens."""
    token = model_token_bytes(model("llama-3.1-8b"), kv_format("bfloat16", DType.BF16))
    rows: list[Row] = [("mean length", "contiguous: requests", "wasted, GiB", "paged: requests", "wasted, GiB")]
    for mean in (500, 2000, 8000):
        waste = kv_waste(
            pool_bytes=32 * GIB,
            mean_tokens=mean,
            context_tokens=_CONTEXT,
            mean_bytes=mean * token,
            context_bytes=_CONTEXT * token,
            page_tokens=16,
        )
        rows.append(
            (
                f"{mean:,}",
                str(waste.contiguous_requests),
                gib(waste.contiguous_wasted_bytes),
                str(waste.paged_requests),
                gib(waste.paged_wasted_bytes),
            )
        )
    return rows


def allocator_table() -> list[Row]:
    """What the caching allocator makes of single requests."""
    rows: list[Row] = [("requested", "allocated", "reserved", "why")]
    for text, size, why in (
        ("1 byte", 1, "rounded to 512 bytes, in a segment of 2 MiB"),
        ("1 MiB", MIB, "the largest small request"),
        ("1 MiB and 1 byte", MIB + 1, "the smallest large one: a segment of 20 MiB"),
        (
            "19.5 MiB",
            19 * MIB + MIB // 2,
            "10 MiB and more: a segment of its own, to 2 MiB; 0.5 MiB is too little to split",
        ),
        ("18.5 MiB", 18 * MIB + MIB // 2, "1.5 MiB is split off and stays free"),
        ("32 MiB", 32 * MIB, "whole segments waste nothing"),
    ):
        held = allocate((size,))
        rows.append((text, _size(held.allocated_bytes), _size(held.reserved_bytes), why))
    return rows


def cached_table() -> list[Row]:
    """What torch keeps after a pass of Llama-3.1-8B, and what of it a full device makes it give back."""
    spec = model("llama-3.1-8b")
    weights = rank_weights(spec, ParallelLayout(), WeightRules(dtype=DType.BF16), 0).requests
    rows: list[Row] = [("moment", "allocated, GiB", "reserved, GiB", "reserved less allocated, GiB")]
    memory, wanted = CachingAllocator(is_pressed=True), GIB

    def moment(name: str, *, less: int = 0) -> None:
        allocated, reserved = memory.allocated_bytes - less, memory.reserved_bytes - less
        rows.append((name, gib(allocated), gib(reserved), gib(reserved - allocated)))

    for size in weights:
        memory.allocate(size)
    moment("weights are loaded")
    inner, hidden = 14336, spec.hidden_size
    live = [memory.allocate(8192 * width * 2) for width in (hidden, hidden, 2 * inner, inner, hidden)]
    live += [memory.allocate(256 * spec.vocab_size * width) for width in (2, 4, 4, 8)]
    moment("8,192 tokens in an MLP, and 256 rows of logits")
    for block in live:
        memory.free(block)
    moment("the pass is over: all of it is freed")
    memory.allocate(wanted)
    moment("another 1 GiB was wanted on a full device (without that 1 GiB)", less=wanted)
    return rows


def _size(size: int) -> str:
    return f"{size:,} B" if size < KIB * 64 else f"{size / MIB:g} MiB"


def releases_table() -> list[Row]:
    """The rules of vLLM that move most memory, by release."""
    releases = ("0.2.7", "0.4.0", "0.6.4", "0.6.5", "0.8.5", "0.9.1", "0.11.0", "0.17.0", "0.20.0", "0.21.0", "0.33.0")
    rows: list[Row] = [
        ("release", "utilization", "engine", "charges outside torch", "CUDA graphs", "sampler", "groups")
    ]
    for release in releases:
        rules = load_rules("vllm", release)
        engine = rules["generation"]
        accounting = rules["accounting"] if engine == "v0" else rules["accounting_v1"]
        rows.append(
            (
                release,
                f"{rules['utilization']:.2f}",
                "V1, or V0" if engine == "mixed" else engine.upper(),
                str(accounting),
                "charged" if rules["graphs_in_budget"] else "outside",
                "sort" if engine == "v0" else str(rules["sampler_v1"]),
                "single" if engine == "v0" else str(rules["kv_groups"]),
            )
        )
    return rows


def fractions_table() -> list[Row]:
    """SGLang's defaults by card, for Llama-3.1-8B."""
    rows: list[Row] = [("card", "tokens of a step", "largest captured batch", "`mem_fraction_static`")]
    for gpu in ("t4", "l4", "l40s", "h100", "h200", "b200"):
        found = budget("llama-3.1-8b", gpu, "sglang", context=8192).settings
        rows.append(
            (
                f"`{gpu}`",
                f"{found['chunked_prefill_size']:,}",
                str(found["cuda_graph_max_bs"]),
                str(found["mem_fraction_static"]),
            )
        )
    return rows


def held_table() -> list[Row]:
    """One model, one request, several cards: what nvidia-smi shows, and what is needed."""
    rows: list[Row] = [
        (
            "card",
            "held, as `nvidia-smi` shows it, GiB",
            "of it cache, GiB",
            "needed for one request of 8,192 tokens, GiB",
        )
    ]
    for gpu in ("l4", "l40s", "a100-80g", "h200"):
        found = budget("llama-3.1-8b", gpu, context=8192)
        pool = found.group_bytes("kv_cache")
        rows.append(
            (f"`{gpu}`", gib(found.used_bytes), gib(pool), gib(found.used_bytes - pool + found.kv.needed_bytes))
        )
    return rows


TABLES: Mapping[str, Callable[[], list[Row]]] = {
    "units": units_table,
    "cards": cards_table,
    "schemes": schemes_table,
    "ggml": ggml_table,
    "ranks": ranks_table,
    "caches": caches_table,
    "kv-types": kv_types_table,
    "wrong": wrong_table,
    "forward": forward_table,
    "sampler": sampler_table,
    "requests": requests_table,
    "waste": waste_table,
    "allocator": allocator_table,
    "cached": cached_table,
    "releases": releases_table,
    "fractions": fractions_table,
    "held": held_table,
}


def markdown(rows: list[Row]) -> str:
    """A table as Markdown; columns of numbers are set right."""
    header, *body = rows
    right = [all(_is_number(row[column]) for row in body) for column in range(len(header))]
    lines = [header, tuple("---:" if each else "---" for each in right), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _is_number(cell: str) -> bool:
    return cell.replace(",", "").replace(".", "").removesuffix(" GiB").removesuffix(" GB").removesuffix(" B").isdigit()
