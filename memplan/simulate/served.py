"""A request on its way through an engine."""

from __future__ import annotations

from memplan.simulate.blocks import Block
from memplan.simulate.chains import Key


class Served:
    """What a scheduler knows of a request. `made` tokens of its answer are there, `computed` tokens are in the cache.

    Under asynchronous scheduling a pass may be under way whose result is not known: it computes `in_flight` of these
    tokens, and makes `expected` tokens of the answer. `restored` tokens come back from host memory, or from another
    replica, when it is taken in. `looked_at` is how many tokens there were when its tables were last looked at.
    """

    __slots__ = (
        "computed", "ended", "expected", "found", "in_flight", "index", "junction", "keys", "looked_at", "made",
        "output", "preemptions", "prompt", "region", "registered", "restored", "tables",
    )  # fmt: skip

    def __init__(self, index: int, prompt: int, output: int) -> None:
        self.index = index
        self.prompt = prompt
        self.output = output
        self.made = 0
        self.computed = 0
        self.in_flight = 0
        self.expected = 0
        self.restored = 0
        self.found = 0
        self.junction = 0
        self.looked_at = -2
        self.preemptions = 0
        self.ended = False
        self.tables: list[list[Block]] = []
        self.registered: list[int] = []
        self.keys: dict[int, list[Key]] = {}
        self.region: tuple[int, int] | None = None

    @property
    def tokens(self) -> int:
        """Prompt and answer so far."""
        return self.prompt + self.made

    @property
    def is_all_scheduled(self) -> bool:
        """Whether a pass that is under way makes the last token."""
        return self.expected > 0 and self.made + self.expected >= self.output

    @property
    def last_computed(self) -> int:
        """Tokens in the cache when its last one is made: that one itself is never stored."""
        return self.prompt + self.output - 1
