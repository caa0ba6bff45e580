"""The Pareto front as inline SVG: what an hour costs against the output tokens a second that it buys."""

from __future__ import annotations

from html import escape
from math import ceil, floor, log10

from memplan.domain.plan import PlanAnswer, ServingPlan
from memplan.report import plan_words as words

_WIDTH, _HEIGHT = 760, 360
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 20, 16, 44
# The colour of a mark by the quality risk of its plan, of those that the page's figures have.
_COLORS = {
    "none": "c-kv_asked",
    "very low": "c-kv_asked",
    "low": "c-weights",
    "medium": "c-activation_peak",
    "high": "c-missing",
}
_RISKS = {
    "c-kv_asked": "as good as the checkpoint",
    "c-weights": "low",
    "c-activation_peak": "medium",
    "c-missing": "high",
}


def scatter(answer: PlanAnswer) -> str:
    """Return one mark per plan of the front, both axes logarithmic; without prices, GPUs stand for the cost."""
    plans = answer.front
    priced = all(plan.usd_per_hour is not None for plan in plans)
    across = Scale([_cost(plan, priced) for plan in plans], _LEFT, _WIDTH - _RIGHT)
    upward = Scale([plan.output_tokens_per_s for plan in plans], _HEIGHT - _BOTTOM, _TOP)
    drawn = [*_grid(across, vertical=True), *_grid(upward, vertical=False)]
    drawn += [
        f'<text class="faint" x="{_WIDTH / 2:.0f}" y="{_HEIGHT - 6}" text-anchor="middle">'
        f"{'US dollars an hour' if priced else 'GPUs'}</text>",
        f'<text class="faint" x="12" y="{_HEIGHT / 2:.0f}" text-anchor="middle" '
        f'transform="rotate(-90 12 {_HEIGHT / 2:.0f})">output tokens a second</text>',
    ]
    for number, plan in enumerate(reversed(plans)):
        x, y = across(_cost(plan, priced)), upward(plan.output_tokens_per_s)
        about = f"<title>{escape(words.sentence(plan))}: {plan.output_tokens_per_s:,.0f} tokens/s</title>"
        drawn.append(f'<circle class="{_COLORS[plan.quality.level]}" cx="{x:.1f}" cy="{y:.1f}" r="6">{about}</circle>')
        if number == len(plans) - 1:
            drawn.append(f'<circle class="frame" fill="none" cx="{x:.1f}" cy="{y:.1f}" r="10"/>')
    described = "; ".join(f"{words.gpus(plan)}: {plan.output_tokens_per_s:,.0f} tokens/s" for plan in plans[:8])
    return (
        f'<svg role="img" aria-labelledby="front-t front-d" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        f'width="{_WIDTH}" height="{_HEIGHT}"><title id="front-t">Throughput against cost</title>'
        f'<desc id="front-d">{escape(described)}</desc>{"".join(drawn)}</svg>'
    )


def legend() -> str:
    """Return what the colours of the marks say."""
    items = "".join(f'<li><span class="{color}"></span>quality risk: {risk}</li>' for color, risk in _RISKS.items())
    return f'<ul class="key">{items}</ul>'


def _cost(plan: ServingPlan, priced: bool) -> float:
    return plan.usd_per_hour if priced and plan.usd_per_hour is not None else float(plan.num_gpus)


class Scale:
    """A logarithmic axis over whole steps of 1, 2 and 5, from one end of the picture to the other."""

    __slots__ = ("_from", "_high", "_low", "_to")

    def __init__(self, values: list[float], start: float, end: float) -> None:
        self._low, self._high = _floor_step(min(values)), _ceil_step(max(values))
        if self._low >= self._high:
            self._low, self._high = self._low / 2, self._high * 2
        self._from, self._to = start, end

    def __call__(self, value: float) -> float:
        part = (log10(value) - log10(self._low)) / (log10(self._high) - log10(self._low))
        return self._from + part * (self._to - self._from)

    def ticks(self) -> list[float]:
        """The steps of 1, 2 and 5 within the axis."""
        powers = range(floor(log10(self._low)), ceil(log10(self._high)) + 1)
        steps = [step * 10.0**power for power in powers for step in (1, 2, 5)]
        return [step for step in steps if self._low * 0.999 <= step <= self._high * 1.001]


def _floor_step(value: float) -> float:
    power = 10.0 ** floor(log10(max(value, 1e-6)))
    return max(step * power for step in (1, 2, 5) if step * power <= value * 1.0001)


def _ceil_step(value: float) -> float:
    power = 10.0 ** floor(log10(max(value, 1e-6)))
    return min(step * power for step in (1, 2, 5, 10) if step * power >= value * 0.9999)


def _grid(axis: Scale, *, vertical: bool) -> list[str]:
    drawn = []
    for tick in axis.ticks():
        at = axis(tick)
        if vertical:
            drawn.append(f'<line class="axis" x1="{at:.1f}" x2="{at:.1f}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}"/>')
            drawn.append(
                f'<text class="faint" x="{at:.1f}" y="{_HEIGHT - _BOTTOM + 16}" text-anchor="middle">{tick:g}</text>'
            )
        else:
            drawn.append(f'<line class="axis" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
            drawn.append(f'<text class="faint" x="{_LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{tick:,g}</text>')
    return drawn
