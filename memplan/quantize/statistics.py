"""What the calibration tokens say of the inputs of linear layers.

Of several processes each runs its share of the batches, and hands what a layer reads to all. Every part of a sum is one
process's, which adds the batches in their order: the sums are those of a process alone, to the last bit. GPTQ needs
that, for one rounding that turns over turns thousands after it.

Axes: T tokens of a batch, N tokens that are kept, I in features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from memplan.errors import MemplanError
from memplan.quantize.ranks import ALONE, Ranks
from memplan.quantize.rows import row_slices
from memplan.records import dataclass

SAMPLE_TOKENS = 512
# Rows of a Hessian that are summed by one product, from the diagonal on: the rest is the same, mirrored.
_PARTS, _LEAST_ROWS = 8, 128


class BrokenNumbers(MemplanError):
    """NaN or infinite activations: going on would write a model that answers with noise."""

    exit_code = 4


class StopRun(Exception):
    """Raised by a hook when all that was asked for has been seen; the rest of the block need not run."""


@dataclass(slots=True)
class Statistics:
    """What the tokens that a subset of linear layers read have in common.

    `hessian_II` is the sum of x x^T over tokens and `magnitude_I` that of |x|; `finish` makes means of them, and the
    Hessian whole, of which there is one triangle until then. `largest_I` is the largest |x|, `sample_NI` some tokens.
    """

    hessian_II: Tensor | None
    magnitude_I: Tensor
    largest_I: Tensor
    sample_NI: Tensor
    num_tokens: int = 0

    @staticmethod
    def empty(num_in: int, device: torch.device | str, *, with_hessian: bool) -> Statistics:
        """Statistics of no tokens."""
        hessian_II = torch.zeros((num_in, num_in), device=device) if with_hessian else None
        zeros_I = torch.zeros(num_in, device=device)
        return Statistics(hessian_II, zeros_I, zeros_I.clone(), torch.zeros((0, num_in), device=device))

    def add(self, input_TI: Tensor, keep: int, ranks: Ranks = ALONE) -> None:
        """Add tokens to the parts of the sums that are this process's; `keep`, evenly spaced, stay in the sample.

        Raises: BrokenNumbers for tokens that are not finite, in every process.
        """
        input_TI = input_TI.to(torch.float32)
        size_I = torch.zeros_like(self.magnitude_I)
        for some in row_slices(input_TI.shape[0]):  # ten times as fast as a norm over the first dimension
            size_I += input_TI[some].abs().sum(0)
        if not bool(torch.isfinite(size_I).all()):
            raise BrokenNumbers("NaN or infinite activations in calibration", hint="is the model sound in 16 bit?")
        if self.hessian_II is not None:
            for rows in ranks.in_turns(_parts(self.hessian_II.shape[0])):
                self.hessian_II[rows, rows.start :].addmm_(input_TI[:, rows].t(), input_TI[:, rows.start :])
        if not ranks.is_first:
            return
        self.magnitude_I += size_I
        torch.maximum(self.largest_I, torch.maximum(input_TI.amax(0), input_TI.amin(0).neg_()), out=self.largest_I)
        if keep:
            every = max(1, input_TI.shape[0] // keep)
            self.sample_NI = torch.cat([self.sample_NI, input_TI[::every][:keep]])
        self.num_tokens += input_TI.shape[0]

    def finish(self, ranks: Ranks) -> None:
        """Put the parts of all processes together, and make means of the sums, in place."""
        if self.hessian_II is not None:
            ranks.add_up(self.hessian_II)
            for rows in _parts(self.hessian_II.shape[0]):
                self.hessian_II[rows.stop :, rows] = self.hessian_II[rows, rows.stop :].t()
        ranks.add_up(self.magnitude_I, self.largest_I)
        self.sample_NI = ranks.rows_of_all(self.sample_NI)
        self.num_tokens = ranks.total(self.num_tokens, self.magnitude_I.device)
        if self.hessian_II is not None:
            self.hessian_II /= max(1, self.num_tokens)
        self.magnitude_I /= max(1, self.num_tokens)

    def scale_inputs(self, scale_I: Tensor) -> None:
        """Make these the statistics of inputs that are divided by `scale_I`."""
        if self.hessian_II is not None:
            self.hessian_II.div_(scale_I).div_(scale_I[:, None])
        self.magnitude_I = self.magnitude_I / scale_I
        self.largest_I = self.largest_I / scale_I
        self.sample_NI = self.sample_NI / scale_I


def collect(
    block: nn.Module,
    names: Sequence[str],
    num_in: Sequence[int],
    runs: Iterable[Callable[[], object]],
    *,
    device: torch.device | str,
    num_runs: int,
    with_hessian: bool,
    with_sample: bool,
    ranks: Ranks = ALONE,
) -> dict[str, Statistics]:
    """Return the statistics of the inputs of the linear layers `names` over all `runs` of the block, in all processes.

    A run ends when the last of them has been reached. Raises: BrokenNumbers for activations that are not finite.
    """
    found = {
        name: Statistics.empty(size, device, with_hessian=with_hessian)
        for name, size in zip(names, num_in, strict=True)
    }
    keep = sample_tokens(ranks.total(num_runs, torch.device(device))) if with_sample else 0
    missing = ranks.missing(num_runs, device)
    read: list[str] = []  # in one run, in the order in which every process reads them

    def add(name: str, input_TI: Tensor | None) -> None:
        for tokens_TI in ranks.of_each(() if input_TI is None else (input_TI,), device):
            found[name].add(tokens_TI[0], keep, ranks)

    def adding(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
            input_BNI: Tensor = args[0] if args else next(iter(kwargs.values()))
            read.append(name)
            add(name, input_BNI.reshape(-1, input_BNI.shape[-1]))
            if name == names[-1]:
                raise StopRun

        return hook

    hooks = [block.get_submodule(name).register_forward_pre_hook(adding(name), with_kwargs=True) for name in names]
    try:
        for run in runs:
            read.clear()
            with suppress(StopRun):
                run()
    finally:
        for hook in hooks:
            hook.remove()
    for _ in range(missing):
        for name in read:
            add(name, None)
    for statistics in found.values():
        statistics.finish(ranks)
    return found


def sample_tokens(num_runs: int) -> int:
    """How many tokens of each run stay in a sample."""
    return -(-SAMPLE_TOKENS // max(1, num_runs))


def _parts(size: int) -> Iterator[slice]:
    """The rows of a Hessian in parts that hang on nothing but its size."""
    return row_slices(size, max(_LEAST_ROWS, -(-size // _PARTS)))
