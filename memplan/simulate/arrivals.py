"""When requests arrive: at a rate, evenly or in bursts.

A gamma process has gaps that are gamma distributed: `burstiness` is its shape, as in vLLM's serving benchmark. 1 is a
Poisson process, less comes in bursts, more is more even. An on-off process is silent between its bursts and keeps the
mean rate over both.
"""

from __future__ import annotations

from array import array
from random import Random

from memplan.errors import UsageError
from memplan.records import dataclass

_MOST = 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenLoop:
    """Requests that arrive whatever the server does, `rate_per_s` of them on average.

    With `off_s` above 0 they come in bursts of `on_s` seconds with as much silence as `off_s` between.
    """

    rate_per_s: float
    burstiness: float = 1.0
    on_s: float = 0.0
    off_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ClosedLoop:
    """`users` who each send their next request when the last one is answered, after thinking `think_s` on average."""

    users: int
    think_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AtOnce:
    """Everything is there from the start, as in a batch job."""


Arrivals = OpenLoop | ClosedLoop | AtOnce
"""A closed union."""


def open_arrivals(asked: OpenLoop, count: int, random: Random) -> array[float]:
    """The times at which `count` requests arrive, in seconds, rising from 0.

    Raises: UsageError for a rate or a shape that is not above zero.
    """
    is_shaped = 0 < asked.rate_per_s < _MOST and 1 / _MOST < asked.burstiness < _MOST
    if not is_shaped or asked.on_s < 0 or asked.off_s < 0:
        raise UsageError(
            f"{asked.rate_per_s:g} requests a second with a burstiness of {asked.burstiness:g}",
            hint="a rate and a burstiness are above 0, and no more than a billion",
        )
    bursts = asked.on_s > 0 and asked.off_s > 0
    rate = asked.rate_per_s * ((asked.on_s + asked.off_s) / asked.on_s if bursts else 1.0)
    now, times = 0.0, array("d", bytes(8 * count))
    if asked.burstiness == 1.0:
        for place in range(count):
            times[place] = now
            now += random.expovariate(rate)
    else:
        scale = 1.0 / (rate * asked.burstiness)
        for place in range(count):
            times[place] = now
            now += random.gammavariate(asked.burstiness, scale)
    if bursts:
        for place in range(count):
            times[place] += times[place] // asked.on_s * asked.off_s
    return times


def exponential(mean: float, random: Random) -> float:
    """A pause of `mean` seconds on average; none for 0."""
    return random.expovariate(1.0 / mean) if mean > 0 else 0.0
