"""How long prompts and answers are: alike, spread as a distribution has it, or as they were observed.

Everything that asks for lengths (`plan`, `simulate`) reads one grammar:

    1200, 8K                 all of them alike
    200..2000                anything between, as often
    mean:1200,p95:4000       log-normal, from any two of mean, std and quantiles (p50, p95, p99.9)
    p50:800,p99:9000,max:8K  the same, cut at `max`; below `min` likewise

A log-normal is what lengths of requests are usually near: many short ones, few very long ones. What is longer than a
request may be is cut to that, as a server would refuse or truncate it. Files of lengths are read elsewhere, and become
`ObservedLengths`.
"""

from __future__ import annotations

import re
from itertools import pairwise
from math import ceil, exp, log, sqrt
from statistics import NormalDist

from memplan.errors import UsageError
from memplan.records import dataclass
from memplan.units import parse_count

_HINT = "write 1200, 200..2000, mean:1200,p95:4000 or p50:800,p95:4000,max:16K"
_STATED = re.compile(r"(mean|std|min|max|p\d{1,2}(?:\.\d{1,3})?)\s*[:=]\s*([^\s:=]+)", re.IGNORECASE)
_NORMAL = NormalDist()
_WIDEST = 6.0  # the largest spread of a log-normal that is looked for: its p95 is 19,000 times its median


