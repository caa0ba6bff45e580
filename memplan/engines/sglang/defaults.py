"""SGLang's defaults by GPU size: tokens of a prefill step, captured batches, and the fraction of memory for weights and
cache.

Every table is by release, in catalog/engines/sglang.yaml; sizes are MiB as nvidia-smi prints them.

    working set, in MiB: 512 + 1.5 x max(tokens, 2,048) + 1,024 x ranks / 8 + graphs; above 60 GiB at least 10,240
    fraction = (memory - working set) / memory, to three digits; times the factor of a vision tower

Source: sglang/srt/server_args.py and arg_groups/memory_hook.py, 0.3.0 to 0.5.23.
Checked by: fractions that recorded runs imply (B200 0.854, H100 0.83, RTX 4090 0.879, eight MI355X with Kimi-K2.5
0.826).
"""

from __future__ import annotations

from typing import Any

from memplan.catalog.rules import Rules
from memplan.domain.model import ModelSpec
from memplan.records import dataclass

_PREFILL_STEPS = ((4, 32, 4), (48, 256, 16), (288, 512, 32), (576, 1024, 64), (1280, 4096, 256), (4608, 65536, 512))
_LARGE_GPU_MIB = 60 * 1024
_LARGE_GPU_RESERVE_MIB = 10 * 1024
_LATENT_GRAPHS_MIB = 1536
_GRAPH_MIB_PER_BATCH = 2
_GRAPH_MIB_PER_PREFILL_SIZE = 8
_MANY_BATCHES = 300
_VIT_LAYERS, _VIT_WIDTH = 24, 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class StepShape:
    """What the memory fraction depends on: the step, the graphs and the ranks of one start-up."""

    gpu_mib: float
    ranks: int
    tensor: int
    attention_groups: int
    chunk_tokens: int
    graph_batch: int
    decode_graphs: bool
    prefill_graph_sizes: int
    is_latent: bool
    speculative: str | None


def chunk_tokens(gpu_mib: float, rules: Rules) -> int:
    """The tokens of one prefill step."""
    return int(_below(rules["chunk_tokens"], gpu_mib)[1])


def graph_batch(gpu_mib: float, tensor: int, rules: Rules) -> int:
    """The largest batch that is captured."""
    row = _below(rules["graph_batch"], gpu_mib)
    return int(row[1] if tensor < 4 else row[2])


def _below(table: list[list[Any]], size: float) -> list[Any]:
    """The first row whose bound `size` lies below; a null bound takes everything."""
    for row in table:
        if row[0] is None or size < row[0]:
            return row
    raise AssertionError("the last row takes every size")


def capture_sizes(largest: int, rules: Rules, *, speculative: bool) -> int:
    """How many batch sizes up to `largest` are captured, `largest` itself among them."""
    steps = rules["draft_graph_sizes" if speculative else "graph_sizes"]
    sizes = {size for first, last, step in steps for size in range(first, min(last, largest) + 1, step)}
    return len(sizes | {largest})


def prefill_capture_sizes(largest_tokens: int) -> int:
    """How many prefill sizes up to `largest_tokens` are captured."""
    return sum(len(range(first, min(last, largest_tokens) + 1, step)) for first, last, step in _PREFILL_STEPS)


def memory_fraction(spec: ModelSpec, shape: StepShape, rules: Rules, *, reads_media: bool) -> float:
    """The part of the memory that was free before loading which weights and cache may take."""
    rule = rules["mem_fraction"]
    if rule["kind"] in ("ranks", "large_gpu"):
        fraction = _by_ranks(rule, shape)
    else:
        reserve = _tier_mib(rule, shape) if rule["kind"] == "tiers" else _working_set_mib(rule, shape, rules)
        fraction = round((shape.gpu_mib - reserve) / shape.gpu_mib, 3)
    return fraction * media_factor(spec, rules) if reads_media else fraction


def _by_ranks(rule: dict[str, Any], shape: StepShape) -> float:
    if rule["kind"] == "large_gpu" and shape.gpu_mib > rule["above_mib"]:
        return float((shape.gpu_mib - rule["reserve_mib"]) / shape.gpu_mib)
    return float(next(fraction for least, fraction in rule["by_ranks"] if shape.ranks >= least))


def _tier_mib(rule: dict[str, Any], shape: StepShape) -> float:
    _, base_gib, rank_gib = _below(rule["reserve_gib"], shape.gpu_mib)
    grouped = rule["attention_groups_gib"] if shape.attention_groups > 1 else 0
    return float(base_gib + rank_gib * shape.ranks + grouped + _draft_gib(rule, shape)) * 1024


def _draft_gib(rule: dict[str, Any], shape: StepShape) -> float:
    if shape.speculative in (None, "ngram"):
        return 0.0
    return float(rule["standalone_draft_gib" if shape.speculative == "standalone" else "draft_gib"])


def _working_set_mib(rule: dict[str, Any], shape: StepShape, rules: Rules) -> float:
    reserve = 512 + 1.5 * max(shape.chunk_tokens, 2048) + shape.ranks / 8 * 1024
    if shape.decode_graphs or rules.release < (0, 5, 15):
        reserve += _GRAPH_MIB_PER_BATCH * shape.graph_batch
    if shape.attention_groups > 1:
        per_batch = 3 + (1.5 if shape.graph_batch > _MANY_BATCHES else 0)
        reserve += per_batch * shape.graph_batch * shape.attention_groups
    if rules["prefill_graph_reserve"] == "per_size":
        reserve += _prefill_graphs_mib(shape)
    if shape.gpu_mib > _LARGE_GPU_MIB:
        reserve = max(reserve, _LARGE_GPU_RESERVE_MIB)
    if rules["prefill_graph_reserve"] in ("quarter", "eighth") and shape.prefill_graph_sizes:
        reserve += shape.chunk_tokens // (4 if rules["prefill_graph_reserve"] == "quarter" else 8)
    return reserve + _draft_gib(rule, shape) * 1024


def _prefill_graphs_mib(shape: StepShape) -> float:
    if not shape.prefill_graph_sizes:
        return 0.0
    return _LATENT_GRAPHS_MIB if shape.is_latent else _GRAPH_MIB_PER_PREFILL_SIZE * shape.prefill_graph_sizes


def media_factor(spec: ModelSpec, rules: Rules) -> float:
    """What a model that reads images multiplies the fraction by.

    SGLang reads `num_hidden_layers` and `hidden_size` of the vision config and takes ViT-L's where a config calls them
    otherwise: Qwen's towers have a `depth`, and Qwen2-VL's `hidden_size` is the language model's.
    """
    kind = rules["media_fraction"]
    if kind == "flat":
        return 0.9
    towers = [media for tower in spec.towers for media in tower.media if media.modality in ("image", "video")]
    if kind == "none" or not towers:
        return 1.0
    layers, width = towers[0].num_layers, towers[0].hidden_size
    if spec.model_type.startswith("qwen"):
        layers = _VIT_LAYERS
    if spec.model_type == "qwen2_vl":
        width = spec.hidden_size
    score = layers * width**2 / (_VIT_LAYERS * _VIT_WIDTH**2)
    return 0.95 * max(0.8, min(1.05, 1.0 - 0.1 * (score - 1.0)))
