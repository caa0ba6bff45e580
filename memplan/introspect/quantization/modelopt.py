"""Reading NVIDIA ModelOpt's quantization, from `hf_quant_config.json` or its newer place in config.json.

Both name an algorithm and the modules it leaves out, as shell patterns; MIXED_PRECISION names an algorithm for every
module instead. Vision towers are never quantized, whatever the lists say.

Source: vLLM modelopt.py ModelOptQuantConfigBase and ModelOptMixedPrecisionConfig (0.33).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from memplan.catalog import weight_formats
from memplan.domain.tensors import Role, Storage
from memplan.errors import UnsupportedModel, did_you_mean
from memplan.introspect.config import Config
from memplan.introspect.quantization.integer import read_group
from memplan.introspect.quantization.plan import DECODER_ROLES, QuantPlan
from memplan.introspect.quantization.rules import Rules

_ALGORITHMS: Mapping[str, Callable[[int], Storage]] = {
    "FP8": lambda group: weight_formats.fp8(static_input=True),
    "FP8_PER_CHANNEL_PER_TOKEN": lambda group: weight_formats.fp8_channel(scale_bits=32),
    "FP8_PB_WO": lambda group: weight_formats.fp8_block(),
    "FP8_BLOCK_SCALES": lambda group: weight_formats.fp8_block(),
    "NVFP4": lambda group: weight_formats.nvfp4(group=group or 16),
    "NVFP4_AWQ": lambda group: weight_formats.nvfp4(group=group or 16),
    "W4A16_NVFP4": lambda group: weight_formats.nvfp4(group=group or 16, input_scale=False),
    "MXFP8": lambda group: weight_formats.mxfp8(),
    "MXFP4": lambda group: weight_formats.mxfp4(),
    "W4A8_MXFP4_FP8": lambda group: weight_formats.mxfp4(rest=4),
    "W8A16": lambda group: weight_formats.int8(scheme="w8a16-int8"),
    "W8A8_SQ_PER_CHANNEL": lambda group: weight_formats.int8(scale_bits=32, rest=4),
    "W4A16": lambda group: weight_formats.packed(4, group or 128),
    "W4A16_AWQ": lambda group: weight_formats.packed(4, group or 128, scheme=f"awq-int4-g{group or 128}"),
    "INT4_AWQ": lambda group: weight_formats.packed(4, group or 128, scheme=f"awq-int4-g{group or 128}"),
    "W4A8_AWQ": lambda group: weight_formats.packed(4, group or 128, scheme=f"awq-int4-g{group or 128}"),
}
_PLAIN_IN_NEMOTRON = frozenset({Role.ATTENTION, Role.STATE, Role.SHARED_EXPERT})
_KV_SCHEMES: Mapping[str, str] = {"FP8": "fp8", "NVFP4": "nvfp4", "INT8": "int8"}


def read_modelopt(config: Config, model: Config | None = None) -> QuantPlan:
    """Return the plan of a ModelOpt config, in either of its forms.

    Copies of `hf_quant_config.json` are in use that have lost the list of excluded modules. What every complete one
    excludes is plain then: head, routers and multi-token prediction, in Nemotron 3 also attention, Mamba and shared
    experts, as start-ups of its FP8 and NVFP4 checkpoints show (59.91 GiB on each of two ranks).
    """
    own = config.sub("quantization") if config.has("quantization") else config
    algorithm = own.str("quant_algo").upper()
    excluded = own.list("exclude_modules", "ignore", default=())
    keep = Rules(globbed=excluded, what="exclude_modules")
    kv_cache_scheme = read_kv_cache(own)
    if algorithm == "MIXED_PRECISION":
        exact = _layers(own)
        default = next(iter(exact.values()))
        return QuantPlan(linear=default, roles=frozenset(), keep=keep, exact=exact, kv_cache_scheme=kv_cache_scheme)
    linear = _storage(algorithm, read_group(own, default=0))
    if excluded:
        roles = DECODER_ROLES | {Role.LM_HEAD}
        return QuantPlan(linear=linear, roles=roles, keep=keep, kv_cache_scheme=kv_cache_scheme)
    nemotron = model is not None and model.str("model_type", default="") == "nemotron_h"
    return QuantPlan(
        linear=linear,
        roles=DECODER_ROLES - _PLAIN_IN_NEMOTRON if nemotron else DECODER_ROLES,
        mtp=False,
        kv_cache_scheme=kv_cache_scheme,
        notes=("the quantization config names no excluded modules: head and routers taken as plain",),
    )


def read_kv_cache(config: Config) -> str | None:
    """Return the cache type that a ModelOpt config asks for: `fp8`, `nvfp4`, `int8`, or None."""
    scheme = config.get("kv_cache_scheme")
    if isinstance(scheme, dict):
        return {("float", 8): "fp8", ("float", 4): "nvfp4", ("int", 8): "int8"}.get(
            (str(scheme.get("type")), scheme["num_bits"]) if isinstance(scheme.get("num_bits"), int) else ("", 0)
        )
    name = config.str("kv_cache_quant_algo", "kv_cache_scheme", default="")
    return _KV_SCHEMES.get(name.upper())


def _layers(config: Config) -> Mapping[str, Storage]:
    """The storage of every module that MIXED_PRECISION names."""
    made: dict[tuple[object, object], Storage] = {}
    layers: dict[str, Storage] = {}
    raw = config.sub("quantized_layers").raw()
    if not raw or len(raw) > 1_000_000:
        raise UnsupportedModel("config key `quantized_layers` must name modules")
    for name, settings in raw.items():
        if not isinstance(settings, dict) or not isinstance(name, str):
            raise UnsupportedModel(
                f"config key `quantized_layers` must map modules to settings, not `{str(name)[:60]}`"
            )
        key = (settings.get("quant_algo"), settings.get("group_size"))
        try:
            layers[name] = made[key]
        except (KeyError, TypeError):
            own = Config(settings, path="quantized_layers")
            storage = _storage(own.str("quant_algo").upper(), read_group(own, default=0))
            layers[name] = made[key] = storage
    return layers


def _storage(algorithm: str, group: int) -> Storage:
    if algorithm not in _ALGORITHMS:
        hint = did_you_mean(algorithm.lower(), [name.lower() for name in _ALGORITHMS])
        raise UnsupportedModel(f"unknown quantization algorithm of ModelOpt: `{algorithm}`", hint=hint)
    return _ALGORITHMS[algorithm](group)
