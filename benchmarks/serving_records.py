"""What the scorers of serving engines share: the model and the GPU that a record means, and the summary of errors.

A record is one real start-up: its settings, and what its log printed. Settings that are null were not printed.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from extra_models import CONFIGS, LIKE

from memplan.catalog.gpus import find_gpu
from memplan.catalog.models import find_model
from memplan.catalog.quant_schemes import parse_scheme
from memplan.domain.gpu import GpuSpec
from memplan.domain.model import ModelSpec
from memplan.errors import MemplanError, UsageError
from memplan.introspect.model_folder import spec_from_config
from memplan.introspect.quantized import quantize_spec
from memplan.introspect.resolve import find_config, resolve_model, spec_from_path
from memplan.units import GIB, MIB

Record = Mapping[str, object]

# A quantized checkpoint's suffix, without which its base model is looked up.
_SUFFIX = re.compile(
    r"-(?:awq|gptq(?:-int[48])?|fp8(?:-dynamic|-block)?|nvfp4|int[48]|w[48]a(?:8|16)|bnb-4bit|autoround|mxfp4)(?:-\w+)?$",
    re.IGNORECASE,
)
# What logs call a quantization, in the order of looking for it.
_SCHEMES = (
    ("nvfp4", "nvfp4"),
    ("modelopt_fp4", "nvfp4"),
    ("mxfp4", "mxfp4"),
    ("gptq-int8", "w8a16-int8"),
    ("gptq_marlin", "gptq-int4-g128"),
    ("gptq", "gptq-int4-g128"),
    ("auto-round", "gptq-int4-g128"),
    ("awq", "awq-int4-g128"),
    ("int4", "awq-int4-g128"),
    ("fp8", "fp8"),
)


# What nvidia-smi prints for the usual sizes of cards.
_CARDS_MIB = (8188, 12282, 16376, 24564, 32607, 40960, 49140, 81559, 97887, 143771, 183359)


class TooLittle(Exception):
    """A record that does not say enough to be asked about."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """Errors of one quantity over the rows that it is scored on; an unanswered row counts as an error of 100 %."""

    errors: tuple[float, ...]
    unanswered: int

    def as_dict(self) -> dict[str, object]:
        sizes = sorted(abs(error) for error in self.errors) + [1.0] * self.unanswered
        if not sizes:
            return {"n": 0}
        return {
            "n": len(sizes),
            "unanswered": self.unanswered,
            "median": round(statistics.median(sizes), 5),
            "p90": round(sizes[min(len(sizes) - 1, int(0.9 * len(sizes)))], 5),
            "max": round(sizes[-1], 5),
        }


def number(record: Record, key: str) -> float | None:
    """A number of a record, or None when it was not printed."""
    value = record.get(key)
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def find_record_model(record: Record, configs: Path) -> ModelSpec:
    """The model of a record: a folder of `configs`, else the catalogue, in the quantization that the log names.

    A log that names another quantization than the checkpoint of that name has was another checkpoint of the model.

    Raises: TooLittle when the record names no model; MemplanError when the model is not known.
    """
    name = record.get("model_hf")
    if not isinstance(name, str) or "/" not in name:
        raise TooLittle("the log does not say which model it is")
    scheme = scheme_of(record)
    known = find_model(name)
    if known is not None and known.scheme:
        return _published(name, configs) or resolve_model(name, offline=True)
    spec = _published(name, configs) or _published(_SUFFIX.sub("", name), configs)
    if spec is None:
        raise UsageError(f"unknown model: {name}")
    if scheme is None or (spec.quantization and _same_kind(spec.quantization, scheme)):
        return spec
    if spec.quantization:
        return _other_checkpoint(_SUFFIX.sub("", name), scheme, configs)
    return quantize_spec(spec, parse_scheme(_grouped(spec, scheme)))


def is_requantized(record: Record, configs: Path) -> bool:
    """Whether the record's quantization is no published checkpoint's own, so that its recipe is only assumed."""
    name = str(record.get("model_hf"))
    known = find_model(name)
    scheme = scheme_of(record)
    if scheme is None or (known is not None and known.scheme):
        return False
    spec = _published(name, configs)
    return not (spec is not None and spec.quantization and _same_kind(spec.quantization, scheme))


def _same_kind(quantization: str, scheme: str) -> bool:
    """Whether two names mean weights of the same width."""
    widths = (("nvfp4", "mxfp4", "int4", "nf4"), ("fp8",), ("int8",))
    return any(
        any(word in quantization for word in words) and any(word in scheme for word in words) for words in widths
    )


def _other_checkpoint(name: str, scheme: str, configs: Path) -> ModelSpec:
    """The same model in another quantization: NVIDIA's checkpoint for NVFP4, else the plain weights quantized anew."""
    folder = configs / f"nvidia__{name.split('/')[-1]}-NVFP4"
    if scheme == "nvfp4" and folder.is_dir():
        return spec_from_path(folder)
    own = configs / name.replace("/", "__") / "config.json"
    raw = json.loads(own.read_text()) if own.is_file() else dict(find_config(name, revision=None, offline=True)[0])
    raw = {key: value for key, value in raw.items() if key not in ("quantization_config", "compression_config")}
    spec = spec_from_config(raw, name)
    return quantize_spec(spec, parse_scheme(_grouped(spec, scheme)))


