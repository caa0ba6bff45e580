"""Codes of a few bits in words of 32: code 0 in the low bits, and on across words, with no bit left out."""

from __future__ import annotations

import torch
from torch import Tensor

from memplan.errors import UsageError
from memplan.quantize.rows import row_slices

_WORD = 32


def pack_words(code: Tensor, bits: int, *, dim: int) -> Tensor:
    """Return int32 words of the codes (X x Y, 0 to 2**bits - 1) along `dim`.

    Raises: UsageError where the codes along `dim` do not fill whole words.
    """
    code_XY = code if dim == 1 else code.t()
    columns = code_XY.shape[1]
    if columns * bits % _WORD:
        raise UsageError(
            f"{columns} codes of {bits} bits do not fill words of 32 bits", hint="keep that layer (--keep)"
        )
    packed = torch.cat([_packed_rows(code_XY[rows], bits) for rows in row_slices(code_XY.shape[0])])
    return (packed if dim == 1 else packed.t()).contiguous()


def unpack_words(packed: Tensor, bits: int, *, dim: int) -> Tensor:
    """Return the codes (uint8) of words: the inverse of `pack_words`."""
    word_XW = packed if dim == 1 else packed.t()
    code_XY = torch.cat([_unpacked_rows(word_XW[rows], bits) for rows in row_slices(word_XW.shape[0])])
    return code_XY if dim == 1 else code_XY.t()


def _packed_rows(code_XY: Tensor, bits: int) -> Tensor:
    """Words of whole rows (X x W, int32)."""
    code_XY = code_XY.to(torch.int64)
    rows = code_XY.shape[0]
    per_turn = _WORD if _WORD % bits else _WORD // bits
    words = per_turn * bits // _WORD
    turn_XTP = code_XY.reshape(rows, -1, per_turn)
    packed_XTW = torch.zeros((rows, turn_XTP.shape[1], words), dtype=torch.int64, device=code_XY.device)
    for place in range(per_turn):
        word, shift = divmod(place * bits, _WORD)
        packed_XTW[:, :, word] |= (turn_XTP[:, :, place] << shift) & 0xFFFFFFFF
        if shift + bits > _WORD:
            packed_XTW[:, :, word + 1] |= turn_XTP[:, :, place] >> (_WORD - shift)
    signed_XTW = torch.where(packed_XTW >= 1 << 31, packed_XTW - (1 << 32), packed_XTW).to(torch.int32)
    return signed_XTW.reshape(rows, -1)


def _unpacked_rows(word_XW: Tensor, bits: int) -> Tensor:
    """Codes of whole rows (X x Y, uint8)."""
    word_XW = word_XW.to(torch.int64) & 0xFFFFFFFF
    rows = word_XW.shape[0]
    per_turn = _WORD if _WORD % bits else _WORD // bits
    words = per_turn * bits // _WORD
    turn_XTW = word_XW.reshape(rows, -1, words)
    code_XTP = torch.empty((rows, turn_XTW.shape[1], per_turn), dtype=torch.uint8, device=word_XW.device)
    for place in range(per_turn):
        word, shift = divmod(place * bits, _WORD)
        value = turn_XTW[:, :, word] >> shift
        if shift + bits > _WORD:
            value = value | (turn_XTW[:, :, word + 1] << (_WORD - shift))
        code_XTP[:, :, place] = value & ((1 << bits) - 1)
    return code_XTP.reshape(rows, -1)
