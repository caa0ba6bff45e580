"""What an engine is told to load for a model: a hub id, a path, a published quantized checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from memplan.domain.model import ModelSpec

# Weight schemes that engines apply to plain weights while they load: what they call it.
_ONLINE = {
    "vllm": {"fp8": "fp8", "bnb-nf4": "bitsandbytes"},
    "sglang": {"fp8": "fp8"},
    "transformers": dict.fromkeys(
        ("bnb-nf4", "bnb-nf4-dq", "bnb-fp4", "bnb-int8"),
        "bitsandbytes",
    ),
}
# Published schemes from the least loss of quality to the most.
_BY_QUALITY = ("fp8", "fp8-block", "w8a8-int8", "w8a16-int8", "gptq-int8", "nvfp4", "mxfp4", "awq-int4", "gptq-int4")


def model_reference(name: str, spec: ModelSpec) -> str:
    """Return what an engine loads for the model that a person named: its hub id, or the absolute path of its folder."""
    path = Path(name).expanduser()
    if name == "demo":
        return "demo"
    if spec.source.startswith("catalogue: ") or not path.exists():
        return name if ":" in name and "/" in name and "://" not in name else spec.name
    resolved = path.resolve()
    return str(resolved if resolved.is_dir() or resolved.suffix == ".gguf" else resolved.parent)


def online_quantization(engine: str, scheme: str) -> str | None:
    """What the engine calls it to quantize plain weights to `scheme` while they load; None when it cannot."""
    return _ONLINE.get(engine, {}).get(scheme)


def published(spec: ModelSpec) -> Iterator[tuple[str, str]]:
    """Yield (scheme, hub id) of the quantized checkpoints that the catalogue knows of a model, best quality first."""
    from memplan.catalog.models import find_model

    known = find_model(spec.name) if spec.source.startswith("catalogue: ") or "/" in spec.name else None
    if known is None or known.published_id or spec.quantization:
        return
    for scheme in sorted(known.quantized, key=_rank):
        for hub_id in known.quantized[scheme]:
            yield scheme, hub_id


def _rank(scheme: str) -> tuple[int, str]:
    for rank, prefix in enumerate(_BY_QUALITY):
        if scheme == prefix or (scheme.startswith(prefix) and scheme[len(prefix)] == "-"):
            return rank, scheme
    return len(_BY_QUALITY), scheme
