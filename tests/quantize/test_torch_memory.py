"""Memory that torch has freed, and the C library keeps until it is told otherwise."""

from __future__ import annotations

import ctypes
import sys

import pytest

torch = pytest.importorskip("torch")

from memplan.quantize.memory_watch import held_bytes  # noqa: E402 - after the skip
from memplan.quantize.torch_memory import give_back  # noqa: E402
from memplan.units import MIB  # noqa: E402

_PIECES, _PIECE_BYTES = 32, 4 * MIB


@pytest.mark.skipif(
    not sys.platform.startswith("linux") or not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="no glibc"
)
def test_what_was_freed_below_what_is_in_use_is_handed_back() -> None:
    larger = torch.ones(2 * _PIECE_BYTES // 4)
    del larger  # from now on pieces of this size are taken from the heap
    pieces = [torch.ones(_PIECE_BYTES // 4) for _ in range(_PIECES)]
    above = torch.ones(1 << 18)
    del pieces
    kept_bytes = held_bytes()
    give_back()
    assert held_bytes() < kept_bytes - _PIECES * _PIECE_BYTES // 2
    assert above.sum() == 1 << 18
