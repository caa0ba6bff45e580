"""A replica that jumps over steps in which nothing happens but that every running request gets a token.

What it does is what `SteppedReplica` does, step by step, and gives the same result to the last picosecond
(tests/simulate/test_jumping.py); only the bookkeeping is by counts. Requests that decode differ in their length modulo
the block's size alone: a histogram of that tells how many blocks the next steps take. Events are arrivals, ends, a lack
of blocks, and steps that read a prompt.
"""

from __future__ import annotations

from collections import deque
from heapq import heappop, heappush

from memplan.domain.simulation import SimulationSettings
from memplan.simulate.blocks import Block
from memplan.simulate.chains import Chains, Key
from memplan.simulate.clock import Clock
from memplan.simulate.idle import IdlePool, Run
from memplan.simulate.replica import Ledger, Totals
from memplan.simulate.room import RoomSums, State
from memplan.simulate.series import SeriesLog
from memplan.simulate.served import Served
from memplan.units import ceil_div


def can_jump(settings: SimulationSettings) -> bool:
    """Whether the jumping replica knows these settings: one group of layers that keep everything, as vLLM has it."""
    group = settings.groups[0]
    return (
        len(settings.groups) == 1
        and group.window_tokens is None
        and group.chunk_tokens is None
        and settings.allocation == "paged"
        and settings.batching == "continuous"
        and settings.preemption == "recompute"
        and settings.long_prefill_tokens == 0
        and not settings.partial_reuse
        and settings.max_num_batched_tokens >= settings.max_num_seqs
    )


class Rider:
    """What is kept of a request beside `Served`. While it decodes, `offset` + step is what it has in the cache."""

    __slots__ = ("finish", "keys", "nodes", "offset", "request", "run", "serial", "shared")

    def __init__(self, request: Served, shared: int | None) -> None:
        self.request = request
        self.shared = shared  # whole blocks that others may have; None: all of them
        self.offset = 0
        self.serial = -1
        self.finish = -1
        self.keys: list[Key] = []
        self.nodes: list[Block] = []
        self.run: Run | None = None


