"""Memory that torch has freed, and the C library keeps until it is told otherwise."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

pytest.importorskip("torch")

# In a process of its own: where others have left holes below, what is kept does not lie above what is freed.
_CODE = """
import torch
from memplan.quantize.memory_watch import held_bytes
from memplan.quantize.torch_memory import give_back

larger = torch.ones(1 << 21)
del larger  # from now on pieces of half its size are taken from the heap
pieces = [torch.ones(1 << 20) for _ in range(32)]
above = torch.ones(1 << 18)
del pieces
kept_bytes = held_bytes()
give_back()
assert held_bytes() < kept_bytes - (64 << 20), (held_bytes(), kept_bytes)
assert above.sum() == 1 << 18
"""


@pytest.mark.skipif(
    not sys.platform.startswith("linux") or not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="no glibc"
)
def test_what_was_freed_below_what_is_in_use_is_handed_back() -> None:
    done = subprocess.run([sys.executable, "-c", _CODE], check=False, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0, done.stderr
