"""The peak of one device over a call of `generate`: the prefill of the whole prompt in one pass, then one token at a
time.

What lives through a pass (the embedded prompt, masks, rotary tables) stands beside the caches that the layers so far
have filled and the largest moment of one layer; nothing of a layer that is done is kept. So the peak of a prefill is
at the last layer of the widest kind, not the sum over layers.

Source: generation/utils.py (`_prefill`, `_sample`), masking_utils.py, modeling files, 4.31 to 5.23.
Checked by: benchmarks/transformers/score.py.
"""

from __future__ import annotations

from collections.abc import Sequence

from memplan.catalog.rules import Rules
from memplan.domain.gpu import GpuSpec
from memplan.domain.model import ModelSpec
from memplan.engines.transformers.attention_pass import attention_moments, is_cut
from memplan.engines.transformers.caches import LayerCache
from memplan.engines.transformers.families import Family
from memplan.engines.transformers.feed_forward_pass import feed_forward_moments
from memplan.engines.transformers.layer_shape import LayerShape
from memplan.engines.transformers.recurrent_pass import recurrent_moments
from memplan.engines.transformers.settings import TransformersSettings
from memplan.engines.transformers.step import Moment, Step, largest
from memplan.records import dataclass, replace

# Bytes for a word under temperature, top-k and top-p, beside its logit: for the first token, for later ones, and what
# is still there of the last choice while the next pass runs. benchmarks/transformers/score.py, `generate` itself.
_FIRST_CHOICE_BYTES = 30
_LATER_CHOICE_BYTES = 38
_LAST_CHOICE_BYTES = 12
_WIDE = 4
_INDEX_BYTES = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Peak:
    """The fullest moment of a phase on one device, weights aside: caches, what the pass keeps, one layer's moment."""

    phase: str
    cache_bytes: int
    kept_bytes: int
    moment: Moment

    @property
    def total_bytes(self) -> int:
        return self.cache_bytes + self.kept_bytes + self.moment.size_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedLayer:
    """A layer that a device computes, and its cache; `streamed_bytes` are its weights where they come from the host."""

    shape: LayerShape
    cache: LayerCache
    streamed_bytes: int = 0


def prefill_step(settings: TransformersSettings, gpu: GpuSpec, family: Family, rules: Rules) -> Step:
    """The pass over the prompt, or over its last chunk."""
    tokens = min(settings.prefill_chunk or settings.prompt_tokens, settings.prompt_tokens)
    is_static = settings.cache in ("static", "offloaded_static")
    cached = settings.context_tokens if is_static else settings.prompt_tokens
    keys = cached if settings.is_padded else settings.prompt_tokens
    element_bytes = settings.dtype.bits // 8
    old_card = gpu.vendor == "nvidia" and (gpu.cuda_capability or 9.0) < 8.0
    return Step(
        sequences=settings.sequences,
        tokens=tokens,
        keys=keys,
        cached_keys=cached,
        keeps_windows=is_static or bool(rules["dynamic_windows"]),
        element_bytes=element_bytes,
        attention=settings.attention,
        is_padded=settings.is_padded or (is_static and bool(rules["static_masks"])),
        has_fused_kernels=not old_card and element_bytes == 2,
        repeats_heads=not rules["grouped_sdpa"],
        gqa_head_limit=rules["gqa_head_limit"],
        packs_queries=bool(rules["packs_queries"]),
        groups_experts=rules["experts"] == "grouped",
        has_latent_cache=bool(rules["latent_cache"]),
        wide_mask=rules["mask"] == "float",
        copies_logits=bool(rules["logits_copy"]),
        kernels=settings.kernels,
        family=family,
    )


def decode_step(settings: TransformersSettings, prefill: Step) -> Step:
    """The pass over the last generated token."""
    return replace(prefill, tokens=1, keys=settings.context_tokens, cached_keys=settings.context_tokens)


def device_peak(
    spec: ModelSpec,
    placed: Sequence[PlacedLayer],
    settings: TransformersSettings,
    step: Step,
    *,
    has_head: bool,
) -> Peak:
    """Return the fullest moment of a pass on the device that computes `placed`, in order."""
    is_decode = step.tokens == 1 and settings.prompt_tokens > 1
    last = {(id(each.shape), each.streamed_bytes): index for index, each in enumerate(placed)}
    kept = kept_bytes(spec, [placed[index].shape for index in last.values()], step)
    if is_decode and has_head:
        kept += settings.sequences * spec.vocab_size * _LAST_CHOICE_BYTES
    before = _resident(placed, settings, is_decode=is_decode)
    phase = _phase(is_decode)
    best = Peak(phase=phase, cache_bytes=before[-1], kept_bytes=kept, moment=_final_norm(spec, step, has_head))
    if has_head:
        head = _head(spec, settings, step, is_decode=is_decode)
        best = max(best, Peak(phase=phase, cache_bytes=before[-1], kept_bytes=0, moment=head), key=_size)
    for index in last.values():
        each = placed[index]
        moments = (_decode_moments if is_decode else _prefill_moments)(spec, each, step)
        for moment in moments:
            cache = before[-1] if is_decode else before[index]
            if not is_decode and not moment.is_cached:
                cache -= each.cache.prefill_bytes
            best = max(best, Peak(phase=phase, cache_bytes=cache, kept_bytes=kept, moment=moment), key=_size)
    return best


