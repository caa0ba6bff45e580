"""The names of `--quant`, and what each does to a model with plain weights.

What stays in 16 bit is what the tools that write such checkpoints leave alone by default:

- embedding tables, norms, convolutions, recurrent decay vectors: no tool but MLX treats them as Linear layers.
- `lm_head`: ignored by default in llm-compressor's recipes, ModelOpt, AutoAWQ, GPTQModel, transformers and vLLM's
  online schemes.
- routers: AutoAWQ and GPTQModel quantize only the modules that their model file names; ModelOpt and llm-compressor's
  recipes exclude them; vLLM builds them without a quantization config.
- towers: GPTQ, AWQ, llm-compressor's and ModelOpt's published recipes leave vision towers alone. bitsandbytes
  replaces every `nn.Linear` but the head, and so does vLLM where the model hands its tower the quantization config.
- recurrent mixers (gated delta net, Mamba): llm-compressor's and ModelOpt's published checkpoints of hybrid models in
  FP8 by channel and NVFP4 ignore `linear_attn` and most of Mamba; Qwen's own FP8 and engines that quantize while they
  load do not.
- sparse-attention indexers: left alone, but for the FP8 that DeepSeek and GLM publish in blocks.

MLA's projections are quantized like any Linear layer; engines that absorb `kv_b_proj` expand it again, which is
theirs to say.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from memplan.catalog import weight_formats
from memplan.domain.quantization import QuantScheme
from memplan.domain.tensors import Role, Storage
from memplan.errors import UsageError, did_you_mean

_DECODER = frozenset({Role.ATTENTION, Role.STATE, Role.MLP, Role.EXPERT, Role.SHARED_EXPERT})
_WITH_INDEXER = _DECODER | {Role.INDEXER}
_WITHOUT_STATE = _DECODER - {Role.STATE}

_FIXED_NAMES = (
    "none",
    "fp8",
    "fp8-block",
    "fp8-channel",
    "w8a8-int8",
    "w8a16-int8",
    "bnb-nf4",
    "bnb-nf4-dq",
    "bnb-fp4",
    "bnb-int8",
    "mxfp4",
    "mxfp8",
    "nvfp4",
    "torchao-int8",
)
_ALIASES: Mapping[str, str] = {
    "16bit": "none",
    "bf16": "none",
    "bfloat16": "none",
    "fp16": "none",
    "float16": "none",
    "fp8-dynamic": "fp8-channel",
    "fp8-static": "fp8",
    "fp8-per-tensor": "fp8",
    "fp8-per-block": "fp8-block",
    "fp8-per-channel": "fp8-channel",
    "int8": "w8a8-int8",
    "w8a8": "w8a8-int8",
    "w8a16": "w8a16-int8",
    "w4a16": "ct-int4-g128",
    "gptq": "gptq-int4-g128",
    "gptq-marlin": "gptq-int4-g128",
    "awq": "awq-int4-g128",
    "awq-marlin": "awq-int4-g128",
    "autoround": "autoround-int4-g128",
    "nf4": "bnb-nf4",
    "bitsandbytes": "bnb-nf4",
    "bnb-4bit": "bnb-nf4",
    "bnb-8bit": "bnb-int8",
    "llm-int8": "bnb-int8",
    "hqq": "hqq-int4-g64",
    "mlx-4bit": "mlx-int4-g64",
    "mlx-8bit": "mlx-int8-g64",
    "modelopt-fp4": "nvfp4",
    "modelopt-fp8": "fp8",
}
_AMBIGUOUS = frozenset({"int4", "4bit", "4-bit", "w4", "q4"})
# Widths that the writers of each format have, and the group that a name without one means.
_PATTERNED: Mapping[str, tuple[tuple[int, ...], int]] = {
    "gptq": ((2, 3, 4, 8), 128),
    "awq": ((4, 8), 128),
    "ct": ((2, 3, 4, 5, 6, 7, 8), 128),
    "autoround": ((2, 3, 4, 8), 128),
    "hqq": ((1, 2, 3, 4, 8), 64),
    "mlx": ((2, 3, 4, 5, 6, 8), 64),
    "torchao": ((4,), 128),
}
_PATTERN = re.compile(r"(gptq|awq|ct|autoround|hqq|mlx|torchao)-int(\d{1,2})(?:-(?:g(\d{1,5})|channel))?")
_EXAMPLES = [f"{method}-int4-g{group}" for method, (_, group) in _PATTERNED.items()]

# The mixes and types that llama.cpp's quantizer writes, and those of the ik fork. What they come to is in `introspect`.
_GGUF_TEXT = """
    f32 f16 bf16 q4_0 q4_1 q5_0 q5_1 q6_0 q8_0 q1_0 q2_0 tq1_0 tq2_0 q2_k q2_k_s q3_k q3_k_s q3_k_m q3_k_l q4_k
    q4_k_s q4_k_m q5_k q5_k_s q5_k_m q6_k iq1_s iq1_m iq2_xxs iq2_xs iq2_s iq2_m iq3_xxs iq3_xs iq3_s iq3_m
    iq4_nl iq4_xs mxfp4 mxfp4_moe nvfp4 q4_0_4_4 q4_0_4_8 q4_0_8_8 iq1_bn iq2_bn iq2_k iq3_k iq4_k iq5_k iq6_k
    iq2_ks iq3_ks iq4_ks iq4_kss iq5_ks iq1_kt iq2_kt iq3_kt iq4_kt iq2_kl iq3_kl q8_kv bf16_r16 q4_0_r8 q5_0_r4
    q8_0_r8 q2_k_r4 q3_k_r4 q4_k_r4 q5_k_r4 q6_k_r4 q8_k_r8 iq4_nl_r4 iq4_xs_r8 iq2_k_r4 iq3_k_r4 iq4_k_r4
    iq5_k_r4 iq4_ks_r4 iq5_ks_r4 q2_k_l q3_k_xl q4_k_l q5_k_l q6_k_l
