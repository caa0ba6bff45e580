"""vLLM's cache pages: how many tokens one block of a layer holds, and how many bytes that is on one rank.

The attention kernels of a GPU decide the block: latent attention has kernels for blocks of its own, sparse attention
others again, and beside recurrent states a block grows until its page holds a state. DeepSeek V4 keeps four kinds of
pages, padded until pairs of them agree: compressed latents, indexer keys, a window of latents, and the states of the
compressors, which are windows too.

Source: the layers' get_kv_cache_spec, vllm/platforms/{cuda,interface}.py, vllm/model_executor/models/config.py and
vllm/models/deepseek_v4, 0.9.2 to 0.33. Checked by: benchmarks/vllm/kv_oracle.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from memplan.budget.kv_cache import KvFormat, kept_heads, kv_format, state_bytes, token_bytes
from memplan.catalog.rules import Rules
from memplan.domain.attention import (
    Cache,
    ChunkedLocal,
    CompressedAttention,
    CompressorState,
    CrossAttention,
    FullAttention,
    IndexerKeys,
    LatentAttention,
    LatentWindow,
    LinearState,
    SlidingWindow,
)
from memplan.domain.model import Layer, count_layers
from memplan.engines.vllm.settings import VllmSettings
from memplan.records import dataclass, replace
from memplan.units import ceil_div, round_up

_BLOCK = 16
_BLOCK_LATENT = 64
_BLOCK_COMPRESSED = 256
_BLOCK_LATENT_WINDOW = 64
_BLOCK_INDEXED = 128
# FlashMLA reads compressed pages in rows of this size.
_COMPRESSED_ALIGNMENT_BYTES = 576
_SCALED_WIDTH = 64  # latents in FP8 have a scale of one byte for every 64 elements, padded to 8
_STATE_ELEMENT_BYTES = 4

Kind = Literal["full", "latent", "indexer", "window", "chunk", "state", "cross"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """The page of one kind of layer: `page_bytes` for `block_size` tokens (or one state) of one layer on one rank.

    `window_tokens` is the window or chunk of a local layer, the tokens of the encoder for cross attention, and how
    many states a request keeps for recurrent layers.
    """

    kind: Kind
    block_size: int
    page_bytes: int
    window_tokens: int = 0
    is_latent: bool = False

    @property
    def grows(self) -> bool:
        """Whether every token of the context takes a slot."""
        return self.kind in ("full", "latent", "indexer")

    def blocks_of(self, tokens: int, in_flight_tokens: int) -> int:
        """Blocks that one request of `tokens` tokens claims in one group of this kind."""
        if self.kind == "window":
            return ceil_div(min(self.window_tokens - 1 + in_flight_tokens, tokens), self.block_size) + 1
        if self.kind == "chunk":
            return ceil_div(min(self.window_tokens + in_flight_tokens, tokens), self.block_size)
        if self.kind == "state":
            return self.window_tokens
        return ceil_div(self.window_tokens if self.kind == "cross" else tokens, self.block_size)


def layer_pages(layers: tuple[Layer, ...], settings: VllmSettings, rules: Rules) -> dict[Page, int]:
    """How many layers of one rank have each kind of page, in the order they appear."""
    counted = [(cache, copies) for layer, copies in count_layers(layers) for cache in _kept_by(layer, layers, rules)]
    caches = [cache for cache, _ in counted]
    settings = _as_sparse_kernels_store(caches, settings, rules)
    block_size = _block_size(caches, settings, rules)
    is_compressed = any(isinstance(cache, CompressedAttention) for cache in caches)
    is_latent = any(isinstance(cache, LatentAttention) for cache in caches)
    counts: dict[Page, int] = {}
    for cache, copies in counted:
        if is_compressed:
            pages = _compressed_pages(cache, block_size)
        elif isinstance(cache, IndexerKeys) and not is_latent:
            size = block_size * cache.key_width * settings.dtype.bits // 8
            pages = [Page(kind="indexer", block_size=block_size, page_bytes=size)]
        else:
            pages = [_page(cache, block_size, settings, rules)]
        for page in pages:
            if page.page_bytes:
                counts[page] = counts.get(page, 0) + copies
    return _padded_states(counts)


def _kept_by(layer: Layer, layers: tuple[Layer, ...], rules: Rules) -> tuple[Cache, ...]:
    """What a layer caches. A predictor compresses nothing; it has an indexer of its own, as all latent layers had
    before indexers were shared.
    """
    is_predictor = layer.kind == "mtp"
    if is_predictor and any(isinstance(cache, LatentWindow) for cache in layer.caches):
        return tuple(cache for cache in layer.caches if isinstance(cache, LatentWindow))
    is_latent = any(isinstance(cache, LatentAttention) for cache in layer.caches)
    if not is_latent or (rules["shares_indexers"] and not is_predictor):
        return layer.caches
    own = tuple(cache for cache in layer.caches if not isinstance(cache, IndexerKeys))
    indexer = next((cache for other in layers for cache in other.caches if isinstance(cache, IndexerKeys)), None)
    return (*own, indexer) if indexer else own


def _as_sparse_kernels_store(caches: list[Cache], settings: VllmSettings, rules: Rules) -> VllmSettings:
    """Sparse attention over latents has an FP8 layout of its own, but where FlashInfer's kernels take a plain one."""
    sparse = any(isinstance(cache, IndexerKeys) for cache in caches)
    latent = any(isinstance(cache, LatentAttention) for cache in caches)
    if not (sparse and latent and settings.kv.name in ("fp8", "fp8_e4m3")):
        return settings
    if settings.gpu_family in rules["sparse_plain_fp8"]:
        return settings
    return replace(settings, kv=kv_format("fp8_ds_mla", settings.dtype))


