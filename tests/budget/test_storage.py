"""Bytes of stored matrices, against the tensors that each format really writes, and as properties."""

from __future__ import annotations

from fractions import Fraction
from math import ceil, prod

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memplan.budget.storage import (
    bits_per_weight,
    padded_shape,
    storage_bytes,
    stored_parts,
    stored_tensor_bytes,
    swizzled_scale_bytes,
)
from memplan.catalog import weight_formats as formats
from memplan.domain.dtypes import DType
from memplan.domain.tensors import Role, Storage, Tensor

OUT, IN = 1536, 8960  # Qwen2-1.5B's down projection: 70 groups of 128
BYTES = {"i4": 4, "u4": 4, "f2": 2, "f4": 4, "u1": 1, "i1": 1, "f1": 1, "i8": 8}


def written(*tensors: tuple[str, tuple[int, ...]]) -> int:
    """The bytes of tensors given as (element type, shape)."""
    return sum(BYTES[kind] * prod(shape) for kind, shape in tensors)


# What each tool writes for one (out, in) matrix: facts of the formats, as element types and shapes.
WRITTEN = [
    pytest.param(
        formats.gptq(4, 128),
        written(("i4", (IN // 8, OUT)), ("i4", (IN // 128, OUT // 8)), ("f2", (IN // 128, OUT)), ("i4", (IN,))),
        id="gptq int4 g128: qweight, qzeros, scales, g_idx",
    ),
    pytest.param(
        formats.gptq(3, 128),
        written(
            ("i4", (IN // 32 * 3, OUT)), ("i4", (IN // 128, OUT // 32 * 3)), ("f2", (IN // 128, OUT)), ("i4", (IN,))
        ),
        id="gptq int3 packs 32 weights into three words",
    ),
    pytest.param(
        formats.gptq(8, -1),
        written(("i4", (IN // 4, OUT)), ("i4", (1, OUT // 4)), ("f2", (1, OUT)), ("i4", (IN,))),
        id="gptq int8 with one group a channel",
    ),
    pytest.param(
        formats.awq(4, 128),
        written(("i4", (IN, OUT // 8)), ("i4", (IN // 128, OUT // 8)), ("f2", (IN // 128, OUT))),
        id="awq int4 g128: qweight, qzeros, scales",
    ),
    pytest.param(
        formats.packed(4, 32),
        written(("i4", (OUT, IN // 8)), ("f2", (OUT, IN // 32)), ("i8", (2,))),
        id="compressed-tensors int4 g32: weight_packed, weight_scale, weight_shape",
    ),
    pytest.param(
        formats.packed(4, 128, symmetric=False, actorder=True),
        written(
            ("i4", (OUT, IN // 8)),
            ("f2", (OUT, IN // 128)),
            ("i4", (OUT // 8, IN // 128)),
            ("i4", (IN,)),
            ("i8", (2,)),
        ),
        id="compressed-tensors int4 with zero points and activation order",
    ),
    pytest.param(formats.int8(), written(("i1", (OUT, IN)), ("f2", (OUT, 1))), id="compressed-tensors W8A8"),
    pytest.param(formats.fp8(static_input=True), written(("f1", (OUT, IN)), ("f4", ()), ("f4", ())), id="static fp8"),
    pytest.param(formats.fp8_channel(), written(("f1", (OUT, IN)), ("f2", (OUT, 1))), id="fp8 by channel"),
    pytest.param(
        formats.fp8_block(), written(("f1", (OUT, IN)), ("f4", (OUT // 128, IN // 128))), id="fp8 in blocks of 128"
    ),
    pytest.param(formats.mxfp4(), written(("u1", (OUT, IN // 32, 16)), ("u1", (OUT, IN // 32))), id="gpt-oss mxfp4"),
    pytest.param(formats.mxfp8(), written(("f1", (OUT, IN)), ("u1", (OUT, IN // 32))), id="mxfp8"),
    pytest.param(
        formats.nvfp4(),
        written(("u1", (OUT, IN // 2)), ("f1", (OUT, IN // 16)), ("f4", ()), ("f4", ())),
        id="nvfp4: weight, weight_scale, weight_scale_2, input_scale",
    ),
    pytest.param(
        formats.bnb4(),
        written(("u1", (OUT * IN // 2, 1)), ("f4", (OUT * IN // 64,)), ("f4", (16,))),
        id="bnb nf4: weight, absmax, quant_map",
    ),
    pytest.param(
        formats.bnb4(double_quant=True),
        written(
            ("u1", (OUT * IN // 2, 1)),
            ("u1", (OUT * IN // 64,)),
            ("f4", (OUT * IN // 64 // 256,)),
            ("f4", (256,)),
            ("f4", (16,)),
        ),
        id="bnb nf4 with quantized scales",
    ),
    pytest.param(formats.bnb8(), written(("i1", (OUT, IN)), ("f4", (OUT,)), ("u1", ())), id="bnb int8: weight, SCB"),
    pytest.param(
        formats.affine(4, 64),
        written(("u4", (OUT, IN // 8)), ("f2", (OUT, IN // 64)), ("f2", (OUT, IN // 64))),
        id="mlx: weight, scales, biases",
    ),
    pytest.param(
        formats.hqq(4, 64),
        written(("u1", (OUT * IN // 2,)), ("f2", (OUT * IN // 64,)), ("f2", (OUT * IN // 64,))),
        id="hqq: W_q, scale, zero",
    ),
]


@pytest.mark.parametrize(("storage", "expected_bytes"), WRITTEN)
def test_a_matrix_takes_the_bytes_of_the_tensors_that_the_tool_writes(storage: Storage, expected_bytes: int) -> None:
    assert storage_bytes((OUT, IN), storage) == expected_bytes


@pytest.mark.parametrize(
    ("storage", "bits"),
    [
        (formats.awq(4, 128), Fraction(4) + Fraction(16, 128) + Fraction(4, 128)),
        (formats.awq(4, 64), Fraction(4) + Fraction(16, 64) + Fraction(4, 64)),
        (formats.awq(4, 32), Fraction(4) + Fraction(16, 32) + Fraction(4, 32)),
        (formats.fp8_block(), 8 + Fraction(32, 128 * 128)),
        (formats.fp8_block(scale_bits=8), 8 + Fraction(8, 128 * 128)),
        (formats.mxfp4(), Fraction(17, 4)),
        (formats.mxfp6(), Fraction(25, 4)),
        (formats.mxfp8(), Fraction(33, 4)),
        (formats.affine(4, 64), Fraction(9, 2)),
        (formats.affine(3, 64), Fraction(7, 2)),
        (formats.hqq(3, 64), Fraction(37, 10)),
    ],
)
def test_bits_per_weight_are_the_weight_and_its_share_of_scales_and_zeros(storage: Storage, bits: Fraction) -> None:
    assert bits_per_weight((5120, 5120), storage) == pytest.approx(float(bits), rel=1e-12)


def test_int4_is_more_than_half_a_byte_a_weight() -> None:
    assert round(bits_per_weight((4096, 4096), formats.awq(4, 128)), 3) == 4.156
    assert round(bits_per_weight((4096, 4096), formats.nvfp4()), 3) == 4.5
    assert round(bits_per_weight((4096, 4096), formats.bnb4()), 3) == 4.5
    assert round(bits_per_weight((4096, 4096), formats.bnb4(double_quant=True)), 3) == 4.127


def test_blocks_at_the_edge_have_scales_of_their_own() -> None:
    # DeepSeek's kv_a_proj_with_mqa: 576 rows are four and a half blocks.
    assert stored_parts((576, 7168), formats.fp8_block()).scales_bytes == 5 * 56 * 4


def test_packed_rows_fill_whole_words() -> None:
    assert stored_parts((3, 9), formats.packed(4, 0)).weights_bytes == 3 * 2 * 4
    assert stored_parts((9, 3), formats.awq(4, 0)).weights_bytes == 3 * 2 * 4
    assert stored_parts((2, 11), formats.packed(3, 0)).weights_bytes == 2 * ceil(33 / 32) * 4


def test_ten_three_bit_weights_of_hqq_share_a_word() -> None:
    assert stored_parts((1, 410), formats.hqq(3, 64)).weights_bytes == 41 * 4
    assert stored_parts((1, 411), formats.hqq(3, 64)).weights_bytes == 42 * 4


def test_bitsandbytes_blocks_run_over_the_end_of_a_row() -> None:
    # Measured with bitsandbytes 0.50.2 on the CPU, without the JSON of the quantization state.
    assert storage_bytes((100, 96), formats.bnb4()) == 5464
    assert storage_bytes((256, 320), formats.bnb4(double_quant=True)) == 43348


def test_every_matrix_of_a_stack_has_scales_of_its_own() -> None:
    storage = formats.nvfp4()
    one = storage_bytes((64, 128), storage)
    assert storage_bytes((64, 128), storage, count=8) == storage_bytes((8, 64, 128), storage) == 8 * one


def test_parts_sum_to_the_whole() -> None:
    parts = stored_parts((OUT, IN), formats.gptq(4, 128), count=3)
    assert parts.total_bytes == storage_bytes((OUT, IN), formats.gptq(4, 128), count=3)
    assert parts.scales_bytes == 3 * 2 * OUT * IN // 128


def test_a_plain_tensor_takes_its_own_type_before_the_models() -> None:
    plain = Tensor(name="w", shape=(10, 10), role=Role.NORM)
    assert stored_tensor_bytes(plain, DType.BF16) == 200
    assert stored_tensor_bytes(Tensor(name="w", shape=(10,), role=Role.NORM, dtype=DType.F32), DType.BF16) == 40
    assert stored_tensor_bytes(Tensor(name="w", shape=(3, 3), role=Role.MLP, dtype=DType.FP4), DType.BF16) == 5


def test_tiled_scales_of_a_matrix_with_few_rows_grow() -> None:
    assert swizzled_scale_bytes((4096, 4096), formats.nvfp4()) == 4096 * 4096 // 16
    assert swizzled_scale_bytes((100, 80), formats.nvfp4()) == 128 * 8
    assert padded_shape((2, 100, 80), out_multiple=32, in_multiple=64) == (2, 128, 128)


FORMATS = st.sampled_from([each.values[0] for each in WRITTEN])
WIDTHS = st.integers(1, 3000)


@given(FORMATS, WIDTHS, WIDTHS)
def test_no_format_stores_a_weight_in_less_than_its_bits(storage: Storage, out_width: int, in_width: int) -> None:
    assert 8 * storage_bytes((out_width, in_width), storage) >= storage.bits * out_width * in_width


@given(FORMATS, WIDTHS, WIDTHS, st.integers(0, 64), st.integers(0, 64))
def test_a_larger_matrix_never_takes_less(
    storage: Storage, out_width: int, in_width: int, more_out: int, more_in: int
) -> None:
    larger = storage_bytes((out_width + more_out, in_width + more_in), storage)
    assert larger >= storage_bytes((out_width, in_width), storage)


@given(FORMATS, st.integers(1, 8), st.integers(1, 8), st.sampled_from([1, 2, 4, 8]))
def test_cuts_that_divide_sum_to_the_whole(storage: Storage, rows: int, columns: int, ranks: int) -> None:
    out_width, in_width = 256 * rows * ranks, 256 * columns * ranks
    whole = storage_bytes((out_width, in_width), storage)
    # What belongs to the matrix as a whole, or to a whole axis, is on every rank.
    by_rows = (ranks - 1) * (storage.tensor_bytes + in_width * storage.index_bits // 8)
    scale_bits = storage.scale_bits + storage.zero_bits
    if not storage.group_out:
        by_rows += (ranks - 1) * scale_bits // 8
    if not storage.flat:
        assert ranks * storage_bytes((out_width // ranks, in_width), storage) == whole + by_rows
    by_columns = (ranks - 1) * storage.tensor_bytes
    if not storage.group_in:
        by_columns += (ranks - 1) * (out_width if storage.group_out else 1) * scale_bits // 8
    if not storage.flat:
        assert ranks * storage_bytes((out_width, in_width // ranks), storage) == whole + by_columns
