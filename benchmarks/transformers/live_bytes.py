"""How many bytes of tensors are alive while torch runs, operation by operation, on the CPU or on the meta device.

Every storage that an operation makes is counted until its last reference is gone, as a caching allocator counts it.
What an operation takes inside itself and gives back before it returns is not seen, but for the safe softmax of plain
SDPA, which is a softmax, a comparison and a selection.

SDPA is one operation on a GPU and many on the meta device. `as_on_gpu` puts a stand-in in its place that makes the
tensors which the GPU's kernel makes: the output and its log-sum, and a mask of numbers where the mask is boolean.

Source: aten/src/ATen/native/transformers/attention.cpp and cuda/sdp_utils.cpp of PyTorch 2.13.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

FLASH_HEAD_LIMIT = 256


class LiveBytes(TorchDispatchMode):
    """Counts what is alive while it is entered; `known` tensors (weights) are left out."""

    def __init__(self, known: Iterable[torch.Tensor] = ()) -> None:
        super().__init__()
        self.live_bytes = 0
        self.peak_bytes = 0
        self.peak_at = ""
        self._known = {tensor.untyped_storage()._cdata for tensor in known}
        self._alive: dict[int, tuple[int, Any]] = {}

    def forget_peak(self) -> None:
        """Start a new phase: what is alive now stays counted."""
        self.peak_bytes, self.peak_at = self.live_bytes, ""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            return False  # "is nothing padded?" is what is asked of meta tensors
        answer = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._safe_softmax.default:
            self._note_peak(answer.nbytes + answer.numel() + answer.nbytes, str(func), answer)
        for leaf in tree_leaves(answer):
            if isinstance(leaf, torch.Tensor):
                self._add(leaf, str(func))
        return answer

    def _add(self, tensor: torch.Tensor, name: str) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known or key in self._alive:
            return
        size = storage.nbytes()
        self._alive[key] = (size, weakref.ref(storage, lambda _, key=key: self._remove(key)))
        self.live_bytes += size
        self._note_peak(0, name, tensor)

    def _note_peak(self, inside_bytes: int, name: str, tensor: torch.Tensor) -> None:
        """Keep the fullest moment; `inside_bytes` is what an operation holds beside what is alive around it."""
        if self.live_bytes + inside_bytes > self.peak_bytes:
            self.peak_bytes = self.live_bytes + inside_bytes
            self.peak_at = f"{name} {tuple(tensor.shape)} {_line_of_model()}"

    def _remove(self, key: int) -> None:
        size, _ = self._alive.pop(key)
        self.live_bytes -= size

    def largest(self, number: int = 10) -> list[int]:
        """The sizes of the largest storages that are alive now."""
        return sorted((size for size, _ in self._alive.values()), reverse=True)[:number]


def _line_of_model() -> str:
    """The innermost line of transformers' own code that is running."""
    frame = sys._getframe()
    while frame is not None:
        name = frame.f_code.co_filename
        if "/transformers/models/" in name or "/transformers/integrations/" in name:
            return f"{name.rsplit('/', 1)[1]}:{frame.f_lineno}"
        frame = frame.f_back
    return ""


class AsOnGpu(TorchFunctionMode):
    """Puts the tensors that SDPA's GPU kernels make in place of the many of its plain version."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.nn.functional.scaled_dot_product_attention:
            return self._attend(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _attend(
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
        is_narrow = query.dtype in (torch.bfloat16, torch.float16)
        fits = max(query.shape[-1], value.shape[-1]) <= FLASH_HEAD_LIMIT
        has_flash = is_narrow and fits and attn_mask is None and query.shape[-1] == value.shape[-1]
        if not has_flash and enable_gqa:
            return torch.ops.aten._scaled_dot_product_attention_math(
                query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
            )[0]
        bias = None
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            bias = torch.where(attn_mask, 0.0, torch.scalar_tensor(-1.0, dtype=query.dtype, device=query.device))
        rows, heads, tokens, _ = query.shape
        output = torch.empty(rows, tokens, heads, value.shape[-1], dtype=query.dtype, device=query.device)
        if has_flash:
            torch.empty(rows, heads, tokens, dtype=torch.float32, device=query.device)
        del bias
        return output.transpose(1, 2)
