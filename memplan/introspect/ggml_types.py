"""The element types of ggml, with the size of their blocks, and the names of GGUF file types.

A type packs `block` elements of a row into `block_bytes`; some types of the ik fork put `row_bytes` before every row,
or `tensor_bytes` once per tensor.

Source: ggml.h, ggml-common.h and llama.h of llama.cpp (as vendored by llama-cpp-python 0.3.36); types from 97 on, and
36 as I2_S, from ik_llama.cpp of August 2026. Checked by: the `gguf` package's own table, in tests.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

from memplan.domain.dtypes import DType
from memplan.domain.tensors import Storage
from memplan.records import dataclass


@dataclass(frozen=True, slots=True)
class GgmlType:
    """One element type. `dtype` is set for plain types, where one element is one number."""

    name: str
    block: int
    block_bytes: int
    dtype: DType | None = None
    row_bytes: int = 0
    tensor_bytes: int = 0

    def size_bytes(self, shape: tuple[int, ...]) -> int:
        """The bytes of a tensor whose rows (the last axis, in PyTorch's order) are a whole number of blocks."""
        num_elements = prod(shape)
        num_rows = num_elements // shape[-1] if shape and shape[-1] else 0
        return num_elements // self.block * self.block_bytes + num_rows * self.row_bytes + self.tensor_bytes

    def storage(self) -> Storage | None:
        """How a quantized type stores a matrix; None for a plain type."""
        if self.dtype is not None:
            return None
        return Storage(
            scheme=f"gguf:{self.name}",
            bits=self.block_bytes * 8 / self.block,
            scale_bits=self.row_bytes * 8,
            tensor_bytes=self.tensor_bytes,
        )


GGML_TYPES: Mapping[int, GgmlType] = {
    0: GgmlType("f32", 1, 4, DType.F32),
    1: GgmlType("f16", 1, 2, DType.F16),
    2: GgmlType("q4_0", 32, 18),
    3: GgmlType("q4_1", 32, 20),
    6: GgmlType("q5_0", 32, 22),
    7: GgmlType("q5_1", 32, 24),
    8: GgmlType("q8_0", 32, 34),
    9: GgmlType("q8_1", 32, 36),
    10: GgmlType("q2_k", 256, 84),
    11: GgmlType("q3_k", 256, 110),
    12: GgmlType("q4_k", 256, 144),
    13: GgmlType("q5_k", 256, 176),
    14: GgmlType("q6_k", 256, 210),
    15: GgmlType("q8_k", 256, 292),
    16: GgmlType("iq2_xxs", 256, 66),
    17: GgmlType("iq2_xs", 256, 74),
    18: GgmlType("iq3_xxs", 256, 98),
    19: GgmlType("iq1_s", 256, 50),
    20: GgmlType("iq4_nl", 32, 18),
    21: GgmlType("iq3_s", 256, 110),
    22: GgmlType("iq2_s", 256, 82),
    23: GgmlType("iq4_xs", 256, 136),
    24: GgmlType("i8", 1, 1, DType.INT8),
    25: GgmlType("i16", 1, 2, DType.INT16),
    26: GgmlType("i32", 1, 4, DType.INT32),
    27: GgmlType("i64", 1, 8, DType.INT64),
    28: GgmlType("f64", 1, 8, DType.F64),
    29: GgmlType("iq1_m", 256, 56),
    30: GgmlType("bf16", 1, 2, DType.BF16),
    31: GgmlType("q4_0_4_4", 32, 18),
    32: GgmlType("q4_0_4_8", 32, 18),
    33: GgmlType("q4_0_8_8", 32, 18),
    34: GgmlType("tq1_0", 256, 54),
    35: GgmlType("tq2_0", 256, 66),
    36: GgmlType("i2_s", 4, 1, tensor_bytes=32),
    39: GgmlType("mxfp4", 32, 17),
    40: GgmlType("nvfp4", 64, 36),
    41: GgmlType("q1_0", 128, 18),
    42: GgmlType("q2_0", 64, 18),
    133: GgmlType("q6_0", 32, 26),
    134: GgmlType("iq1_bn", 64, 13, row_bytes=2),
    135: GgmlType("iq2_bn", 64, 16, row_bytes=4),
    137: GgmlType("iq2_k", 256, 76),
    138: GgmlType("iq3_k", 256, 110),
    139: GgmlType("iq4_k", 256, 144),
    140: GgmlType("iq5_k", 256, 176),
    141: GgmlType("iq6_k", 256, 212),
    144: GgmlType("iq4_ks", 256, 136, row_bytes=4),
    145: GgmlType("iq2_ks", 256, 70, row_bytes=2),
    146: GgmlType("iq4_kss", 256, 128, row_bytes=4),
    151: GgmlType("q8_kv", 32, 32, row_bytes=8),
    152: GgmlType("iq5_ks", 256, 168, row_bytes=4),
    153: GgmlType("iq2_kt", 256, 68, row_bytes=4),
    154: GgmlType("iq3_kt", 256, 100, row_bytes=4),
    155: GgmlType("iq4_kt", 256, 128, row_bytes=4),
    156: GgmlType("iq3_ks", 256, 102, row_bytes=2),
    157: GgmlType("iq2_kl", 256, 86, row_bytes=2),
    158: GgmlType("iq1_kt", 256, 56, row_bytes=4),
    202: GgmlType("q4_0_r8", 32, 18),
    206: GgmlType("q5_0_r4", 32, 22),
    208: GgmlType("q8_0_r8", 32, 34),
    210: GgmlType("q2_k_r4", 256, 84),
    211: GgmlType("q3_k_r4", 256, 110),
    212: GgmlType("q4_k_r4", 256, 144),
    213: GgmlType("q5_k_r4", 256, 176),
    214: GgmlType("q6_k_r4", 256, 210),
    216: GgmlType("iq2_xxs_r4", 256, 66),
    217: GgmlType("iq2_xs_r4", 256, 74),
    218: GgmlType("iq3_xxs_r4", 256, 98),
    219: GgmlType("iq1_s_r4", 32, 6, row_bytes=2),
    220: GgmlType("iq4_nl_r4", 32, 18),
    221: GgmlType("iq3_s_r4", 256, 110),
    222: GgmlType("iq2_s_r4", 256, 82),
    223: GgmlType("iq4_xs_r8", 256, 136),
    229: GgmlType("iq1_m_r4", 32, 7, row_bytes=2),
    230: GgmlType("bf16_r16", 1, 2, DType.BF16),
    233: GgmlType("q6_0_r4", 32, 26),
    335: GgmlType("iq2_bn_r4", 64, 16, row_bytes=4),
    337: GgmlType("iq2_k_r4", 256, 76),
    338: GgmlType("iq3_k_r4", 256, 110),
    339: GgmlType("iq4_k_r4", 256, 144),
    340: GgmlType("iq5_k_r4", 256, 176),
    344: GgmlType("iq4_ks_r4", 256, 136, row_bytes=4),
    352: GgmlType("iq5_ks_r4", 256, 168, row_bytes=4),
    353: GgmlType("mxfp4_r8", 32, 17),
    397: GgmlType("q8_k_r16", 256, 258),
    398: GgmlType("q8_kv_r8", 32, 32, row_bytes=4),
    399: GgmlType("q8_k_r8", 256, 258),
}

FILE_TYPES: Mapping[int, str] = {
    0: "f32",
    1: "f16",
    2: "q4_0",
    3: "q4_1",
    4: "q4_1",
    7: "q8_0",
    8: "q5_0",
    9: "q5_1",
    10: "q2_k",
    11: "q3_k_s",
    12: "q3_k_m",
    13: "q3_k_l",
    14: "q4_k_s",
    15: "q4_k_m",
    16: "q5_k_s",
    17: "q5_k_m",
    18: "q6_k",
    19: "iq2_xxs",
    20: "iq2_xs",
    21: "q2_k_s",
    22: "iq3_xs",
    23: "iq3_xxs",
    24: "iq1_s",
    25: "iq4_nl",
    26: "iq3_s",
    27: "iq3_m",
    28: "iq2_s",
    29: "iq2_m",
    30: "iq4_xs",
    31: "iq1_m",
    32: "bf16",
    33: "q4_0_4_4",
    34: "q4_0_4_8",
    35: "q4_0_8_8",
    36: "tq1_0",
    37: "tq2_0",
    38: "mxfp4",
    39: "nvfp4",
    40: "q1_0",
    41: "q2_0",
    135: "q6_0",
    136: "iq1_bn",
    137: "iq2_bn",
    138: "iq2_k",
    139: "iq3_k",
    140: "iq4_k",
    141: "iq5_k",
    142: "iq6_k",
    145: "iq4_ks",
    146: "iq3_kl",
    147: "iq2_ks",
    148: "iq4_kss",
    149: "q8_kv",
    150: "iq5_ks",
    151: "iq2_kt",
    152: "iq3_kt",
    153: "iq4_kt",
    154: "iq3_ks",
    155: "iq2_kl",
    156: "iq1_kt",
    202: "q4_0_r8",
    207: "q8_0_r8",
    208: "q5_0_r4",
    210: "q2_k_r4",
    211: "q3_k_r4",
    214: "q4_k_r4",
    216: "q5_k_r4",
    218: "q6_k_r4",
    225: "iq4_nl_r4",
    230: "iq4_xs_r8",
    232: "bf16_r16",
    338: "iq2_k_r4",
    339: "iq3_k_r4",
    340: "iq4_k_r4",
    341: "iq5_k_r4",
    345: "iq4_ks_r4",
    350: "iq5_ks_r4",
    399: "q8_k_r8",
}
