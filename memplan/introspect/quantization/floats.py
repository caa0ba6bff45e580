"""Reading the quantization configs of FP8, MXFP8 and MXFP4 checkpoints: floats with a scale for a tensor or a block."""

from __future__ import annotations

from memplan.catalog import weight_formats
from memplan.domain.tensors import Role, Storage
from memplan.errors import UnsupportedModel
from memplan.introspect.config import Config
from memplan.introspect.quantization.plan import DECODER_ROLES, QuantPlan
from memplan.introspect.quantization.rules import Rules

_SKIP_KEYS = ("modules_to_not_convert", "ignored_layers")


def read_fp8(config: Config, model: Config | None = None) -> QuantPlan:
    """FP8 as DeepSeek, Qwen, GLM and transformers write it: in blocks, or with one scale for a matrix.

    `weight_block_size` null means one scale for a matrix; `activation_scheme` "static" adds one for its input.
    DeepSeek V4 says in the model's own config that its experts are FP4 (`expert_dtype`), and stores the scales of its
    blocks in one byte then; ModelOpt's FP4 of such a model lists the modules that it made NVFP4 (`quantized_layers`).

    Source: vLLM fp8.py Fp8Config and deepseek_v4/quant_config.py (0.33); transformers FineGrainedFP8Config (5.23).
    """
    fp4_experts = _has_fp4_experts(config, model)
    linear = _linear(config, scale_bits=8 if fp4_experts == "model" else 32)
    exact: dict[str, Storage | None] = {}
    if config.has("quantized_layers"):
        exact = {name: weight_formats.nvfp4() for name in config.sub("quantized_layers").raw()}
    return QuantPlan(
        linear=linear,
        experts=weight_formats.mxfp4() if fp4_experts else None,
        keep=Rules(listed=config.list(*_SKIP_KEYS, default=()), what=_SKIP_KEYS[0]),
        exact=exact,
        named=_converted(config, linear),
        kv_cache_scheme="fp8" if config.str("kv_cache_scheme", default="") == "static" else None,
    )


def _linear(config: Config, *, scale_bits: int) -> Storage:
    static = config.str("activation_scheme", default="dynamic").lower() == "static"
    if not config.has("weight_block_size"):
        return weight_formats.fp8(static_input=static)
    block = config.ints("weight_block_size")
    if len(block) != 2 or min(block) < 1:
        raise UnsupportedModel(f"config key `{config.path}.weight_block_size` must be two sizes, not {list(block)[:4]}")
    return weight_formats.fp8_block(block[0], block[1], scale_bits=scale_bits)


def _has_fp4_experts(config: Config, model: Config | None) -> str:
    """Who says that routed experts are FP4: the model, the quantization config, or nobody."""
    if model is not None and model.str("model_type", default="").startswith("deepseek_v4"):
        return "model" if model.str("expert_dtype", default="fp4") == "fp4" else ""
    fp4 = config.str("expert_dtype", default="") == "fp4" or config.str("store_dtype", default="") == "mxfp4"
    return "config" if fp4 else ""


def _converted(config: Config, linear: Storage) -> tuple[tuple[Rules, Storage | None], ...]:
    """Modules that are quantized though their kind is not, such as embedding tables."""
    names = config.list("modules_to_convert", default=())
    return ((Rules(listed=names, what="modules_to_convert"), linear),) if names else ()


def read_fbgemm(config: Config) -> QuantPlan:
    """FP8 of FBGEMM: a 32-bit scale for every output channel and a bound for the input's scale.

    Llama 3.1's release leaves self-attention alone in every layer, and the first and last layer whole. Copies of its
    config are in use that list the attention of one layer only; any such entry is taken to mean all of them.

    Source: the Llama 3 paper (arXiv 2407.21783), section 6.2; vLLM fbgemm_fp8.py (0.10); transformers
    FbgemmFp8Linear.
    """
    listed = config.list(*_SKIP_KEYS, default=())
    keeps_attention = any(isinstance(name, str) and ".self_attn." in name for name in listed)
    return QuantPlan(
        linear=weight_formats.fp8_channel(scale_bits=32, rest=4),
        roles=DECODER_ROLES - {Role.ATTENTION} if keeps_attention else DECODER_ROLES,
        keep=Rules(listed=listed, what=_SKIP_KEYS[0]),
        mtp=False,
    )


def read_mxfp4(config: Config) -> QuantPlan:
    """MXFP4 as gpt-oss has it: routed experts only; everything else stays in 16 bit.

    Source: vLLM mxfp4.py (0.33); transformers Mxfp4Config.
    """
    return QuantPlan(
        linear=weight_formats.mxfp4(),
        roles=frozenset({Role.EXPERT}),
        keep=Rules(listed=config.list(*_SKIP_KEYS, default=()), what=_SKIP_KEYS[0]),
    )


def read_mxfp8(config: Config) -> QuantPlan:
    """MXFP8 of every Linear layer but the listed ones (`quant_method` "mxfp8")."""
    return QuantPlan(
        linear=weight_formats.mxfp8(),
        roles=DECODER_ROLES,
        keep=Rules(listed=config.list(*_SKIP_KEYS, default=()), what=_SKIP_KEYS[0]),
    )
