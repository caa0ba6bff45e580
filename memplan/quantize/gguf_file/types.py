"""The types that a GGUF can be written in, and by which library. Neither is imported here.

Source: gguf 0.19, quants.py and constants.py LlamaFileType; llama.h `llama_ftype` as of llama-cpp-python 0.3.36.
"""

from __future__ import annotations

from collections.abc import Mapping

from memplan.records import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class FileType:
    """A type of file: `number` is llama.cpp's, `by_llama_cpp` whether only its own quantizer writes it."""

    number: int
    bits: int
    by_llama_cpp: bool = False


FILE_TYPES: Mapping[str, FileType] = {
    "q4_0": FileType(number=2, bits=4),
    "q4_1": FileType(number=3, bits=4),
    "q8_0": FileType(number=7, bits=8),
    "q5_0": FileType(number=8, bits=5),
    "q5_1": FileType(number=9, bits=5),
    "q2_k": FileType(number=10, bits=2, by_llama_cpp=True),
    "q3_k_s": FileType(number=11, bits=3, by_llama_cpp=True),
    "q3_k_m": FileType(number=12, bits=3, by_llama_cpp=True),
    "q3_k_l": FileType(number=13, bits=3, by_llama_cpp=True),
    "q4_k_s": FileType(number=14, bits=4, by_llama_cpp=True),
    "q4_k_m": FileType(number=15, bits=4, by_llama_cpp=True),
    "q5_k_s": FileType(number=16, bits=5, by_llama_cpp=True),
    "q5_k_m": FileType(number=17, bits=5, by_llama_cpp=True),
    "q6_k": FileType(number=18, bits=6, by_llama_cpp=True),
}
BF16_NUMBER = 32
