"""From a command's options to traffic, a scheduler and a promise."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Literal, TypeVar, get_args

from memplan.cli.options import Given
from memplan.cli.plan_request import seconds_of
from memplan.cli.request_files import read_lengths
from memplan.cli.trace_files import MAX_REQUESTS, Trace, read_trace
from memplan.domain.lengths import FixedLength, Lengths, parse_lengths
from memplan.domain.simulated import Promise, TrafficSummary
from memplan.domain.simulation import Batching, Preemption, Routing, Traffic
from memplan.errors import UsageError, did_you_mean
from memplan.records import dataclass, replace
from memplan.simulate.arrivals import Arrivals, ClosedLoop, OpenLoop
from memplan.simulate.setup import Scheduling
from memplan.simulate.traces import Replay, replayed
from memplan.simulate.traffic import Sessions, TrafficSpec, make_traffic
from memplan.units import parse_count, parse_size_bytes

_USUAL_REQUESTS = 2000
_MOST_TURNS = 1000
_SWAP_SPACE = "4GiB"
_TIME = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|)")
_TIME_UNITS = {"ms": 0.001, "s": 1.0, "": 1.0, "m": 60.0, "h": 3600.0}
_RESERVES = {"longest": "longest", "contiguous": "longest", "power": "power", "exact": "exact"}
_Word = TypeVar("_Word", bound=str)


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedTraffic:
    """The requests, for any length that an engine may allow, and what they are in words."""

    make: Callable[[int], Traffic]
    source: str
    rate_per_s: float | None
    seed: int
    notes: tuple[str, ...] = ()


def asked_traffic(given: Given) -> AskedTraffic:
    """Return the traffic that the options describe.

    Raises: UsageError for a value or a file that does not read, or when something that is needed was not given.
    """
    arrivals = _arrivals(given)
    if _pause(given, "think_time") and not {"turns", "trace", "concurrency"} & given.keys():
        raise UsageError("--think-time without --turns", hint="a person thinks between the turns of a conversation")
    if "trace" in given:
        return _traced(given, arrivals)
    if "trace_speed" in given:
        raise UsageError("--trace-speed without --trace", hint="name the trace")
    for side in ("prompt", "output"):
        if f"{side}_tokens" not in given:
            what = "prompts" if side == "prompt" else "answers"
            raise UsageError(
                f"it was not said how long {what} are",
                hint=f"give --{side}-len, such as --{side}-len mean:300,p95:1000, or --trace FILE",
            )
    if arrivals is None:
        raise UsageError(
            "it was not said how requests arrive", hint="give --rate 4, --concurrency 16 for a closed loop, or --trace"
        )
    count = _number(given, "requests", _USUAL_REQUESTS)
    found = arrivals

    @lru_cache(maxsize=1)
    def make(context_tokens: int) -> Traffic:
        return make_traffic(_spec(given, found, count, context_tokens))

    rate = arrivals.rate_per_s if isinstance(arrivals, OpenLoop) else None
    return AskedTraffic(make=make, source=_words(given, arrivals), rate_per_s=rate, seed=given.get("seed", 0))


def asked_scheduling(given: Given) -> Scheduling:
    """Return how the options say that the deployment serves. Raises: UsageError for a word that there is not."""
    allocation = _word(given, "allocation", ("paged", *_RESERVES), "paged")
    preemption: Preemption = _word(given, "preemption", get_args(Preemption), "recompute")
    reserve: Literal["longest", "power", "exact"] = "longest"
    if allocation in ("power", "exact"):
        reserve = "power" if allocation == "power" else "exact"
    watermark, queue = given.get("watermark"), given.get("max_queue")
    if watermark is not None and not 0 <= watermark < 1:
        raise UsageError(f"--watermark out of range: {watermark}", hint="it must be at least 0 and below 1")
    for name in ("max_queue", "prefill_replicas"):
        if name in given and given[name] < 1:
            flag = f"--{name.replace('_', '-')}"
            raise UsageError(f"{flag} out of range: {given[name]}", hint="it must be at least 1")
    swap = given.get("swap_space", _SWAP_SPACE)
    batching: Batching = _word(given, "batching", get_args(Batching), "continuous")
    routing: Routing = _word(given, "routing", get_args(Routing), "round-robin")
    return Scheduling(
        batching=batching,
        allocation="paged" if allocation == "paged" else "contiguous",
        reserve=reserve,
        preemption=preemption,
        swap_bytes=parse_size_bytes(swap, what="--swap-space") if preemption == "swap" else 0,
        watermark_fraction=watermark,
        max_queue=queue,
        routing=routing,
        prefill_replicas=given.get("prefill_replicas", 0),
    )


def asked_promise(given: Given) -> Promise:
    """Return the limits that are to be kept."""
    return Promise(max_ttft_s=seconds_of(given, "max_ttft"), max_tpot_s=seconds_of(given, "max_tpot"))


def summary_of(asked: AskedTraffic, traffic: Traffic) -> TrafficSummary:
    """Return the requests in figures."""
    prompts, outputs = sorted(traffic.prompt_tokens), sorted(traffic.output_tokens)
    count = traffic.num_requests
    late = min(count - 1, int(0.95 * count))
    return TrafficSummary(
        source=asked.source,
        requests=count,
        requests_per_s=asked.rate_per_s,
        mean_prompt_tokens=sum(prompts) / count,
        p95_prompt_tokens=prompts[late],
        mean_output_tokens=sum(outputs) / count,
        p95_output_tokens=outputs[late],
        seed=asked.seed,
        notes=asked.notes,
    )


def _traced(given: Given, arrivals: Arrivals | None) -> AskedTraffic:
    trace = read_trace(given["trace"], most=_number(given, "requests", MAX_REQUESTS))
    how = Replay(
        arrivals=arrivals if isinstance(arrivals, (OpenLoop, ClosedLoop)) else None,
        speed=given.get("trace_speed", 1.0),
        think_s=_pause(given, "think_time"),
        context_tokens=1,
        seed=given.get("seed", 0),
    )
    if arrivals is not None and "trace_speed" in given:
        raise UsageError("--trace-speed goes with a trace's own times", hint="leave out --rate and --concurrency")

    @lru_cache(maxsize=1)
    def make(context_tokens: int) -> Traffic:
        missing = _missing(given, trace, context_tokens)
        return replayed(trace.requests, replace(how, context_tokens=context_tokens), missing)

    words = f"{given['trace'].name}, {'at its own times' if arrivals is None else _words(given, arrivals)}"
    rate = arrivals.rate_per_s if isinstance(arrivals, OpenLoop) else None
    return AskedTraffic(make=make, source=words, rate_per_s=rate, seed=how.seed, notes=trace.notes)


def _missing(given: Given, trace: Trace, context_tokens: int) -> TrafficSpec | None:
    """The lengths for requests that the trace does not tell them of; None where nothing is missing or given."""
    lacks = {
        "prompt": any(request.prompt_tokens is None for request in trace.requests),
        "output": any(request.output_tokens is None for request in trace.requests),
    }
    if any(lacking and f"{side}_tokens" not in given for side, lacking in lacks.items()) or not any(lacks.values()):
        return None
    count = len(trace.requests)
    known = {f"{side}_tokens": given.get(f"{side}_tokens", "1") for side in lacks}
    return _spec({**given, **known, "turns": "1"}, ClosedLoop(users=1), count, context_tokens)


def _spec(given: Given, arrivals: Arrivals, count: int, context_tokens: int) -> TrafficSpec:
    shared = parse_count(given["shared_prefix"], what="--shared-prefix", minimum=0) if "shared_prefix" in given else 0
    turns = parse_lengths(given["turns"], longest=_MOST_TURNS, what="--turns") if "turns" in given else None
    if turns is not None and turns.longest > _MOST_TURNS:
        raise UsageError(f"--turns out of range: {turns.longest:,}", hint=f"it must be at most {_MOST_TURNS:,}")
    sessions = Sessions(turns=turns, think_s=_pause(given, "think_time")) if turns is not None else None
    prompt = _lengths(given, "prompt", context_tokens)
    if shared and shared >= prompt.mean:
        raise UsageError(
            f"--shared-prefix {shared:,} leaves nothing of the prompts, of {prompt.mean:,.0f} tokens on average",
            hint="the length of a prompt includes what it shares",
        )
    return TrafficSpec(
        num_requests=count,
        arrivals=arrivals,
        prompt=prompt,
        output=_lengths(given, "output", context_tokens),
        context_tokens=context_tokens,
        shared_prefix_tokens=shared,
        sessions=sessions,
        seed=given.get("seed", 0),
    )


def _lengths(given: Given, side: Literal["prompt", "output"], context_tokens: int) -> Lengths:
    longest = max(1, context_tokens - 1)  # a server refuses a prompt that leaves no room for an answer
    found = read_lengths(given[f"{side}_tokens"], side, longest=longest, flag=f"--{side}-len")
    if isinstance(found, FixedLength) and found.tokens >= context_tokens:
        raise UsageError(
            f"--{side}-len {found.tokens:,} does not fit into a context of {context_tokens:,} tokens",
            hint="raise --context, or lower it",
        )
    return found


def _arrivals(given: Given) -> Arrivals | None:
    """How requests come; None where a trace's own times, or nothing, tells it."""
    rate = given.get("request_rate")
    shape = {name: given[name] for name in ("burstiness", "bursts") if name in given}
    if rate is None and shape:
        raise UsageError(f"--{next(iter(shape))} without a rate", hint="give --rate, the mean over bursts and silence")
    if rate is not None:
        if not 0 < rate < 1e9:
            raise UsageError(f"--rate out of range: {rate}", hint="it must be above 0, in requests a second")
        on_s, off_s = _bursts(given)
        return OpenLoop(rate_per_s=rate, burstiness=given.get("burstiness", 1.0), on_s=on_s, off_s=off_s)
    if "concurrency" in given:
        users = parse_count(given["concurrency"], what="--concurrency")
        return ClosedLoop(users=users, think_s=_pause(given, "think_time"))
    return None


