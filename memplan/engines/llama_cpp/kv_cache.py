"""The cache of llama.cpp: cells of every layer, their bytes by type, states of recurrent layers.

A cell holds one token's keys and values of one layer. Cells are allocated in full at the start: layers with the whole
context have the context's cells, window layers (since b5429) the window of each sequence and one step more. Recurrent
layers keep one FP32 state per sequence.

Formula (docs/memory-model.md, "llama.cpp"): streams x cells x (row of keys + row of values), rows in blocks of their
type; q8_0 stores 32 elements in 34 bytes, q4_0 in 18.

Source: llama_kv_cache_init, llama-kv-cache*.cpp and llama-memory-recurrent.cpp, b2354 to b11000.
"""

from __future__ import annotations

from memplan.catalog.rules import Rules
from memplan.domain.attention import (
    Cache,
    ChunkedLocal,
    CompressedAttention,
    CrossAttention,
    FullAttention,
    IndexerKeys,
    LatentAttention,
    LatentWindow,
    LinearState,
    NoCache,
    SharedKV,
    SlidingWindow,
)
from memplan.domain.model import Layer, ModelSpec
from memplan.engines.llama_cpp.ggml_graph import TYPES
from memplan.engines.llama_cpp.graph_traits import ENCODERS
from memplan.engines.llama_cpp.placement import Devices
from memplan.engines.llama_cpp.settings import LlamaSettings
from memplan.records import dataclass
from memplan.units import round_up

# Architectures whose latents are cached compressed; the others' latents are expanded before they are cached.
_COMPRESSED = frozenset({"deepseek2", "deepseek32", "glm-dsa", "kimi-linear", "kimi-k3", "mistral4", "bailingmoe3"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Cells:
    """Cells per stream: of layers that keep the whole context, and of window layers (0 where a model has none)."""

    context: int
    window: int
    streams: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheBytes:
    """The cache by device, the states of recurrent layers by device, and what one more token costs everywhere."""

    keys_and_values: tuple[int, ...]
    states: tuple[int, ...]
    token_bytes: int

    @property
    def total_bytes(self) -> int:
        return sum(self.keys_and_values) + sum(self.states)


def cells_of(spec: ModelSpec, settings: LlamaSettings, rules: Rules) -> Cells:
    """Return how many cells layers have."""
    streams = settings.streams
    context = settings.ctx_size // streams
    window = window_tokens(spec)
    if not window:
        return Cells(context=context, window=0, streams=streams)
    if settings.swa_full or rules["window_cache"] == "none" or settings.fork == "ik":
        return Cells(context=context, window=context, streams=streams)
    step = settings.batch_size if rules["window_cache"] == "batch" else settings.ubatch_size
    sequences = settings.slots if streams == 1 else 1
    padding = 256 if settings.flash_attention or rules["context_padding"] == "always_256" else 32
    if rules["context_padding"] == "none":
        padding = 1
    return Cells(context=context, window=min(context, round_up(window * sequences + step, padding)), streams=streams)


def window_tokens(spec: ModelSpec) -> int:
    """The window of a model's window layers; 0 where it has none."""
    for layer in spec.layers:
        for cache in layer.caches:
            if isinstance(cache, (SlidingWindow, LatentWindow)):
                return cache.window_tokens
            if isinstance(cache, ChunkedLocal):
                return cache.chunk_tokens
    return 0


def cache_bytes(
    spec: ModelSpec, settings: LlamaSettings, rules: Rules, devices: Devices, cells: Cells | None = None
) -> CacheBytes:
    """Return the bytes of the cache on every device."""
    cells = cells or cells_of(spec, settings, rules)
    kept = [0] * (devices.num_gpus + 1)
    states = [0] * (devices.num_gpus + 1)
    token = 0
    for index, layer in enumerate(spec.layers):
        device = devices.caches[index]
        for cache in kept_caches(spec, layer, rules):
            if isinstance(cache, LinearState):
                states[device] += 4 * (cache.conv_elements + cache.state_elements) * settings.slots
                continue
            row = row_bytes(cache, spec, settings, rules)
            is_window = isinstance(cache, (SlidingWindow, ChunkedLocal, LatentWindow)) and cells.window
            kept[device] += row * cells.streams * (cells.window if is_window else cells.context)
            token += row
    return CacheBytes(keys_and_values=tuple(kept), states=tuple(states), token_bytes=token)


def kept_caches(spec: ModelSpec, layer: Layer, rules: Rules) -> tuple[Cache, ...]:
    """What a layer keeps: older builds allocate a cache for encoders, too, as for any other attention."""
    if spec.model_type not in ENCODERS or not rules["encoder_cache"]:
        return layer.caches
    width = max(layer.query_width // max(layer.num_heads, 1), 1)
    return (FullAttention(num_kv_heads=layer.num_heads, key_width=width, value_width=width),)


def row_bytes(cache: Cache, spec: ModelSpec, settings: LlamaSettings, rules: Rules) -> int:
    """The bytes of one cell of one layer: its keys and its values."""
    if isinstance(cache, (FullAttention, SlidingWindow, ChunkedLocal)):
        keys, values = cache.num_kv_heads * cache.key_width, cache.num_kv_heads * cache.value_width
    elif isinstance(cache, (LatentAttention, LatentWindow)):
        keys, values = _latent_widths(cache, spec, settings, rules)
    elif isinstance(cache, CompressedAttention):
        return _row(settings.cache_type_k, cache.latent_width + cache.rope_width) // cache.ratio
    elif isinstance(cache, IndexerKeys):
        return _row("f16", cache.key_width) // cache.ratio
    elif isinstance(cache, (LinearState, SharedKV, CrossAttention, NoCache)):
        return 0
    else:
        raise AssertionError(f"unhandled cache: {cache}")
    return _row(settings.cache_type_k, keys) + _row(settings.cache_type_v, values)


def caches_latents(spec: ModelSpec, settings: LlamaSettings, rules: Rules) -> str:
    """How latents are cached: `expanded`, `keys_and_values` or `keys`."""
    if settings.fork == "ik":
        transposed = settings.mla_attn == 1 and not settings.flash_attention
        return "expanded" if not settings.mla_attn else "keys_and_values" if transposed else "keys"
    if spec.model_type not in _COMPRESSED:
        return "expanded"
    if any(tensor.name == "attn_kv_b.weight" for layer in spec.layers for tensor in layer.tensors):
        return "expanded"
    return str(rules["latent_cache"])


def _latent_widths(
    cache: LatentAttention | LatentWindow, spec: ModelSpec, settings: LlamaSettings, rules: Rules
) -> tuple[int, int]:
    how = caches_latents(spec, settings, rules)
    if how == "expanded" and isinstance(cache, LatentAttention):
        return cache.num_heads * cache.expanded_key_width, cache.num_heads * cache.expanded_value_width
    width = cache.latent_width + cache.rope_width
    return width, cache.latent_width if how == "keys_and_values" else 0


def _row(kind: str, width: int) -> int:
    form = TYPES[kind]
    return -(-width // form.block) * form.block_bytes + (form.row_bytes if width else 0)
