"""The two ends of a model, its embeddings and its head: rows are read from the mapped file as they are needed.

With a large vocabulary these two tables are larger than several blocks, and a batch of tokens uses few rows of the
first. The second is multiplied in slices of its rows, each taken to the type that is computed in.

Axes: V tokens of the vocabulary, H hidden features, R rows that are used.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from memplan.quantize.rows import row_slices

# Of the head, in the type that is computed in. A smaller head is one slice, and multiplied as it would be whole.
HEAD_SLICE_BYTES = 256 * 2**20


def ends(model: Any) -> Iterator[tuple[str, nn.Module]]:
    """The table of embeddings and the head, by their names, where they are of the usual kinds."""
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    for name, module in model.named_modules():
        if (module is table and isinstance(module, nn.Embedding)) or (module is head and type(module) is nn.Linear):
            yield name, module


def read_rows_of(module: nn.Module, table_VH: Tensor, device: str, dtype: torch.dtype) -> None:
    """Let an embedding or a head read `table_VH`, which may be mapped, by rows; its own weights stay empty."""
    # Of the table's shape, type and device, which families ask for, and a number large.
    module.weight = nn.Parameter(
        torch.zeros((), dtype=dtype, device=device).expand(table_VH.shape), requires_grad=False
    )
    if isinstance(module, nn.Linear):
        setattr(module, "forward", _head(module, table_VH, device, dtype))  # noqa: B010 - a method, to mypy
        return
    assert isinstance(module, nn.Embedding)
    module.padding_idx = None  # it matters to gradients alone, and would point outside of the rows in use
    for hooks in (module._forward_pre_hooks, module._forward_hooks):
        hooks.clear()
    module.register_forward_pre_hook(_filling(table_VH, device, dtype))
    module.register_forward_hook(_emptying(module.weight))


def _filling(table_VH: Tensor, device: str, dtype: torch.dtype) -> Any:
    """Before an embedding runs: the rows of its tokens become its table, and tokens their places in it."""

    def hook(module: nn.Embedding, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        used_R, place = args[0].unique(return_inverse=True)
        rows_RH = table_VH[used_R.to(table_VH.device)].to(device, dtype)
        module.weight = nn.Parameter(rows_RH, requires_grad=False)
        return (place, *args[1:])

    return hook


def _emptying(empty_VH: nn.Parameter) -> Any:
    def hook(module: nn.Embedding, _args: Any, _output: Tensor) -> None:
        module.weight = empty_VH

    return hook


def _head(module: nn.Linear, table_VH: Tensor, device: str, dtype: torch.dtype) -> Any:
    """What stands in for a head's own product."""
    num_rows = max(1, HEAD_SLICE_BYTES // (table_VH.shape[1] * dtype.itemsize))

    def forward(hidden: Tensor) -> Tensor:
        slices = list(row_slices(table_VH.shape[0], num_rows))
        logits = None
        for rows in slices:
            bias_V = None if module.bias is None else module.bias[rows]
            part = nn.functional.linear(hidden, table_VH[rows].to(device, dtype), bias_V)
            if len(slices) == 1:
                return part
            if logits is None:
                logits = torch.empty(*hidden.shape[:-1], table_VH.shape[0], dtype=part.dtype, device=part.device)
            logits[..., rows] = part
        assert logits is not None
        return logits

    return forward
