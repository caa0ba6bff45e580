"""What one rank of SGLang keeps for its requests, as a value: sizes of slots and pools, and what a budget holds."""

from __future__ import annotations

from memplan.records import dataclass
from memplan.units import ceil_div


@dataclass(frozen=True, slots=True, kw_only=True)
class Pools:
    """What one rank keeps for its requests.

    `full_bytes` is one token in every layer of the full pool as SGLang counts it, `stored_full_bytes` as it is laid
    out; `window_bytes` one token in every layer of the window pool. `state_bytes` is one slot of recurrent states.
    `request_bytes` belongs to every running request. `window_tokens` is the window of the window layers.
    """

    full_bytes: float
    stored_full_bytes: float
    window_bytes: float = 0.0
    window_ratio: float = 0.0
    window_tokens: int = 0
    window_cap_tokens: int | None = None
    state_bytes: int = 0
    state_ratio: float = 0.0
    state_slots: int | None = None
    padding_slots: int = 0
    slots_per_request: int = 1
    request_bytes: int = 0
    num_requests: int = 0
    media_bytes: int = 0
    page_size: int = 1
    max_tokens: int | None = None

    @property
    def is_empty(self) -> bool:
        """Whether requests leave nothing behind."""
        return not (self.full_bytes or self.window_bytes or self.state_bytes)

    @property
    def token_bytes(self) -> float:
        """What one token of capacity costs, its part of the window pool included."""
        if not self.full_bytes:
            return self.window_bytes
        return self.full_bytes + (0.0 if self.window_cap_tokens is not None else self.window_ratio * self.window_bytes)

    @property
    def fixed_bytes(self) -> int:
        """What no token pays for: requests' own states, a window pool of fixed size."""
        window = 0.0 if self.window_cap_tokens is None else self.window_cap_tokens * self.window_bytes
        return round(self.request_bytes * (self.num_requests + 1) + window)

    def slots(self, budget_bytes: float) -> int:
        """Slots of recurrent states in a budget."""
        if not self.state_bytes:
            return 0
        if self.state_slots is not None:
            return self.state_slots
        share = budget_bytes * self.state_ratio / (1 + self.state_ratio)
        return max(0, int((share - self.padding_slots * self.state_bytes) // self.state_bytes))

    def tokens(self, budget_bytes: int) -> int:
        """The capacity that SGLang prints for a budget, media reserve included in it."""
        rest = float(budget_bytes - self.media_bytes)
        if self.state_bytes:
            rest -= (self.slots(rest) + self.padding_slots) * self.state_bytes
        rest -= self.fixed_bytes
        if rest <= 0 or not self.token_bytes:
            return 0
        tokens = int(rest // self.token_bytes)
        if self.max_tokens is not None:
            tokens = min(tokens, self.max_tokens)
        return tokens // self.page_size * self.page_size

    def used(self, tokens: int, budget_bytes: int) -> dict[str, int]:
        """The bytes of every pool at a capacity of `tokens` tokens."""
        parts: dict[str, int] = {}
        if self.full_bytes:
            parts["KV cache"] = round((tokens + self.page_size) * self.stored_full_bytes)
        if self.window_bytes:
            held = self.window_cap_tokens if self.window_cap_tokens is not None else self._window_pool(tokens)
            parts["KV cache of window layers"] = round(held * self.window_bytes)
        if self.state_bytes:
            slots = self.slots(float(budget_bytes - self.media_bytes)) + 1
            parts["recurrent states"] = slots * self.state_bytes
        if self.request_bytes:
            parts["compressor states of requests"] = self.request_bytes * (self.num_requests + 1)
        return {name: size for name, size in parts.items() if size > 0}

    def _window_pool(self, tokens: int) -> int:
        if not self.full_bytes:
            return tokens
        return int(tokens * self.window_ratio) // self.page_size * self.page_size

    def needed_tokens(self, context_tokens: int, concurrency: int, step_tokens: int) -> int:
        """The capacity at which `concurrency` requests of `context_tokens` have room in every pool."""
        pages = ceil_div(context_tokens, self.page_size) * self.page_size
        needed = pages * concurrency
        if not self.window_bytes or self.window_cap_tokens is not None:
            return needed
        inside = concurrency * min(context_tokens, self.window_tokens + self.page_size)
        inside += min(max(0, context_tokens - self.window_tokens), step_tokens)
        if not self.full_bytes:
            return inside
        return max(needed, ceil_div(round(inside * 1_000_000), round(self.window_ratio * 1_000_000)))

    def needed_bytes(self, context_tokens: int, concurrency: int, step_tokens: int) -> int:
        """The budget at which those requests have tokens and slots."""
        tokens = self.needed_tokens(context_tokens, concurrency, step_tokens)
        growing = tokens * self.token_bytes + self.fixed_bytes
        if not self.state_bytes:
            return round(growing) + self.media_bytes
        slots = concurrency * self.slots_per_request + self.padding_slots
        if self.state_slots is not None:
            return round(growing + self.state_slots * self.state_bytes) + self.media_bytes
        by_slots = slots * self.state_bytes * (1 + self.state_ratio) / self.state_ratio
        return round(max(growing * (1 + self.state_ratio), by_slots)) + self.media_bytes