def _padded_states(counts: dict[Page, int]) -> dict[Page, int]:
    """Recurrent states take pages as large as those of the attention beside them."""
    attention = max((page.page_bytes for page in counts if page.kind != "state"), default=0)
    return {
        replace(page, page_bytes=max(page.page_bytes, attention)) if page.kind == "state" else page: count
        for page, count in counts.items()
    }


def _block_size(caches: list[Cache], settings: VllmSettings, rules: Rules) -> int:
    """The tokens of one block before pages of several kinds are made equal."""
    block_size = settings.block_size or _kernel_block(caches, settings, rules)
    if settings.generation != "v1":
        return block_size
    states = [cache for cache in caches if isinstance(cache, LinearState)]
    attention = next((cache for cache in caches if isinstance(cache, (FullAttention, LatentAttention))), None)
    if not states or attention is None:
        return block_size
    largest = max(_state_page(state, settings) for state in states)
    align = _state_alignment(attention, states, block_size, settings, rules)
    per_token = _token_bytes(attention, settings, rules)
    return max(block_size, align * ceil_div(largest, round(align * per_token)))


def _kernel_block(caches: list[Cache], settings: VllmSettings, rules: Rules) -> int:
    """The block that the kernels of this GPU ask for."""
    if settings.generation != "v1":
        return _BLOCK
    sparse = any(isinstance(cache, IndexerKeys) for cache in caches)
    if any(isinstance(cache, CompressedAttention) for cache in caches):
        return _BLOCK_COMPRESSED
    if any(isinstance(cache, LatentAttention) for cache in caches) and not settings.latent_expanded:
        if sparse:
            return _BLOCK_LATENT
        blocks: dict[str, int] = rules["latent_blocks"]
        quantized = "_fp8" if settings.kv.element_bits == 8 else ""
        return blocks.get(settings.gpu_family + quantized, blocks.get(settings.gpu_family, _BLOCK))
    if sparse:
        return _BLOCK_INDEXED
    widest = max((cache.key_width for cache in caches if isinstance(cache, FullAttention)), default=0)
    wide: dict[str, int] = rules["wide_head_blocks"]
    quantized = "_fp8" if settings.kv.element_bits == 8 else ""
    return wide.get(f"{settings.gpu_family}{quantized}_{widest}", _BLOCK)


def _state_alignment(
    attention: Cache, states: Iterable[LinearState], block_size: int, settings: VllmSettings, rules: Rules
) -> int:
    """What a block beside recurrent states is a multiple of."""
    rule: dict[str, int] = rules["state_alignment"]
    if isinstance(attention, LatentAttention) and not settings.latent_expanded:
        align = rule["latent"]
    else:
        width = attention.key_width if isinstance(attention, FullAttention) else 0
        quantized = "_fp8" if settings.kv.element_bits == 8 else ""
        align = rule.get(f"{settings.gpu_family}_{width}{quantized}", rule["full"])
    if rule["block"]:
        align = round_up(block_size, align)
    if settings.prefix_caching:
        for state in states:
            align = max(align, rule.get(state.kind, 0))
    return align