class JumpingReplica:
    """One engine, in counts."""

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

    def advance(self, until: int, most_steps: int) -> int:
        """Serve until a request has finished, or the next step would begin at `until` or later; return the steps."""
        before = self._steps
        last = before + most_steps
        while self.now < until and self._steps < last and (self._running or self._waiting):
            idle = not self._waiting or self._is_stuck or len(self._running) >= self._settings.max_num_seqs
            if idle and self._partial is None and not self._filling and self._jump(until, last):
                continue
            if self._step():
                break
        return self._steps - before

    # -- many steps at once

    def _jump(self, until: int, last: int) -> bool:
        """Pass steps in which every running request gets a token, up to the next event; False where it is now."""
        begin, decodes = self._steps, self._decodes
        if not decodes:
            return False
        ends = self._end_steps
        while ends[0] < begin:
            heappop(ends)
        stride = self.log.stride
        count = min(ends[0], last, -(-begin // stride) * stride + 1) - begin
        if count <= 0:
            return False
        first, slope, straight = self._clock.line(decodes, self._context)
        count = min(count, straight)
        now = first + slope * self._context
        growth = slope * decodes
        ticks = count * now + growth * (count * (count - 1) // 2)
        if count > 1 and ticks - now - growth * (count - 1) >= until - self.now:
            count = _steps_before(until - self.now, now, growth, count)
            ticks = count * now + growth * (count * (count - 1) // 2)
        taken, total = self._taken(begin, count)
        pool = self._pool
        if taken > pool.plain + pool.cached:
            count = self._steps_with_room(begin, count)
            if count == 0:
                return False
            ticks = count * now + growth * (count * (count - 1) // 2)
            taken, total = self._taken(begin, count)
        self._pass(begin, count, taken, total)
        self.now += ticks
        self._busy += ticks
        self._steps = begin + count
        self._note_state()
        return True

    def _pass(self, begin: int, count: int, taken: int, total: int) -> None:
        """Let `count` steps go by, in which `taken` blocks are taken; `total` sums over the steps what was taken up to
        each.
        """
        pool, block, decodes = self._pool, self._block, self._decodes
        used = pool.num_blocks - pool.plain - pool.cached
        lost = 0  # what is taken from cached blocks, summed over the steps
        if taken > pool.plain:
            lost = total if not pool.plain else self._lost(begin, count)
        cached = count * pool.cached - lost
        held = count * self._held + total
        stored = count * self._stored + decodes * (count * (count + 1) // 2)
        self.room.add_paged(
            used=count * used + total,
            cached=cached,
            held=held,
            empty=held * block - stored,
            blocks=pool.num_blocks,
            steps=count,
        )
        pool.take(taken)
        self._held += taken
        self._stored += decodes * count
        self._context += decodes * count

    def _taken(self, begin: int, count: int) -> tuple[int, int]:
        """Blocks that the next steps take: in all, and the sum over steps of what was taken up to each."""
        block = self._block
        taken = total = 0
        if count == 1:
            taken = self._phases[begin % block]
            return taken, taken
        for phase, requests in enumerate(self._phases):
            if requests:
                first = (phase - begin) % block
                if first < count:
                    times = (count - first - 1) // block + 1
                    taken += requests * times
                    total += requests * (times * (count - first) - block * (times * (times - 1) // 2))
        return taken, total

    def _lost(self, begin: int, count: int) -> int:
        """Cached blocks handed out up to each step, summed over the steps."""
        plain, taken, lost = self._pool.plain, 0, 0
        for step in range(begin, begin + count):
            taken += self._phases[step % self._block]
            lost += max(0, taken - plain)
        return lost

    def _steps_with_room(self, begin: int, most: int) -> int:
        """The most steps that the free blocks last for."""
        free = self._pool.plain + self._pool.cached
        low, high = 0, most
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._taken(begin, middle)[0] <= free else (low, middle)
        return low

    # -- one step

    def _step(self) -> bool:
        """One step with everything that may happen in it; True where a request has finished."""
        step, begun, preemptions = self._steps, self.now, self._preemptions
        read: list[tuple[Rider, int]] = []  # prompts, from where to what they are computed now
        self._extend_decodes(step)
        budget = self._settings.max_num_batched_tokens - self._decodes
        if self._partial is not None:
            budget -= self._extend_partial(self._partial, budget, read)
        if self._filling:
            self._fill(step)
        if self._preemptions == preemptions and self._waiting and not self._is_stuck:
            self._take_in(budget, begun, read)
        decodes, context = self._decodes, self._context
        self._stored += decodes
        self._context += decodes
        chunks: list[tuple[int, int]] = []
        for rider, start in read:
            request = rider.request
            if request.made and start >= request.tokens - 1:  # the last token alone: as any that decodes
                decodes += 1
                context += start
                continue
            chunks.append((start, request.computed))
            self._computed += request.computed - start
            if request.preemptions:
                self._recomputed += request.computed - start
        ticks = self._clock.step(decodes, context, chunks)
        self.now = begun + ticks
        self._busy += ticks
        self._steps = step + 1
        pool = self._pool
        self.room.add_paged(
            used=pool.num_blocks - pool.plain - pool.cached,
            cached=pool.cached,
            held=self._held,
            empty=self._held * self._block - self._stored,
            blocks=pool.num_blocks,
        )
        self._note_state()
        return self._settle(step, read)

    def _note_state(self) -> None:
        """After the last step's blocks have been taken, before anything ends."""
        pool, step = self._pool, self._steps - 1
        used = pool.num_blocks - pool.plain - pool.cached
        running, waiting = len(self._running), len(self._waiting)
        if running > self._most_running:
            self._most_running = running
        if waiting > self._most_waiting:
            self._most_waiting = waiting
        if used > self._most_blocks:
            self._most_blocks = used
        if step % self.log.stride == 0:
            state = State(used, pool.cached, self._stored, running, waiting, self._preemptions)
            self.log.add(step, self.now, state)

    def _extend_decodes(self, step: int) -> None:
        """Give every decoding request its next slot; those taken in last give way where blocks lack."""
        needed = self._phases[step % self._block]
        pool = self._pool
        if needed <= pool.plain + pool.cached:
            pool.take(needed)
            self._held += needed
            return
        for rider in [each for each in self._running if each is not self._partial]:
            if rider not in self._running:
                return
            if (rider.offset + step) % self._block:
                continue
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

    def _take_in(self, budget: int, begun: int, read: list[tuple[Rider, int]]) -> None:
        """Take waiting requests in, as long as they have room."""
        settings, pool, block = self._settings, self._pool, self._block
        while self._waiting and budget > 0 and len(self._running) < settings.max_num_seqs:
            rider = self._waiting[0]
            request = rider.request
            nodes, own = self._find(rider)
            hits = len(nodes) + own
            known = request.restored or hits * block
            new = request.tokens - known
            if not settings.chunked_prefill and new > budget:
                return
            end = known + min(new, budget)
            blocks = ceil_div(end, block)
            needed = ceil_div(request.tokens, block) if settings.reserve_prompt else blocks
            idle = own + sum(1 for node in nodes if not node.holders)
            margin = self._watermark if self._running else 0
            if needed - hits + idle + margin > pool.plain + pool.cached:
                self._is_stuck = True
                return
            self._waiting.popleft()
            for node in nodes:
                pool.touch(node)
            if own and rider.run is not None:
                pool.hold_run(rider.run)
            pool.take(blocks - hits)
            rider.nodes = nodes
            rider.serial = self._serial
            self._serial += 1
            self._running[rider] = None
            self._held += blocks
            self._stored += end
            self._register(rider, end)
            if not request.restored:
                self._cached_tokens += known
                if not request.preemptions:
                    request.found = known
            request.restored = 0
            request.computed = end
            self._ledger.scheduled(request, begun)
            read.append((rider, known))
            budget -= end - known
            if end < request.tokens:
                self._partial = rider

    def _settle(self, step: int, read: list[tuple[Rider, int]]) -> bool:
        """Tokens are made: answers begin and end."""
        finished: list[Rider] = []
        if step in self._ends:
            finished = sorted(
                (rider for rider in self._ends.pop(step) if rider.finish == step), key=lambda rider: rider.serial
            )
            for rider in finished:
                rider.request.computed = rider.offset + step + 1
                self._stop_decoding(rider, rider.request.computed)
        for rider, _ in read:
            request = rider.request
            if request.computed < request.tokens:
                continue
            if not request.made:
                self._ledger.first_token(request, self.now)
            request.made += 1
            if request.made >= request.output:
                finished.append(rider)
            else:
                self._start_decoding(rider, step)
        for rider in finished:
            request = rider.request
            request.made = request.output
            del self._running[rider]
            self._release(rider, request.computed)
            self._ledger.finished(request, self.now)
        if finished:
            self._is_stuck = False
        return bool(finished)

    # -- one request

    def _rider(self, request: Served) -> Rider:
        shared = self._chains.shared_tokens(request.index) if self._caching else 0
        return Rider(request, None if shared is None else shared // self._block)

    def _find(self, rider: Rider) -> tuple[list[Block], int]:
        """The cached blocks that a waiting request begins with: shared ones, and how many of its own after them."""
        request, nodes = rider.request, []
        if not self._caching or request.restored:
            return [], 0
        most = (request.tokens - 1) // self._block
        shared = most if rider.shared is None else min(rider.shared, most)
        if shared:
            self._chains.extend(rider.keys, request.index, self._block, shared)
            for key in rider.keys[:shared]:
                node = self._pool.find(key)
                if node is None:
                    break
                nodes.append(node)
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
        self._chains.extend(rider.keys, rider.request.index, self._block, full)
        rider.nodes.extend(self._pool.register(key) for key in rider.keys[first:full])
        return True

    def _fill(self, step: int) -> None:
        """Blocks of answers that others may go on from are full, and can be found from now on."""
        for rider in sorted(self._fills[step % self._block], key=lambda rider: rider.serial):
            self._register(rider, rider.offset + step + 1)
            self._is_stuck = False

    def _start_decoding(self, rider: Rider, step: int) -> None:
        request, block = rider.request, self._block
        rider.offset = request.computed - step - 1
        self._decodes += 1
        self._context += request.computed
        self._phases[-rider.offset % block] += 1
        if rider.shared is None:
            self._fills[(-rider.offset - 1) % block][rider] = None
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
            del self._fills[(-rider.offset - 1) % block][rider]
            self._filling -= 1
        rider.finish = -1

    def _preempt(self, rider: Rider, step: int) -> None:
        request = rider.request
        if rider is self._partial:
            self._partial = None
        else:
            request.computed = rider.offset + step
            request.made = request.computed + 1 - request.prompt
            self._stop_decoding(rider, request.computed)
        del self._running[rider]
        self._release(rider, request.computed)
        request.computed = 0
        request.preemptions += 1
        self._preemptions += 1
        self._waiting.appendleft(rider)
        self._is_stuck = False

    def _release(self, rider: Rider, computed: int) -> None:
        """Let go of all blocks, the last ones to be handed out first."""
        pool, block = self._pool, self._block
        blocks = ceil_div(computed, block)
        self._stored -= computed
        self._held -= blocks
        if not self._caching:
            pool.plain += blocks
            return
        full = computed // block
        pool.plain += blocks - full
        rider.run = pool.give_run(full - len(rider.nodes))
        for node in reversed(rider.nodes):
            pool.give(node)
        rider.nodes = []


def _steps_before(left: int, first: int, growth: int, most: int) -> int:
    """How many steps begin in `left` ticks, of `first` ticks the first, each `growth` longer than the one before."""
    low, high = 1, most
    while low < high:
        middle = (low + high + 1) // 2
        if (middle - 1) * first + growth * ((middle - 1) * (middle - 2) // 2) < left:
            low = middle
        else:
            high = middle - 1
    return low
