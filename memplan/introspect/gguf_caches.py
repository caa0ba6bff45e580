"""What each layer of a GGUF model keeps for a sequence, from the file's metadata.

Most architectures are read by the same keys. Those that window some layers, mix attention with recurrent layers or
share caches have a line in a table here; the rules are llama.cpp's own, because that is the engine that reads the file.

Source: llama.cpp as vendored by llama-cpp-python 0.3.36, `src/models/*.cpp` (hyperparameters), `llama-hparams.cpp`
(state sizes), `llama-model.cpp` (which memory an architecture gets).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from memplan.domain.attention import (
    Cache,
    ChunkedLocal,
    CompressedAttention,
    CompressorState,
    FullAttention,
    IndexerKeys,
    LatentAttention,
    LatentWindow,
    LinearState,
    NoCache,
    SharedKV,
    SlidingWindow,
)
from memplan.domain.dtypes import DType
from memplan.errors import UnsupportedModel
from memplan.introspect.gguf_keys import Keys
from memplan.records import dataclass

Kind = Literal["mamba1", "mamba2", "gated_delta_net", "short_conv", "linear_attention", "rwkv"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Which layers of an architecture are windowed when its file does not list them: all but one of every `period`.

    The full layer is the last of its period, or the first under `full_first`. `default_tokens` is the window of a file
    that names none (0: such a file has no windows); `fixed` takes it whatever the file says. `num_layers` limits the
    rule to models of that depth.
    """

    period: int
    full_first: bool = False
    default_tokens: int = 0
    fixed: bool = False
    chunked: bool = False
    num_layers: int = 0


_WINDOWS: Mapping[str, Window] = {
    "afmoe": Window(period=4),
    "cohere2": Window(period=4),
    "cohere2moe": Window(period=4, full_first=True),
    "exaone4": Window(period=4, default_tokens=4096, num_layers=64),
    "exaone-moe": Window(period=4, default_tokens=128),
    "gemma2": Window(period=2, default_tokens=4096),
    "gemma3": Window(period=6),
    "gemma3n": Window(period=5),
    "gpt-oss": Window(period=2),
    "laguna": Window(period=4, full_first=True),
    "llama4": Window(period=4, default_tokens=8192, fixed=True, chunked=True),
    "mellum": Window(period=4),
    "muse-glimmer": Window(period=4),
    "olmo2": Window(period=4),
    "plamo3": Window(period=8),
    "smallthinker": Window(period=4, full_first=True, default_tokens=4096, fixed=True),
}
_LISTED_WINDOWS = frozenset(
    {"dots3note", "gemma4", "granite_swa", "maple", "mimo2", "spark2_5", "step35"}
)  # their files list the windowed layers
WINDOWED = frozenset({*_WINDOWS, *_LISTED_WINDOWS})  # architectures that have window layers at all
_RECURRENT = frozenset({"arwkv7", "mamba", "mamba2", "rwkv6", "rwkv6qwen2", "rwkv7"})
_RECURRENT_WITHOUT_HEADS = frozenset(
    {"bailingmoe3", "glm5-next", "granitehybrid", "jamba", "kimi-k3", "kimi-linear", "lfm2", "lfm2moe", "plamo2"}
)
_NEMOTRON_H = frozenset({"nemotron_h", "nemotron_h_moe"})
_FULL_INTERVAL: Mapping[str, int] = {"minimax-01": 8, "qwen35": 4, "qwen35moe": 4, "qwen3next": 4, "qwen4exp": 4}
_OVERLAPPED_RATIO = 4
_KV_FROM_START: Mapping[str, int] = {"gemma3n": 20}
ENCODERS = frozenset(
    {
        *("bert", "eurobert", "gemma-embedding", "jina-bert-v2", "jina-bert-v3", "modern-bert"),
        *("neo-bert", "nomic-bert", "nomic-bert-moe", "t5encoder"),
    }
)


