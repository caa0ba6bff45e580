"""Reading compressed-tensors and Quark configs: groups of modules, each with settings of its own."""

from __future__ import annotations

from collections.abc import Sequence

from memplan.catalog import weight_formats
from memplan.domain.tensors import Role, Storage
from memplan.errors import UnsupportedModel
from memplan.introspect.config import Config
from memplan.introspect.quantization.modelopt import read_kv_cache
from memplan.introspect.quantization.plan import DECODER_ROLES, TOWER_ROLES, QuantPlan
from memplan.introspect.quantization.rules import Rules

_LINEAR_CLASSES = frozenset({"Linear", "RoutedExperts", "FusedMoE", "MoE"})
_ALL_LINEAR = DECODER_ROLES | TOWER_ROLES | {Role.LM_HEAD}


def read_compressed_tensors(config: Config, model: Config | None = None) -> QuantPlan:
    """compressed-tensors, as llm-compressor writes it.

    A group's `targets` are module classes, module names, or regular expressions behind `re:`; `ignore` has names and
    regular expressions and wins over every group. Routers are plain unless a group names them. Llama 4's own FP8
    release quantizes routed experts only; copies of its config are in use that have lost the `ignore` list.

    Source: compressed-tensors 0.19 QuantizationConfig; vLLM compressed_tensors.py and utils.py (0.33).
    """
    if not config.has("config_groups"):
        raise UnsupportedModel("the config has no key `quantization_config.config_groups`")
    base_format = config.str("format", default="")
    linear: Storage | None = None
    named: list[tuple[Rules, Storage | None]] = []
    tables = False
    for name, raw in config.sub("config_groups").raw().items():
        group = Config(raw, path=f"config_groups.{name}")
        targets = group.strs("targets", default=("Linear",))
        if not group.has("weights"):
            continue
        storage = _weights(group, group.str("format", default=base_format))
        if any(target in _LINEAR_CLASSES for target in targets):
            linear = linear or storage
        tables = tables or "Embedding" in targets
        modules = [target for target in targets if target.startswith("re:") or "." in target or target.islower()]
        if modules:
            named.append((_rules(modules, "targets"), storage))
    default = linear or next((storage for _, storage in named if storage), None)
    if default is None:
        raise UnsupportedModel("config key `quantization_config.config_groups` has no group that quantizes weights")
    roles = _ALL_LINEAR | ({Role.EMBEDDING} if tables else frozenset())
    if not config.has("ignore") and model is not None and model.str("model_type", default="").startswith("llama4"):
        roles = frozenset({Role.EXPERT})
    return QuantPlan(
        linear=default,
        roles=roles if linear else frozenset(),
        keep=_rules(config.list("ignore", default=()), "ignore"),
        named=tuple(named),
        towers=True,
        tables=tables,
        mtp=False,
        kv_cache_scheme=read_kv_cache(config),
    )


def _rules(patterns: Sequence[object], what: str) -> Rules:
    """Names, and regular expressions behind `re:` that match from the start of a name."""
    regexes = [each[3:] for each in patterns if isinstance(each, str) and each.startswith("re:")]
    names = [each for each in patterns if not (isinstance(each, str) and each.startswith("re:"))]
    return Rules(listed=names, matched=regexes, what=what)


def _weights(group: Config, layout: str) -> Storage:
    """The storage of one group of compressed-tensors."""
    weights = group.sub("weights")
    bits, kind = weights.int("num_bits"), weights.str("type", default="int")
    strategy = weights.str("strategy", default="")
    size = max(weights.int("group_size", default=0, minimum=-1), 0)
    if kind == "float":
        return _floats(group, weights, bits, size, strategy)
    if kind != "int" or bits > 8:
        raise UnsupportedModel(f"compressed-tensors weights of {bits}-bit `{kind}` are not known")
    symmetric = weights.bool("symmetric", default=True)
    if layout in ("int-quantized", "naive-quantized") or (not layout and bits == 8 and group.has("input_activations")):
        return weight_formats.int8(group=size, symmetric=symmetric)
    actorder = str(weights.get("actorder") or "").lower() in ("group", "dynamic")
    scheme = "w8a16-int8" if bits == 8 and not size else ""
    return weight_formats.packed(bits, size, symmetric=symmetric, actorder=actorder, scheme=scheme)