def _bursts(given: Given) -> tuple[float, float]:
    if "bursts" not in given:
        return 0.0, 0.0
    parts = given["bursts"].split(",")
    times = [_time(part, "--bursts") for part in parts]
    if len(times) != 2 or not times[0] or not times[1]:
        raise UsageError(f"not bursts: `{given['bursts']:.60}`", hint="write traffic and silence, as --bursts 10s,50s")
    return times[0], times[1]


def _pause(given: Given, name: str) -> float:
    return _time(given[name], f"--{name.replace('_', '-')}") if name in given else 0.0


def _time(text: str, flag: str) -> float:
    match = _TIME.fullmatch(text.strip().lower())
    if match is None:
        raise UsageError(f"not a time for {flag}: `{text:.60}`", hint="write it as 500ms, 20s or 5m")
    return float(match[1]) * _TIME_UNITS[match[2]]


def _number(given: Given, name: str, usual: int) -> int:
    found = parse_count(given[name], what=f"--{name.replace('_', '-')}") if name in given else usual
    if found > MAX_REQUESTS:
        raise UsageError(f"--{name} out of range: {found:,}", hint=f"simulate at most {MAX_REQUESTS:,} requests")
    return found


def _word(given: Given, name: str, known: tuple[_Word, ...], usual: _Word) -> _Word:
    asked = str(given.get(name, usual)).strip().lower()
    for word in known:
        if word == asked:
            return word
    hint = did_you_mean(asked, list(known)) or f"use one of {', '.join(known)}"
    raise UsageError(f"unknown {name.replace('_', ' ')}: `{asked:.60}`", hint=hint)


def _words(given: Given, arrivals: Arrivals) -> str:
    """How requests come, in words."""
    if isinstance(arrivals, ClosedLoop):
        return f"{arrivals.users:,} users, each with one request at a time"
    if not isinstance(arrivals, OpenLoop):
        return "all at once"
    words = f"{arrivals.rate_per_s:g} requests a second"
    if arrivals.burstiness != 1.0:
        words += f", burstiness {arrivals.burstiness:g}"
    if arrivals.off_s:
        words += f", {arrivals.on_s:g} s of traffic and {arrivals.off_s:g} s of silence by turns"
    return f"{words}, {given['turns']} turns each" if "turns" in given else words