"""
_GGUF_NAMES = tuple(_GGUF_TEXT.split())


def parse_scheme(text: str) -> QuantScheme:
    """Return the scheme that `text` names: one of `scheme_names()`, an alias, or `METHOD-intBITS-gGROUP`.

    Raises: UsageError for a name, width or group that no format has.
    """
    given = text.strip().lower()
    if given.startswith("gguf:"):
        return _gguf(given.removeprefix("gguf:"), text)
    name = given.replace("_", "-")
    name = _ALIASES.get(name, name)
    if name in _FIXED_NAMES:
        return _fixed(name)
    if given in _GGUF_NAMES:
        return _gguf(given, text)
    match = _PATTERN.fullmatch(name)
    if match:
        return _patterned(match, text)
    if name in _AMBIGUOUS:
        raise UsageError(f"`{text}` does not say which format", hint="use gptq-int4-g128, awq-int4-g128 or bnb-nf4")
    known = [*_FIXED_NAMES, *_ALIASES, *_EXAMPLES, *(f"gguf:{mix}" for mix in _GGUF_NAMES)]
    hint = did_you_mean(name, known) or f"one of {', '.join(_FIXED_NAMES)}, gptq-int4-g128 and its like, gguf:q4_k_m"
    raise UsageError(f"unknown quantization scheme: `{text}`", hint=hint)


def scheme_names() -> tuple[str, ...]:
    """The names that `parse_scheme` knows, with one example for each pattern; GGUF mixes apart."""
    return (*_FIXED_NAMES, *_EXAMPLES)


def _fixed(name: str) -> QuantScheme:
    if name == "none":
        return QuantScheme(name="none", method="none")
    formats = weight_formats
    if name.startswith("bnb-"):
        storage = (
            formats.bnb8() if name == "bnb-int8" else formats.bnb4(kind=name[4:7], double_quant=name.endswith("-dq"))
        )
        return _scheme(name, "bitsandbytes", storage, roles=_WITH_INDEXER, towers=True)
    if name == "torchao-int8":
        storage = formats.int8(scheme=name)
        return _scheme(name, "torchao", storage, roles=_WITH_INDEXER, towers=True)
    if name == "fp8-block":
        return _scheme(name, "fp8", formats.fp8_block(), roles=_WITH_INDEXER)
    if name == "w8a16-int8":
        return _scheme(name, "compressed-tensors", formats.packed(8, 0, scheme=name), in_multiple=4)
    if name == "w8a8-int8":
        return _scheme(name, "compressed-tensors", formats.int8(), roles=_WITHOUT_STATE)
    made = {"fp8": formats.fp8, "fp8-channel": formats.fp8_channel, "mxfp8": formats.mxfp8}
    made |= {"mxfp4": formats.mxfp4, "nvfp4": formats.nvfp4}
    storage = made[name]()
    roles = _WITHOUT_STATE if name in ("fp8-channel", "nvfp4") else _DECODER
    return _scheme(name, name.split("-")[0], storage, roles=roles, in_multiple=storage.group_in or 1)


def _patterned(match: re.Match[str], text: str) -> QuantScheme:
    method, bits = match[1], int(match[2])
    widths, default_group = _PATTERNED[method]
    if bits not in widths:
        raise UsageError(
            f"{method} has no {bits}-bit weights: `{text}`", hint=f"widths are {', '.join(map(str, widths))}"
        )
    group = 0 if match[0].endswith("-channel") else int(match[3] or default_group)
    if match[3] and (group < 8 or group % 8):
        raise UsageError(
            f"group size {group} is not a multiple of 8: `{text}`", hint="common groups are 32, 64 and 128"
        )
    if method in ("mlx", "torchao", "hqq") and not group:
        raise UsageError(
            f"{method} has no scale for a whole channel: `{text}`", hint=f"use {method}-int{bits}-g{default_group}"
        )
    per_word = 32 if 32 % bits else 32 // bits
    if method in ("gptq", "autoround"):
        storage = weight_formats.gptq(bits, group, name=method)
        return _scheme(storage.scheme, method, storage, in_multiple=max(group, per_word), out_multiple=per_word)
    if method == "awq":
        return _scheme(
            match[0], method, weight_formats.awq(bits, group), in_multiple=max(group, 1), out_multiple=per_word
        )
    if method == "ct":
        storage = weight_formats.packed(bits, group)
        return _scheme(storage.scheme, "compressed-tensors", storage, in_multiple=max(group, per_word))
    if method == "hqq":
        return _scheme(match[0], method, weight_formats.hqq(bits, group), roles=_WITH_INDEXER, towers=True)
    storage = weight_formats.affine(bits, group, name=method)
    if method == "torchao":
        return _scheme(storage.scheme, method, storage, roles=_WITH_INDEXER, towers=True, in_multiple=group)
    roles = _WITH_INDEXER | {Role.EMBEDDING, Role.LM_HEAD}
    return _scheme(storage.scheme, method, storage, roles=roles, tables=True, in_multiple=group)


def _scheme(
    name: str,
    method: str,
    storage: Storage,
    *,
    roles: frozenset[Role] = _DECODER,
    tables: bool = False,
    towers: bool = False,
    in_multiple: int = 1,
    out_multiple: int = 1,
) -> QuantScheme:
    return QuantScheme(
        name=name,
        method=method,
        linear=storage,
        experts=storage,
        roles=roles,
        tables=tables,
        towers=towers,
        in_multiple=in_multiple,
        out_multiple=out_multiple,
    )


def _gguf(variant: str, text: str) -> QuantScheme:
    if variant not in _GGUF_NAMES:
        hint = did_you_mean(variant, list(_GGUF_NAMES))
        raise UsageError(f"unknown GGUF quantization: `{text}`", hint=hint or "for example gguf:q4_k_m or gguf:q8_0")
    return QuantScheme(name=f"gguf:{variant}", method="gguf", roles=_DECODER, variant=variant)
