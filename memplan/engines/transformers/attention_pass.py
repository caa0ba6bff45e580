"""The moments of an attention half: projections, rotation, the scores or the fused kernel, the output projection.

Formula (docs/engines/transformers.md, "Attention"), in bytes, with R rows, q the width of all queries, e the bytes of
an element, S the scores of a head and n the query heads:

    rotation            2 H + 4 q + k + v                     x R e
    query norm          2 H + q                               x R e, and 8 q R for its FP32 copies
    fused kernel        2 H + q + output                      x R e, and 4 n R for the logarithms of the sums
    with a mask         the same, S e for the mask in the compute type, and keys and values repeated to all heads
    plain kernel        13 n S: scores in FP32 three times and a mask; keys and values of every head, queries in FP32
    eager               2 H + q + repeated keys and values    x R e, and 10 n S in 16 bit, 8 n S in float32

Source: integrations/sdpa_attention.py, models/llama/modeling_llama.py (eager_attention_forward), masking_utils.py;
aten/src/ATen/native/transformers/attention.cpp (convert_boolean_attn_mask, _scaled_dot_product_attention_math) and
cuda/sdp_utils.cpp of PyTorch (which kernel takes what).
Checked by: benchmarks/transformers/score.py.
"""

from __future__ import annotations

from memplan.engines.transformers.layer_shape import Heads, Indexer, LayerShape
from memplan.engines.transformers.step import Moment, Step

_PLAIN_SCORE_BYTES = 13
_WIDE = 4
_FLASH_HEAD_LIMIT = 256


def attention_moments(shape: LayerShape, hidden: int, step: Step) -> list[Moment]:
    """Return the moments of a layer's attention; none for a layer without."""
    heads = shape.heads
    if heads is None:
        return []
    moments = [_rotation(heads, hidden, step)]
    if heads.has_query_norm:
        size = step.rows * ((2 * hidden + heads.query) * step.element_bytes + 2 * _WIDE * heads.query)
        moments.append(Moment(size, "query norm", "hidden states, queries and their FP32 copies", is_cached=False))
    if heads.is_latent:
        moments.append(_latent(heads, hidden, step))
    if shape.indexer is not None and shape.indexer.num_heads:
        moments.append(_indexer(shape.indexer, heads, hidden, step))
    moments.append(_eager(heads, hidden, step) if step.attention == "eager" else _fused(heads, hidden, step))
    if step.family.block_mask_bytes and step.tokens > 1:
        size = step.family.block_mask_bytes * heads.num_heads * step.scores
        working = f"{heads.num_heads} heads x {step.scores:,} scores x {step.family.block_mask_bytes} B"
        moments.append(Moment(size, "block mask", working))
    return moments


def is_cut(heads: Heads, step: Step) -> bool:
    """Whether a window is no longer than the keys, so that the kernel's own causal order does not do."""
    return heads.window is not None and step.keys >= heads.window


def _rotation(heads: Heads, hidden: int, step: Step) -> Moment:
    """Queries beside the three products of their rotation."""
    width = 2 * hidden + 4 * heads.query + heads.keys + heads.values
    size = step.rows * width * step.element_bytes
    if step.family.wide_rotary:
        plain = 2 * hidden + heads.query + heads.keys + heads.values
        wide = max(4 * heads.query + heads.keys, 2 * heads.query + 4 * heads.keys)
        size = step.rows * (plain * step.element_bytes + wide * _WIDE)
    working = f"{step.rows:,} tokens x {width:,} x {step.element_bytes} B"
    return Moment(size, "rotary embedding", working, is_cached=False)


def _latent(heads: Heads, hidden: int, step: Step) -> Moment:
    """Latents expanded to keys and values of every head, and the concatenated queries and keys."""
    keys = step.sequences * step.cached_keys
    size = step.rows * (2 * hidden + 2 * heads.query) + keys * (heads.expanded + heads.keys)
    working = f"{keys:,} tokens x {heads.expanded + heads.keys:,} x {step.element_bytes} B"
    return Moment(size * step.element_bytes, "latents expanded", working)


