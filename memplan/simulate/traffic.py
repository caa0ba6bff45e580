"""Traffic made from a description: arrivals, lengths, conversations with what they share. One seed, one traffic.

Lengths are drawn by quantiles of one uniform number each, so that another output length leaves the prompts as they are.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from random import Random

from memplan.domain.lengths import FixedLength, Lengths
from memplan.domain.simulation import Traffic
from memplan.errors import UsageError
from memplan.records import dataclass, field
from memplan.simulate.arrivals import Arrivals, AtOnce, ClosedLoop, OpenLoop, exponential, open_arrivals

MAX_REQUESTS = 5_000_000
_NEAR_NOTHING = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True)
class Sessions:
    """Conversations: how many turns one has, and how long a person thinks between an answer and the next question."""

    turns: Lengths = field(default_factory=lambda: FixedLength(tokens=1))
    think_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TrafficSpec:
    """Requests to make. All prompts begin with the same `shared_prefix_tokens`, which their length includes.

    In a conversation `prompt` is the length of the first prompt; each further turn adds a question of a length drawn
    from it, less the shared prefix, to all that was said before. A rate counts requests, not conversations. What would
    not fit into `context_tokens` ends the conversation, and cuts an answer.
    """

    num_requests: int
    arrivals: Arrivals
    prompt: Lengths
    output: Lengths
    context_tokens: int
    shared_prefix_tokens: int = 0
    sessions: Sessions | None = None
    seed: int = 0


def make_traffic(spec: TrafficSpec) -> Traffic:
    """Return the requests that `spec` describes. Raises: UsageError for numbers out of range."""
    if not 1 <= spec.num_requests <= MAX_REQUESTS:
        raise UsageError(
            f"a number of requests out of range: {spec.num_requests:,}",
            hint=f"simulate between 1 and {MAX_REQUESTS:,} requests",
        )
    if spec.sessions is not None and spec.sessions.turns.longest > 1:
        return _conversations(spec, spec.sessions)
    count = spec.num_requests
    prompt, output = _drawer(spec.prompt, spec.seed, "prompt"), _drawer(spec.output, spec.seed, "output")
    prompts, outputs = array("q", bytes(8 * count)), array("q", bytes(8 * count))
    shortest = spec.shared_prefix_tokens + 1 if spec.shared_prefix_tokens else 1
    for place in range(count):
        tokens = prompts[place] = max(shortest, prompt())
        outputs[place] = max(1, min(output(), spec.context_tokens - tokens))
    arrivals, follows = _single(spec, count)
    return Traffic(
        arrivals=arrivals,
        prompt_tokens=prompts,
        output_tokens=outputs,
        prefixes=_prefixes(spec),
        prefix_of=array("q", bytes(8 * count)) if spec.shared_prefix_tokens else None,
        follows=follows,
    )


def _drawer(lengths: Lengths, seed: int, name: str) -> Callable[[], int]:
    """A function that draws one length after another, from random numbers of its own."""
    if isinstance(lengths, FixedLength):
        tokens = lengths.tokens
        return lambda: tokens
    random, quantile = Random(f"{seed} {name}").random, lengths.quantile
    return lambda: round(quantile(random() or _NEAR_NOTHING))


def _prefixes(spec: TrafficSpec) -> tuple[tuple[tuple[int, int], ...], ...]:
    return (((0, spec.shared_prefix_tokens),),) if spec.shared_prefix_tokens else ()


def _single(spec: TrafficSpec, count: int) -> tuple[array[float], array[int] | None]:
    """Arrivals of requests that stand alone, and whom each follows in a closed loop."""
    random = Random(f"{spec.seed} arrivals")
    asked = spec.arrivals
    if isinstance(asked, OpenLoop):
        return open_arrivals(asked, count, random), None
    if isinstance(asked, AtOnce):
        return array("d", bytes(8 * count)), None
    _check_users(asked)
    times, follows = array("d", bytes(8 * count)), array("q", [-1]) * count
    for place in range(asked.users, count):
        follows[place] = place - asked.users
        times[place] = exponential(asked.think_s, random)
    return times, follows


def _check_users(asked: ClosedLoop) -> None:
    if asked.users < 1:
        raise UsageError(f"a number of users out of range: {asked.users}", hint="it must be at least 1")


def _conversations(spec: TrafficSpec, sessions: Sessions) -> Traffic:
    """Conversations one after another, each turn behind the one before it. A user of a closed loop starts the next
    conversation when the last one has ended.
    """
    count, asked = spec.num_requests, spec.arrivals
    prompt, output = _drawer(spec.prompt, spec.seed, "prompt"), _drawer(spec.output, spec.seed, "output")
    turns = _drawer(sessions.turns, spec.seed, "turns")
    think = Random(f"{spec.seed} think")
    starts = _starts(spec, sessions)
    columns = {name: array("q") for name in ("prompt", "output", "stream", "follows")}
    arrivals: array[float] = array("d")
    ends: list[int] = []  # the last request of every conversation
    while len(arrivals) < count:
        number, said = len(ends), 0
        for turn in range(max(1, turns())):
            asked_tokens = max(spec.shared_prefix_tokens + 1, prompt()) - (spec.shared_prefix_tokens if turn else 0)
            said += asked_tokens
            if turn and (said >= spec.context_tokens or len(arrivals) >= count):
                break
            answer = max(1, min(output(), spec.context_tokens - said))
            before = len(arrivals) - 1
            if turn:
                arrivals.append(exponential(sessions.think_s, think))
            elif isinstance(asked, ClosedLoop):
                before = ends[number - asked.users] if number >= asked.users else -1
                arrivals.append(exponential(sessions.think_s, think) if before >= 0 else 0.0)
            else:
                before = -1
                arrivals.append(starts[number])
            for name, value in (("prompt", said), ("output", answer), ("stream", number), ("follows", before)):
                columns[name].append(value)
            said += answer
        ends.append(len(arrivals) - 1)
    return Traffic(
        arrivals=arrivals,
        prompt_tokens=columns["prompt"],
        output_tokens=columns["output"],
        prefixes=_prefixes(spec),
        prefix_of=array("q", bytes(8 * count)) if spec.shared_prefix_tokens else None,
        stream_of=columns["stream"],
        follows=columns["follows"],
    )


def _starts(spec: TrafficSpec, sessions: Sessions) -> array[float]:
    """When conversations start: their rate is that of requests over the mean number of turns."""
    if isinstance(spec.arrivals, ClosedLoop):
        _check_users(spec.arrivals)
    if not isinstance(spec.arrivals, OpenLoop):
        return array("d", bytes(8 * spec.num_requests))
    asked = OpenLoop(
        rate_per_s=spec.arrivals.rate_per_s / max(1.0, sessions.turns.mean),
        burstiness=spec.arrivals.burstiness,
        on_s=spec.arrivals.on_s,
        off_s=spec.arrivals.off_s,
    )
    return open_arrivals(asked, spec.num_requests, Random(f"{spec.seed} arrivals"))
