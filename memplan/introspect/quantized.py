"""Quantization and a ModelSpec: what a checkpoint says of itself, and what a scheme would make of plain weights.

Here sizes are those of the published file. Engines keep some of it differently, and their own rules say how (vLLM's,
as read from its releases):

- Marlin repacks int4, int8 and FP8 weights in place of the original, at the same size, padded to its tiles where a
  matrix does not fit them. `g_idx` and the zero points of symmetric GPTQ are dropped.
- FP8 of fused projections (`qkv_proj`, `gate_up_proj`) gets one scale for the fused matrix; per-channel scales of
  W8A8 are widened to FP32.
- NVFP4 block scales are tiled to 128 rows and 4 groups. compressed-tensors' NVFP4 experts hold their gate and up
  weights twice in 0.11, where a kernel wants them in another order and the packed original is not let go.
- MLA: `kv_b_proj` is expanded to 16 bit beside the quantized original. 0.7 also multiplies it into the query and the
  output projection and keeps both products (in FP8 for an FP8 model) beside the originals.
- bitsandbytes: from 0.9.2 on, quantized scales are expanded to FP32 when loading, so 4.127 bits become 4.5.
- gpt-oss: the widths of MXFP4 experts are rounded up to 64, 128 or 256 by kernel, after the cut over ranks.
- Embeddings and heads that MLX or GGUF quantize are 16 bit in engines that do not read those formats.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from memplan.domain.dtypes import DType
from memplan.domain.model import ModelSpec
from memplan.domain.quantization import QuantScheme
from memplan.domain.tensors import Role, Storage, Tensor
from memplan.errors import UnsupportedModel, UsageError, did_you_mean
from memplan.introspect.config import Config
from memplan.introspect.quantization import READERS, read_plan
from memplan.introspect.quantization.plan import (
    PLAIN_LEAVES,
    TOWER_ROLES,
    apply_plan,
    each_layer_once,
    is_matrix,
    stored,
)
from memplan.introspect.quantization.rules import Module
from memplan.introspect.quantization.traits import read_traits
from memplan.records import replace

# Where a wrapper's config keeps the language model's part, which may carry the quantization of that part alone.
_PARTS = ("text_config", "language_config", "llm_config", "thinker_config")
_MAX_NOTED = 3


def find_quantization(config: Mapping[str, object]) -> Mapping[str, object] | None:
    """Return the quantization config inside a model's config.json, wherever it stands; None for a plain checkpoint."""
    for key in ("quantization_config", "compression_config", "quantization"):
        found = config.get(key)
        if isinstance(found, Mapping) and found:
            return found
    for part in _PARTS:
        nested = config.get(part)
        if isinstance(nested, Mapping) and isinstance(found := nested.get("quantization_config"), Mapping) and found:
            return found
    return None


def apply_quantization(
    spec: ModelSpec,
    quantization_config: Mapping[str, object] | None,
    *,
    hf_quant_config: Mapping[str, object] | None = None,
    config: Mapping[str, object] | None = None,
) -> ModelSpec:
    """Return `spec` with every tensor stored as the checkpoint's own quantization config says.

    `hf_quant_config` is ModelOpt's file of that name, read when config.json has no quantization of its own. `config`
    is the model's whole config: a few formats need its keys, and a quantization that stands in its language model's
    part leaves the towers alone.

    Raises: UnsupportedModel for a method, layout or pattern that is not understood.
    """
    chosen = quantization_config or hf_quant_config
    if not chosen:
        return spec
    raw = Config(chosen, path="quantization_config" if quantization_config else "hf_quant_config")
    model = Config(config) if config is not None else None
    method = _method(raw)
    plan = read_plan(method, raw, model)
    if config is not None and quantization_config and _is_language_part(config, quantization_config):
        plan = replace(plan, towers=False)
    if config is not None and spec.dtype is DType.F32 and not _names_dtype(config):
        spec = replace(
            spec, dtype=DType.BF16
        )  # gpt-oss: transformers' default for a silent config is not what is stored
    return replace(apply_plan(spec, plan), quantization_traits=read_traits(method, raw))


def _is_language_part(config: Mapping[str, object], quantization: Mapping[str, object]) -> bool:
    parts = (config.get(part) for part in _PARTS)
    return any(isinstance(part, Mapping) and part.get("quantization_config") is quantization for part in parts)


def _names_dtype(config: Mapping[str, object]) -> bool:
    parts = (config, *(part for key in _PARTS if isinstance(part := config.get(key), Mapping)))
    return any(part.get(key) for part in parts for key in ("torch_dtype", "dtype"))


