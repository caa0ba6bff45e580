"""The factor of an inverse that GPTQ works with, made in the memory of the matrix itself.

LAPACK's bits hang on the number of its threads, and GPTQ hands every rounding on: one that turns over turns thousands
after it. So the large products are left to threads, which do not change them, and LAPACK has one thread for the blocks
on the diagonal. What comes out is the same on one thread and on many, in one process and in several.

Axes: I in features, L features of a block on the diagonal.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from memplan.quantize.rows import row_slices

_BLOCK = 512  # features of a block on the diagonal, which is left to LAPACK
_MOST_DAMPING = 1.0


def inverse_factor(hessian_II: Tensor, damping: float) -> tuple[Tensor | None, float]:
    """Return U, upper triangular, with H^-1 = U^T U, and what was added to the diagonal; None when no damping helps.

    U takes the memory of `hessian_II`, and a quarter of its size is held beside it. With J
    the matrix that turns an order around and J H J = L L^T, U is J L^-1 J: one factorisation and one triangular
    inverse, a third less work than inverting and factorising again.
    """
    if not bool(torch.isfinite(hessian_II.diagonal()).all()):
        return None, 0.0
    turn_around(hessian_II)
    diagonal_I = hessian_II.diagonal().clone()
    added = float(diagonal_I.mean(dtype=torch.float64))
    blocks_LL = [hessian_II[rows, rows].clone() for rows in row_slices(hessian_II.shape[0], _BLOCK)]
    while damping <= _MOST_DAMPING:
        hessian_II.diagonal().copy_(diagonal_I + damping * added)
        if _factorise(hessian_II):
            _invert_lower(hessian_II)
            turn_around(hessian_II)
            return hessian_II, damping * added
        _restore(hessian_II, blocks_LL)
        damping *= 10
    return None, 0.0


def reorder(matrix_II: Tensor, order_I: Tensor) -> None:
    """Bring rows and columns of a square matrix into another order, in its own memory."""
    for some in row_slices(matrix_II.shape[0], _BLOCK):
        matrix_II[some] = matrix_II[some][:, order_I]
    for some in row_slices(matrix_II.shape[0], _BLOCK):
        matrix_II[:, some] = matrix_II[order_I, some]


def turn_around(matrix_II: Tensor) -> None:
    """Turn the order of rows and columns of a square matrix around, in its own memory."""
    size = matrix_II.shape[0]
    for some in row_slices(size // 2, _BLOCK):
        opposite = slice(size - some.stop, size - some.start)
        first = matrix_II[some].flip(0, 1)
        matrix_II[some] = matrix_II[opposite].flip(0, 1)
        matrix_II[opposite] = first
    if size % 2:
        matrix_II[size // 2] = matrix_II[size // 2].flip(0)


def _factorise(matrix_II: Tensor) -> bool:
    """Put L, with A = L L^T, below the blocks on the diagonal of A, and their inverses in its own blocks' places.

    Returns whether A is positive definite. Above the blocks it stays as it was.
    """
    size = matrix_II.shape[0]
    for block in row_slices(size, _BLOCK):
        with _one_thread():
            lower_LL, failed = torch.linalg.cholesky_ex(matrix_II[block, block])
            if int(failed) or not bool(torch.isfinite(lower_LL.diagonal()).all()):
                return False
            eye_LL = torch.eye(lower_LL.shape[0], dtype=lower_LL.dtype, device=lower_LL.device)
            inverse_LL = torch.linalg.solve_triangular(lower_LL, eye_LL, upper=False)
        matrix_II[block, block] = inverse_LL
        below_IL = matrix_II[block.stop :, block] @ inverse_LL.t()
        matrix_II[block.stop :, block] = below_IL
        for some in row_slices(size - block.stop, _BLOCK):
            rows = slice(block.stop + some.start, block.stop + some.stop)
            matrix_II[rows, block.stop : rows.stop].addmm_(below_IL[some], below_IL[: some.stop].t(), alpha=-1.0)
    return True


def _restore(matrix_II: Tensor, blocks_LL: list[Tensor]) -> None:
    """Undo what a factorisation that failed has changed: the triangle above the blocks is still there."""
    for rows, block_LL in zip(row_slices(matrix_II.shape[0], _BLOCK), blocks_LL, strict=True):
        matrix_II[rows.stop :, rows] = matrix_II[rows, rows.stop :].t()
        matrix_II[rows, rows] = block_LL


def _invert_lower(matrix_II: Tensor) -> None:
    """Make L^-1 of L with inverted blocks on its diagonal, in its own place, by halves; clears what is above them."""
    size = matrix_II.shape[0]
    if size <= _BLOCK:
        return
    half = -(-size // _BLOCK) // 2 * _BLOCK
    _invert_lower(matrix_II[:half, :half])
    _invert_lower(matrix_II[half:, half:])
    corner_II = matrix_II[half:, :half] @ matrix_II[:half, :half]
    torch.matmul(matrix_II[half:, half:], corner_II.neg_(), out=matrix_II[half:, :half])
    matrix_II[:half, half:] = 0.0


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
