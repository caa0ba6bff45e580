"""The layouts that quantized weights are stored in, as Storage values: one function for each published format.

A format's name is its scheme's (`gptq-int4-g128`), so that a checkpoint's own quantization and `--quant` speak of the
same thing. Scales are 16 bit where the tools write them in the model's type. What the numbers come to is in
`memplan.budget.storage`.
"""

from __future__ import annotations

from functools import lru_cache

from memplan.domain.dtypes import DType
from memplan.domain.tensors import Storage

_INTEGERS = {4: DType.INT4, 8: DType.INT8}


@lru_cache(maxsize=256)
def gptq(bits: int = 4, group: int = 128, *, name: str = "gptq") -> Storage:
    """GPTQ: `qweight` int32 (in x bits / 32, out), `qzeros` int32 (groups, out x bits / 32), `scales` fp16, `g_idx`
    int32.

    Zero points are stored for symmetric checkpoints too, and `g_idx` without activation order too; engines drop what
    they do not need. `group` 0 or -1 is one group for the whole input axis.

    Source: AutoGPTQ and GPTQModel `QuantLinear.pack`; vLLM auto_gptq.py create_weights (0.33).
    """
    group = max(group, 0)
    return Storage(
        scheme=f"{name}-int{bits}-{_group_name(group)}",
        bits=bits,
        element=_INTEGERS.get(bits),
        word_bits=32,
        group_in=group,
        scale_bits=16,
        zero_bits=bits,
        zero_word_bits=32,
        index_bits=32,
    )


@lru_cache(maxsize=256)
def awq(bits: int = 4, group: int = 128, *, zero_point: bool = True) -> Storage:
    """AWQ "gemm": `qweight` int32 (in, out x bits / 32), `qzeros` int32 (groups, out x bits / 32), `scales` fp16.

    Source: AutoAWQ `WQLinear_GEMM`; vLLM auto_awq.py create_weights (0.33).
    """
    group = max(group, 0)
    return Storage(
        scheme=f"awq-int{bits}-{_group_name(group)}",
        bits=bits,
        element=_INTEGERS.get(bits),
        word_bits=32,
        packed_out=True,
        group_in=group,
        scale_bits=16,
        zero_bits=bits if zero_point else 0,
        zero_word_bits=32 if zero_point else 0,
    )


@lru_cache(maxsize=256)
def packed(
    bits: int = 4, group: int = 128, *, symmetric: bool = True, actorder: bool = False, scheme: str = ""
) -> Storage:
    """compressed-tensors "pack-quantized": `weight_packed` int32 (out, ceil(in x bits / 32)), `weight_scale` (out,
    groups), `weight_shape` (two int64), packed `weight_zero_point` when asymmetric, `weight_g_idx` int32 with group
    activation order.

    Source: compressed-tensors 0.19 PackedQuantizationCompressor.
    """
    group = max(group, 0)
    return Storage(
        scheme=scheme or f"ct-int{bits}-{_group_name(group)}",
        bits=bits,
        element=_INTEGERS.get(bits),
        word_bits=32,
        group_in=group,
        scale_bits=16,
        zero_bits=0 if symmetric else bits,
        zero_word_bits=0 if symmetric else 32,
        index_bits=32 if actorder else 0,
        tensor_bytes=16,
    )


@lru_cache(maxsize=256)
def int8(
    *, scheme: str = "w8a8-int8", group: int = 0, symmetric: bool = True, scale_bits: int = 16, rest: int = 0
) -> Storage:
    """One byte a weight, one scale for every output channel: compressed-tensors "int-quantized" (W8A8), torchao,
    EETQ.

    Source: compressed-tensors 0.19 IntQuantizationCompressor; torchao Int8WeightOnlyConfig; EETQ `EetqLinear`.
    """
    zero_bits = 0 if symmetric else 8
    return Storage(
        scheme=scheme,
        bits=8,
        element=DType.INT8,
        group_in=max(group, 0),
        scale_bits=scale_bits,
        zero_bits=zero_bits,
        tensor_bytes=rest,
    )


