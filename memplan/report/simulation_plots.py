"""The figures of a simulation's page as inline SVG: the cache and the queue over the run, waits by share of requests.

Each has a title and a description that say in words what it shows, and takes its colours from the page's style sheet.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from math import ceil, floor, log10

from memplan.domain.simulated import Promise, SimulatedSetup
from memplan.report import simulation_words as words
from memplan.report.layout import printable

_WIDTH, _LEFT, _RIGHT, _TOP, _BOTTOM = 760, 64, 12, 14, 34
_MOST_POINTS = 300
_MOST_CURVES = 6
CURVE_COLORS = ("weights", "activation_peak", "kv_asked", "cuda_graph", "gradients", "workspace")
LINE_COLORS = (*CURVE_COLORS, "missing")
HELD = "weights"


def occupancy(setup: SimulatedSetup, name: str) -> str:
    """What the cache held over time: blocks that requests hold, those that may be found again, and its room."""
    series, settings = setup.result.series, setup.result.settings
    room = settings.num_blocks * settings.replicas
    places = _kept(len(series.time_s))
    if len(places) < 2:
        return ""
    frame = _Frame(series.time_s[places[-1]], 1.0, 250)
    held = [(series.time_s[place], series.used_blocks[place] / room) for place in places]
    whole = [
        (series.time_s[place], (series.used_blocks[place] + series.cached_blocks[place]) / room) for place in places
    ]
    drawn = [
        *frame.grid([0, 0.25, 0.5, 0.75, 1.0], lambda part: f"{part:.0%}"),
        *frame.seconds(),
        f'<path class="c-kv_spare" opacity=".45" d="{frame.area(whole)}"/>',
        f'<path class="c-{HELD}" d="{frame.area(held)}"/>',
        *_put_back(setup, places, frame),
    ]
    mean, most = words.percent(words.held(setup.result.waste)), words.percent(words.peak(setup.result))
    said = f"{mean} held on average, {most} at most"
    return _svg(name, 250, "The cache over the run", said, drawn)


def queue(setup: SimulatedSetup, name: str) -> str:
    """Requests that run and that wait over time."""
    series = setup.result.series
    places = _kept(len(series.time_s))
    if len(places) < 2:
        return ""
    top = max(1, *series.running, *series.waiting)
    frame = _Frame(series.time_s[places[-1]], top, 200)
    running = [(series.time_s[place], series.running[place]) for place in places]
    waiting = [(series.time_s[place], series.waiting[place]) for place in places]
    drawn = [
        *frame.grid(_steps(top), lambda count: f"{count:,.0f}"),
        *frame.seconds(),
        f'<path class="c-kv_asked" opacity=".75" d="{frame.area(running)}"/>',
        f'<path class="line-missing" d="{frame.line(waiting)}"/>',
    ]
    said = f"at most {setup.result.counts.most_running:,} run and {setup.result.counts.most_waiting:,} wait"
    return _svg(name, 200, "Requests over the run", said, drawn)


def waits(setups: Sequence[SimulatedSetup], promise: Promise, name: str) -> str:
    """Which part of the requests has its first token within a time, a curve for each setup; the limit as a line."""
    curves = [(setup, _first_tokens(setup)) for setup in setups[:_MOST_CURVES]]
    curves = [(setup, found) for setup, found in curves if len(found) > 1]
    if not curves:
        return ""
    low = max(1e-4, min(found[0] for _, found in curves))
    high = max(low * 10, *(found[-1] for _, found in curves), promise.max_ttft_s or 0)
    first, last = floor(log10(low)), ceil(log10(high))
    frame = _Frame(last - first, 1.0, 260)
    drawn = frame.grid([0, 0.25, 0.5, 0.75, 0.95], lambda part: f"{part:.0%}")
    for power in range(first, last + 1):
        at = frame.x(power - first)
        drawn.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{_TOP}" y2="{frame.bottom}"/>')
        drawn.append(
            f'<text class="faint" x="{at:.1f}" y="{frame.bottom + 18}" '
            f'text-anchor="{"end" if power == last else "middle"}">'
            f"{_tick(10.0**power)}</text>"
        )
    if promise.max_ttft_s:
        at = frame.x(log10(promise.max_ttft_s) - first)
        drawn.append(f'<line class="end" x1="{at:.1f}" x2="{at:.1f}" y1="{_TOP}" y2="{frame.bottom}"/>')
    for (setup, found), color in zip(curves, CURVE_COLORS, strict=False):
        share = len(found) / setup.result.counts.requests
        points = [
            (log10(max(low, found[min(len(found) - 1, step * len(found) // 200)])) - first, share * step / 200)
            for step in range(201)
        ]
        drawn.append(f'<path class="line-{color}" d="{frame.line(points)}"><title>{_text(setup.name)}</title></path>')
    said = "; ".join(
        f"{setup.name}: 95 % within {words.seconds(setup.result.ttft.p95)}"
        for setup, _ in curves
        if setup.result.ttft is not None
    )
    return _svg(name, 260, "Waits for the first token", said, drawn)


def curve_legend(setups: Sequence[SimulatedSetup], promise: Promise) -> str:
    """What the colours of the curves say."""
    items = "".join(
        f'<li><span class="c-{color}"></span>{_text(setup.name)}</li>'
        for setup, color in zip(setups, CURVE_COLORS, strict=False)
    )
    limit = '<li><span class="line"></span>the limit</li>' if promise.max_ttft_s else ""
    more = f"<li>{len(setups) - _MOST_CURVES} more are in the table</li>" if len(setups) > _MOST_CURVES else ""
    return f'<ul class="key">{items}{limit}{more}</ul>'


class _Frame:
    """From values to places in a picture whose axes both start at zero."""

    __slots__ = ("_across", "_up", "bottom")

    def __init__(self, across: float, up: float, height: int) -> None:
        self._across, self._up = max(across, 1e-9), max(up, 1e-9)
        self.bottom = height - _BOTTOM

    def x(self, value: float) -> float:
        return _LEFT + min(1.0, max(0.0, value / self._across)) * (_WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        return self.bottom - min(1.0, max(0.0, value / self._up)) * (self.bottom - _TOP)

    def line(self, points: Sequence[tuple[float, float]]) -> str:
        """A path through points."""
        return "M" + "L".join(f"{self.x(across):.1f} {self.y(up):.1f}" for across, up in points)

    def area(self, points: Sequence[tuple[float, float]]) -> str:
        """The area below points."""
        start, end = self.x(points[0][0]), self.x(points[-1][0])
        return f"{self.line(points)}L{end:.1f} {self.bottom}L{start:.1f} {self.bottom}Z"

    def grid(self, ticks: Sequence[float], text: Callable[[float], str]) -> list[str]:
        """Lines across with their values beside them."""
        return [
            f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{self.y(tick):.1f}" y2="{self.y(tick):.1f}"/>'
            f'<text class="faint" x="{_LEFT - 6}" y="{self.y(tick) + 4:.1f}" text-anchor="end">{text(tick)}</text>'
            for tick in ticks
        ]

    def seconds(self) -> list[str]:
        """Times below the picture."""
        return [
            f'<text class="faint" x="{self.x(tick):.1f}" y="{self.bottom + 18}" '
            f'text-anchor="{"start" if not tick else "middle"}">{_tick(tick)}</text>'
            for tick in _steps(self._across)
        ]


def _put_back(setup: SimulatedSetup, places: Sequence[int], frame: _Frame) -> list[str]:
    """A mark at the top wherever requests gave way."""
    series = setup.result.series
    marks, before = [], 0
    for place in places:
        if series.preemptions[place] > before:
            at = frame.x(series.time_s[place])
            marks.append(f'<line class="line-missing" x1="{at:.1f}" x2="{at:.1f}" y1="{_TOP}" y2="{_TOP + 8}"/>')
        before = series.preemptions[place]
    return marks


def _first_tokens(setup: SimulatedSetup) -> list[float]:
    result = setup.result
    return sorted(
        first - arrived for first, arrived in zip(result.first_token_s, result.arrived_s, strict=True) if first >= 0
    )


def _kept(size: int) -> list[int]:
    if size <= _MOST_POINTS:
        return list(range(size))
    return [round(part * (size - 1) / (_MOST_POINTS - 1)) for part in range(_MOST_POINTS)]


def _steps(top: float) -> list[float]:
    """Round values from 0 up to `top`, three to seven of them."""
    step = 10.0 ** floor(log10(max(top, 1e-9)))
    while top / step < 3:
        step /= 2
    while top / step > 7:
        step *= 2
    return [step * count for count in range(int(top / step + 1e-9) + 1)]


def _tick(seconds: float) -> str:
    """A round time, without digits that say nothing."""
    if seconds == 0:
        return "0"
    return f"{seconds * 1000:g} ms" if seconds < 1 else f"{seconds:,g} s"


def _svg(name: str, height: int, title: str, said: str, drawn: Sequence[str]) -> str:
    return (
        f'<svg role="img" aria-labelledby="{name}-t {name}-d" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" '
        f'height="{height}"><title id="{name}-t">{_text(title)}</title><desc id="{name}-d">{_text(said)}</desc>'
        f"{''.join(drawn)}</svg>"
    )


def _text(text: str) -> str:
    return escape(printable(text))