def layer_caches(keys: Keys, num_layers: int) -> tuple[tuple[Cache, ...], ...]:
    """Return what each of the first `num_layers` layers keeps.

    Raises: UnsupportedModel when a key that decides it is missing or impossible.
    """
    if keys.architecture in ENCODERS:
        return ((NoCache(),),) * num_layers
    if keys.architecture == "deepseek4":
        ratios = keys.per_layer("attention.compress_ratios", num_layers)
        return tuple(_compressed(keys, ratio, num_layers) for ratio in ratios)
    recurrent = _recurrent_layers(keys, num_layers)
    windowed = _windowed_layers(keys, num_layers, recurrent)
    kv_heads = _kv_heads(keys, num_layers)
    owners = _owners(keys, num_layers)
    state = _state(keys) if any(recurrent) else None
    caches: list[tuple[Cache, ...]] = []
    for index in range(num_layers):
        own: list[Cache] = []
        if owners is not None and index >= owners:
            caches.append((SharedKV(owners - (2 if windowed[index] else 1)),))
            continue
        if kv_heads[index] and (not recurrent[index] or keys.architecture == "falcon-h1"):
            own += _attention(keys, index, num_layers, kv_heads[index], windowed[index])
        if recurrent[index] and state is not None:
            own.append(state)
        caches.append(tuple(own) or (NoCache(),))
    return tuple(caches)


def head_widths(keys: Keys, windowed: bool, num_layers: int) -> tuple[int, int]:
    """The elements of one key and of one value; hidden size over heads where the file does not say."""
    heads = keys.per_layer("attention.head_count", num_layers, 0)
    widest = next((number for number in heads if number), 0)
    default = keys.whole("embedding_length", minimum=1) // widest if widest else 0
    key = keys.whole("attention.key_length", default)
    value = keys.whole("attention.value_length", default)
    if windowed:
        key, value = keys.whole("attention.key_length_swa", key), keys.whole("attention.value_length_swa", value)
    return key, value


def _kv_heads(keys: Keys, num_layers: int) -> tuple[int, ...]:
    if keys.architecture in _RECURRENT:
        return (0,) * num_layers
    if keys.has("attention.head_count_kv"):
        return keys.per_layer("attention.head_count_kv", num_layers)
    return keys.per_layer("attention.head_count", num_layers)


def _attention(keys: Keys, index: int, num_layers: int, kv_heads: int, windowed: int) -> tuple[Cache, ...]:
    key, value = head_widths(keys, bool(windowed), num_layers)
    if not key or not value:
        raise UnsupportedModel(f"the GGUF metadata gives no width of a key: `{keys.architecture}.attention.key_length`")
    if windowed:
        kind = ChunkedLocal if _is_chunked(keys) else SlidingWindow
        return (kind(kv_heads, key, value, windowed),)
    expanded = keys.whole("attention.key_length_mla", 0)
    latent = keys.whole("attention.kv_lora_rank", 0)
    if not expanded or not latent:
        return (FullAttention(kv_heads, key, value),)
    rope = key - latent
    if rope < 0:
        raise UnsupportedModel(f"GGUF keys disagree: a key of {key} holds no latent of {latent}")
    heads = keys.per_layer("attention.head_count", num_layers)[index]
    cache = LatentAttention(latent, rope, heads, expanded, keys.whole("attention.value_length_mla", expanded))
    indexer = keys.whole("attention.indexer.key_length", 0)
    return (cache, IndexerKeys(indexer)) if indexer else (cache,)


