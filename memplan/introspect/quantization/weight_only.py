"""Reading the quantization configs of libraries that replace Linear layers: bitsandbytes, MLX, torchao, HQQ, others."""

from __future__ import annotations

from collections.abc import Mapping

from memplan.catalog import weight_formats
from memplan.domain.tensors import Role, Storage
from memplan.errors import UnsupportedModel
from memplan.introspect.config import Config
from memplan.introspect.quantization.integer import read_bits, read_group
from memplan.introspect.quantization.plan import DECODER_ROLES, TOWER_ROLES, QuantPlan
from memplan.introspect.quantization.rules import Rules

_LINEAR_ROLES = DECODER_ROLES | TOWER_ROLES
_SKIP_KEYS = ("modules_to_not_convert", "llm_int8_skip_modules", "skip_modules", "linear_weights_not_to_quantize")
# Families whose router MLX keeps as a module of its own that it does not quantize.
_MLX_PLAIN_ROUTERS = ("deepseek", "kimi", "glm4_moe", "glm_moe", "mistral4", "minimax", "gpt_oss")


def read_bitsandbytes(config: Config) -> QuantPlan:
    """bitsandbytes, 4 or 8 bit: every Linear layer but the head and the listed modules.

    Source: bitsandbytes 0.50; transformers BitsAndBytesConfig (5.23); vLLM bitsandbytes.py is_layer_skipped_bnb
    (0.20).
    """
    if config.bool("load_in_8bit", default=False):
        storage = weight_formats.bnb8()
    else:
        kind = config.str("bnb_4bit_quant_type", default="fp4")
        if kind not in ("nf4", "fp4"):
            raise UnsupportedModel(
                f"config key `quantization_config.bnb_4bit_quant_type` is no type known: `{kind[:40]}`"
            )
        double = config.bool("bnb_4bit_use_double_quant", default=False)
        storage = weight_formats.bnb4(kind=kind, double_quant=double)
    return _replaced(config, storage)


def read_mlx(config: Config, model: Config | None = None) -> QuantPlan:
    """MLX: every Linear layer and embedding table whose rows are whole groups; entries by module name override.

    An entry is false for a plain module, or has settings of its own.

    Source: MLX `nn.quantize`; mlx-lm `load_model` (0.2x); the index of mlx-community's Qwen3 and Mistral Small 4.
    """
    base = _mlx_storage(config, config)
    exact: dict[str, Storage | None] = {}
    for name, value in config.raw().items():
        if isinstance(value, dict):
            exact[name] = _mlx_storage(Config(value, path=name), config)
        elif value is False and "." in name:
            exact[name] = None
        elif value is True and "." in name:
            exact[name] = base
    family = model.str("model_type", default="") if model is not None else ""
    part = (
        model.sub("text_config").str("model_type", default="") if model is not None and model.has("text_config") else ""
    )
    roles = DECODER_ROLES | {Role.EMBEDDING, Role.LM_HEAD}
    if not family.startswith(_MLX_PLAIN_ROUTERS) and not part.startswith(_MLX_PLAIN_ROUTERS):
        roles |= {Role.ROUTER}
    return QuantPlan(linear=base, roles=roles, exact=exact, tables=True, in_multiple=base.group_in, mtp=False)


def _mlx_storage(config: Config, base: Config) -> Storage:
    mode = config.str("mode", default=base.str("mode", default="affine"))
    if mode in ("mxfp4", "mxfp8"):
        return weight_formats.mxfp4() if mode == "mxfp4" else weight_formats.mxfp8()
    if mode == "nvfp4":
        return weight_formats.nvfp4(input_scale=False)
    if mode != "affine":
        raise UnsupportedModel(f"unknown quantization mode of MLX: `{mode[:40]}`")
    bits = read_bits(config, "bits", default=read_bits(base, "bits", default=4))
    group = read_group(config, default=read_group(base, default=64))
    if not group:
        raise UnsupportedModel("config key `quantization.group_size` must be more than 0 for MLX")
    return weight_formats.affine(bits, group)


def read_metal(config: Config) -> QuantPlan:
    """Affine groups as MLX has them, for Linear layers only. Source: transformers MetalConfig (5.23)."""
    storage = weight_formats.affine(read_bits(config, "bits", default=4), read_group(config, default=64) or 64)
    return _replaced(config, storage)


def read_torchao(config: Config) -> QuantPlan:
    """torchao: a name (`int4_weight_only`), or a serialized config under `default`.

    Source: transformers TorchAoConfig (4.51 and 5.23); torchao 0.18 quant_api.
    """
    kind = config.get("quant_type")
    settings: Mapping[str, object] = config.sub("quant_type_kwargs").raw() if config.has("quant_type_kwargs") else {}
    if isinstance(kind, dict):
        kind = kind.get("default", kind)
        if not isinstance(kind, dict) or not isinstance(kind.get("_type"), str):
            raise UnsupportedModel("config key `quantization_config.quant_type` names no type of torchao")
        data = kind.get("_data")
        kind, settings = kind["_type"], data if isinstance(data, dict) else {}
    storage = _torchao_storage(str(kind), Config(settings, path="quant_type"))
    plan = _replaced(config, storage)
    if not config.bool("include_input_output_embeddings", default=False):
        return plan
    roles = plan.roles | {Role.EMBEDDING, Role.LM_HEAD}
    return QuantPlan(linear=storage, roles=roles, keep=plan.keep, towers=True, tables=True, mtp=False)


