"""A replica that jumps over steps in which nothing happens but that every running request gets a token.

What it does is what `SteppedReplica` does, step by step, and gives the same result to the last picosecond
(tests/simulate/test_jumping.py); only the bookkeeping is by counts (`riders`). Events are arrivals, ends, a lack of
blocks, and steps that read a prompt.
"""

from __future__ import annotations

from heapq import heappop

from memplan.domain.simulation import SimulationSettings
from memplan.simulate.riders import Made, Rider, Riders
from memplan.simulate.room import State
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


class JumpingReplica(Riders):
    """One engine, many steps at once."""

    def advance(self, until: int, most_steps: int) -> int:
        """Serve until a request has finished, or the next step would begin at `until` or later; return the steps."""
        before = self._steps
        last = before + most_steps
        while self.now < until and self._steps < last and (self._running or self._waiting):
            idle = not self._waiting or self._is_stuck or len(self._running) >= self._settings.max_num_seqs
            if idle and self._partial is None and not self._filling and not self._due and self._jump(until, last):
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
        count = self._steps_until(until, now, growth, count)
        taken, total = self._taken(begin, count)
        pool = self._pool
        if taken > pool.plain + pool.cached:
            count = self._steps_with_room(begin, count)
            if count == 0:
                return False
            taken, total = self._taken(begin, count)
        self._pass(begin, count, taken, total)
        ticks = count * now + growth * (count * (count - 1) // 2)
        if self._is_ahead:
            last = now + growth * (count - 1)
            ticks, self._under_way = self._under_way + ticks - last, last
        self.now += ticks
        self._busy += ticks
        self._steps = begin + count
        self._note_state()
        return True

    def _steps_until(self, until: int, first: int, growth: int, most: int) -> int:
        """How many steps begin before `until`, `most` at most; the first of them does."""
        left = until - self.now
        if not self._is_ahead:
            return _steps_before(left, first, growth, most)
        left -= self._under_way  # the second one begins when what is under way ends
        return 1 if left <= 0 or most == 1 else 1 + _steps_before(left, first, growth, most - 1)

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
        if self._is_ahead:
            ticks, self._under_way = self._under_way, ticks
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
            pool.touch(nodes)
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
        """Take in the result that is there: answers begin and end. True where a request has finished."""
        made = self._makes(step, read)
        if self._late:
            made, self._due = self._due, made
        for rider, is_first, _ in made:
            if is_first:
                self._ledger.first_token(rider.request, self.now)
        has_ended = False
        for rider, _, is_last in made:
            if is_last:
                self._end(rider)
                has_ended = True
        if has_ended:
            self._is_stuck = False
        return has_ended

    def _makes(self, step: int, read: list[tuple[Rider, int]]) -> list[Made]:
        """The first and last tokens that a pass makes. Whose prompt it has read goes on to decode, who makes the last
        one no longer does.
        """
        made: list[Made] = []
        if step in self._ends:
            ended = (rider for rider in self._ends.pop(step) if rider.finish == step)
            for rider in sorted(ended, key=lambda rider: rider.serial):
                rider.request.computed = rider.offset + step + 1
                self._stop_decoding(rider, rider.request.computed)
                made.append(Made(rider, False, True))
        for rider, _ in read:
            request = rider.request
            if request.computed < request.tokens:
                continue
            rider.read = request.computed
            request.made += 1
            is_last = request.made >= request.output
            made.append(Made(rider, request.made == 1, is_last))
            if not is_last:
                self._start_decoding(rider, step)
        return made

    def _end(self, rider: Rider) -> None:
        request = rider.request
        request.made = request.output
        if rider in self._running:
            del self._running[rider]
            if self._late:
                self._register(rider, request.computed)
            self._release(rider, request.computed, request.computed)
        else:  # it gave way while its last token was under way
            self._waiting.remove(rider)
        self._ledger.finished(request, self.now)


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