def _state_page(state: LinearState, settings: VllmSettings) -> int:
    """Bytes of one state; speculation keeps one more input of the convolution for every token it guesses."""
    taps = state.conv_kernel - 1
    if settings.speculative_tokens and taps > 0:
        state = replace(state, conv_elements=state.conv_elements * (taps + settings.speculative_tokens) // taps)
    return round(state_bytes(state, settings.layout.tensor, dtype=settings.dtype))


def _extra_states(state: LinearState, settings: VllmSettings, rules: Rules) -> int:
    """States beside a request's own: the one before and one taken inside a prefill, for cached prefixes; one for every
    token that is guessed.
    """
    kept: dict[str, int] = rules["extra_states"]
    drafted = kept["drafts"] * settings.speculative_tokens
    if not settings.prefix_caching:
        return drafted
    has_taps = bool(state.conv_elements)
    return drafted + (kept.get(state.kind, kept["any"]) if has_taps else kept["any"])


def _page(cache: Cache, block_size: int, settings: VllmSettings, rules: Rules) -> Page:
    size = round(block_size * _token_bytes(cache, settings, rules))
    if isinstance(cache, LinearState):
        kept = 1 + _extra_states(cache, settings, rules)
        return Page(kind="state", block_size=block_size, page_bytes=_state_page(cache, settings), window_tokens=kept)
    if isinstance(cache, LatentAttention):
        return Page(kind="latent", block_size=block_size, page_bytes=size, is_latent=True)
    if isinstance(cache, CrossAttention):
        source = max(cache.source_tokens, settings.batched_tokens)
        return Page(kind="cross", block_size=block_size, page_bytes=size, window_tokens=source)
    if isinstance(cache, (SlidingWindow, LatentWindow)):
        latent = isinstance(cache, LatentWindow)
        if not latent and settings.block_size and rules["window_blocks"] == "smallest":
            block_size, size = _BLOCK, size * _BLOCK // block_size
        return Page(
            kind="window",
            block_size=block_size,
            page_bytes=size,
            window_tokens=cache.window_tokens,
            is_latent=latent,
        )
    if isinstance(cache, ChunkedLocal):
        return Page(kind="chunk", block_size=block_size, page_bytes=size, window_tokens=cache.chunk_tokens)
    kind: Kind = "indexer" if isinstance(cache, IndexerKeys) else "full"
    return Page(kind=kind, block_size=block_size, page_bytes=size)


def _token_bytes(cache: Cache, settings: VllmSettings, rules: Rules) -> float:
    """Bytes of one token of one layer; windows are not applied."""
    form, ranks = settings.kv, settings.layout.tensor
    if isinstance(cache, LatentAttention):
        return _latent(cache, form, ranks, settings, rules)
    if isinstance(cache, CrossAttention):
        return token_bytes(FullAttention(cache.num_kv_heads, cache.key_width, cache.value_width), form, ranks)
    if isinstance(cache, (FullAttention, SlidingWindow)) and rules["value_widths"] == "as_keys":
        cache = replace(cache, value_width=cache.key_width)
    return token_bytes(cache, form, ranks)


def _latent(cache: LatentAttention, form: KvFormat, ranks: int, settings: VllmSettings, rules: Rules) -> float:
    """Bytes per token of a latent: expanded before 0.7, padded to 256 bytes in some releases."""
    if settings.latent_expanded or not rules["mla"]:
        heads = kept_heads(cache.num_heads, ranks)
        return heads * (cache.expanded_key_width + cache.expanded_key_width) * form.element_bits / 8
    per_token = token_bytes(cache, form)
    align = rules["mla_alignment_bytes"]
    return round_up(round(per_token), align) if align else per_token


def _compressed_pages(cache: Cache, block_size: int) -> list[Page]:
    """The pages of DeepSeek V4: a state of a compressor is a window in blocks of 4 or 8 tokens."""
    if isinstance(cache, LatentWindow):
        size = _packed(_BLOCK_LATENT_WINDOW * _latent_fp8(cache.latent_width, cache.rope_width))
        return [
            Page(
                kind="window",
                block_size=_BLOCK_LATENT_WINDOW,
                page_bytes=size,
                window_tokens=cache.window_tokens,
                is_latent=True,
            )
        ]
    if isinstance(cache, CompressedAttention):
        size = _packed(block_size // cache.ratio * _latent_fp8(cache.latent_width, cache.rope_width))
        page = Page(kind="latent", block_size=block_size, page_bytes=size, is_latent=True)
        return [page, _compressor_page(cache.state, cache.ratio)]
    if isinstance(cache, IndexerKeys):
        per_entry = round(token_bytes(replace(cache, ratio=1), KvFormat(name="fp8", element_bits=8)))
        size = _packed(block_size // cache.ratio * per_entry)
        page = Page(kind="indexer", block_size=block_size, page_bytes=size, is_latent=True)
        return [page] if cache.state is None else [page, _compressor_page(cache.state, cache.ratio)]
    return []


def _compressor_page(state: CompressorState, ratio: int) -> Page:
    block_size = min(ratio, 8)
    size = _packed(block_size * state.width * _STATE_ELEMENT_BYTES)
    return Page(kind="window", block_size=block_size, page_bytes=size, window_tokens=state.tokens, is_latent=True)


def _latent_fp8(latent_width: int, rope_width: int) -> int:
    """A latent in FP8 with its scales, and its rotary key in 16 bits."""
    return latent_width + round_up(latent_width // _SCALED_WIDTH, 8) + 2 * rope_width


def _packed(size: int) -> int:
    return round_up(size, _COMPRESSED_ALIGNMENT_BYTES)
