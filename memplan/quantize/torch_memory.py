"""What torch says of memory: that there is too little, and how much of a GPU it has had; and giving it back."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from functools import cache

import torch

# It has an error of its own for a GPU, and words for the CPU and for mapped files.
_WORDS = ("can't allocate memory", "not enough memory", "No space left on device")


def is_short_of_memory(error: RuntimeError) -> bool:
    """Whether an error of torch says that memory could not be had."""
    return isinstance(error, torch.OutOfMemoryError) or any(word in str(error) for word in _WORDS)


def device_peak_bytes() -> int:
    """The most that torch has held of the GPU that is in use."""
    return int(torch.cuda.max_memory_reserved())


def give_back() -> None:
    """Hand memory that nothing uses any more to the system.

    The C library keeps what was freed in pieces of less than 32 MiB, as soon as one was so large, and in between lies
    what is still in use: without this a proof of a small model held up to 260 MiB more than its tensors
    (benchmarks/quantize/memory.py).
    """
    trim = _trim()
    if trim is not None:
        trim(0)


@cache
def _trim() -> Callable[[int], int] | None:
    """The C library's own function, which glibc alone has."""
    if not sys.platform.startswith("linux"):
        return None
    found: Callable[[int], int] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return found
