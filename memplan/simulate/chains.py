"""What a block's contents are, as keys: two blocks have one key when all tokens up to their end are the same.

That is the chain of hashes of engines with prefix caching, without hashing. A block of a prefix is known by the block
before it and the pieces of text in it; one with tokens of a stream by its place, as the stream and the prefix before it
say all that came before; one that nobody else can have by its request and place.
"""

from __future__ import annotations

from memplan.domain.simulation import Traffic

Key = int
_Piece = tuple[int, int, int]
# A key is a number of one of three kinds, above the place in the chain: most requests have fewer blocks than this.
_PLACES = 24
_KINDS = 4
_STREAM, _OWN = 1, 2
_KEPT_PREFIXES = 4096


class Chains:
    """Keys of the blocks of every request of one traffic."""

    def __init__(self, traffic: Traffic) -> None:
        self._traffic = traffic
        self._known: dict[tuple[int, int, tuple[_Piece, ...]], Key] = {}
        self._prefix_tokens = [sum(tokens for _, tokens in pieces) for pieces in traffic.prefixes]
        first: dict[tuple[tuple[int, int], ...], int] = {}
        self._same = [first.setdefault(pieces, place) for place, pieces in enumerate(traffic.prefixes)]
        self._chains: dict[tuple[int, int], list[Key]] = {}

    def shared_tokens(self, request: int) -> int | None:
        """How many tokens at its beginning others may have too; None where all of them, the answer's included."""
        prefix, tokens = self._prefix(request)
        stream = self._traffic.stream_of
        if stream is not None and stream[request] >= 0 and (prefix < 0 or tokens == self._prefix_tokens[prefix]):
            return None
        return tokens

    def extend(self, keys: list[Key], request: int, block_tokens: int, count: int) -> None:
        """Make `keys` the keys of the first `count` blocks."""
        prefix, tokens = self._prefix(request)
        chained = min(count, tokens // block_tokens)
        if len(keys) < chained:
            keys.extend(self._chain(prefix, block_tokens, chained)[len(keys) : chained])
        if len(keys) < count:
            kind, number = _OWN, request
            if self.shared_tokens(request) is None and self._traffic.stream_of is not None:
                kind, number = _STREAM, self._traffic.stream_of[request] * (len(self._same) + 1) + prefix + 1
            base = (number * _KINDS + kind) << _PLACES
            keys.extend(range(base + len(keys), base + count))

    def same_tokens(self, one: int, other: int, start: int, end: int) -> int:
        """How many tokens from `start` on two requests have in common that are equal up to there, `end` at most."""
        at = start
        for mine, theirs in zip(self._texts(one, start, end), self._texts(other, start, end), strict=False):
            if mine[:2] != theirs[:2]:
                break
            at += min(mine[2], theirs[2])
            if mine[2] != theirs[2]:
                break
        return at - start

    def _texts(self, request: int, start: int, end: int) -> tuple[tuple[str, int, int], ...]:
        """The texts between two positions, streams included: (name, position in it, tokens)."""
        prefix, tokens = self._prefix(request)
        found = [
            (f"piece {text}", place, count) for text, place, count in self._pieces(prefix, start, min(end, tokens))
        ]
        low = max(start, tokens)
        if low < end:
            stream = self._traffic.stream_of
            shared = stream is not None and self.shared_tokens(request) is None
            name = f"stream {stream[request]}" if shared and stream is not None else f"request {request}"
            found.append((name, low - tokens, end - low))
        return tuple(found)

    def _prefix(self, request: int) -> tuple[int, int]:
        """The prefix of a request, the first of equal ones, and how many of its tokens are in the prompt."""
        traffic = self._traffic
        if traffic.prefix_of is None or traffic.prefix_of[request] < 0:
            return -1, 0
        prefix = self._same[traffic.prefix_of[request]]
        return prefix, min(self._prefix_tokens[prefix], traffic.prompt_tokens[request])

    def _chain(self, prefix: int, block_tokens: int, count: int) -> list[Key]:
        """The keys of blocks that lie in a prefix. Those of a few prefixes are kept, as many requests ask for them."""
        chain = self._chains.get((prefix, block_tokens), [])
        while len(chain) < count:
            start = len(chain) * block_tokens
            link = (block_tokens, chain[-1] if chain else 0, self._pieces(prefix, start, start + block_tokens))
            chain.append(self._known.setdefault(link, ((len(self._known) + 1) * _KINDS) << _PLACES))
        if len(self._chains) < _KEPT_PREFIXES:
            self._chains[prefix, block_tokens] = chain
        return chain

    def _pieces(self, prefix: int, start: int, end: int) -> tuple[_Piece, ...]:
        """The texts of a prefix between two positions: (id, position in it, tokens)."""
        found, at = [], 0
        if prefix < 0:
            return ()
        for content, tokens in self._traffic.prefixes[prefix]:
            low, high = max(start, at), min(end, at + tokens)
            if low < high:
                found.append((content, low - at, high - low))
            at += tokens
            if at >= end:
                break
        return tuple(found)
