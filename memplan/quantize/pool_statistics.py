"""What the calibration tokens say of the inputs of experts: each of its own tokens, topped up where they are few.

A router sends every token to some experts, and to some experts hardly a token. A Hessian of fewer tokens than a layer
has in features says nothing of most directions, and GPTQ would spend them freely. So an expert that has had less than
its share of a minimum by some batch is shown other tokens of that batch as well, evenly spaced: what they would be to
it, were they sent there.

Axes: T tokens of a batch, N tokens that an expert is shown, H hidden features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

import torch
from torch import Tensor, nn

from memplan.quantize.anatomy import Pool
from memplan.quantize.experts import SplitExperts, filled_up
from memplan.quantize.linears import weight_of
from memplan.quantize.ranks import ALONE, Ranks
from memplan.quantize.statistics import Statistics, StopRun, sample_tokens
from memplan.quantize.torch_memory import give_back
from memplan.records import dataclass, field


@dataclass(slots=True)
class ExpertTokens:
    """How many tokens some experts had, by number: sent there by the router, and shown on top."""

    own: dict[int, int] = field(default_factory=dict)
    added: dict[int, int] = field(default_factory=dict)


def collect_pool(
    block: nn.Module,
    pool: Pool,
    group: Sequence[int],
    runs: Iterable[Callable[[], object]],
    *,
    num_runs: int,
    min_tokens: int,
    with_hessian: bool,
    with_sample: bool,
    of: Sequence[str],
    ranks: Ranks = ALONE,
) -> tuple[dict[str, Statistics], ExpertTokens]:
    """Return the statistics of the inputs of some experts' layers over all `runs` of the block, by layer.

    `of` names layers of an expert: its first entry, whose input all entries read, and `down_proj`. A run ends when the
    experts are reached. Raises: BrokenNumbers for activations that are not finite.
    """
    experts = block.get_submodule(pool.name)
    assert isinstance(experts, SplitExperts)
    give_back()  # what rounding has freed lies in pieces between layers, most too small for a Hessian
    found: dict[str, Statistics] = {}
    for number in group:
        for leaf in of:
            weight_OI = weight_of(experts.expert(number).get_submodule(leaf))
            name = f"{pool.name}.{number}.{leaf}"
            found[name] = Statistics.empty(weight_OI.shape[1], weight_OI.device, with_hessian=with_hessian)
    tokens = ExpertTokens(own=dict.fromkeys(group, 0), added=dict.fromkeys(group, 0))
    device = weight_of(experts.expert(group[0]).get_submodule(of[0])).device
    num_runs_of_all = ranks.total(num_runs, device)
    keep = sample_tokens(num_runs_of_all) if with_sample else 0
    watch = _Watch(pool, found, tokens, min_tokens, num_runs_of_all, keep, ranks)
    missing = ranks.missing(num_runs, device)
    experts.watch = watch
    try:
        for run in runs:
            with suppress(StopRun):
                run()
    finally:
        experts.watch = None
    for _ in range(missing):
        watch.listen(experts, ())
    for statistics in found.values():
        statistics.finish(ranks)
    return found, tokens


class _Watch:
    """Takes the statistics of some experts when a block reaches them, and ends its run.

    Every process counts the tokens of all; the statistics of an expert are made by one.
    """

    def __init__(
        self,
        pool: Pool,
        found: dict[str, Statistics],
        tokens: ExpertTokens,
        min_tokens: int,
        num_runs: int,
        keep: int,
        ranks: Ranks,
    ) -> None:
        self.pool, self.found, self.tokens, self.keep, self.ranks = pool, found, tokens, keep, ranks
        self._min_tokens, self._num_runs, self._seen = min_tokens, num_runs, 0

    def __call__(self, experts: SplitExperts, hidden_TH: Tensor, routing: list[Tensor]) -> None:
        """Add a batch. Raises: StopRun."""
        self.listen(experts, (hidden_TH, *routing))
        raise StopRun

    def listen(self, experts: SplitExperts, given: Sequence[Tensor]) -> None:
        """Add the batch that every process has been given; this one's is what its experts read, or nothing."""
        device = weight_of(experts.expert(0).get_submodule("down_proj")).device
        for hidden_TH, *routing in self.ranks.of_each(given, device):
            self._seen += 1
            for number, token_N, _ in experts.shares(hidden_TH, routing):
                if number in self.tokens.own:
                    other_N = self._others(experts, hidden_TH, number, token_N.numel())
                    if number % self.ranks.size == self.ranks.rank:
                        self._add(experts, number, hidden_TH[torch.cat((token_N, other_N))])

    def _others(self, experts: SplitExperts, hidden_TH: Tensor, number: int, num_own: int) -> Tensor:
        """The rows of other tokens that an expert is shown, so that it has what is due by now."""
        self.tokens.own[number] += num_own
        due = -(-self._min_tokens * self._seen // self._num_runs)
        missing = due - self.tokens.own[number] - self.tokens.added[number]
        row_T = experts.tokens(hidden_TH)
        missing = min(max(0, missing), row_T.numel())
        self.tokens.added[number] += missing
        every = torch.linspace(0, row_T.numel() - 1, missing, device=row_T.device) if missing else row_T[:0]
        return row_T[every.round().long()] if missing else row_T[:0]

    def _add(self, experts: SplitExperts, number: int, input_NH: Tensor) -> None:
        if not input_NH.shape[0]:
            return
        entry = self.found.get(f"{self.pool.name}.{number}.{self.pool.entries[0]}")
        if entry is not None:
            entry.add(input_NH, self.keep)
        down = self.found.get(f"{self.pool.name}.{number}.down_proj")
        if down is not None:
            inner_NF = experts.inner(experts.expert(number), filled_up(input_NH))[: input_NH.shape[0]]
            down.add(inner_NF, self.keep)
