"""Mixes of K-quants, which llama.cpp's own quantizer alone writes: a 16-bit GGUF in, a smaller one out."""

from __future__ import annotations

import ctypes
import os
from importlib.util import find_spec
from pathlib import Path

from memplan.errors import MissingExtra
from memplan.quantize.gguf_file.types import FILE_TYPES
from memplan.quantize.unsupported import UnsupportedHere

_HINT = "pip install llama-cpp-python, or --method gguf:q8_0"


def check_installed(kind: str) -> None:
    """Raises: MissingExtra without llama-cpp-python."""
    if find_spec("llama_cpp") is None:
        raise MissingExtra(f"gguf:{kind} is written by llama.cpp itself", hint=_HINT)


def quantize_gguf(plain: Path, place: Path, kind: str) -> None:
    """Quantize a GGUF of 16 bits into a type of FILE_TYPES.

    Raises: MissingExtra without llama-cpp-python; UnsupportedModel when it refuses.
    """
    try:
        import llama_cpp
    except (ImportError, OSError, RuntimeError) as error:
        raise MissingExtra(f"gguf:{kind} is written by llama.cpp: {error}", hint=_HINT) from None
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype = FILE_TYPES[kind].number
    settings.nthread = os.cpu_count() or 1
    failed = llama_cpp.llama_model_quantize(os.fsencode(plain), os.fsencode(place), ctypes.byref(settings))
    if failed:
        raise UnsupportedHere(f"llama.cpp could not write gguf:{kind} (code {failed}); its own lines say why")
