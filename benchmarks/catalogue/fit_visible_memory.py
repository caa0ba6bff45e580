"""Fit the rules by which memplan/catalog/gpus.py derives what CUDA sees, from the catalogue's own observed pairs.

    python benchmarks/catalogue/fit_visible_memory.py [--json]

A driver keeps some memory back: a floor that hardly depends on the card, and a part that grows with its size. The line
through (driver total, driver total - CUDA total) is Theil-Sen's, which a few odd cards (the A100s keep 0.8 GiB) cannot
tilt. The share of a MIG slice is the median, over cards whose slices are listed, of slice / (fraction x whole slice).
"""

from __future__ import annotations

import argparse
import json
import statistics
from itertools import combinations
from pathlib import Path

import yaml

CATALOGUE = Path(__file__).resolve().parents[2] / "memplan" / "catalog" / "gpus.yaml"


def observed_pairs(entries: dict[str, dict]) -> dict[str, tuple[int, int]]:
    """Return (driver MiB, CUDA-visible MiB) of every discrete NVIDIA card that was seen with both."""
    return {
        key: (entry["memory"]["driver_mib"], entry["memory"]["visible_mib"])
        for key, entry in entries.items()
        if entry["chip"]["vendor"] == "nvidia" and {"driver_mib", "visible_mib"} <= entry["memory"].keys()
    }


def theil_sen(points: list[tuple[int, int]]) -> tuple[float, float]:
    """Return intercept and slope of the median line through (x, y)."""
    slopes = [(y2 - y1) / (x2 - x1) for (x1, y1), (x2, y2) in combinations(points, 2) if x1 != x2]
    slope = statistics.median(slopes)
    return statistics.median(y - slope * x for x, y in points), slope


def slice_shares(entries: dict[str, dict]) -> dict[str, float]:
    """Return, by fraction of the memory, the median of what a MIG slice shows over that fraction of the whole slice."""
    ratios: dict[str, list[float]] = {}
    for entry in entries.values():
        listed = {name: gib for name, gib in (entry.get("mig_gib") or {}).items() if gib}
        if not listed:
            continue
        whole = max(listed.values())
        for name, gib in listed.items():
            parts = mig_eighths(name, max(entry["mig_gib"], key=mig_gigabytes))
            if parts < 8:
                ratios.setdefault(f"{parts}/8", []).append(gib / (whole * parts / 8))
    return {parts: round(statistics.median(values), 3) for parts, values in sorted(ratios.items())}


def mig_gigabytes(name: str) -> int:
    """The size in a profile's name: 40 for 3g.40gb."""
    return int(name.split(".")[1].removesuffix("gb"))


def mig_eighths(name: str, whole: str) -> int:
    """How many eighths of the memory a profile has, from the sizes in the names."""
    return max(1, round(8 * mig_gigabytes(name) / mig_gigabytes(whole)))


def fit(path: Path = CATALOGUE) -> dict[str, object]:
    """Return the fitted constants and their residuals."""
    entries = yaml.safe_load(path.read_text())
    pairs = observed_pairs(entries)
    intercept, slope = theil_sen([(driver, driver - visible) for driver, visible in pairs.values()])
    errors = {
        key: (driver - intercept - slope * driver - visible) / visible for key, (driver, visible) in pairs.items()
    }
    magnitudes = sorted(abs(error) for error in errors.values())
    return {
        "cards": len(pairs),
        "reserve_mib": round(intercept),
        "reserve_per_mib": round(slope, 5),
        "median_error": round(statistics.median(magnitudes), 5),
        "p90_error": round(magnitudes[int(0.9 * len(magnitudes))], 5),
        "worst": max(errors, key=lambda key: abs(errors[key])),
        "errors": {key: round(error, 5) for key, error in errors.items()},
        "slice_shares": slice_shares(entries),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    fitted = fit()
    if parser.parse_args().json:
        print(json.dumps(fitted))
        return
    for key, error in sorted(fitted.pop("errors").items(), key=lambda item: -abs(item[1])):
        print(f"{key:24} {error:+.3%}")
    print(json.dumps(fitted, indent=1))


if __name__ == "__main__":
    main()
