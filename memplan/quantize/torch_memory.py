"""What torch says of memory: that there is too little, and how much of a GPU it has had."""

from __future__ import annotations

import torch

# It has an error of its own for a GPU, and words for the CPU and for mapped files.
_WORDS = ("can't allocate memory", "not enough memory", "No space left on device")


def is_short_of_memory(error: RuntimeError) -> bool:
    """Whether an error of torch says that memory could not be had."""
    return isinstance(error, torch.OutOfMemoryError) or any(word in str(error) for word in _WORDS)


def device_peak_bytes() -> int:
    """The most that torch has held of the GPU that is in use."""
    return int(torch.cuda.max_memory_reserved())