@dataclass(frozen=True, slots=True, kw_only=True)
class FixedLength:
    """Every request alike."""

    tokens: int

    @property
    def mean(self) -> float:
        return float(self.tokens)

    @property
    def square_mean(self) -> float:
        return float(self.tokens) ** 2

    @property
    def longest(self) -> int:
        return self.tokens

    def quantile(self, part: float) -> float:
        return float(self.tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class UniformLengths:
    """Anything from `low` to `high`, as often."""

    low: int
    high: int

    @property
    def mean(self) -> float:
        return (self.low + self.high) / 2

    @property
    def square_mean(self) -> float:
        return (self.low**2 + self.low * self.high + self.high**2) / 3

    @property
    def longest(self) -> int:
        return self.high

    def quantile(self, part: float) -> float:
        return self.low + part * (self.high - self.low)


@dataclass(frozen=True, slots=True, kw_only=True)
class LogNormalLengths:
    """exp(N(log_mean, log_std)), cut to `low` below and `high` above."""

    log_mean: float
    log_std: float
    low: int
    high: int

    @property
    def mean(self) -> float:
        return self._moment(1)

    @property
    def square_mean(self) -> float:
        return self._moment(2)

    @property
    def longest(self) -> int:
        return self.high

    def quantile(self, part: float) -> float:
        """The length that `part` of all requests stay under. `part` lies between 0 and 1, both left out."""
        return min(self.high, max(self.low, exp(self.log_mean + self.log_std * _NORMAL.inv_cdf(part))))

    def _moment(self, power: int) -> float:
        """The mean of length ** power, in closed form: what lies between the cuts, and the cuts by their weight."""
        if self.log_std <= 1e-9:
            return float(min(self.high, max(self.low, exp(self.log_mean)))) ** power
        shift = power * self.log_std**2
        whole = exp(power * self.log_mean + power * shift / 2)
        below, above = ((log(cut) - self.log_mean) / self.log_std for cut in (self.low, self.high))
        between = _NORMAL.cdf(above - shift / self.log_std) - _NORMAL.cdf(below - shift / self.log_std)
        return float(
            whole * between + self.low**power * _NORMAL.cdf(below) + self.high**power * (1 - _NORMAL.cdf(above))
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservedLengths:
    """The lengths of real requests, `tokens` from the shortest to the longest."""

    tokens: tuple[int, ...]

    @property
    def mean(self) -> float:
        return sum(self.tokens) / len(self.tokens)

    @property
    def square_mean(self) -> float:
        return sum(tokens**2 for tokens in self.tokens) / len(self.tokens)

    @property
    def longest(self) -> int:
        return self.tokens[-1]

    def quantile(self, part: float) -> float:
        return float(self.tokens[min(len(self.tokens) - 1, ceil(part * len(self.tokens)) - 1 if part > 0 else 0)])


Lengths = FixedLength | UniformLengths | LogNormalLengths | ObservedLengths
"""A closed union. `quantile` of a uniform random number draws a length."""


def spread_of(lengths: Lengths) -> float:
    """The mean square over the squared mean: 1 where all are alike, 2 for an exponential, more for heavier tails."""
    return lengths.square_mean / lengths.mean**2


def strata_of(lengths: Lengths, count: int) -> tuple[float, ...]:
    """Lengths that stand for `count` equally large parts of all requests, with the mean of all of them."""
    if isinstance(lengths, FixedLength):
        return (float(lengths.tokens),)
    if isinstance(lengths, ObservedLengths):
        size = len(lengths.tokens)
        edges = [round(part * size / count) for part in range(count + 1)]
        return tuple(sum(lengths.tokens[low:high]) / (high - low) for low, high in pairwise(edges) if high > low)
    middles = [lengths.quantile((part + 0.5) / count) for part in range(count)]
    scale = lengths.mean / (sum(middles) / count)  # the middle of the last part is below its mean
    return tuple(scale * middle for middle in middles)


def scaled(lengths: Lengths, part: float) -> Lengths:
    """The same lengths, all times `part`."""

    def cut(tokens: int) -> int:
        return max(1, round(tokens * part))

    if isinstance(lengths, FixedLength):
        return FixedLength(tokens=cut(lengths.tokens))
    if isinstance(lengths, UniformLengths):
        return UniformLengths(low=cut(lengths.low), high=cut(lengths.high))
    if isinstance(lengths, ObservedLengths):
        return ObservedLengths(tokens=tuple(cut(tokens) for tokens in lengths.tokens))
    return LogNormalLengths(
        log_mean=lengths.log_mean + log(part), log_std=lengths.log_std, low=cut(lengths.low), high=cut(lengths.high)
    )


def observed(tokens: list[int], *, longest: int) -> ObservedLengths:
    """Return the lengths that were seen, cut to `longest`. Raises: UsageError when there is none."""
    kept = sorted(min(longest, each) for each in tokens if each > 0)
    if not kept:
        raise UsageError("no length above zero among the requests", hint="give token counts, one for each request")
    return ObservedLengths(tokens=tuple(kept))


def parse_lengths(text: str, *, longest: int, what: str = "length") -> Lengths:
    """Return the lengths that `text` states, none above `longest`.

    Raises: UsageError when it does not read, or when no log-normal is as it states.
    """
    text = text.strip()
    if ".." in text:
        return _uniform(text, longest, what)
    if ":" not in text and "=" not in text:
        return FixedLength(tokens=parse_count(text, what=what))
    stated: dict[str, int] = {}
    for part in text.split(","):
        match = _STATED.fullmatch(part.strip())
        if match is None or match[1].lower() in stated:
            raise UsageError(f"not a {what}: `{text:.60}`", hint=_HINT)
        stated[match[1].lower()] = parse_count(match[2], what=f"{what} {match[1]}")
    low, high = stated.pop("min", 1), min(longest, stated.pop("max", longest))
    if low > high:
        raise UsageError(f"{what} from {low:,} to {high:,} tokens: `{text:.60}`", hint="`min` must not exceed `max`")
    if len(stated) != 2:
        raise UsageError(f"{what} states {len(stated)} of the two numbers that it takes: `{text:.60}`", hint=_HINT)
    log_mean, log_std = _log_normal(stated, low, high, text, what)
    return LogNormalLengths(log_mean=log_mean, log_std=log_std, low=low, high=high)


def _uniform(text: str, longest: int, what: str) -> UniformLengths:
    first, _, last = text.partition("..")
    low, high = (parse_count(end.strip("."), what=what) for end in (first, last))
    if low > high:
        raise UsageError(f"{what} from {low:,} to {high:,} tokens: `{text:.60}`", hint="write the smaller number first")
    return UniformLengths(low=min(low, longest), high=min(high, longest))


def _log_normal(stated: dict[str, int], low: int, high: int, text: str, what: str) -> tuple[float, float]:
    """Mean and standard deviation of the logarithm, from two statements."""
    quantiles = sorted((float(name[1:]) / 100, tokens) for name, tokens in stated.items() if name.startswith("p"))
    if any(not 0 < part < 1 for part, _ in quantiles):
        raise UsageError(f"not a quantile of a {what}: `{text:.60}`", hint="p50 to p99.9")
    if len(quantiles) == 2:
        (first, at_first), (second, at_second) = quantiles
        if at_second < at_first:
            raise UsageError(f"{what}: quantiles fall as they rise: `{text:.60}`", hint=_HINT)
        steps = _NORMAL.inv_cdf(second) - _NORMAL.inv_cdf(first)
        log_std = log(at_second / at_first) / steps
        return log(at_first) - log_std * _NORMAL.inv_cdf(first), log_std
    mean = stated.get("mean")
    if mean is None:
        raise UsageError(f"{what}: a std without a mean: `{text:.60}`", hint=_HINT)
    if not quantiles:
        log_std = sqrt(log(1 + (stated["std"] / mean) ** 2))
        return log(mean) - log_std**2 / 2, log_std
    ((part, tokens),) = quantiles
    found = _through(mean, _NORMAL.inv_cdf(part), tokens, low, high)
    if found is None:
        raise UsageError(
            f"{what}: no log-normal up to {high:,} tokens has this mean and this quantile: `{text:.60}`",
            hint="give two quantiles (p50:800,p95:4000), a lower max, or a file with the lengths of real requests",
        )
    return found


def _through(mean: float, deviations: float, tokens: int, low: int, high: int) -> tuple[float, float] | None:
    """The narrowest log-normal, cut to low and high, with this mean and `tokens` at so many standard deviations."""

    def missed(log_std: float) -> float:
        log_mean = log(tokens) - log_std * deviations
        return LogNormalLengths(log_mean=log_mean, log_std=log_std, low=low, high=high).mean - mean

    step = 0.02
    before, width = missed(0.0), step
    if abs(before) < 1e-9 * mean:
        return log(tokens), 0.0
    while width <= _WIDEST:
        after = missed(width)
        if before * after <= 0:
            left, right = width - step, width
            for _ in range(40):
                middle = (left + right) / 2
                left, right = (middle, right) if missed(middle) * before > 0 else (left, middle)
            return log(tokens) - right * deviations, right
        width += step
    return None
