"""Traffic from recorded requests: their own times or times at a rate, what they share, what a record lacks."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from random import Random

from memplan.domain.simulation import Traffic
from memplan.errors import UsageError
from memplan.records import dataclass, replace
from memplan.simulate.arrivals import ClosedLoop, OpenLoop, exponential, open_arrivals
from memplan.simulate.traffic import TrafficSpec, make_traffic

# Tokens of one block of `prefix_ids`. Source: kvcache-ai/Mooncake, the description of its trace.
PREFIX_BLOCK_TOKENS = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class TracedRequest:
    """One request as it was recorded. None is what the record does not tell.

    `arrival_s` is on whatever clock. `session` is a number that turns of one conversation share. `prefix_ids` name
    the text of every 512 tokens of the prompt: equal ids are equal text.
    """

    arrival_s: float | None
    prompt_tokens: int | None
    output_tokens: int | None
    session: int | None = None
    prefix_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """How recorded requests are sent. Without a way to arrive they come at their own times, `speed` times as fast.

    Turns of a conversation that has no times follow one another after `think_s` on average.
    """

    arrivals: OpenLoop | ClosedLoop | None = None
    speed: float = 1.0
    think_s: float = 0.0
    context_tokens: int
    seed: int = 0


def replayed(requests: Sequence[TracedRequest], how: Replay, missing: TrafficSpec | None = None) -> Traffic:
    """Return recorded requests as traffic; `missing` has the lengths of what they do not tell.

    Raises: UsageError when something is not told and cannot be filled in.
    """
    requests = _filled(requests, missing)
    own_times = all(request.arrival_s is not None for request in requests)
    if how.arrivals is None and not own_times:
        raise UsageError("the trace has no times of arrival", hint="give --rate, or --concurrency for a closed loop")
    if how.arrivals is None:
        requests = sorted(requests, key=lambda request: request.arrival_s or 0.0)
    streams = _streams(requests)
    arrivals, follows = (
        _own_times(requests, streams, how) if how.arrivals is None else _new_times(requests, streams, how, how.arrivals)
    )
    prefixes, prefix_of = _prefixes(requests)
    return Traffic(
        arrivals=arrivals,
        prompt_tokens=array("q", (request.prompt_tokens or 1 for request in requests)),
        output_tokens=array("q", (_answer_tokens(request, how.context_tokens) for request in requests)),
        prefixes=prefixes,
        prefix_of=prefix_of,
        stream_of=streams if any(stream >= 0 for stream in streams) else None,
        follows=follows,
    )


def _answer_tokens(request: TracedRequest, context_tokens: int) -> int:
    """The answer as long as it was, or as a server of that context lets it be."""
    return max(1, min(request.output_tokens or 1, context_tokens - (request.prompt_tokens or 1)))


def _filled(requests: Sequence[TracedRequest], missing: TrafficSpec | None) -> Sequence[TracedRequest]:
    """The requests with every length: what a record lacks is drawn as `missing` says."""
    lacks = [
        any(request.prompt_tokens is None for request in requests),
        any(request.output_tokens is None for request in requests),
    ]
    if not any(lacks):
        return requests
    if missing is None:
        side, what = ("prompt", "prompts") if lacks[0] else ("output", "answers")
        raise UsageError(
            f"the trace does not tell how long {what} are", hint=f"give --{side}-len, such as --{side}-len 200..600"
        )
    drawn = make_traffic(replace(missing, num_requests=len(requests)))
    return [
        replace(request, prompt_tokens=request.prompt_tokens or prompt, output_tokens=request.output_tokens or output)
        for request, prompt, output in zip(requests, drawn.prompt_tokens, drawn.output_tokens, strict=True)
    ]


def _streams(requests: Sequence[TracedRequest]) -> array[int]:
    """The conversation of each request whose prompt goes on from the one before it; -1 for one that does not.

    A session whose prompts do not grow past the answers before them is a person who asks anew: nothing is shared.
    """
    reached: dict[int, int] = {}
    broken: set[int] = set()
    for request in requests:
        if request.session is None or request.session in broken:
            continue
        if (request.prompt_tokens or 0) < reached.get(request.session, 0):
            broken.add(request.session)
        reached[request.session] = (request.prompt_tokens or 0) + (request.output_tokens or 0)
    return array(
        "q", (-1 if request.session is None or request.session in broken else request.session for request in requests)
    )


def _own_times(
    requests: Sequence[TracedRequest], streams: array[int], how: Replay
) -> tuple[array[float], array[int] | None]:
    """The recorded times from the first on. Turns that were recorded at one moment follow one another."""
    if not 0 < how.speed < float("inf"):
        raise UsageError(f"a speed of a trace out of range: {how.speed:g}", hint="it must be above 0")
    first = requests[0].arrival_s or 0.0
    times = array("d", (((request.arrival_s or 0.0) - first) / how.speed for request in requests))
    return _after_one_another(times, streams, how, lambda place, before: times[place] <= times[before])


def _new_times(
    requests: Sequence[TracedRequest], streams: array[int], how: Replay, asked: OpenLoop | ClosedLoop
) -> tuple[array[float], array[int] | None]:
    """Times of arrival at a rate or in a closed loop; only the first turn of a conversation has one."""
    random = Random(f"{how.seed} arrivals")
    begins = {stream: place for place, stream in reversed(list(enumerate(streams)))}
    first = [stream < 0 or begins[stream] == place for place, stream in enumerate(streams)]
    count = sum(first)
    if isinstance(asked, OpenLoop):
        share = count / len(requests)  # a rate counts requests, of which only these arrive on their own
        starts = open_arrivals(replace(asked, rate_per_s=asked.rate_per_s * share), count, random)
        rows = iter(starts)
        times = array("d", (next(rows) if is_first else 0.0 for is_first in first))
        return _after_one_another(times, streams, how, lambda place, before: True)
    times, follows = _after_one_another(array("d", bytes(8 * len(requests))), streams, how, lambda place, before: True)
    follows = follows or array("q", [-1]) * len(requests)
    lasts: dict[int, int] = {stream: place for place, stream in enumerate(streams) if stream >= 0}
    ended: list[int] = []
    for place, is_first in enumerate(first):
        if not is_first:
            continue
        if len(ended) >= asked.users and ended[len(ended) - asked.users] < place:
            follows[place] = ended[len(ended) - asked.users]
            times[place] = exponential(asked.think_s, random)
        ended.append(place if streams[place] < 0 else lasts[streams[place]])
    return times, follows


def _after_one_another(
    times: array[float], streams: array[int], how: Replay, waits: Callable[[int, int], bool]
) -> tuple[array[float], array[int] | None]:
    """Let turns of a conversation follow the one before where `waits(place, before)`; their time is then a pause."""
    random = Random(f"{how.seed} think")
    follows = array("q", [-1]) * len(times)
    last: dict[int, int] = {}
    told = array("d", times)
    for place, stream in enumerate(streams):
        before = last.get(stream, -1) if stream >= 0 else -1
        if before >= 0 and waits(place, before):
            follows[place], told[place] = before, exponential(how.think_s, random)
        last[stream] = place
    return (told, follows) if any(before >= 0 for before in follows) else (times, None)


def _prefixes(
    requests: Sequence[TracedRequest],
) -> tuple[tuple[tuple[tuple[int, int], ...], ...], array[int] | None]:
    """The blocks of prompts that are named, as pieces; the last block of a prompt may be cut."""
    known: dict[tuple[tuple[int, int], ...], int] = {}
    prefix_of = array("q", [-1]) * len(requests)
    for place, request in enumerate(requests):
        left, pieces = request.prompt_tokens or 0, []
        for each in request.prefix_ids:
            if left <= 0:
                break
            pieces.append((each, min(PREFIX_BLOCK_TOKENS, left)))
            left -= PREFIX_BLOCK_TOKENS
        if pieces:
            prefix_of[place] = known.setdefault(tuple(pieces), len(known))
    return tuple(known), prefix_of if known else None
