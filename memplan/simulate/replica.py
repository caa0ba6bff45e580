"""One engine with a clock: it serves step by step, and says what has been scheduled, begun and finished, and when."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from memplan.domain.simulation import SimulationSettings
from memplan.simulate.chains import Chains
from memplan.simulate.clock import Clock, to_ticks
from memplan.simulate.contiguous import ContiguousCache
from memplan.simulate.paged import PagedCache
from memplan.simulate.room import RoomSums
from memplan.simulate.scheduler import Scheduler
from memplan.simulate.series import SeriesLog
from memplan.simulate.served import Served


class Totals(NamedTuple):
    """What one replica has done so far."""

    steps: int
    busy_ticks: int
    preemptions: int
    swaps: int
    computed_tokens: int
    recomputed_tokens: int
    cached_tokens: int
    copied_blocks: int
    most_running: int
    most_waiting: int
    most_blocks: int


class Ledger(Protocol):
    """Where a replica writes when something happened to a request, in ticks."""

    def scheduled(self, request: Served, ticks: int) -> None: ...

    def first_token(self, request: Served, ticks: int) -> None: ...

    def finished(self, request: Served, ticks: int) -> None: ...


class Replica(Protocol):
    """What serves requests over time."""

    now: int
    log: SeriesLog
    room: RoomSums

    def add(self, request: Served) -> bool: ...

    def is_busy(self) -> bool: ...

    def advance(self, until: int, most_steps: int) -> int:
        """Serve until a request has finished, or the next step would begin at `until` or later; return the steps."""
        ...

    def load(self) -> tuple[int, int]:
        """Requests that run and wait, blocks in use."""
        ...

    def found_tokens(self, request: Served) -> int:
        """Tokens of a waiting request that its cache has."""
        ...

    def totals(self) -> Totals: ...


class SteppedReplica:
    """The specification: the scheduler's every step, one after the other."""

    def __init__(self, settings: SimulationSettings, chains: Chains, ledger: Ledger) -> None:
        paged = settings.allocation == "paged"
        cache = PagedCache(settings, chains) if paged else ContiguousCache(settings)
        self.scheduler = Scheduler(settings, cache)
        self.now = 0
        self.log = SeriesLog(settings.max_points)
        self.room = self.scheduler.room
        self._clock = Clock(settings.steps)
        self._swap_ticks = to_ticks(settings.swap_s)
        # the step that runs while the next one is scheduled; where steps are counted, each is one whatever it holds
        self._is_ahead = settings.async_scheduling and not self._clock.counts_steps
        self._under_way = 0
        self._ledger = ledger
        self._steps = 0
        self._busy = 0
        self._most = [0, 0, 0]

    def add(self, request: Served) -> bool:
        return self.scheduler.add(request)

    def is_busy(self) -> bool:
        return self.scheduler.is_busy()

    def advance(self, until: int, most_steps: int) -> int:
        """Serve until a request has finished, or the next step would begin at `until` or later; return the steps."""
        done = 0
        while self.now < until and done < most_steps and self.scheduler.is_busy():
            begun = self.now
            step = self.scheduler.step()
            ticks = (
                self._clock.step(step.decodes, step.context_tokens, step.chunks) + step.moved_blocks * self._swap_ticks
            )
            if self._is_ahead:
                ticks, self._under_way = self._under_way, ticks
            self.now += ticks
            self._busy += ticks
            state = self.scheduler.state
            self.log.add(self._steps, self.now, state)
            self._steps += 1
            done += 1
            most = self._most
            most[0], most[1] = max(most[0], state.running), max(most[1], state.waiting)
            most[2] = max(most[2], state.used_blocks)
            for request in step.started:
                self._ledger.scheduled(request, begun)
            for request in step.firsts:
                self._ledger.first_token(request, self.now)
            for request in step.finished:
                self._ledger.finished(request, self.now)
            if step.finished:
                break
        return done

    def load(self) -> tuple[int, int]:
        """Requests that run and wait, blocks in use."""
        scheduler = self.scheduler
        return len(scheduler.running) + len(scheduler.waiting), scheduler.cache.used_blocks

    def found_tokens(self, request: Served) -> int:
        """Tokens of a waiting request that its cache has."""
        return self.scheduler.cache.find(request)[1]

    def totals(self) -> Totals:
        """What it has done so far."""
        scheduler = self.scheduler
        return Totals(
            steps=self._steps,
            busy_ticks=self._busy,
            preemptions=scheduler.preemptions,
            swaps=scheduler.swaps,
            computed_tokens=scheduler.computed_tokens,
            recomputed_tokens=scheduler.recomputed_tokens,
            cached_tokens=scheduler.cached_tokens,
            copied_blocks=scheduler.cache.copied_blocks,
            most_running=self._most[0],
            most_waiting=self._most[1],
            most_blocks=self._most[2],
        )
