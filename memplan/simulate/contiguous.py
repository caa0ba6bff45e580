"""A contiguous cache: every request has one piece of it, as long as it may become, from the first gap that takes it.

A buddy allocator rounds pieces up to a power of two and begins each at a multiple of its size, so that gaps join again.

Source: section 6.1 of Kwon et al., "Efficient Memory Management for Large Language Model Serving with PagedAttention",
SOSP 2023: what the authors reserve for Orca ("Max", "Pow2", "Oracle").
"""

from __future__ import annotations

from memplan.domain.simulation import SimulationSettings
from memplan.simulate.blocks import Block
from memplan.simulate.served import Served
from memplan.units import ceil_div, round_up


class ContiguousCache:
    """One arena of tokens, with its gaps from left to right."""

    def __init__(self, settings: SimulationSettings) -> None:
        self._block_tokens = settings.groups[0].block_tokens
        self.room_tokens = settings.num_blocks * self._block_tokens
        self._reserve = settings.reserve
        self._longest = settings.context_tokens
        self._is_buddy = settings.pieces == "buddy"
        self._gaps = [(0, self.room_tokens)]
        self.reserved_tokens = 0
        self.copied_blocks = 0
        self.is_refused = False

    @property
    def used_blocks(self) -> int:
        return ceil_div(self.reserved_tokens, self._block_tokens)

    @property
    def cached_blocks(self) -> int:
        return 0

    def has_room_for(self, request: Served) -> bool:
        """Whether a request could ever be served here, alone."""
        return self._size(request) <= self.room_tokens

    def find(self, request: Served) -> tuple[list[list[Block]], int]:
        """Nothing is shared."""
        return [], request.restored

    def admit(self, request: Served, found: list[list[Block]], known: int, new: int, *, beside: bool) -> bool:
        """Reserve the whole piece of a waiting request, or nothing where no gap is wide enough."""
        size = self._size(request)
        for place, (gap, width) in enumerate(self._gaps):
            start = round_up(gap, size) if self._is_buddy else gap
            left, right = start - gap, gap + width - start - size
            if right >= 0:
                rest = [(gap, left), (start + size, right)]
                self._gaps[place : place + 1] = [each for each in rest if each[1]]
                request.region = (start, size)
                self.reserved_tokens += size
                self.is_refused = False
                return True
        self.is_refused = True
        return False

    def grow(self, request: Served, new: int) -> bool:
        """All of it is reserved already."""
        return True

    def register(self, request: Served, tokens: int) -> None:
        """Nothing is found again."""

    def release(self, request: Served) -> None:
        """Give the piece back, joined with the gaps beside it."""
        assert request.region is not None
        self.reserved_tokens -= request.region[1]
        gaps: list[tuple[int, int]] = []
        for start, width in sorted([*self._gaps, request.region]):
            if gaps and gaps[-1][0] + gaps[-1][1] == start:
                gaps[-1] = (gaps[-1][0], gaps[-1][1] + width)
            else:
                gaps.append((start, width))
        self._gaps = gaps
        request.region = None

    def held_blocks(self, request: Served) -> int:
        """What it takes, in blocks."""
        return ceil_div(request.region[1], self._block_tokens) if request.region else 0

    def _size(self, request: Served) -> int:
        if self._reserve == "longest":
            size = self._longest
        elif self._reserve == "exact":
            size = request.prompt + request.output
        else:
            size = request.prompt + _power(request.output)
        return _power(size) if self._is_buddy else size


def _power(tokens: int) -> int:
    """The smallest power of two that is not below it."""
    return 1 << (tokens - 1).bit_length()