def _torchao_storage(kind: str, settings: Config) -> Storage:
    name = kind.lower().replace("_", "")
    if "int4weight" in name or "uintx" in name or "intxweight" in name:
        return weight_formats.affine(4, read_group(settings, default=128) or 128, name="torchao")
    if "float8" in name or "fp8" in name:
        return (
            weight_formats.fp8_channel(scale_bits=32) if "row" in str(settings.raw()).lower() else weight_formats.fp8()
        )
    if "int8" in name and "int4weight" not in name:
        return weight_formats.int8(scheme="torchao-int8")
    if "nvfp4" in name:
        return weight_formats.nvfp4(input_scale=False)
    if "mx" in name:
        return weight_formats.mxfp4() if "4" in name else weight_formats.mxfp8()
    raise UnsupportedModel(f"unknown quantization type of torchao: `{kind[:60]}`")


def read_hqq(config: Config) -> QuantPlan:
    """HQQ, and SINQ which stores the same: groups over the flattened matrix. Source: hqq 0.2.8; HqqConfig."""
    own = config.sub("quant_config") if config.has("quant_config") else config
    if own.has("weight_quant_params"):
        own = own.sub("weight_quant_params")
    return _replaced(
        config, weight_formats.hqq(read_bits(own, "nbits", "bits", default=4), read_group(own, default=64))
    )


def read_quanto(config: Config) -> QuantPlan:
    """optimum-quanto. Source: transformers QuantoConfig; optimum-quanto 0.2.7 (groups of 128 below 8 bits)."""
    kind = config.str("weights", default="int8")
    if kind in ("int8", "float8"):
        return _replaced(
            config, weight_formats.int8(scheme="w8a16-int8") if kind == "int8" else weight_formats.fp8_channel()
        )
    if kind not in ("int4", "int2"):
        raise UnsupportedModel(f"unknown quantization type of quanto: `{kind[:40]}`")
    return _replaced(config, weight_formats.affine(int(kind[3:]), 128, name="quanto"))


def read_eetq(config: Config) -> QuantPlan:
    """EETQ: INT8 with a 16-bit scale for every output channel."""
    return _replaced(config, weight_formats.int8(scheme="w8a16-int8"))


def read_aqlm(config: Config) -> QuantPlan:
    """AQLM: `num_codebooks` codes for every group, a scale for every output group, the codebooks once for a matrix.

    Source: the AQLM paper (arXiv 2401.06118), section 3; transformers AqlmConfig.
    """
    in_group, out_group = config.int("in_group_size", default=8), config.int("out_group_size", default=1)
    books, bits = config.int("num_codebooks", default=1), config.int("nbits_per_codebook", default=16)
    if bits > 16 or in_group * out_group > 4096 or books > 64:
        raise UnsupportedModel(f"AQLM codebooks of {bits} bits for {in_group * out_group} weights are not known")
    table_bytes = books * 2**bits * in_group * out_group * 2
    return _replaced(config, weight_formats.codebook("aqlm", books * bits / (in_group * out_group), rest=table_bytes))


def read_bitnet(config: Config) -> QuantPlan:
    """BitNet: four ternary weights a byte and one scale. Source: transformers BitNetQuantConfig (5.23)."""
    if config.str("quantization_mode", default="offline") == "online":
        raise UnsupportedModel("BitNet weights that are quantized online are stored plain", hint="use --quant none")
    return _replaced(config, weight_formats.codebook("bitnet", 2, scale_bits=0, rest=2))


def read_higgs(config: Config) -> QuantPlan:
    """HIGGS: codes of `bits` a weight, an FP16 scale for every group. Source: transformers HiggsConfig (5.23)."""
    bits, group = read_bits(config, "bits", default=4), read_group(config, default=256)
    return _replaced(config, weight_formats.codebook("higgs", bits, group=group))


def read_fp4(config: Config) -> QuantPlan:
    """NVFP4 or MXFP4 by tools that name the type only: FP-Quant, Four Over Six, transformers' own."""
    kind = config.str("forward_dtype", "dtype", default="nvfp4")
    if kind not in ("nvfp4", "mxfp4"):
        raise UnsupportedModel(f"unknown 4-bit float: `{kind[:40]}`")
    return _replaced(config, weight_formats.nvfp4(input_scale=False) if kind == "nvfp4" else weight_formats.mxfp4())


def refuse(config: Config) -> QuantPlan:
    """Methods whose layout is decided matrix by matrix during quantization, so that no config tells it."""
    raise UnsupportedModel(
        f"the layout of `{config.str('quant_method')}` weights cannot be told from the config",
        hint="give the checkpoint's safetensors files",
    )


def _replaced(config: Config, storage: Storage) -> QuantPlan:
    """The plan of a library that replaces every Linear layer but the head, the routers and the listed ones."""
    listed = config.list(*_SKIP_KEYS, default=())
    keep = Rules(listed=listed, what=next((key for key in _SKIP_KEYS if config.has(key)), _SKIP_KEYS[0]))
    return QuantPlan(linear=storage, roles=_LINEAR_ROLES, keep=keep, towers=True, mtp=False)