@lru_cache(maxsize=64)
def fp8(*, static_input: bool = False, scale_bits: int = 32) -> Storage:
    """FP8 with one scale for the matrix, and one for its input where activations are quantized with a fixed scale."""
    return _float8("fp8", scale_bits=scale_bits, group_out=0, rest=scale_bits // 8 if static_input else 0)


@lru_cache(maxsize=64)
def fp8_channel(*, scale_bits: int = 16, rest: int = 0) -> Storage:
    """FP8 with one scale for every output channel (llm-compressor FP8_DYNAMIC: 16 bit; FBGEMM: 32 bit)."""
    return _float8("fp8-channel", scale_bits=scale_bits, rest=rest)


@lru_cache(maxsize=64)
def fp8_block(rows: int = 128, columns: int = 128, *, scale_bits: int = 32) -> Storage:
    """FP8 with one scale for every block of `rows` outputs and `columns` inputs; blocks at the edge may be smaller.

    The scale is FP32 (`weight_scale_inv`, DeepSeek V3) or one byte of exponent (DeepSeek V4).
    Source: the index and headers of DeepSeek-V3; vLLM fp8_utils.py create_fp8_scale_parameter (0.33).
    """
    return _float8("fp8-block", scale_bits=scale_bits, group_in=columns, group_out=rows)


@lru_cache(maxsize=64)
def mxfp8() -> Storage:
    """Microscaling FP8: one byte of exponent for every 32 inputs. Source: OCP Microscaling Formats 1.0."""
    return _float8("mxfp8", scale_bits=8, group_in=32)


@lru_cache(maxsize=64)
def mxfp4(*, rest: int = 0) -> Storage:
    """Microscaling FP4: two weights a byte, one byte of exponent for every 32 inputs (gpt-oss: `blocks`, `scales`)."""
    return Storage(scheme="mxfp4", bits=4, element=DType.FP4, group_in=32, scale_bits=8, tensor_bytes=rest)


@lru_cache(maxsize=64)
def mxfp6() -> Storage:
    """Microscaling FP6: four weights in three bytes, one byte of exponent for every 32 inputs (Quark)."""
    return Storage(scheme="mxfp6", bits=6, element=DType.FP6, group_in=32, scale_bits=8)


@lru_cache(maxsize=64)
def nvfp4(*, group: int = 16, input_scale: bool = True) -> Storage:
    """NVFP4: two weights a byte, one FP8 scale for every 16 inputs, one FP32 scale for the matrix and one for its
    input.

    W4A16 checkpoints have no input scale. Source: vLLM modelopt.py and compressed-tensors 0.19 NVFP4PackedCompressor.
    """
    rest = 8 if input_scale else 4
    return Storage(scheme="nvfp4", bits=4, element=DType.FP4, group_in=group, scale_bits=8, tensor_bytes=rest)


@lru_cache(maxsize=64)
def bnb4(*, double_quant: bool = False, kind: str = "nf4", block: int = 64) -> Storage:
    """bitsandbytes 4 bit: blocks of 64 over the flattened matrix with an FP32 `absmax` each, and a table of 16
    values.

    With double quantization the absmax is one byte, with an FP32 scale for every 256 of them and a table of 256
    values.
    Source: bitsandbytes `quantize_4bit` and `QuantState.as_dict` (0.43 to 0.50). Not modelled: the JSON of that
    state.
    """
    return Storage(
        scheme=f"bnb-{kind}-dq" if double_quant else f"bnb-{kind}",
        bits=4,
        element=DType.FP4,
        group_in=block,
        flat=True,
        scale_bits=8 if double_quant else 32,
        nested_group=256 if double_quant else 0,
        nested_bits=32 if double_quant else 0,
        tensor_bytes=64 + 1024 if double_quant else 64,
    )


@lru_cache(maxsize=64)
def bnb8() -> Storage:
    """bitsandbytes LLM.int8(): one byte a weight, an FP32 `SCB` for every output channel, one byte for the format."""
    return int8(scheme="bnb-int8", scale_bits=32, rest=1)


@lru_cache(maxsize=256)
def affine(bits: int = 4, group: int = 64, *, name: str = "mlx", scale_bits: int = 16) -> Storage:
    """Scale and bias of 16 bit for every group of inputs: MLX (packed in 32-bit words), torchao's tinygemm.

    Source: MLX `mx.quantize`; torchao Int4WeightOnlyConfig (`scales_and_zeros`, bfloat16).
    """
    return Storage(
        scheme=f"{name}-int{bits}-{_group_name(group)}",
        bits=bits,
        element=_INTEGERS.get(bits),
        word_bits=32,
        group_in=max(group, 0),
        scale_bits=scale_bits,
        zero_bits=scale_bits,
    )


@lru_cache(maxsize=256)
def hqq(bits: int = 4, group: int = 64) -> Storage:
    """HQQ: groups over the flattened matrix with a 16-bit scale and zero point each; ten 3-bit weights in 32 bits.

    Source: hqq 0.2.8 `Quantizer.quantize` and `BitPack`.
    """
    return Storage(
        scheme=f"hqq-int{bits}-{_group_name(group)}",
        bits=3.2 if bits == 3 else bits,
        element=_INTEGERS.get(bits),
        word_bits=32 if bits == 3 else 8,
        group_in=max(group, 0),
        flat=group > 0,
        scale_bits=16,
        zero_bits=16,
    )


@lru_cache(maxsize=64)
def codebook(scheme: str, bits: float, *, scale_bits: int = 16, group: int = 0, rest: int = 0) -> Storage:
    """Vector quantization: `bits` of code a weight, a scale for every output channel, codebooks once for the matrix."""
    return Storage(scheme=scheme, bits=bits, group_in=group, scale_bits=scale_bits, tensor_bytes=rest)


def _float8(scheme: str, *, scale_bits: int, group_in: int = 0, group_out: int = 1, rest: int = 0) -> Storage:
    return Storage(
        scheme=scheme,
        bits=8,
        element=DType.FP8_E4M3,
        group_in=group_in,
        group_out=group_out,
        scale_bits=scale_bits,
        tensor_bytes=rest,
    )


def _group_name(group: int) -> str:
    return f"g{group}" if group > 0 else "channel"