def _compressed(keys: Keys, ratio: int, num_layers: int) -> tuple[Cache, ...]:
    """DeepSeek V4: a window of latents, and one for every `ratio` tokens; groups of 4 overlap and are indexed."""
    width, _ = head_widths(keys, False, num_layers)
    rope = keys.whole("rope.dimension_count")
    if rope >= width:
        raise UnsupportedModel(f"GGUF keys disagree: a key of {width} holds no rotary part of {rope}")
    window = LatentWindow(width - rope, rope, keys.whole("attention.sliding_window", minimum=1))
    if ratio < 2:
        return (window,)
    overlap = 2 if ratio == _OVERLAPPED_RATIO else 1
    state = CompressorState(2 * overlap * width, overlap * ratio)
    compressed = CompressedAttention(width - rope, rope, ratio, state)
    if overlap == 1:
        return (window, compressed)
    index_width = keys.whole("attention.indexer.key_length", minimum=1)
    index_state = CompressorState(2 * overlap * index_width, overlap * ratio)
    return (window, compressed, IndexerKeys(index_width, ratio, index_state))


def _is_chunked(keys: Keys) -> bool:
    rule = _WINDOWS.get(keys.architecture)
    return rule is not None and rule.chunked


def _windowed_layers(keys: Keys, num_layers: int, recurrent: tuple[bool, ...]) -> tuple[int, ...]:
    """The window of each layer in tokens; 0 for a layer without one."""
    rule = _WINDOWS.get(keys.architecture)
    tokens = keys.whole("attention.sliding_window", rule.default_tokens if rule else 0)
    if rule and rule.fixed and tokens:
        tokens = rule.default_tokens
    if not tokens or (rule and rule.num_layers and rule.num_layers != num_layers):
        return (0,) * num_layers
    if keys.architecture.startswith("lfm2"):
        return tuple(0 if is_recurrent else tokens for is_recurrent in recurrent)
    pattern = "attention.sliding_window_pattern"
    if keys.is_list(pattern) and (rule or keys.architecture in _LISTED_WINDOWS or keys.architecture not in KNOWN):
        return tuple(tokens if is_windowed else 0 for is_windowed in keys.per_layer(pattern, num_layers))
    if rule is None:
        return (0,) * num_layers  # llama.cpp reads the key and windows nothing
    period = keys.whole(pattern, rule.period)
    full = 0 if rule.full_first else period - 1
    return tuple(0 if period and index % period == full else tokens for index in range(num_layers))


def _recurrent_layers(keys: Keys, num_layers: int) -> tuple[bool, ...]:
    name = keys.architecture
    if name in _RECURRENT or name == "falcon-h1":
        return (True,) * num_layers
    if name in _RECURRENT_WITHOUT_HEADS:
        return tuple(heads == 0 for heads in _kv_heads(keys, num_layers))
    if name in _NEMOTRON_H:
        widths = keys.per_layer("feed_forward_length", num_layers, 0)
        return tuple(not heads and not width for heads, width in zip(_kv_heads(keys, num_layers), widths, strict=True))
    if name in _FULL_INTERVAL:
        listed = "attention.recurrent_layers"
        if keys.is_list(listed):
            return tuple(bool(flag) for flag in keys.per_layer(listed, num_layers))
        interval = keys.whole("full_attention_interval", _FULL_INTERVAL[name], minimum=1)
        return tuple((index + 1) % interval != 0 for index in range(num_layers))
    if name not in KNOWN and keys.has("ssm.state_size") and keys.has("attention.head_count_kv"):
        return tuple(heads == 0 for heads in _kv_heads(keys, num_layers))
    return (False,) * num_layers


def _owners(keys: Keys, num_layers: int) -> int | None:
    """How many layers from the start keep a cache of their own, where the rest reads theirs; None where all do."""
    if keys.has("attention.shared_kv_layers"):
        owners = num_layers - keys.whole("attention.shared_kv_layers")
    elif keys.architecture in _KV_FROM_START:
        owners = min(_KV_FROM_START[keys.architecture], num_layers)
    else:
        return None
    if owners < 2:
        raise UnsupportedModel(
            f"GGUF key `{keys.architecture}.attention.shared_kv_layers` leaves {owners} caches to share"
        )
    return owners if owners < num_layers else None


