"""What runs and waits in the jumping replica, in counts: who decodes, in which phase of a block, and until when.

Requests that decode differ in their length modulo the block's size alone. `phases` counts them by the step, modulo the
block's size, in which they need their next block.
"""

from __future__ import annotations

from collections import deque
from heapq import heappush
from typing import NamedTuple

from memplan.domain.simulation import SimulationSettings
from memplan.simulate.chains import Chains, Key
from memplan.simulate.clock import Clock
from memplan.simulate.idle import IdlePool, Node, Run
from memplan.simulate.replica import Ledger, Totals
from memplan.simulate.room import RoomSums
from memplan.simulate.series import SeriesLog
from memplan.simulate.served import Served
from memplan.units import ceil_div


class Rider:
    """What is kept of a request beside `Served`. While it decodes, `offset` + step is what it has in the cache, and
    `finish` the step that makes its last token; before and after, that is -1. `read` is what it had when it began to.
    """

    __slots__ = ("finish", "keys", "nodes", "offset", "read", "request", "run", "serial", "shared")

    def __init__(self, request: Served, shared: int | None) -> None:
        self.request = request
        self.shared = shared  # whole blocks that others may have; None: all of them
        self.offset = self.read = 0
        self.serial = -1
        self.finish = -1
        self.keys: list[Key] = []
        self.nodes: list[Node] = []
        self.run: Run | None = None


class Made(NamedTuple):
    """A token that a pass makes: whether it is the request's first, and whether its last."""

    rider: Rider
    is_first: bool
    is_last: bool


