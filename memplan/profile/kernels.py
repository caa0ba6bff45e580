"""What a GPU's kernels make and take where the meta device would run something else.

The meta device computes attention by its plain formula, which makes the matrix of scores; a GPU runs a fused kernel.
Here the operator of the kernel that PyTorch would choose is called in its place: it knows its outputs and its
backward pass on the meta device too. Operators that ask a tensor for its values get an answer, because on the meta
device there are none.

Source: aten/src/ATen/native/transformers/attention.cpp and cuda/sdp_utils.cpp of PyTorch 2.13.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from memplan.profile.recorder import Answer
from memplan.profile.request import Kernel

FLASH_HEAD_LIMIT = 256
_OPS = torch.ops.aten


@contextlib.contextmanager
def simulated_kernels(kernel: Kernel, compute_capability: tuple[int, int]) -> Iterator[None]:
    """Run the operators of a GPU's attention kernels in the place of torch's own attention."""
    functional = torch.nn.functional
    plain = functional.scaled_dot_product_attention
    attend = Attention(kernel, compute_capability)
    functional.scaled_dot_product_attention = attend
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = plain


class Attention:
    """Attention as a GPU's kernel would do it, callable as `scaled_dot_product_attention`."""

    def __init__(self, kernel: Kernel, compute_capability: tuple[int, int]) -> None:
        self.kernel = kernel
        self.compute_capability = compute_capability

    def __call__(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> torch.Tensor:
        chosen = self._choose(query, key, value, attn_mask, enable_gqa)
        if chosen == "flash":
            return _flash(query, key, value, dropout_p, is_causal, scale, enable_gqa)
        if chosen == "efficient":
            return _efficient(query, key, value, attn_mask, dropout_p, is_causal, scale)
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            attn_mask = _as_bias(attn_mask, query.dtype)
        out: torch.Tensor = _OPS._scaled_dot_product_attention_math(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )[0]
        return out

    def _choose(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, gqa: bool
    ) -> str:
        if self.kernel == "math":
            return "math"
        is_narrow = query.dtype in (torch.bfloat16, torch.float16)
        widths = query.shape[-1] == key.shape[-1] == value.shape[-1]
        fits = is_narrow and widths and query.shape[-1] <= FLASH_HEAD_LIMIT and mask is None
        if fits and self.kernel != "efficient" and self.compute_capability >= (8, 0):
            return "flash"
        return "math" if gqa and key.shape[1] != query.shape[1] else "efficient"


def _flash(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    dropout_p: float,
    is_causal: bool,
    scale: float | None,
    gqa: bool,
) -> torch.Tensor:
    width = query.shape[-1]
    scale = width**-0.5 if scale is None else scale
    pad = -width % 8
    if pad:
        query, key, value = (torch.nn.functional.pad(each, (0, pad)) for each in (query, key, value))
    out: torch.Tensor = _OPS._scaled_dot_product_flash_attention(query, key, value, dropout_p, is_causal, scale=scale)[
        0
    ]
    return out[..., :width] if pad else out


def _efficient(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    dropout_p: float,
    is_causal: bool,
    scale: float | None,
) -> torch.Tensor:
    keeps_sums = torch.is_grad_enabled() and any(each.requires_grad for each in (query, key, value))
    if mask is not None:
        if mask.dtype == torch.bool:
            mask = _as_bias(mask, query.dtype)
        mask = mask.expand(query.shape[0], query.shape[1], query.shape[2], key.shape[2])
    out: torch.Tensor = _OPS._scaled_dot_product_efficient_attention(
        query, key, value, mask, keeps_sums, dropout_p, is_causal, scale=scale
    )[0]
    return out


def _as_bias(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A mask of numbers to add, which kernels take, of one that says which scores stay."""
    bias = torch.zeros_like(mask, dtype=dtype)
    return bias.masked_fill_(mask.logical_not(), float("-inf"))


def meta_answers() -> dict[Any, Answer]:
    """Stand-ins for operators that need the values of tensors: nothing is padded, nothing has ended."""
    truths: dict[int, bool] = {}

    def all_true(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        made = args[0].new_empty((), dtype=torch.bool)
        truths.clear()
        truths[made.untyped_storage()._cdata] = True
        return made

    def item(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        tensor = args[0]
        if not tensor.is_meta:
            return _OPS._local_scalar_dense.default(tensor)
        if tensor.dtype == torch.bool:
            return truths.get(tensor.untyped_storage()._cdata, False)
        return 0.0 if tensor.is_floating_point() else 0

    return {_OPS.all.default: all_true, _OPS._local_scalar_dense.default: item}