def _state(keys: Keys) -> LinearState:
    """The recurrent state of one sequence in one layer; llama.cpp keeps it in FP32."""
    hidden = keys.whole("embedding_length", minimum=1)
    heads = keys.whole("attention.head_count", 0)
    kernel = keys.whole("ssm.conv_kernel", 0)
    taps = max(kernel - 1, 0)
    if keys.has("wkv.head_size"):
        width = keys.whole("wkv.head_size", minimum=1)
        return _linear("rwkv", keys.whole("token_shift_count", 2) * hidden, hidden * width, hidden // width, 0)
    if keys.has("shortconv.l_cache"):
        kernel = keys.whole("shortconv.l_cache", minimum=1)
        return _linear("short_conv", hidden * (kernel - 1), 0, hidden, kernel)
    if keys.has("kda.head_dim"):
        width = keys.whole("kda.head_dim", minimum=1)
        return _linear("linear_attention", 3 * (taps or 3) * heads * width, width * width * heads, heads, kernel or 4)
    if keys.architecture == "minimax-01":
        width = keys.whole("attention.key_length", hidden // max(heads, 1))
        return _linear("linear_attention", 0, width * width * heads, heads, 0)
    inner, state = keys.whole("ssm.inner_size", minimum=1), keys.whole("ssm.state_size", minimum=1)
    groups = keys.whole("ssm.group_count", 0)
    kind: Kind = "gated_delta_net" if keys.architecture in _FULL_INTERVAL else "mamba2" if groups else "mamba1"
    units = keys.whole("ssm.time_step_rank", minimum=1) if groups else inner
    return _linear(kind, taps * (inner + 2 * groups * state), inner * state, units, kernel)


def _linear(kind: Kind, conv: int, state: int, units: int, kernel: int) -> LinearState:
    return LinearState(kind, conv, state, max(units, 1), DType.F32, DType.F32, kernel)


# Architectures whose caches are as their keys say, by the rules above. Others are read the same way, with a note.
KNOWN: frozenset[str] = frozenset(
    {
        *_WINDOWS,
        *_LISTED_WINDOWS,
        *_RECURRENT,
        *_RECURRENT_WITHOUT_HEADS,
        *_NEMOTRON_H,
        *_FULL_INTERVAL,
        *ENCODERS,
        *(
            "apertus",
            "arcee",
            "arctic",
            "baichuan",
            "bailingmoe",
            "bailingmoe2",
            "bitnet",
            "bloom",
            "chameleon",
            "chatglm",
        ),
        *("codeshell", "cogvlm", "command-r", "dbrx", "deci", "deepseek", "deepseek2", "deepseek2-ocr", "deepseek32"),
        "deepseek4",
        *("dots1", "dream", "ernie4_5", "ernie4_5-moe", "exaone", "falcon", "falcon-h1", "gemma", "glm-dsa", "glm4"),
        *("glm4moe", "gpt2", "gptj", "gptneox", "granite", "granitemoe", "grok", "grovemoe", "hunyuan-dense"),
        *(
            "hunyuan-moe",
            "hunyuan_vl",
            "hy_v3",
            "internlm2",
            "jais",
            "jais2",
            "llada",
            "llada-moe",
            "llama",
            "llama-embed",
        ),
        *(
            "maincoder",
            "minicpm",
            "minicpm3",
            "minimax-m2",
            "mistral3",
            "mistral4",
            "mpt",
            "nanbeige",
            "nemotron",
            "olmo",
        ),
        *("olmoe", "openelm", "orion", "paddleocr", "pangu-embedded", "phi2", "phi3", "phimoe", "plamo", "plm", "qwen"),
        *("qwen2", "qwen2moe", "qwen2vl", "qwen3", "qwen3moe", "qwen3vl", "qwen3vlmoe", "refact", "rnd1", "seed_oss"),
        *("smollm3", "stablelm", "starcoder", "starcoder2", "t5", "talkie", "xverse"),
    }
)
