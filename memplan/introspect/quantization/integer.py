"""Reading the quantization configs of GPTQ, AWQ and AutoRound: integers in groups, with scales and zero points."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from memplan.catalog import weight_formats
from memplan.domain.tensors import Role, Storage
from memplan.errors import UnsupportedModel
from memplan.introspect.config import Config
from memplan.introspect.quantization.plan import DECODER_ROLES, QuantPlan
from memplan.introspect.quantization.rules import Rules

_HEAD = frozenset({Role.LM_HEAD})
_MAX_WIDTH = 8
_GPTQ_WIDTHS = (2, 3, 4, 8)


def read_gptq(config: Config) -> QuantPlan:
    """GPTQ as AutoGPTQ, GPTQModel and optimum write it.

    `dynamic` maps regular expressions to other settings, or leaves modules plain (`-:`); the first that matches the
    start of a name decides. `modules_in_block_to_quantize` lists parts of the names that are quantized.

    Source: GPTQModel's `dynamic`; vLLM gptq_utils.py get_dynamic_override and is_layer_gptq_quantized (0.33).
    """
    bits, group = _gptq_bits(config, None), read_group(config)
    base = weight_formats.gptq(bits, group)
    dynamic = _mapping(config, "dynamic")
    named: list[tuple[Rules, Storage | None]] = []
    for pattern, change in dynamic.items():
        rules = Rules(matched=[pattern.removeprefix("-:").removeprefix("+:")], what="dynamic")
        if pattern.startswith("-:"):
            named.append((rules, None))
        else:
            own = Config(change, path=f"dynamic.{pattern}")
            named.append((rules, weight_formats.gptq(_gptq_bits(own, bits), read_group(own, default=group))))
    parts = tuple(_flat(config.get("modules_in_block_to_quantize") or ()))
    return QuantPlan(
        linear=base,
        roles=DECODER_ROLES | _HEAD if config.bool("lm_head", default=False) else DECODER_ROLES,
        named=tuple(named),
        only=Rules(contained=parts, what="modules_in_block_to_quantize") if parts else None,
        mtp=False,
    )


def _gptq_bits(config: Config, default: int | None) -> int:
    """A width that GPTQ's 32-bit words are packed in. Source: GPTQModel's QuantizeConfig; vLLM gptq.py (0.33)."""
    bits = read_bits(config, "bits", default=default)
    if bits not in _GPTQ_WIDTHS:
        known = ", ".join(map(str, _GPTQ_WIDTHS))
        raise UnsupportedModel(f"config key `quantization_config.bits` must be one of {known} for GPTQ, not {bits}")
    return bits


def read_awq(config: Config) -> QuantPlan:
    """AWQ as AutoAWQ and llm-compressor's older exports write it; `modules_to_not_convert` are parts of names.

    A listed `gate` means the router and not a part of `gate_proj`.

    Source: vLLM auto_awq.py AutoAWQConfig (0.33); transformers AwqConfig.
    """
    bits, group = read_bits(config, "bits", "w_bit"), read_group(config, "group_size", "q_group_size")
    skipped = config.list("modules_to_not_convert", default=())
    routers = [part for part in skipped if isinstance(part, str) and part.rstrip(".").endswith("gate")]
    others = [part for part in skipped if part not in routers]
    keep = Rules(listed=[part.strip(".") for part in routers], contained=others, what="modules_to_not_convert")
    return QuantPlan(
        linear=weight_formats.awq(bits, group, zero_point=config.bool("zero_point", default=True)),
        roles=DECODER_ROLES | _HEAD if config.bool("lm_head", default=False) else DECODER_ROLES,
        keep=keep,
        mtp=False,
    )


def read_auto_round(config: Config) -> QuantPlan:
    """AutoRound (also "intel/auto-round" and "inc"), in any of its packings.

    `extra_config` gives settings for modules by name, by the end of a name, or by regular expression; 16 bits leave a
    module plain. `block_name_to_quantize` lists the blocks that are quantized at all.

    Source: vLLM inc/config_parser.py INCConfigParser (0.33).
    """
    base = _auto_round_storage(config, config)
    if base is None:
        raise UnsupportedModel("config key `quantization_config.bits` is 16 or more: nothing is quantized")
    named: list[tuple[Rules, Storage | None]] = []
    for name, change in _mapping(config, "extra_config").items():
        own = Config(change, path=f"extra_config.{name}")
        rules = Rules(searched=[name], what="extra_config") if _is_regex(name) else Rules(listed=[name])
        named.append((rules, _auto_round_storage(own, config)))
    blocks = config.get("block_name_to_quantize", "to_quant_block_names")
    names = [part.strip() for part in blocks.split(",")] if isinstance(blocks, str) else list(_flat(blocks or ()))
    return QuantPlan(
        linear=base,
        named=tuple(named),
        only=Rules(listed=names, what="block_name_to_quantize") if names else None,
        towers=bool(names),
        mtp=False,
    )


def _auto_round_storage(config: Config, base: Config) -> Storage | None:
    """The storage of one entry, whose missing settings are those of `base`."""
    bits = config.int("bits", default=base.int("bits", default=4), minimum=1)
    if bits >= 16:
        return None
    kind = config.str("data_type", default=base.str("data_type", default="int"))
    if "mx_fp" in kind:
        return weight_formats.mxfp4() if bits == 4 else weight_formats.mxfp8()
    if "nv_fp" in kind:
        return weight_formats.nvfp4()
    group = config.get("group_size") or base.get("group_size")
    if isinstance(group, (list, tuple)):
        rows, columns = Config({"group_size": group}).ints("group_size")[:2] if len(group) == 2 else (128, 128)
        return weight_formats.fp8_block(max(rows, 1), max(columns, 1))
    size = read_group(config, default=read_group(base))
    if kind.startswith("fp"):
        return weight_formats.fp8_channel()
    packing = base.str("packing_format", default="") + base.str("backend", default="")
    if "awq" in packing:
        return weight_formats.awq(_width(bits, "bits"), size)
    if "llm_compressor" in packing:
        return weight_formats.packed(_width(bits, "bits"), size, symmetric=config.bool("sym", default=True))
    return weight_formats.gptq(_width(bits, "bits"), size, name="autoround")


def read_bits(config: Config, *keys: str, default: int | None = None) -> int:
    """Return the width of a weight, under the first of `keys`.

    Raises: UnsupportedModel when it is missing and has no default, or is none that integers are packed in.
    """
    return _width(config.int(*keys) if default is None else config.int(*keys, default=default), keys[0])


def read_group(config: Config, *keys: str, default: int = 128) -> int:
    """Return the group size; 0 for one group along the whole input axis (written as -1, or 0)."""
    value = config.int(*(keys or ("group_size",)), default=default, minimum=-1)
    return max(value, 0)


def _width(bits: int, key: str) -> int:
    if bits > _MAX_WIDTH:
        raise UnsupportedModel(f"config key `quantization_config.{key}` must be 1 to {_MAX_WIDTH}, not {bits}")
    return bits


def _is_regex(name: str) -> bool:
    return any(letter in name for letter in "*+?^$()[]{}|\\")


def _mapping(config: Config, key: str) -> Mapping[str, object]:
    if not config.has(key):
        return {}
    mapping = config.sub(key).raw()
    if not all(isinstance(name, str) and name for name in mapping) or len(mapping) > 100_000:
        raise UnsupportedModel(f"config key `{key}` must map module names to settings")
    return mapping


def _flat(values: object) -> Iterable[object]:
    """The leaves of a list of lists. Raises: UnsupportedModel when it is none."""
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise UnsupportedModel(f"the quantization config must list modules, not `{str(values)[:40]}`")
    for value in values:
        if isinstance(value, (list, tuple)):
            yield from (each for each in value)
        else:
            yield value