class Riders:
    """The queues and the cache of one engine, and what happens to one request in them. Steps are JumpingReplica's."""

    def __init__(self, settings: SimulationSettings, chains: Chains, ledger: Ledger) -> None:
        self.now = 0
        self.log = SeriesLog(settings.max_points)
        self._settings = settings
        self._block = settings.groups[0].block_tokens
        self.room = RoomSums(unit=self._block)
        self._clock = Clock(settings.steps)
        self._ledger = ledger
        self._chains = chains
        self._caching = settings.prefix_caching
        self._watermark = int(settings.watermark_fraction * (settings.num_blocks + 1))
        self._pool = IdlePool(settings.num_blocks)
        self._waiting: deque[Rider] = deque()
        self._running: dict[Rider, None] = {}
        self._partial: Rider | None = None
        # under asynchronous scheduling: what the pass under way makes, its time, and by how much that is known later
        self._due: list[Made] = []
        self._under_way = 0
        self._late = int(settings.async_scheduling)
        self._is_ahead = settings.async_scheduling and not self._clock.counts_steps
        self._is_stuck = False
        # of the requests that decode
        self._decodes = 0
        self._context = 0
        self._phases = [0] * self._block
        self._fills: list[dict[Rider, None]] = [{} for _ in range(self._block)]
        self._filling = 0
        self._ends: dict[int, list[Rider]] = {}
        self._end_steps: list[int] = []
        # of all that run
        self._stored = 0
        self._held = 0
        self._serial = 0
        self._steps = self._busy = 0
        self._preemptions = self._computed = self._recomputed = self._cached_tokens = 0
        self._most_running = self._most_waiting = self._most_blocks = 0

    def add(self, request: Served) -> bool:
        """Queue a request, or refuse it where it never has room or too many wait."""
        settings = self._settings
        if settings.max_queue is not None and len(self._waiting) >= settings.max_queue and not request.restored:
            return False
        if not settings.chunked_prefill and request.last_computed > settings.max_num_batched_tokens:
            return False
        if ceil_div(request.last_computed, self._block) > self._pool.num_blocks:
            return False
        self._waiting.append(self._rider(request))
        return True

    def is_busy(self) -> bool:
        return bool(self._running or self._waiting)

    def load(self) -> tuple[int, int]:
        """Requests that run and wait, blocks in use."""
        pool = self._pool
        return len(self._running) + len(self._waiting), pool.num_blocks - pool.plain - pool.cached

    def found_tokens(self, request: Served) -> int:
        """Tokens of a waiting request that its cache has."""
        nodes, own = self._find(self._rider(request))
        return request.restored or (len(nodes) + own) * self._block

    def totals(self) -> Totals:
        """What it has done so far."""
        return Totals(
            steps=self._steps,
            busy_ticks=self._busy,
            preemptions=self._preemptions,
            swaps=0,
            computed_tokens=self._computed,
            recomputed_tokens=self._recomputed,
            cached_tokens=self._cached_tokens,
            copied_blocks=0,
            most_running=self._most_running,
            most_waiting=self._most_waiting,
            most_blocks=self._most_blocks,
        )

    def _extend_decodes(self, step: int) -> None:
        """Give every decoding request its next slot; those taken in last give way where blocks lack."""
        needed = self._phases[step % self._block]
        pool = self._pool
        if needed <= pool.plain + pool.cached:
            pool.take(needed)
            self._held += needed
            return
        block = self._block
        for rider in [each for each in self._running if each.finish >= 0 and not (each.offset + step) % block]:
            if rider not in self._running:
                return
            while not pool.plain + pool.cached:
                last = next(reversed(self._running))
                self._preempt(last, step)
                if last is rider:
                    return
            pool.take(1)
            self._held += 1

    def _extend_partial(self, rider: Rider, budget: int, read: list[tuple[Rider, int]]) -> int:
        """Read on in the prompt that is being read: the one taken in last, so only it can give way."""
        request, pool = rider.request, self._pool
        start = request.computed
        end = min(request.tokens, start + budget)
        blocks = ceil_div(end, self._block) - ceil_div(start, self._block)
        if blocks > pool.plain + pool.cached:
            self._preempt(rider, self._steps)
            return 0
        pool.take(blocks)
        self._held += blocks
        self._stored += end - start
        request.computed = end
        if self._register(rider, end):
            self._is_stuck = False
        read.append((rider, start))
        if end == request.tokens:
            self._partial = None
        return end - start

    def _rider(self, request: Served) -> Rider:
        shared = self._chains.shared_tokens(request.index) if self._caching else 0
        return Rider(request, None if shared is None else shared // self._block)

    def _find(self, rider: Rider) -> tuple[list[Node], int]:
        """The cached blocks that a waiting request begins with: shared ones, and how many of its own after them."""
        request = rider.request
        nodes: list[Node] = []
        if not self._caching or request.restored:
            return [], 0
        most = (request.tokens - 1) // self._block
        shared = most if rider.shared is None else min(rider.shared, most)
        if shared:
            if len(rider.keys) < shared:
                self._chains.extend(rider.keys, request.index, self._block, shared)
            nodes = self._pool.find(rider.keys[:shared])
        if rider.run is None or len(nodes) != rider.shared:
            return nodes, 0
        return nodes, rider.run.count

    def _register(self, rider: Rider, tokens: int) -> bool:
        """Make the shared blocks that `tokens` fill findable; whether there are new ones."""
        if not self._caching or rider.shared == 0:
            return False
        full = tokens // self._block
        if rider.shared is not None and rider.shared < full:
            full = rider.shared
        first = len(rider.nodes)
        if full <= first:
            return False
        if len(rider.keys) < full:
            whole = full if rider.shared is not None else (rider.request.prompt + rider.request.output) // self._block
            self._chains.extend(rider.keys, rider.request.index, self._block, max(full, whole))
        rider.nodes.extend(self._pool.register(rider.keys[first:full]))
        return True

    def _fill(self, step: int) -> None:
        """Blocks of answers that others may go on from are full, and can be found from now on."""
        full = self._fills[step % self._block]
        for rider in sorted(full, key=lambda rider: rider.serial) if len(full) > 1 else full:
            self._register(rider, rider.offset + step + 1 - self._late)
            self._is_stuck = False

    def _start_decoding(self, rider: Rider, step: int) -> None:
        request, block = rider.request, self._block
        rider.offset = request.computed - step - 1
        self._decodes += 1
        self._context += request.computed
        self._phases[-rider.offset % block] += 1
        if rider.shared is None:
            self._fills[(-rider.offset - 1 + self._late) % block][rider] = None
            self._filling += 1
        rider.finish = step + request.output - request.made
        if rider.finish in self._ends:
            self._ends[rider.finish].append(rider)
        else:
            self._ends[rider.finish] = [rider]
            heappush(self._end_steps, rider.finish)

    def _stop_decoding(self, rider: Rider, computed: int) -> None:
        block = self._block
        self._decodes -= 1
        self._context -= computed
        self._phases[-rider.offset % block] -= 1
        if rider.shared is None:
            del self._fills[(-rider.offset - 1 + self._late) % block][rider]
            self._filling -= 1
        rider.finish = -1

    def _preempt(self, rider: Rider, step: int) -> None:
        request = rider.request
        if rider is self._partial:
            self._partial = None
            rider.read = request.computed
        elif rider.finish >= 0:
            request.computed = rider.offset + step
            request.made = request.computed + 1 - request.prompt
            self._stop_decoding(rider, request.computed)
        del self._running[rider]
        # of what is under way, the token that is made is not known
        self._release(rider, request.computed, max(rider.read, request.computed - self._late))
        request.computed = 0
        request.preemptions += 1
        self._preemptions += 1
        self._waiting.appendleft(rider)
        self._is_stuck = False

    def _release(self, rider: Rider, computed: int, known: int) -> None:
        """Let go of all blocks, the last ones to be handed out first; those that `known` tokens fill may be found."""
        pool, block = self._pool, self._block
        blocks = ceil_div(computed, block)
        self._stored -= computed
        self._held -= blocks
        if not self._caching:
            pool.plain += blocks
            return
        full = known // block
        pool.plain += blocks - full
        rider.run = pool.give_run(full - len(rider.nodes))
        pool.give(reversed(rider.nodes))
        rider.nodes = []