def _method(config: Config) -> str:
    """The method that a config names, or that its keys give away."""
    method = config.str("quant_method", default="").lower()
    if not method:
        method = _method_by_keys(config)
    if config.has("quant_algo") and method in ("", "fp8", "compressed-tensors") and not config.has("moe_quant_algo"):
        return "modelopt"
    if method not in READERS:
        known = did_you_mean(method, list(READERS)) or "give the checkpoint's safetensors files"
        raise UnsupportedModel(f"unknown quantization method: `{method[:60]}`", hint=known)
    return method


def _method_by_keys(config: Config) -> str:
    if config.has("quant_algo") or config.has("quantization"):
        return "modelopt"
    if config.has("config_groups"):
        return "compressed-tensors"
    if config.has("load_in_4bit") or config.has("load_in_8bit"):
        return "bitsandbytes"
    return "mlx" if config.has("bits") and config.has("group_size") else ""


def quantize_spec(spec: ModelSpec, scheme: QuantScheme, *, towers: bool | None = None) -> ModelSpec:
    """Return `spec` as `--quant` would have it: whatever it was stored in, now plain or in `scheme`.

    `towers` says whether Linear layers of towers are quantized too; None leaves that to the scheme. Engines that
    quantize while loading do so for towers that they hand their quantization config (vLLM's online FP8: most
    vision-language models; not Llama 4, not audio towers that transformers builds).

    Matrices that do not divide into the scheme's groups and words stay plain, because the tools refuse them (AutoAWQ,
    GPTQModel and llm-compressor raise; people then list them as ignored); a note names them.

    A GGUF mix is another file format: the model then goes by llama.cpp's names.

    Raises: UsageError when nothing can be quantized, or llama.cpp does not know the architecture.
    """
    if scheme.method == "gguf":
        from memplan.introspect.gguf_convert import to_gguf
        from memplan.introspect.gguf_mix import apply_mix, parse_mix

        return apply_mix(to_gguf(spec), parse_mix(scheme.variant))
    misfits: Counter[str] = Counter()

    def apply(tensor: Tensor) -> Tensor:
        return stored(tensor, _chosen(tensor, scheme, misfits))

    if towers is not None:
        scheme = replace(scheme, towers=towers)

    done = replace(
        spec,
        layers=each_layer_once(
            spec, lambda prefix, layer: replace(layer, tensors=tuple(apply(each) for each in layer.tensors))
        ),
        shared=tuple(apply(tensor) for tensor in spec.shared),
        towers=tuple(replace(tower, tensors=tuple(apply(each) for each in tower.tensors)) for tower in spec.towers),
        mtp=tuple(stored(tensor, None) for tensor in spec.mtp),
        quantization=None if scheme.is_plain else scheme.name,
        quantization_traits=(),
        kv_cache_scheme=None,
        stored_bytes=None,
    )
    if scheme.is_plain:
        return done
    if not any(tensor.storage for layer in done.layers for tensor in layer.tensors):
        raise UsageError(f"no Linear layer of {spec.name} can be stored in `{scheme.name}`", hint=_multiples(scheme))
    return replace(done, notes=(*done.notes, *_misfit_note(scheme, misfits)))


def _chosen(tensor: Tensor, scheme: QuantScheme, misfits: Counter[str]) -> Storage | None:
    """The storage of one tensor under a scheme; None keeps it plain."""
    chosen_role = tensor.role in scheme.roles or (scheme.towers and tensor.role in TOWER_ROLES)
    if not chosen_role or scheme.linear is None or not is_matrix(tensor, tables=scheme.tables):
        return None
    name = Module(tensor.name.removesuffix(".weight"))
    if name.leaf in PLAIN_LEAVES:
        return None
    if not scheme.divides(tensor.shape):
        misfits[f"{name.leaf} ({tensor.shape[-2]} x {tensor.shape[-1]})"] += 1
        return None
    return scheme.experts if tensor.role is Role.EXPERT else scheme.linear


def _multiples(scheme: QuantScheme) -> str:
    return f"inputs must be multiples of {scheme.in_multiple} and outputs of {scheme.out_multiple}"


def _misfit_note(scheme: QuantScheme, misfits: Counter[str]) -> tuple[str, ...]:
    if not misfits:
        return ()
    named = ", ".join(sorted(misfits)[:_MAX_NOTED])
    more = f" and {len(misfits) - _MAX_NOTED} more" if len(misfits) > _MAX_NOTED else ""
    return (f"kept in 16 bit under {scheme.name}, where {_multiples(scheme)}: {named}{more}",)