def _floats(group: Config, weights: Config, bits: int, size: int, strategy: str) -> Storage:
    activations = group.sub("input_activations") if group.has("input_activations") else None
    fixed_input = activations is not None and activations.get("dynamic") in (False, "local")
    if bits == 4:
        return weight_formats.mxfp4() if size == 32 else weight_formats.nvfp4(group=size or 16, input_scale=fixed_input)
    if bits == 8 and size == 32:
        return weight_formats.mxfp8()
    if bits != 8:
        raise UnsupportedModel(f"compressed-tensors weights of {bits}-bit `float` are not known")
    if strategy == "block" or weights.has("block_structure"):
        block = weights.get("block_structure")
        if isinstance(block, str):
            block = [int(part) for part in block.split("x") if part.isdigit()]
        sizes = Config({"block_structure": block}, path=weights.path).ints("block_structure", default=(128, 128))
        if len(sizes) != 2 or min(sizes) < 1:
            raise UnsupportedModel(f"config key `{weights.path}.block_structure` must be two sizes")
        return weight_formats.fp8_block(sizes[0], sizes[1])
    if strategy == "tensor" or not strategy:
        return weight_formats.fp8(static_input=fixed_input, scale_bits=16)
    return weight_formats.fp8_channel()


def read_quark(config: Config) -> QuantPlan:
    """AMD Quark: a global setting, settings by layer name (shell patterns), and an `exclude` list.

    Source: vLLM quark/quark.py QuarkConfig and quark/utils.py (0.33).
    """
    named: list[tuple[Rules, Storage | None]] = []
    if config.has("layer_quant_config"):
        for name, raw in config.sub("layer_quant_config").raw().items():
            own = Config(raw, path=f"layer_quant_config.{name}")
            named.append((Rules(globbed=[name], what="layer_quant_config"), _quark_weight(own)))
    storage = _quark_weight(config.sub("global_quant_config"))
    if storage is None:
        storage = next((each for _, each in named if each), None)
    if storage is None:
        raise UnsupportedModel("config key `quantization_config.global_quant_config.weight` quantizes nothing")
    excluded = config.list("exclude", default=())
    regexes = [each[3:] for each in excluded if isinstance(each, str) and each.startswith("re:")]
    names = [each for each in excluded if not (isinstance(each, str) and each.startswith("re:"))]
    export = config.sub("export") if config.has("export") else None
    return QuantPlan(
        linear=storage,
        roles=DECODER_ROLES | TOWER_ROLES,
        keep=Rules(globbed=names, matched=regexes, what="exclude"),
        named=tuple(named),
        towers=True,
        mtp=False,
        kv_cache_scheme="fp8" if export is not None and export.get("kv_cache_group") else None,
    )


def _quark_weight(config: Config) -> Storage | None:
    raw = config.get("weight")
    if raw is None:
        return None
    steps = raw if isinstance(raw, (list, tuple)) else [raw]
    if not steps:
        return None
    weight = Config(steps[-1], path=f"{config.path}.weight")
    dtype, scheme = weight.str("dtype"), weight.str("qscheme", default="per_tensor")
    size = max(weight.int("group_size", default=0, minimum=-1), 0) if scheme == "per_group" else 0
    if dtype in ("fp4", "mx4"):
        return weight_formats.nvfp4() if len(steps) > 1 or size == 16 else weight_formats.mxfp4()
    if dtype.startswith(("fp6", "mx6")):
        return weight_formats.mxfp6()
    if dtype.startswith("fp8"):
        if size == 32:
            return weight_formats.mxfp8()
        return weight_formats.fp8() if scheme == "per_tensor" else weight_formats.fp8_channel(scale_bits=32)
    if dtype == "int8":
        return weight_formats.int8(scale_bits=32)
    if dtype in ("int4", "uint4"):
        return weight_formats.packed(4, size, symmetric=dtype == "int4")
    raise UnsupportedModel(f"Quark weights of type `{dtype[:40]}` are not known")
