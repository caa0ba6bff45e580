"""One replica's scheduler, a step at a time: who computes how many tokens in the next one, who waits, who gives way.

Running requests come first, in the order in which they were taken in; where one lacks a block, the one taken in last
gives way and goes to the front of those that wait. Waiting ones follow in the order of their arrival, up to the first
that has no room, unless somebody gave way in this step.

Asynchronously, a step is scheduled before the tokens of the one before are known. Their slots are taken all the same:
a token that is expected counts as one that decodes, but no block is findable before its tokens are there.

Source: vllm/v1/core/sched/scheduler.py and async_scheduler.py at v0.32.0, and the queue of two batches in
vllm/v1/engine/core.py; without drafts, adapters and priorities. Static batching, swapping and contiguous caches are not
vLLM's.
"""

from __future__ import annotations

from collections import deque
from math import lcm

from memplan.domain.simulation import SimulationSettings
from memplan.records import dataclass
from memplan.simulate.contiguous import ContiguousCache
from memplan.simulate.paged import PagedCache
from memplan.simulate.room import RoomSums, State
from memplan.simulate.served import Served

Cache = PagedCache | ContiguousCache


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What one pass computes: `decodes` sequences of `context_tokens` in all, and chunks of prompts (from, to).

    `started` were taken in for it; `firsts` and `finished` are of the pass whose result was taken in: this one, under
    asynchronous scheduling the one before.
    """

    decodes: int
    context_tokens: int
    chunks: tuple[tuple[int, int], ...]
    moved_blocks: int
    started: tuple[Served, ...]
    firsts: tuple[Served, ...]
    finished: tuple[Served, ...]


class Scheduler:
    """The queues of one replica and its cache."""

    def __init__(self, settings: SimulationSettings, cache: Cache) -> None:
        self.settings = settings
        self.cache = cache
        self.waiting: deque[Served] = deque()
        self.running: list[Served] = []
        self.preemptions = 0
        self.swaps = 0
        self.computed_tokens = 0
        self.recomputed_tokens = 0
        self.cached_tokens = 0
        self.state = State(0, 0, 0, 0, 0, 0)
        self.room = RoomSums(unit=lcm(*(group.block_tokens for group in settings.groups)))
        self._moved = 0
        self._host_free = settings.host_blocks
        self._is_static = settings.batching == "static"
        self._under_way: list[tuple[Served, int, bool]] = []

    def add(self, request: Served) -> bool:
        """Queue a request, or refuse it where it never has room or too many wait."""
        most = self.settings.max_queue
        if most is not None and len(self.waiting) >= most and not request.restored:
            return False
        if not self.settings.chunked_prefill and request.last_computed > self.settings.max_num_batched_tokens:
            return False  # once preempted, it could never be read again
        if not self.cache.has_room_for(request):
            return False
        self.waiting.append(request)
        return True

    def is_busy(self) -> bool:
        return bool(self.running or self.waiting)

    def step(self) -> Step:
        """Schedule one pass and take its result in."""
        budget = self.settings.max_num_batched_tokens
        cap = self.settings.long_prefill_tokens if len(self.running) + len(self.waiting) > 1 else 0
        before = self.preemptions
        self._moved = 0
        scheduled: list[tuple[Served, int]] = []
        budget = self._extend_running(scheduled, budget, cap)
        started: list[Served] = []
        if self.preemptions == before:
            started = self._take_in(scheduled, budget, cap)
        return self._settle(scheduled, started)

    def _extend_running(self, scheduled: list[tuple[Served, int]], budget: int, cap: int) -> int:
        place = 0
        while place < len(self.running) and budget > 0:
            request = self.running[place]
            place += 1
            if request.ended:  # a static batch goes on with the rows of those that are done
                scheduled.append((request, 0))
                continue
            if request.is_all_scheduled:
                continue
            new = request.tokens + request.expected - request.computed
            if 0 < cap < new:
                new = cap
            new = min(new, budget)
            while not self.cache.grow(request, new):
                last = self.running.pop()
                self._preempt(last)
                if last is request:
                    return budget
            scheduled.append((request, new))
            budget -= new
        return budget

    def _take_in(self, scheduled: list[tuple[Served, int]], budget: int, cap: int) -> list[Served]:
        """Take waiting requests in, as long as they have room. A static batch is taken in whole or not at all."""
        started: list[Served] = []
        if self._is_static and self.running:
            return started
        settings, cache = self.settings, self.cache
        while self.waiting and (budget > 0 or self._is_static) and len(self.running) < settings.max_num_seqs:
            request = self.waiting[0]
            found, known = cache.find(request)
            new = request.tokens - known
            if 0 < cap < new:
                new = cap
            if not (settings.chunked_prefill or self._is_static) and new > budget:
                break
            now = min(new, budget)
            if not cache.admit(request, found, known, new if self._is_static else now, beside=bool(self.running)):
                break
            self.waiting.popleft()
            self.running.append(request)
            started.append(request)
            self._bring_back(request, known)
            request.computed = known
            if now:
                scheduled.append((request, now))
                budget -= now
        return started

    def _bring_back(self, request: Served, known: int) -> None:
        """Count where the tokens come from that need not be computed."""
        if not request.restored:
            self.cached_tokens += known
            if not request.preemptions:
                request.found = known
            return
        if request.preemptions:
            blocks = self.cache.held_blocks(request)
            self._moved += blocks
            self._host_free += blocks
        request.restored = 0

    def _preempt(self, request: Served) -> None:
        blocks = self.cache.held_blocks(request)
        if self.settings.preemption == "swap" and blocks <= self._host_free and request.computed >= request.prompt:
            self._host_free -= blocks
            self._moved += blocks
            self.swaps += 1
            request.restored = request.computed
        self.cache.release(request)
        request.computed = request.expected = 0
        request.preemptions += 1
        self.preemptions += 1
        self.waiting.appendleft(request)

    def _settle(self, scheduled: list[tuple[Served, int]], started: list[Served]) -> Step:
        """Compute what was scheduled, and take in the result that is there."""
        decodes = context = 0
        chunks: list[tuple[int, int]] = []
        computing: list[tuple[Served, int, bool]] = []
        for request, new in scheduled:
            known = request.tokens + request.expected
            if new <= 1 and known > request.prompt and request.computed >= known - 1:
                decodes += 1
                context += request.computed
            else:
                chunks.append((request.computed, request.computed + new))
                self.computed_tokens += new
                if request.preemptions:
                    self.recomputed_tokens += new
            request.computed += new
            request.in_flight += new
            makes = new > 0 and request.computed == known
            request.expected += makes
            computing.append((request, new, makes))
        self._observe()
        if self.settings.async_scheduling:
            computing, self._under_way = self._under_way, computing
        firsts, finished = self._take_result(computing)
        return Step(
            decodes=decodes,
            context_tokens=context,
            chunks=tuple(chunks),
            moved_blocks=self._moved,
            started=tuple(started),
            firsts=tuple(firsts),
            finished=tuple(finished),
        )

    def _take_result(self, computed: list[tuple[Served, int, bool]]) -> tuple[list[Served], list[Served]]:
        """Tokens are made, requests begin to answer, end and let go of their blocks."""
        firsts, finished = [], []
        for request, new, makes in computed:
            request.in_flight -= new
            if not makes:
                continue
            has_given_way = not request.expected
            if not has_given_way:
                request.expected -= 1
                self.cache.register(request, request.computed - request.expected)
            if not request.made:
                firsts.append(request)
            request.made += 1
            request.ended = request.made >= request.output
            if request.ended and not self._is_static:
                finished.append(request)
                if has_given_way:
                    self.waiting.remove(request)
                else:
                    self.cache.release(request)
        if self._is_static and self.running and all(request.ended for request in self.running):
            finished = list(self.running)
            for request in finished:
                self.cache.release(request)
        if finished:
            gone = set(finished)
            self.running = [request for request in self.running if request not in gone]
        return firsts, finished

    def _observe(self) -> None:
        """Look at the cache while the pass runs: what it will have stored counts as stored."""
        cache, unit = self.cache, self.room.unit
        stored = sum(request.computed for request in self.running)
        self.state = State(
            used_blocks=cache.used_blocks,
            cached_blocks=cache.cached_blocks,
            tokens=stored,
            running=len(self.running),
            waiting=len(self.waiting),
            preemptions=self.preemptions,
        )
        if isinstance(cache, ContiguousCache):
            later = sum(max(0, request.last_computed - request.computed) for request in self.running)
            reserved, refused = cache.reserved_tokens, cache.is_refused and bool(self.waiting)
            free = cache.room_tokens - reserved
            self.room.add_contiguous(stored=stored, later=later, reserved=reserved, free=free, refused=refused)
            return
        empty = cache.entries * unit - stored * sum(unit // group.block_tokens for group in cache.groups)
        self.room.add_paged(
            used=cache.used_blocks,
            cached=cache.cached_blocks,
            held=cache.held,
            empty=empty,
            blocks=cache.pool.num_blocks,
        )
