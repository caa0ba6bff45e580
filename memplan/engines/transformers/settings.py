"""What a transformers run works with: the arguments of `from_pretrained` and `generate`, with every default filled in.

Source: modeling_utils.py (`from_pretrained`), generation/configuration_utils.py and generation/utils.py of the
releases that catalog/engines/transformers.yaml names.
"""

from __future__ import annotations

from typing import Literal

from memplan.catalog.rules import Rules
from memplan.domain.attention import FullAttention, LatentAttention
from memplan.domain.correction import Correction, Term
from memplan.domain.dtypes import DType, parse_compute_dtype
from memplan.domain.gpu import GpuSpec
from memplan.domain.model import ModelSpec
from memplan.domain.serving import ServingSettings
from memplan.engines.options import EngineOptions
from memplan.engines.transformers.families import Family
from memplan.errors import UsageError
from memplan.records import dataclass
from memplan.units import GIB, parse_size_bytes

Attention = Literal["sdpa", "eager", "flash"]
CacheKind = Literal["dynamic", "static", "offloaded", "offloaded_static", "quantized", "none"]
Backend = Literal["quanto", "hqq", "fp8"]
DeviceMap = Literal["auto", "balanced", "balanced_low_0", "sequential", "cuda"]

_ATTENTION: dict[str, Attention] = {
    "sdpa": "sdpa",
    "eager": "eager",
    "flash_attention_2": "flash",
    "flash_attention_3": "flash",
}
_CACHES: dict[str, CacheKind] = {
    "dynamic": "dynamic",
    "dynamic_full": "dynamic",
    "static": "static",
    "hybrid": "static",
    "sliding_window": "static",
    "offloaded": "offloaded",
    "offloaded_static": "offloaded_static",
    "quantized": "quantized",
    "none": "none",
}
_BACKENDS: dict[str, Backend] = {"quanto": "quanto", "hqq": "hqq", "fp8": "fp8"}
_DEVICE_MAPS: dict[str, DeviceMap] = {
    "auto": "auto",
    "balanced": "balanced",
    "balanced_low_0": "balanced_low_0",
    "sequential": "sequential",
    "cuda": "cuda",
}
_HOST_BYTES = 64 * GIB