def _grouped(spec: ModelSpec, scheme: str) -> str:
    """The scheme with groups of 32 for a model whose matrices do not divide into groups of 128."""
    matrices = [tensor for layer in spec.layers for tensor in layer.tensors if tensor.linear]
    odd = any(tensor.shape[-1] % 128 for tensor in matrices)
    return scheme.replace("g128", "g32") if odd else scheme


def _published(name: str, configs: Path) -> ModelSpec | None:
    folder = configs / name.replace("/", "__")
    if folder.is_dir():
        return spec_from_path(folder)
    if name in CONFIGS:
        return spec_from_config(CONFIGS[name], name)
    try:
        return resolve_model(LIKE.get(name, name), offline=True)
    except MemplanError:
        return None


def scheme_of(record: Record) -> str | None:
    """The scheme that a log's words for a quantization mean, or None for plain weights or none named."""
    text = f"{record.get('quantization') or ''}".lower()
    for word, scheme in _SCHEMES:
        if word in text:
            return scheme
    tail = _SUFFIX.search(f"{record.get('model_hf') or ''}")
    words = tail[0].lower() if tail else ""
    return next((scheme for word, scheme in _SCHEMES if word in words), None)


def find_record_gpu(record: Record, available_gib: float | None) -> tuple[GpuSpec, bool]:
    """The GPU of a record, and whether it was named; an unnamed one has what was available and half a GiB more.

    Raises: TooLittle when neither a GPU nor free memory is known.
    """
    text = record.get("gpu")
    total_gib = number(record, "total_gpu_memory_gib")
    if isinstance(text, str):
        for name in _gpu_names(text):
            try:
                gpu = find_gpu(name)
            except UsageError:
                continue
            if total_gib is None and available_gib is not None and available_gib * GIB > gpu.memory_bytes:
                break
            if "memory is shared" in gpu.note and available_gib is None:
                raise TooLittle("memory shared with the host, and what was free of it was not printed")
            return (_sized(gpu, round(total_gib * GIB)) if total_gib else gpu), True
    if total_gib is None and available_gib is None:
        raise TooLittle("neither the GPU nor its free memory is known")
    size_bytes = round(total_gib * GIB) if total_gib else _card_bytes(available_gib or 0.0)
    is_amd = "amd" in str(text).lower()
    return _unnamed(size_bytes, "amd" if is_amd else "nvidia", str(text or "")), False


def _card_bytes(available_gib: float) -> int:
    """The smallest usual card on which so much may be free; what is free and 0.7 GiB more where none is near."""
    for size_mib in _CARDS_MIB:
        if available_gib * 1024 < size_mib - 200 and available_gib * 1024 > 0.85 * size_mib:
            return size_mib * MIB
    return round((available_gib + 0.7) * GIB)


def _gpu_names(text: str) -> Iterable[str]:
    """The ways to read a GPU's name: as it stands, without what is in brackets, without counts and classes."""
    yield text
    plain = re.sub(r"\([^)]*\)", "", text)
    plain = re.sub(r"\b\d+\s*x\s+|\bclass\b|\bcluster\b|\bmachine\b", "", plain).strip()
    yield plain
    yield from (part.strip() for part in re.split(r"[/,]", plain))
    yield re.sub(r"\b\d+\s*gb\b", "", plain, flags=re.IGNORECASE).strip() or text


def _sized(gpu: GpuSpec, memory_bytes: int) -> GpuSpec:
    from dataclasses import replace

    return replace(gpu, memory_bytes=memory_bytes, visible_low_bytes=memory_bytes, visible_high_bytes=memory_bytes)


def _unnamed(memory_bytes: int, vendor: str, text: str) -> GpuSpec:
    size_gib = memory_bytes / GIB
    capability = None
    if vendor == "nvidia":
        capability = "10.0" if size_gib > 150 else "9.0" if size_gib > 60 else "8.9"
    return GpuSpec(
        name=text or f"gpu-{size_gib:.0f}g",
        vendor=vendor,
        architecture="unknown",
        memory_bytes=memory_bytes,
        driver_memory_bytes=None,
        visible_low_bytes=memory_bytes,
        visible_high_bytes=memory_bytes,
        compute_capability=capability,
        provenance="given",
    )
