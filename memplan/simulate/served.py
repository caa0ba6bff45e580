"""A request on its way through an engine."""

from __future__ import annotations

from memplan.simulate.blocks import Block
from memplan.simulate.chains import Key


class Served:
    """What a scheduler knows of a request. `made` tokens of its answer are there, `computed` tokens are in the cache.

    `restored` tokens come back from host memory, or from another replica, when it is taken in. `looked_at` is how many
    tokens there were when its tables were last looked at.
    """

    __slots__ = (
        "computed", "ended", "found", "index", "junction", "keys", "looked_at", "made", "output", "preemptions",
        "prompt", "region", "registered", "restored", "tables",
    )  # fmt: skip

    def __init__(self, index: int, prompt: int, output: int) -> None:
        self.index = index
        self.prompt = prompt
        self.output = output
        self.made = 0
        self.computed = 0
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
    def last_computed(self) -> int:
        """Tokens in the cache when its last one is made: that one itself is never stored."""
        return self.prompt + self.output - 1