def _indexer(indexer: Indexer, heads: Heads, hidden: int, step: Step) -> Moment:
    """Scores of a sparse-attention indexer for every pair of tokens in FP32, beside the latents' expansion.

    The product with each head's weight is a second copy; with several rows in the batch, the keys are copied for
    every query instead, which is more.
    """
    pairs = step.rows * step.cached_keys // indexer.ratio
    beside = indexer.key_width if step.sequences > 1 else indexer.num_heads
    queries = 2 * indexer.num_heads * indexer.key_width
    held = (2 * hidden + 3 * heads.query + heads.expanded + queries) * step.rows * step.element_bytes
    return Moment(
        _WIDE * (indexer.num_heads + beside) * pairs + held,
        "sparse attention indexer",
        f"{indexer.num_heads + beside} x {pairs:,} scores x 4 B",
    )


def _fused(heads: Heads, hidden: int, step: Step) -> Moment:
    """A fused kernel, or what stands in for it."""
    rows = step.rows
    held = rows * (2 * hidden + heads.query + heads.output) * step.element_bytes + _WIDE * heads.num_heads * rows
    if step.attention == "flash":
        unpadded = rows * (heads.query + heads.keys + heads.values + heads.output) * step.element_bytes
        return Moment(held + (unpadded if step.is_padded else 0), "flash attention", "queries and output, no scores")
    is_masked = step.is_padded or (step.tokens > 1 and is_cut(heads, step))
    fits_gqa = step.gqa_head_limit is None or heads.head_width <= step.gqa_head_limit
    uses_gqa = not is_masked and not step.repeats_heads and fits_gqa
    has_kernel = step.has_fused_kernels and heads.head_width <= _FLASH_HEAD_LIMIT
    is_grouped = heads.is_grouped and not step.family.broadcasts_keys
    if is_grouped and uses_gqa and not has_kernel:
        return _plain(heads, held, step)
    repeated = 0
    if is_grouped and not uses_gqa and not (step.packs_queries and step.tokens == 1):
        width = heads.num_heads * heads.head_width + heads.output
        repeated = step.sequences * step.keys * width * step.element_bytes
    mask = step.scores * step.element_bytes if is_masked and not step.wide_mask else 0
    parts = ["queries", "output", *(["repeated keys and values"] if repeated else []), *(["mask"] if mask else [])]
    return Moment(held + repeated + mask, "SDPA with a mask" if is_masked else "SDPA", ", ".join(parts))


def _plain(heads: Heads, held: int, step: Step) -> Moment:
    """SDPA without a kernel: FP32 copies of keys and values for every head, and scores that are copied twice."""
    seen = step.seen_keys(heads.window or None) if step.tokens == 1 else step.keys
    keys, narrow = step.sequences * seen, step.element_bytes < _WIDE
    width = heads.num_heads * heads.head_width
    copies = keys * (width + heads.output) + (keys * (heads.keys + heads.values) if narrow else 0)
    if step.tokens == 1:
        size = held + _WIDE * (copies + keys * width)
        return Moment(size, "SDPA without a fused kernel", f"{keys:,} keys of {heads.num_heads} heads in FP32")
    copies += step.rows * heads.query * (2 if narrow else 1) + step.tokens * step.keys
    size = held + _WIDE * copies + _PLAIN_SCORE_BYTES * heads.num_heads * step.scores
    return Moment(size, "SDPA without a fused kernel", f"{heads.num_heads} heads x {step.scores:,} scores x 13 B")


def _eager(heads: Heads, hidden: int, step: Step) -> Moment:
    """Scores of all pairs, their softmax in FP32. Compressed layers add one score for each group of tokens."""
    seen = step.seen_keys(heads.window or None)
    pairs = step.rows * (seen + sum(step.cached_keys // ratio for ratio in heads.ratios))
    keys, copied = step.sequences * seen, 0
    if heads.is_latent:
        copied = keys * (heads.expanded + heads.keys + (heads.values if step.sequences > 1 else 0))
    elif heads.is_grouped and not step.family.broadcasts_keys:
        copied = keys * (heads.num_heads * heads.head_width + heads.output)
    held = (step.rows * (2 * hidden + heads.query) + copied) * step.element_bytes
    scores = round(heads.num_heads * pairs * step.softmax_bytes)
    working = f"{heads.num_heads} heads x {pairs:,} scores x {step.softmax_bytes:g} B"
    return Moment(held + scores, "eager attention", working)
