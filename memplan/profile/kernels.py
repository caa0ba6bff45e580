"""What a GPU's kernels make and take where the meta device would run something else.

The meta device computes attention by its plain formula, which makes the matrix of scores; a GPU runs a fused kernel.
Here the operator of the kernel that PyTorch would choose is called in its place: it knows its outputs and its
backward pass on the meta device too. Operators that ask a tensor for its values get an answer, because on the meta
device there are none.

On GPUs where PyTorch prefers cuDNN's attention, that makes the tensors which the flash kernel makes.

Source: aten/src/ATen/native/transformers/attention.cpp and cuda/sdp_utils.cpp of PyTorch 2.13.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Literal

import torch

from memplan.profile.request import Kernel

FLASH_HEAD_LIMIT = 256
# The name that attention without scores and masks is registered under in transformers.
FUSED = "memplan_fused"
_OPS = torch.ops.aten


Target = Literal["cuda", "cpu"]


@contextlib.contextmanager
def simulated_kernels(target: Target, kernel: Kernel, compute_capability: tuple[int, int]) -> Iterator[None]:
    """Run what the kernels of a device run, while models are called on the meta device."""
    functional = torch.nn.functional
    attend = Attention(target, kernel, compute_capability)
    replaced = [
        (functional, "scaled_dot_product_attention", attend),
        (torch, "tensor", _tensor_through_host(torch.tensor)),
    ]
    if target == "cuda":
        replaced.append((functional, "dropout", _fused_dropout(functional.dropout)))
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in replaced]
    try:
        for owner, name, stand_in in replaced:
            setattr(owner, name, stand_in)
        yield
    finally:
        for owner, name, plain in before:
            setattr(owner, name, plain)


def _tensor_through_host(plain: Any) -> Any:
    """torch.tensor, in the two steps that it takes: the values on the host, then their copy on the device."""

    def tensor(data: Any, *args: Any, device: Any = None, **options: Any) -> torch.Tensor:
        if device is None or torch.device(device).type != "meta":
            return plain(data, *args, device=device, **options)
        return plain(data, *args, device="cpu", **options).to(device)

    return tensor


def _fused_dropout(plain: Any) -> Any:
    """Dropout in one kernel, as a GPU does it, which keeps a mask of one byte for each element."""

    def dropout(input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
        if not training or inplace or not 0 < p < 1 or not input.is_meta:
            return plain(input, p, training, inplace)
        return torch.native_dropout(input, p, training)[0]

    return dropout


class Attention:
    """Attention as a device's kernel would do it, callable as `scaled_dot_product_attention`."""

    def __init__(self, target: Target, kernel: Kernel, compute_capability: tuple[int, int]) -> None:
        self.target = target
        self.kernel = kernel
        self.compute_capability = compute_capability
        self._plain = torch.nn.functional.scaled_dot_product_attention

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
        if not query.is_meta:
            return self._plain(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
        if self.target == "cpu" and self.kernel != "math":
            return _on_cpu(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)
        chosen = self._choose(query, key, value, attn_mask, enable_gqa)
        if chosen == "flash":
            return _flash(query, key, value, dropout_p, is_causal, scale, enable_gqa)
        if chosen == "efficient":
            if key.shape[1] != query.shape[1]:
                groups = query.shape[1] // key.shape[1]
                key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
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
        # The efficient kernel has no key heads that several query heads share: asked for by name, they are copied.
        is_shared = gqa and key.shape[1] != query.shape[1]
        return "math" if is_shared and self.kernel != "efficient" else "efficient"


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
        mask = _aligned(mask).expand(query.shape[0], query.shape[1], query.shape[2], key.shape[2])
    out: torch.Tensor = _OPS._scaled_dot_product_efficient_attention(
        query, key, value, mask, keeps_sums, dropout_p, is_causal, scale=scale
    )[0]
    return out


def _aligned(mask: torch.Tensor) -> torch.Tensor:
    """A mask whose rows begin at 16 bytes, which the efficient kernel wants: a wider copy where they do not."""
    if all(step % 8 == 0 for step in mask.stride()[:-1]) and mask.stride(-1) == 1:
        return mask
    length = mask.shape[-1]
    return torch.nn.functional.pad(mask, (0, 8 - length % 8))[..., :length]


def register_fused() -> None:
    """Make the kernel of the flash-attention package known to transformers, by shapes alone, under the name FUSED."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import flash_attention_mask

    AttentionInterface.register(FUSED, _fused_attention)
    AttentionMaskInterface.register(FUSED, flash_attention_mask)


def _fused_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attention over [batch, heads, tokens, width], made as [batch, tokens, heads, width]."""
    width = value.shape[-1]
    if width < query.shape[-1]:
        value = torch.nn.functional.pad(value, (0, query.shape[-1] - width))
    query, key, value = (each.transpose(1, 2) for each in (query, key, value))
    is_causal = bool(getattr(module, "is_causal", True))
    out: torch.Tensor = _OPS._flash_attention_forward(
        query,
        key,
        value,
        None,
        None,
        query.shape[1],
        key.shape[1],
        dropout,
        is_causal,
        False,
        scale=scaling,
        window_size_left=sliding_window,
    )[0]
    return out[..., :width], None


def _on_cpu(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    dropout_p: float,
    is_causal: bool,
    scale: float | None,
    gqa: bool,
) -> torch.Tensor:
    """The CPU's own kernel, or its plain formula, as PyTorch chooses for tensors of these shapes."""
    given = [_hollow(each) for each in (query, key, value)]
    seen = None if mask is None else _hollow(mask)
    chosen = torch._fused_sdp_choice(*given, seen, dropout_p, is_causal, scale=scale, enable_gqa=gqa)
    if mask is not None and mask.dtype == torch.bool:
        mask = _as_bias(mask, query.dtype)
    if chosen == torch.nn.attention.SDPBackend.FLASH_ATTENTION.value:
        out: torch.Tensor = _OPS._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, dropout_p, is_causal, attn_mask=mask, scale=scale
        )[0]
        return out
    plain: torch.Tensor = _OPS._scaled_dot_product_attention_math(
        query, key, value, mask, dropout_p, is_causal, scale=scale, enable_gqa=gqa
    )[0]
    return plain


def _hollow(tensor: torch.Tensor) -> torch.Tensor:
    """A CPU tensor of one row that looks as large as `tensor`."""
    row = torch.zeros(tensor.shape[-1:], dtype=tensor.dtype).expand(tensor.shape)
    return row.requires_grad_(tensor.requires_grad)


def _as_bias(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A mask of numbers to add, which kernels take, of one that says which scores stay."""
    return torch.where(mask, 0.0, torch.scalar_tensor(float("-inf"), dtype=dtype, device=mask.device))
