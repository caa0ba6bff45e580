"""Which replica a request goes to.

`kv-aware` sends it where the fewest blocks have to be filled and read: those of the prompt that the replica's cache
does not have, and those that are in use there already.

Source: the cost of NVIDIA Dynamo's KV router with equal weights (docs, "KV Cache Routing").
"""

from __future__ import annotations

from collections.abc import Sequence

from memplan.domain.simulation import Routing
from memplan.simulate.replica import Replica
from memplan.simulate.served import Served


class Router:
    """Picks one of several equal replicas."""

    def __init__(self, routing: Routing, block_tokens: int) -> None:
        self._routing = routing
        self._block_tokens = block_tokens
        self._turn = -1

    def pick(self, replicas: Sequence[Replica], request: Served) -> int:
        """The index of the replica. Where two are as good, the first of them."""
        if len(replicas) == 1:
            return 0
        if self._routing == "round-robin":
            self._turn = (self._turn + 1) % len(replicas)
            return self._turn
        if self._routing == "least-loaded":
            return min(range(len(replicas)), key=lambda place: replicas[place].load()[0])
        return min(range(len(replicas)), key=lambda place: self._cost(replicas[place], request))

    def _cost(self, replica: Replica, request: Served) -> tuple[float, int]:
        count, used = replica.load()
        return (request.tokens - replica.found_tokens(request)) / self._block_tokens + used, count
