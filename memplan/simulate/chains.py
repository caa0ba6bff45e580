"""What a block's contents are, as keys: two blocks have one key when all tokens up to their end are the same.

That is the chain of hashes of engines with prefix caching, without hashing: a key stands for the key before it and the
pieces of text in the block. Blocks with tokens that no other request can have need no chain: they are named after
their request.
"""

from __future__ import annotations

from memplan.domain.simulation import Traffic

Key = int | tuple[int, int]
_Piece = tuple[int, int, int]


class Chains:
    """Keys of the blocks of every request of one traffic."""

    def __init__(self, traffic: Traffic) -> None:
        self._traffic = traffic
        self._known: dict[tuple[int, int, tuple[_Piece, ...]], int] = {}
        self._prefix_tokens = [sum(tokens for _, tokens in pieces) for pieces in traffic.prefixes]

    def shared_tokens(self, request: int) -> int | None:
        """How many tokens at its beginning others may have too; None where all of them, the answer's included."""
        traffic = self._traffic
        if traffic.stream_of is not None and traffic.stream_of[request] >= 0:
            return None
        if traffic.prefix_of is None or traffic.prefix_of[request] < 0:
            return 0
        return min(self._prefix_tokens[traffic.prefix_of[request]], traffic.prompt_tokens[request])

    def extend(self, keys: list[Key], request: int, block_tokens: int, count: int) -> None:
        """Make `keys` the keys of the first `count` blocks."""
        shared = self.shared_tokens(request)
        while len(keys) < count:
            place = len(keys)
            if shared is not None and (place + 1) * block_tokens > shared:
                keys.extend((request, each) for each in range(place, count))
                return
            before = keys[-1] if keys else 0
            assert isinstance(before, int)
            link = (block_tokens, before, self._pieces(request, place * block_tokens, (place + 1) * block_tokens))
            keys.append(self._known.setdefault(link, len(self._known) + 1))

    def _pieces(self, request: int, start: int, end: int) -> tuple[_Piece, ...]:
        """The texts between two positions: (id, position in it, tokens). Ids of streams are below zero."""
        traffic, found, at = self._traffic, [], 0
        if traffic.prefix_of is not None and traffic.prefix_of[request] >= 0:
            for content, tokens in traffic.prefixes[traffic.prefix_of[request]]:
                low, high = max(start, at), min(end, at + tokens)
                if low < high:
                    found.append((content, low - at, high - low))
                at += tokens
        low = max(start, at)
        if low < end:
            stream = traffic.stream_of[request] if traffic.stream_of is not None else -1
            found.append((-1 - stream if stream >= 0 else -1, low - at, end - low))
        return tuple(found)