KNOWN_OPTIONS = (
    "attn_implementation",
    "cache_implementation",
    "device_map",
    "max_memory",
    "cpu_memory",
    "offload_folder",
    "offload_buffers",
    "logits_to_keep",
    "max_new_tokens",
    "num_beams",
    "num_return_sequences",
    "padding",
    "prefill_chunk_size",
    "kernels",
    "cache_backend",
    "cache_nbits",
    "cache_group_size",
    "cache_residual_length",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizedCache:
    """The numbers of a quantized cache: bits of an element, elements that share a scale, tokens kept plain.

    The backend fp8 has one scale for each tensor, and keeps no token plain.
    """

    backend: Backend = "quanto"
    bits: int = 4
    group: int = 64
    residual_tokens: int = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class TransformersSettings:
    """A `from_pretrained` and a `generate`.

    One call works on `sequences` rows (requests x beams); each has `prompt_tokens` tokens and grows to
    `context_tokens`. `padding` says whether prompts differ in length, so that attention needs a mask; None leaves it
    to their number. `max_memory` is what the user allows each GPU, None for what is free; `cpu_bytes` what the host
    has for weights. `kept_share` is what a pruned cache keeps of itself once the prompt is through.
    """

    version: str
    dtype: DType
    attention: Attention
    is_default_attention: bool
    cache: CacheKind
    quantized: QuantizedCache
    device_map: DeviceMap
    num_gpus: int
    context_tokens: int
    prompt_tokens: int
    sequences: int
    num_beams: int
    padding: bool | None
    prefill_chunk: int | None
    keeps_all_logits: bool
    max_memory: tuple[int, ...] | None
    cpu_bytes: int
    has_disk: bool
    kernels: bool
    kept_share: float = 1.0
    corrections: tuple[Correction, ...] = ()

    @property
    def is_padded(self) -> bool:
        """Whether the batch needs a mask: several prompts are rarely of one length, unless the user says so."""
        return self.sequences > self.num_beams if self.padding is None else self.padding

    def correction(self, term: Term, phase: str) -> Correction | None:
        """What profiles have shown of a term of a phase, under this attention."""
        return next(
            (
                each
                for each in self.corrections
                if (each.term, each.phase, each.attention) == (term, phase, self.attention)
            ),
            None,
        )

    def as_dict(self) -> dict[str, object]:
        """The settings under transformers' own names, for a budget to show."""
        return {
            "num_gpus": self.num_gpus,
            "device_map": self.device_map,
            "dtype": self.dtype.value,
            "attn_implementation": "flash_attention_2" if self.attention == "flash" else self.attention,
            "cache_implementation": self.cache,
            "max_length": self.context_tokens,
            "prompt_tokens": self.prompt_tokens,
            "max_new_tokens": self.context_tokens - self.prompt_tokens,
            "batch_size": self.sequences // self.num_beams,
            "num_beams": self.num_beams,
            "padding": self.is_padded,
            "prefill_chunk_size": self.prefill_chunk,
            "logits_to_keep": 0 if self.keeps_all_logits else 1,
            "max_memory": list(self.max_memory) if self.max_memory else None,
            "cpu_memory": self.cpu_bytes,
            "offload_folder": self.has_disk,
            "kernels": self.kernels,
        }


def resolve(
    spec: ModelSpec, gpu: GpuSpec, asked: ServingSettings, options: EngineOptions, family: Family, rules: Rules
) -> TransformersSettings:
    """Fill in what the user left open, as this release would.

    Raises: UsageError for values that transformers refuses.
    """
    num_gpus = asked.layout.tensor * asked.layout.pipeline
    context = asked.workload.context_tokens or spec.max_context_tokens
    new_tokens = options.count("max_new_tokens") or 1
    if new_tokens >= context:
        raise UsageError(
            f"max_new_tokens {new_tokens} leaves no room for a prompt in a context of {context}",
            hint="raise --context, which counts the prompt and what is generated",
        )
    beams = options.count("num_beams") or 1
    copies = max(beams, options.count("num_return_sequences") or 1)
    return TransformersSettings(
        version=rules.version,
        dtype=_dtype(spec, asked, rules),
        attention=_attention(gpu, options, family, rules),
        is_default_attention=not options.has("attn_implementation"),
        cache=_cache(spec, asked, options, family, rules),
        quantized=_quantized_cache(asked, options, rules),
        device_map=_DEVICE_MAPS[options.word("device_map", among=_DEVICE_MAPS) or "auto"],
        num_gpus=num_gpus,
        context_tokens=context,
        prompt_tokens=context - new_tokens,
        sequences=-(-asked.workload.concurrency // asked.layout.data) * copies,
        num_beams=copies,
        padding=options.flag("padding"),
        prefill_chunk=_prefill_chunk(options, rules),
        keeps_all_logits=_keeps_all_logits(options, family, rules),
        max_memory=_max_memory(options, num_gpus),
        cpu_bytes=options.size("cpu_memory") or _HOST_BYTES,
        has_disk=options.has("offload_folder"),
        kernels=bool(options.flag("kernels")),
        kept_share=asked.kv_keep_fraction,
        corrections=asked.corrections,
    )


def _dtype(spec: ModelSpec, asked: ServingSettings, rules: Rules) -> DType:
    """The type that weights are loaded in: the checkpoint's own from 5.0 on, float32 before unless it is asked for.

    A quantized checkpoint brings its own type in every release.
    """
    if asked.dtype:
        return parse_compute_dtype(asked.dtype) or _own(spec)
    if rules["default_dtype"] == "auto" or spec.quantization:
        return _own(spec)
    return DType.F32


def _own(spec: ModelSpec) -> DType:
    return DType.F32 if spec.dtype is DType.F64 else spec.dtype


def _attention(gpu: GpuSpec, options: EngineOptions, family: Family, rules: Rules) -> Attention:
    """The attention that is asked for, else SDPA where the release and the family have it.

    Raises: UsageError for one that the release, the family or the GPU does not have.
    """
    word = options.word("attn_implementation", among=_ATTENTION)
    default: Attention = "sdpa" if rules["default_attention"] == "sdpa" and not family.is_eager(rules) else "eager"
    if word is None:
        return default
    chosen = _ATTENTION[word]
    if chosen == "sdpa" and default == "eager":
        raise UsageError(
            f"this model has no SDPA attention in transformers {rules.version}",
            hint="use attn_implementation=eager, or flash_attention_2 where it is installed",
        )
    if chosen == "flash" and gpu.vendor == "nvidia" and (gpu.cuda_capability or 9.0) < 8.0:
        raise UsageError(
            f"flash_attention_2 needs compute capability 8.0, {gpu.name} has {gpu.compute_capability}",
            hint="leave attn_implementation out",
        )
    return chosen


def _cache(spec: ModelSpec, asked: ServingSettings, options: EngineOptions, family: Family, rules: Rules) -> CacheKind:
    """The cache that is asked for, else the release's default for the family.

    Raises: UsageError for one that the release does not have yet.
    """
    word = options.word("cache_implementation", among=_CACHES)
    if asked.kv_dtype not in (None, "auto") and word is None:
        if asked.kv_dtype != "fp8" or "fp8" not in rules["cache_backends"]:
            raise UsageError(
                f"transformers {rules.version} caches in the compute type, not in {asked.kv_dtype}",
                hint="use --set cache_implementation=quantized",
            )
        word = "quantized"
    if word is None:
        return "static" if family.hybrid_cache and rules["hybrid_cache"] else "dynamic"
    chosen = _CACHES[word]
    if family.dynamic_only and chosen not in ("dynamic", "none"):
        raise UsageError(
            f"this family caches in a way of its own, not in a {word} cache", hint="leave cache_implementation out"
        )
    if chosen not in rules["caches"] and chosen != "none":
        raise UsageError(
            f"transformers {rules.version} has no {word} cache", hint=f"it has {', '.join(rules['caches'])}"
        )
    if chosen == "quantized" and rules["quantized_full_only"] and not _attends_fully(spec):
        raise UsageError(
            "a quantized cache is for full attention on every layer, which this model does not have",
            hint="leave cache_implementation out",
        )
    return chosen


def _attends_fully(spec: ModelSpec) -> bool:
    """Whether every layer keeps keys and values, or latents, of the whole sequence and nothing else."""
    return all(isinstance(cache, (FullAttention, LatentAttention)) for layer in spec.layers for cache in layer.caches)


def _keeps_all_logits(options: EngineOptions, family: Family, rules: Rules) -> bool:
    """Whether the prefill makes logits of every token; `logits_to_keep` 0 asks for that, as in transformers."""
    asked = options.count("logits_to_keep", minimum=0)
    if asked is None or family.keeps_all_logits:
        return family.keeps_all_logits or rules["prefill_logits"] == "all"
    return asked != 1


def _quantized_cache(asked: ServingSettings, options: EngineOptions, rules: Rules) -> QuantizedCache:
    """The backend's numbers. Raises: UsageError for a backend that the release does not have."""
    plain = QuantizedCache()
    backend = _BACKENDS[
        options.word("cache_backend", among=_BACKENDS) or ("fp8" if asked.kv_dtype == "fp8" else "quanto")
    ]
    if backend not in rules["cache_backends"] and options.has("cache_backend"):
        raise UsageError(
            f"transformers {rules.version} has no cache backend {backend}",
            hint=f"it has {', '.join(rules['cache_backends']) or 'none'}",
        )
    residual = options.count("cache_residual_length", minimum=0)
    return QuantizedCache(
        backend=backend,
        bits=options.count("cache_nbits") or plain.bits,
        group=options.count("cache_group_size") or plain.group,
        residual_tokens=plain.residual_tokens if residual is None else residual,
    )


def _prefill_chunk(options: EngineOptions, rules: Rules) -> int | None:
    chunk = options.count("prefill_chunk_size")
    if chunk is not None and not rules["prefill_chunks"]:
        raise UsageError(
            f"transformers {rules.version} cannot cut a prefill into chunks", hint="prefill_chunk_size came in 4.51"
        )
    return chunk


def _max_memory(options: EngineOptions, num_gpus: int) -> tuple[int, ...] | None:
    """What each GPU may be filled with: one size for all of them, or one for each, separated by slashes.

    Raises: UsageError for a number of sizes that is not the number of GPUs.
    """
    text = options.word("max_memory")
    if text is None:
        return None
    sizes = tuple(parse_size_bytes(part, what="max_memory") for part in text.split("/"))
    if len(sizes) == 1:
        return sizes * num_gpus
    if len(sizes) != num_gpus:
        raise UsageError(
            f"max_memory names {len(sizes)} sizes for {num_gpus} GPUs", hint="write one for all, or 20GiB/24GiB"
        )
    return sizes
