"""Who may use the cache, and when: a calculator for the gateway or the program in front of an engine.

A plan turns into budgets of tokens, one for each tier of users; a gate says of every request whether it is let in,
waits, is turned away, or is let in with a shorter answer. What is let in has room for its whole prompt and answer, so
that an engine with these limits never has to put a request back, whatever arrives. Nothing here knows time or a
network: a program asks, and tells when a request has ended.

    gate = Gate(admission_plan(json.load(open("estimate.json"))))  # memplan estimate --json
    decision = gate.ask("request-1", tier="standard", prompt_tokens=900, max_tokens=400)
    ...
    let_in = gate.ended("request-1")  # those that waited and may start now

The same numbers are in what `memplan emit-config --format limits` and `--format alerts` write.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from memplan.errors import UsageError
from memplan.records import dataclass, replace
from memplan.units import ceil_div

Verdict = Literal["admit", "queue", "reject"]
# Assumed: which part of the cache a tier gets, and which part of the context one of its requests.
_TIERS = (("premium", 0.5, 1.0), ("standard", 0.3, 0.5), ("free", 0.2, 0.25))
_OUTPUT_SHARE = 4
_STEP_TOKENS = 256
_LEAST_WAITING = 4
_LEAST_FULL, _MOST_FULL = 0.7, 0.95
RETRY_AFTER_S = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Tier:
    """One class of users: what one request may reach, how many of such requests may run at once, and its part of the
    cache. The first tier of a plan is served first.
    """

    name: str
    context_tokens: int
    output_tokens: int
    requests: int
    share: float

    @property
    def reserved_tokens(self) -> int:
        """The tokens that its requests take when every place is taken at full length: what it is always given."""
        return self.context_tokens * self.requests


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmissionPlan:
    """What the engine holds, and who may have how much of it.

    `cache_tokens` are those of one replica's cache (the low end of an estimate), `max_running` the requests in one of
    its steps, `context_tokens` what a request may reach, `block_tokens` how many its cache hands out at a time.
    `max_waiting` requests may wait in all; None takes as many as run at full length. A shortened answer has at least
    `least_output_tokens`.
    """

    cache_tokens: int
    context_tokens: int
    max_running: int
    tiers: tuple[Tier, ...]
    block_tokens: int = 16
    max_waiting: int | None = None
    least_output_tokens: int = 16
    retry_after_s: int = RETRY_AFTER_S

    @property
    def waiting_limit(self) -> int:
        """How many may wait before requests are turned away."""
        return self.max_waiting if self.max_waiting is not None else waiting_limit(self.at_full_length)

    @property
    def at_full_length(self) -> int:
        """Requests of the whole context that have room at once."""
        return max(1, self.cache_tokens // max(1, self.context_tokens))

    @property
    def nearly_full(self) -> float:
        """The part of the cache above which it counts as nearly full."""
        return nearly_full(self.cache_tokens, self.context_tokens)

    def tier(self, name: str) -> Tier:
        """The tier of that name. Raises: UsageError when there is none."""
        for tier in self.tiers:
            if tier.name == name:
                return tier
        known = ", ".join(tier.name for tier in self.tiers)
        raise UsageError(f"unknown tier: `{name:.60}`", hint=f"use one of {known}")

    def tokens_of(self, prompt_tokens: int, max_tokens: int) -> int:
        """What a request takes of the cache in the end, in whole blocks."""
        return ceil_div(prompt_tokens + max_tokens, self.block_tokens) * self.block_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What becomes of a request. Admitted with `max_tokens`, which `shortened` says is less than was asked for; queued
    at `place`; rejected, to be tried again after `retry_after_s`, or never where that is None.
    """

    verdict: Verdict
    reason: str
    max_tokens: int = 0
    shortened: bool = False
    place: int = 0
    retry_after_s: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Admitted:
    """A request that waited and may start now."""

    name: str
    tier: str
    prompt_tokens: int
    max_tokens: int
    shortened: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    name: str
    tier: Tier
    prompt_tokens: int
    max_tokens: int
    shortened: bool = False