def _prefill_moments(spec: ModelSpec, placed: PlacedLayer, step: Step) -> list[Moment]:
    """The fullest moment of a layer in a prefill, with the weights that were brought for it; and that of its attention
    where the cache then keeps less than what is attended to.
    """
    shape, beside = placed.shape, placed.cache.beside_bytes
    moments = [_with(layer_moment(spec, shape, step, placed.cache.prefill_bytes), placed.streamed_bytes)]
    attending = attention_moments(shape, spec.hidden_size, step)
    if beside and attending:
        moments.append(_with(largest(attending, placed.cache.prefill_bytes), placed.streamed_bytes + beside))
    if placed.cache.packing_bytes and shape.heads is not None:
        held = step.rows * (2 * spec.hidden_size + shape.heads.query) * step.element_bytes
        packing = Moment(held, "packing the cache", "hidden states, queries, keys and values, and their copies")
        moments.append(_with(packing, placed.streamed_bytes + placed.cache.packing_bytes))
    return moments


def _decode_moments(spec: ModelSpec, placed: PlacedLayer, step: Step) -> list[Moment]:
    """The two moments of a layer that may be fullest for one token: while it is appended to the cache, and after."""
    moment = layer_moment(spec, placed.shape, step)
    growing = Moment(step.rows * spec.hidden_size * step.element_bytes, "growing cache", "keys or values, old and new")
    return [
        _with(moment, placed.streamed_bytes + placed.cache.expanded_bytes),
        _with(growing, placed.streamed_bytes + placed.cache.growing_bytes),
    ]


def _with(moment: Moment, more_bytes: int) -> Moment:
    return Moment(moment.size_bytes + more_bytes, moment.name, moment.working, moment.is_cached)


def _size(peak: Peak) -> int:
    return peak.total_bytes


def _phase(is_decode: bool) -> str:
    return "decode" if is_decode else "prefill"


def _resident(placed: Sequence[PlacedLayer], settings: TransformersSettings, *, is_decode: bool) -> list[int]:
    """Bytes of caches on the device once each layer has its own; an offloaded cache leaves two layers there."""
    sizes = [each.cache.final_bytes if is_decode else each.cache.prefill_bytes for each in placed]
    if settings.cache in ("offloaded", "offloaded_static"):
        two = 2 * max(sizes, default=0)
        return [min(two, sum(sizes))] * max(1, len(sizes))
    total, sums = 0, []
    for size in sizes:
        total += size
        sums.append(total)
    return sums or [0]


def layer_moment(spec: ModelSpec, shape: LayerShape, step: Step, own_cache_bytes: int = 0) -> Moment:
    """The fullest moment of one layer, given what its own cache takes."""
    hidden = spec.hidden_size
    norm = Moment(step.rows * hidden * (2 * step.element_bytes + 2 * _WIDE), "norm", "hidden states in FP32")
    return largest(
        [
            norm,
            *attention_moments(shape, hidden, step),
            *recurrent_moments(shape, hidden, step, spec.model_type),
            *feed_forward_moments(shape, hidden, step),
        ],
        own_cache_bytes,
    )


def kept_bytes(spec: ModelSpec, shapes: Sequence[LayerShape], step: Step) -> int:
    """What lives through a whole pass: the embedded tokens, token ids, rotary tables, masks."""
    tables = sum(2 * table.width for table in spec.rotary)
    rows = step.rows * ((spec.hidden_size + tables) * step.element_bytes + 4 * _INDEX_BYTES)
    return rows + mask_bytes(shapes, step)


def mask_bytes(shapes: Sequence[LayerShape], step: Step) -> int:
    """The masks of a pass: one for full and one for window attention, where the attention needs them."""
    if step.attention == "flash" or step.tokens == 1:
        return 0
    element = step.element_bytes if step.attention == "eager" or step.wide_mask else 1
    pairs = step.scores if step.is_padded else step.tokens * step.keys
    kinds = {
        shape.heads.window is not None
        for shape in shapes
        if shape.heads is not None
        and (step.attention == "eager" or step.is_padded or is_cut(shape.heads, step) or step.family.always_masks)
    }
    return len(kinds) * pairs * element


def _final_norm(spec: ModelSpec, step: Step, has_head: bool) -> Moment:
    if not has_head:
        return Moment(0, "", "")
    size = step.rows * spec.hidden_size * (2 * step.element_bytes + 2 * _WIDE)
    return Moment(size, "final norm", "hidden states in FP32")


def _head(spec: ModelSpec, settings: TransformersSettings, step: Step, *, is_decode: bool) -> Moment:
    """The logits, and choosing a token. What the layers' pass kept is gone by then."""
    word = (_LATER_CHOICE_BYTES if is_decode else _FIRST_CHOICE_BYTES) + step.element_bytes
    rows = settings.sequences
    choice = Moment(rows * spec.vocab_size * word, "sampling", f"{rows} rows x {spec.vocab_size:,} words x {word} B")
    if not settings.keeps_all_logits:
        return choice
    width = step.element_bytes * step.family.logits_copies
    width += _WIDE if step.element_bytes == 2 and step.copies_logits else 0
    size = step.rows * (spec.hidden_size * step.element_bytes + spec.vocab_size * width)
    working = f"{step.rows:,} tokens x {spec.vocab_size:,} words x {width} B"
    more = (step.rows - rows) * spec.vocab_size * step.element_bytes if not is_decode else 0
    choice = Moment(choice.size_bytes + more, "sampling", choice.working)
    return largest([choice, Moment(size, "logits of every token", working)])
