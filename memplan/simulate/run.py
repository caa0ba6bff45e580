"""One simulation from traffic to what came of it."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from heapq import heappop, heappush

from memplan.domain.simulation import (
    OUTCOMES,
    CacheGroup,
    Counts,
    EqualSteps,
    SimulationResult,
    SimulationSettings,
    Traffic,
)
from memplan.errors import UsageError
from memplan.records import replace
from memplan.simulate.chains import Chains
from memplan.simulate.clock import TICKS_PER_S, Clock, to_ticks
from memplan.simulate.jumping import JumpingReplica, can_jump
from memplan.simulate.measures import percentiles
from memplan.simulate.replica import Replica, SteppedReplica, Totals
from memplan.simulate.room import parts_of
from memplan.simulate.routing import Router
from memplan.simulate.series import SeriesLog
from memplan.simulate.served import Served

_FINISHED, _REJECTED, _UNFINISHED = (OUTCOMES.index(name) for name in OUTCOMES)
_NEVER = 1 << 100
_TOLD_EVERY = 1000


def simulate(
    settings: SimulationSettings,
    traffic: Traffic,
    *,
    stepwise: bool = False,
    told: Callable[[int], None] | None = None,
) -> SimulationResult:
    """Serve `traffic` with one deployment and return what came of it. The same arguments give the same answer.

    `stepwise` runs every step one by one; without it, stretches of equal steps are jumped over where the settings
    allow it, with the same result. `told` is called now and then with the number of requests that have arrived.
    Raises: UsageError when settings make no sense together.
    """
    _check(settings, traffic)
    run = _Run(settings, traffic, stepwise, told)
    run.serve()
    return run.result()


class _Run:
    """The replicas, the requests that are still to come, and the columns that are filled."""

    def __init__(
        self, settings: SimulationSettings, traffic: Traffic, stepwise: bool, told: Callable[[int], None] | None
    ) -> None:
        self._settings, self._traffic, self._told = settings, traffic, told
        self._arrived = 0
        count = traffic.num_requests
        self._columns = {name: array("d", [-1.0]) * count for name in ("arrived", "scheduled", "first", "finished")}
        self._outcomes = array("q", [_UNFINISHED]) * count
        self._preempted = array("q", [0]) * count
        self._cached = array("q", [0]) * count
        self._replica_of = array("q", [-1]) * count
        self._last = 0
        self._request_ticks = Clock(settings.steps).request_ticks
        chains = Chains(traffic)
        self._decoders: list[Replica] = [
            make_replica(settings, chains, self, stepwise) for _ in range(settings.replicas)
        ]
        alone = replace(settings, prefill_replicas=0)
        self._readers: list[Replica] = [
            make_replica(alone, chains, self, stepwise) for _ in range(settings.prefill_replicas)
        ]
        block = settings.groups[0].block_tokens
        self._routers = Router(settings.routing, block), Router(settings.routing, block)
        self._later: list[tuple[int, int, int, int]] = []
        self._noted = 0
        self._followers: dict[int, list[int]] = {}
        self._order = self._first_arrivals()

    def serve(self) -> None:
        """Let time pass until everything has been served or nothing can be."""
        replicas = [*self._readers, *self._decoders]
        steps_left = self._settings.max_steps if self._settings.max_steps is not None else _NEVER
        place = 0
        while True:
            first = self._order[place][0] if place < len(self._order) else _NEVER
            due = min(first, self._later[0][0]) if self._later else first
            busy = [replica for replica in replicas if replica.is_busy()]
            if busy:
                replica = min(busy, key=lambda each: each.now)
                if replica.now < due:
                    if steps_left <= 0:
                        return
                    steps_left -= replica.advance(due, steps_left)
                    continue
            if due == _NEVER:
                return
            if self._later and self._later[0][0] < first:
                ticks, _, index, stage = heappop(self._later)
            else:
                (ticks, index), stage = self._order[place], 0
                place += 1
            self._arrive(ticks, index, stage)

    def _first_arrivals(self) -> list[tuple[int, int]]:
        """Requests that follow none, in the order in which they come."""
        traffic = self._traffic
        steps = self._settings.steps
        scale = TICKS_PER_S
        if traffic.unit == "steps" and isinstance(steps, EqualSteps):
            scale = to_ticks(steps.step_s)
        self._pauses = [round(arrival * scale) for arrival in traffic.arrivals]
        if traffic.follows is None:
            return sorted((ticks, index) for index, ticks in enumerate(self._pauses))
        rows = []
        for index, before in enumerate(traffic.follows):
            if before >= 0:
                self._followers.setdefault(before, []).append(index)
            else:
                rows.append((self._pauses[index], index))
        return sorted(rows)

    def _arrive(self, ticks: int, index: int, stage: int) -> None:
        """Hand a request to a replica: to one that reads prompts, or (stage 1) to one that goes on with it."""
        traffic, settings = self._traffic, self._settings
        prompt = traffic.prompt_tokens[index]
        output = min(traffic.output_tokens[index], settings.context_tokens - prompt)
        request = Served(index, prompt, output)
        pool, router = self._decoders, self._routers[0]
        if stage == 0:
            self._columns["arrived"][index] = ticks / TICKS_PER_S
            self._arrived += 1
            if self._told is not None and self._arrived % _TOLD_EVERY == 0:
                self._told(self._arrived)
            if self._request_ticks:
                self._note(ticks + self._request_ticks, index, 2)
                return
        if stage == 1:
            request.made, request.restored = 1, prompt
        elif self._readers:
            pool, router = self._readers, self._routers[1]
            request.output = 1
        place = router.pick(pool, request)
        replica = pool[place]
        if not replica.is_busy():
            replica.now = max(replica.now, ticks)
        if output < 1 or not replica.add(request):
            self._outcomes[index] = _REJECTED
            self._end(index, ticks)
            return
        if pool is self._decoders:
            self._replica_of[index] = place

    def _note(self, ticks: int, index: int, stage: int) -> None:
        """Something is due later; what was noted first goes first where times are equal."""
        self._noted += 1
        heappush(self._later, (ticks, self._noted, index, stage))

    def _end(self, index: int, ticks: int) -> None:
        """Whatever follows a request is due after its pause."""
        self._last = max(self._last, ticks)
        for after in self._followers.get(index, ()):
            self._note(ticks + self._pauses[after], after, 0)

    def scheduled(self, request: Served, ticks: int) -> None:
        """Note when a request was taken in for the first time."""
        if self._columns["scheduled"][request.index] < 0:
            self._columns["scheduled"][request.index] = ticks / TICKS_PER_S
            self._cached[request.index] = request.found

    def first_token(self, request: Served, ticks: int) -> None:
        """Note when the first token of the answer was there."""
        if self._columns["first"][request.index] < 0:
            self._columns["first"][request.index] = ticks / TICKS_PER_S

    def finished(self, request: Served, ticks: int) -> None:
        """Note the end, or hand what was read over to a replica that decodes."""
        index = request.index
        self._preempted[index] += request.preemptions
        whole = min(self._traffic.output_tokens[index], self._settings.context_tokens - request.prompt)
        if request.output < whole:
            self._note(ticks + to_ticks(self._settings.transfer_s * request.prompt), index, 1)
            return
        self._columns["finished"][index] = ticks / TICKS_PER_S
        self._outcomes[index] = _FINISHED
        self._end(index, ticks)

    def result(self) -> SimulationResult:
        """Everything that was noted."""
        settings, traffic = self._settings, self._traffic
        replicas = [*self._readers, *self._decoders]
        totals = [replica.totals() for replica in replicas]
        ends = [index for index, outcome in enumerate(self._outcomes) if outcome == _FINISHED]
        arrived, scheduled, first, finished = self._columns.values()
        made = sum(min(traffic.output_tokens[i], settings.context_tokens - traffic.prompt_tokens[i]) for i in ends)
        began = min(self._order[0][0], self._last) / TICKS_PER_S if self._order else 0.0
        duration = max([self._last, *(replica.now for replica in replicas)]) / TICKS_PER_S - began
        logs = [replica.log for replica in replicas]
        return SimulationResult(
            settings=settings,
            counts=_counts(traffic, self._outcomes, totals, made),
            waste=parts_of([replica.room for replica in self._decoders]),
            ttft=percentiles(first[i] - arrived[i] for i in ends),
            tpot=percentiles((finished[i] - first[i]) / (n - 1) for i in ends if (n := traffic.output_tokens[i]) > 1),
            end_to_end=percentiles(finished[i] - arrived[i] for i in ends),
            queued=percentiles(scheduled[i] - arrived[i] for i in ends),
            duration_s=duration,
            busy_s=sum(each.busy_ticks for each in totals) / TICKS_PER_S,
            output_tokens_per_s=made / duration if duration else 0.0,
            requests_per_s=len(ends) / duration if duration else 0.0,
            series=SeriesLog.together([replica.log for replica in self._decoders], settings.max_points),
            replica_series=tuple(log.series() for log in logs),
            outcomes=self._outcomes,
            arrived_s=arrived,
            scheduled_s=scheduled,
            first_token_s=first,
            finished_s=finished,
            preempted=self._preempted,
            cached_tokens=self._cached,
            replica_of=self._replica_of,
        )


def make_replica(settings: SimulationSettings, chains: Chains, ledger: _Run, stepwise: bool) -> Replica:
    """The replica that serves such settings."""
    if stepwise or not can_jump(settings):
        return SteppedReplica(settings, chains, ledger)
    return JumpingReplica(settings, chains, ledger)


def _counts(traffic: Traffic, outcomes: array[int], totals: list[Totals], made: int) -> Counts:
    def total(name: str) -> int:
        return sum(getattr(each, name) for each in totals)

    return Counts(
        requests=traffic.num_requests,
        finished=outcomes.count(_FINISHED),
        rejected=outcomes.count(_REJECTED),
        unfinished=outcomes.count(_UNFINISHED),
        steps=total("steps"),
        preemptions=total("preemptions"),
        swaps=total("swaps"),
        prompt_tokens=sum(traffic.prompt_tokens),
        output_tokens=made,
        computed_prompt_tokens=total("computed_tokens"),
        recomputed_tokens=total("recomputed_tokens"),
        cached_tokens=total("cached_tokens"),
        copied_blocks=total("copied_blocks"),
        most_running=max(each.most_running for each in totals),
        most_waiting=max(each.most_waiting for each in totals),
        most_blocks=max(each.most_blocks for each in totals),
    )


def _plain(settings: SimulationSettings) -> CacheGroup:
    return CacheGroup(block_tokens=settings.groups[0].block_tokens)


def _check(settings: SimulationSettings, traffic: Traffic) -> None:
    """Raise where settings make no sense together."""
    for name in ("num_blocks", "context_tokens", "max_num_seqs", "max_num_batched_tokens", "replicas"):
        if getattr(settings, name) < 1:
            raise UsageError(f"{name.replace('_', ' ')} below one: {getattr(settings, name)}", hint="give at least 1")
    if not settings.groups or any(group.block_tokens < 1 for group in settings.groups):
        raise UsageError("a cache without blocks", hint="give one group with a block of at least one token")
    is_vllm = (settings.batching, settings.allocation, settings.preemption) == ("continuous", "paged", "recompute")
    if settings.async_scheduling and not is_vllm:
        raise UsageError("asynchronous scheduling of something else than vLLM's", hint="leave one of them out")
    if settings.partial_reuse and (len(settings.groups) > 1 or settings.groups[0] != _plain(settings)):
        raise UsageError("partial reuse with windows or several groups", hint="it is for layers that keep everything")
    if traffic.unit == "steps" and not isinstance(settings.steps, EqualSteps):
        raise UsageError("arrivals in steps, and steps of different length", hint="give arrivals in seconds")
    if any(tokens < 1 for tokens in (*traffic.prompt_tokens, *traffic.output_tokens)):
        raise UsageError("a request without tokens", hint="prompts and answers have at least one token")