def admission_plan(estimate: Mapping[str, Any], *, tiers: tuple[Tier, ...] = ()) -> AdmissionPlan:
    """Return the plan of one replica, from what `memplan estimate --json` wrote; without tiers, the usual ones.

    Raises: UsageError for something else, or an engine that keeps no cache.
    """
    try:
        kv, settings = estimate["kv_cache"], estimate["settings"]
        tokens = kv.get("low_tokens") or kv["capacity_tokens"]
        concurrency = max(1, int(settings.get("concurrency") or 1))
        context = settings.get("max_model_len") or kv["needed_tokens"] // concurrency
        running = settings.get("max_num_seqs") or settings.get("slots") or 256
        found = (int(tokens), int(context), int(running), int(kv.get("block_size") or 1))
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UsageError(
            "no estimate with a cache", hint="give what `memplan estimate MODEL --gpu ... --json` wrote"
        ) from None
    cache_tokens, context_tokens, max_running, block_tokens = found
    context_tokens = min(context_tokens, cache_tokens)
    return AdmissionPlan(
        cache_tokens=cache_tokens,
        context_tokens=context_tokens,
        max_running=max_running,
        block_tokens=block_tokens,
        tiers=tiers or usual_tiers(cache_tokens, context_tokens),
    )


def usual_tiers(cache_tokens: int, context_tokens: int) -> tuple[Tier, ...]:
    """Three tiers whose requests of full length have room together; a tier without room for one is left out.

    A cache without room for one request of the whole context gets a single tier of what it holds.
    """
    granted: list[Tier] = []
    left = cache_tokens
    for name, share, part in _TIERS:
        length = _rounded(context_tokens * part)
        requests = min(left // length, max(1, int(cache_tokens * share) // length))
        if requests:
            granted.append(one_tier(name, length, requests, share))
            left -= granted[-1].reserved_tokens
    return tuple(granted) or (one_tier("standard", cache_tokens, 1, 1.0),)


def one_tier(name: str, context_tokens: int, requests: int, share: float) -> Tier:
    """A tier whose answers may be a quarter of the context, so that the prompt has the rest."""
    return Tier(
        name=name,
        context_tokens=context_tokens,
        output_tokens=max(1, context_tokens // _OUTPUT_SHARE),
        requests=requests,
        share=share,
    )


def waiting_limit(running: int) -> int:
    """How many requests may wait: as many as run, so that nobody waits for longer than one turn."""
    return max(_LEAST_WAITING, running)


def busy_from(waiting: int) -> int:
    """How many waiting requests are a queue that grows: half of those that may wait."""
    return max(1, waiting // 2)


def nearly_full(cache_tokens: int, context_tokens: int) -> float:
    """The part of the cache above which one more request of the whole context has no room, between 0.7 and 0.95."""
    share = 1 - context_tokens / cache_tokens if cache_tokens else 0.9
    return min(_MOST_FULL, max(_LEAST_FULL, round(share, 2)))


class Gate:
    """Keeps count of who is in and who waits, and decides. Not safe for several threads without a lock of the caller's.

    A request is let in where its whole length has room: within its tier's own tokens always, beyond them while no other
    tier waits for its own. While the cache is nearly full, or the queue is half full, answers are cut to what there is
    room for rather than made to wait. Of one tier nobody overtakes; of several, the first in the plan starts first.
    """

    def __init__(self, plan: AdmissionPlan) -> None:
        _check(plan)
        self.plan = plan
        self._running: dict[str, tuple[str, int]] = {}
        self._taken = {tier.name: 0 for tier in plan.tiers}
        self._queues: dict[str, deque[_Asked]] = {tier.name: deque() for tier in plan.tiers}

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def waiting(self) -> int:
        return sum(len(queue) for queue in self._queues.values())

    @property
    def taken_tokens(self) -> int:
        """Tokens that are promised to requests that run."""
        return sum(self._taken.values())

    @property
    def is_pressed(self) -> bool:
        """Whether the cache is nearly full or half of those wait that may: when alerts go off, and answers are cut."""
        plan = self.plan
        return self.taken_tokens > plan.nearly_full * plan.cache_tokens or self.waiting > busy_from(plan.waiting_limit)

    def ask(self, name: str, *, tier: str, prompt_tokens: int, max_tokens: int) -> Decision:
        """Decide about a request. One that is admitted counts until `ended`; one that waits is let in by another's end.

        Raises: UsageError for a tier that there is not, lengths below one, or a name that is in already.
        """
        plan, found = self.plan, self.plan.tier(tier)
        if prompt_tokens < 1 or max_tokens < 1:
            raise UsageError(f"a request of {prompt_tokens} and {max_tokens} tokens", hint="both are at least 1")
        if name in self._running or any(each.name == name for queue in self._queues.values() for each in queue):
            raise UsageError(f"`{name:.60}` is here already", hint="name every request differently")
        longest = min(
            found.context_tokens, plan.context_tokens, plan.cache_tokens // plan.block_tokens * plan.block_tokens
        )
        if prompt_tokens >= longest:
            return Decision(
                verdict="reject", reason=f"the prompt leaves no room for an answer within {longest:,} tokens"
            )
        granted = min(max_tokens, found.output_tokens, longest - prompt_tokens)
        asked = _Asked(
            name=name,
            tier=found,
            prompt_tokens=prompt_tokens,
            max_tokens=granted,
            shortened=granted < max_tokens,
        )
        if not self._queues[tier]:
            fitting = self._fitting(asked)
            if fitting is not None:
                self._let_in(fitting)
                reason = (
                    "its answer is cut to what there is room for" if fitting.shortened else "its whole length has room"
                )
                return Decision(
                    verdict="admit", reason=reason, max_tokens=fitting.max_tokens, shortened=fitting.shortened
                )
        if self.waiting >= plan.waiting_limit:
            reason = f"{plan.waiting_limit:,} requests wait already"
            return Decision(verdict="reject", reason=reason, retry_after_s=plan.retry_after_s)
        self._queues[tier].append(asked)
        return Decision(verdict="queue", reason="there is no room yet", place=len(self._queues[tier]))

    def ended(self, name: str) -> tuple[Admitted, ...]:
        """Give back what a request had, whether it ran or waited; return those that may start now.

        Raises: UsageError for a name that is neither.
        """
        if name in self._running:
            tier, tokens = self._running.pop(name)
            self._taken[tier] -= tokens
        else:
            for queue in self._queues.values():
                kept = [each for each in queue if each.name != name]
                if len(kept) < len(queue):
                    queue.clear()
                    queue.extend(kept)
                    break
            else:
                raise UsageError(f"no request is called `{name:.60}`", hint="tell the end of each request once")
        return tuple(self._start())

    def _start(self) -> Iterator[Admitted]:
        """Let in from the heads of the queues, the first tier first, until no head has room."""
        moved = True
        while moved:
            moved = False
            for queue in self._queues.values():
                fitting = self._fitting(queue[0]) if queue else None
                if fitting is not None:
                    queue.popleft()
                    self._let_in(fitting)
                    yield Admitted(
                        name=fitting.name,
                        tier=fitting.tier.name,
                        prompt_tokens=fitting.prompt_tokens,
                        max_tokens=fitting.max_tokens,
                        shortened=fitting.shortened,
                    )
                    moved = True
                    break

    def _fitting(self, asked: _Asked) -> _Asked | None:
        """The request as it has room now, shortened under pressure; None where it has none."""
        if len(self._running) >= self.plan.max_running:
            return None
        room = self._room(asked.tier)
        if self.plan.tokens_of(asked.prompt_tokens, asked.max_tokens) <= room:
            return asked
        least = min(asked.max_tokens, self.plan.least_output_tokens)
        whole_blocks = room // self.plan.block_tokens * self.plan.block_tokens
        shorter = min(asked.max_tokens, whole_blocks - asked.prompt_tokens)
        if not self.is_pressed or shorter < least:
            return None
        return replace(asked, max_tokens=shorter, shortened=True)

    def _room(self, tier: Tier) -> int:
        """Tokens that a tier may still take: the rest of its own, or all that is left while no other tier waits.

        What others were promised and have not taken is theirs as soon as they wait for it; the cache itself is the end
        of it in any case.
        """
        left = self.plan.cache_tokens - self.taken_tokens
        others_wait = any(queue for name, queue in self._queues.items() if name != tier.name)
        own = tier.requests * self.plan.tokens_of(tier.context_tokens, 0) - self._taken[tier.name]
        return min(left, max(0, own)) if others_wait else left

    def _let_in(self, asked: _Asked) -> None:
        tokens = self.plan.tokens_of(asked.prompt_tokens, asked.max_tokens)
        self._running[asked.name] = (asked.tier.name, tokens)
        self._taken[asked.tier.name] += tokens


def _check(plan: AdmissionPlan) -> None:
    if min(plan.cache_tokens, plan.context_tokens, plan.max_running, plan.block_tokens) < 1 or not plan.tiers:
        raise UsageError("an admission plan without room, places or tiers", hint="every number is at least 1")
    if any(min(tier.requests, tier.context_tokens, tier.output_tokens) < 1 for tier in plan.tiers):
        raise UsageError("a tier without a place, a context or an answer", hint="leave the tier out")
    if len({tier.name for tier in plan.tiers}) < len(plan.tiers):
        raise UsageError("two tiers have one name", hint="name every tier differently")
    reserved = sum(tier.reserved_tokens for tier in plan.tiers)
    if reserved > plan.cache_tokens:
        raise UsageError(
            f"the tiers are promised {reserved:,} of {plan.cache_tokens:,} tokens",
            hint="lower the requests or the contexts of a tier",
        )


def _rounded(tokens: float) -> int:
    """Down to a multiple of 256, which every page size divides; short contexts as they are."""
    return max(1, int(tokens) // _STEP_TOKENS * _STEP_TOKENS or int(tokens))
