"""What a weight scheme and a cache type cost in quality, until the model itself has been measured: published
perplexities of quality.yaml, at the size of the model.

A rise is a part of the unquantized perplexity: 0.02 is 2 %. The rises of weights and cache are added.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import pairwise
from math import log
from pathlib import Path
from statistics import median
from typing import Any, Literal, cast

from memplan.catalog.tables import load_table
from memplan.domain.plan import Quality

_FILE = Path("quality.yaml")
# Points of models within this factor in parameters are taken together; between groups, by the logarithm of the size.
_ALIKE = 1.6
_LEVELS = ((0.0005, "none"), (0.005, "very low"), (0.02, "low"), (0.06, "medium"))
_WIDTH = re.compile(r"(?:int|fp|nf|iq|tq|q|w)(\d{1,2})")
_GROUP = re.compile(r"-(?:g\d+|channel)$")


def scheme_bits(scheme: str) -> int:
    """Return the width of the weights of a scheme, as `--precision` names it: 16 for plain weights."""
    found = _entry(scheme)
    if found is not None:
        return int(found["bits"])
    match = _WIDTH.search(scheme)
    return int(match[1]) if match else 16


def quality_of(scheme: str | None, kv_dtype: str | None, parameters: int, kept: float = 1.0) -> Quality:
    """Return the rise of perplexity that a model of `parameters` must reckon with.

    None for the scheme is the checkpoint as it is, and for the cache the model's own type: neither costs anything.
    `kept` is the part of the cache that pruning leaves.
    """
    parts = (_scheme_rise(scheme, parameters), _cache_rise(kv_dtype, parameters), _pruning_rise(kept))
    rise = sum(part for part, _, _ in parts)
    return Quality(
        perplexity_increase=rise,
        level=_level(rise),
        provenance=max((how for _, how, _ in parts), key=("published", "interpolated", "assumed").index),
        source="; ".join(source for _, _, source in parts if source) or "the checkpoint as it is",
    )


def quality_measured(rise: float, source: str) -> Quality:
    """Return a rise that was measured on the model itself."""
    return Quality(perplexity_increase=rise, level=_level(rise), provenance="measured", source=source)


def with_cache(weights: Quality, kv_dtype: str | None, parameters: int, kept: float = 1.0) -> Quality:
    """Return the quality of measured weights with what a cache type and pruning cost on top."""
    cache = quality_of(None, kv_dtype, parameters, kept)
    if not cache.perplexity_increase:
        return weights
    rise = weights.perplexity_increase + cache.perplexity_increase
    return Quality(
        perplexity_increase=rise,
        level=_level(rise),
        provenance=cache.provenance,
        source=f"{weights.source}; {cache.source}",
    )


@cache
def _table() -> Mapping[str, Any]:
    return load_table(_FILE)


_How = Literal["published", "interpolated", "assumed"]


def _scheme_rise(scheme: str | None, parameters: int) -> tuple[float, _How, str]:
    if scheme is None or scheme == "none":
        return 0.0, "published", ""
    found = _entry(scheme)
    if found is None:
        widths: Mapping[str, float] = _table()["widths"]
        bits = scheme_bits(scheme)
        known = {int(width): rise for width, rise in widths.items()}
        nearest = max((width for width in known if width <= bits), default=min(known))
        return known[nearest], "assumed", f"{bits}-bit weights of a scheme without a published perplexity here"
    return _rise(found, parameters)


def _cache_rise(kv_dtype: str | None, parameters: int) -> tuple[float, _How, str]:
    name = (kv_dtype or "auto").lower()
    caches: Mapping[str, Any] = _table()["caches"]
    key = next((key for key in caches if name.startswith(key)), None)
    return _rise(caches[key], parameters) if key else (0.0, "published", "")


def _pruning_rise(kept: float) -> tuple[float, _How, str]:
    """The rise from keeping a part of the cache: between published parts in proportion, below the smallest assumed to
    double with every halving of what is kept.
    """
    if kept >= 1.0:
        return 0.0, "published", ""
    points: Sequence[Mapping[str, Any]] = _table()["pruned"]
    known = sorted([(1.0, 0.0, ""), *((p["kept"], p["rise"], p["source"]) for p in points)])
    least, most, source = known[0]
    if kept < least:
        return most * least / kept, "assumed", f"less than was published; {source}"
    for (low, at_low, named), (high, at_high, _) in pairwise(known):
        if kept == low:
            return at_low, "published", named
        if kept < high:
            return at_low + (at_high - at_low) * (kept - low) / (high - low), "interpolated", named
    return 0.0, "published", ""


def _entry(scheme: str) -> Mapping[str, Any] | None:
    schemes: Mapping[str, Any] = _table()["schemes"]
    name = scheme.lower()
    return cast("Mapping[str, Any] | None", schemes.get(name) or schemes.get(_GROUP.sub("-*", name)))


def _rise(entry: Mapping[str, Any], parameters: int) -> tuple[float, _How, str]:
    if "assumed" in entry:
        return float(entry["assumed"]), "assumed" if entry["assumed"] else "published", str(entry["source"])
    points = [
        (float(point["parameters"]) * 1e9, max(0.0, point["quantized"] / point["plain"] - 1), str(point["source"]))
        for point in entry["points"]
    ]
    near = [point for point in points if 1 / _ALIKE <= point[0] / max(1, parameters) <= _ALIKE]
    if near:
        return median(rise for _, rise, _ in near), "published", _sources(near)
    below = _nearest([point for point in points if point[0] < parameters], last=True)
    above = _nearest([point for point in points if point[0] > parameters], last=False)
    if not below or not above:
        only = below or above
        return median(rise for _, rise, _ in only), "interpolated", _sources(only)
    low, high = below[0][0], above[0][0]
    part = log(parameters / low) / log(high / low)
    rise = (1 - part) * median(rise for _, rise, _ in below) + part * median(rise for _, rise, _ in above)
    return rise, "interpolated", _sources([*below, *above])


def _nearest(points: Sequence[tuple[float, float, str]], *, last: bool) -> list[tuple[float, float, str]]:
    """The group of like sizes that is nearest to the model from one side."""
    if not points:
        return []
    edge = max(size for size, _, _ in points) if last else min(size for size, _, _ in points)
    return [point for point in points if 1 / _ALIKE <= point[0] / edge <= _ALIKE]


def _sources(points: Sequence[tuple[float, float, str]]) -> str:
    return "; ".join(dict.fromkeys(source for _, _, source in points))


def _level(rise: float) -> Literal["none", "very low", "low", "medium", "high"]:
    for limit, name in _LEVELS:
        if rise < limit:
            return cast("Literal['none', 'very low', 'low', 'medium']", name)
    return "high"
