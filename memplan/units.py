"""Sizes and counts as people write them, and back.

Sizes are integer bytes everywhere inside memplan. This module is the only place that reads or writes
`GiB`, `GB` or `8k`. Decimal and binary units are kept apart: `80GB` is 80 x 10^9 bytes, `79.2GiB` is 79.2 x 2^30.
A bare letter follows Kubernetes: `80G` is decimal, `80Gi` binary. Counts follow vLLM: `8k` is 8,000 and `8K` is 8,192.
"""

from __future__ import annotations

import re

from memplan.errors import UsageError

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30
TIB = 1 << 40

_SIZE_UNITS = {
    "": 1,
    "b": 1,
    **{prefix: 1000**power for power, prefix in enumerate(("k", "m", "g", "t"), start=1)},
    **{prefix + "b": 1000**power for power, prefix in enumerate(("k", "m", "g", "t"), start=1)},
    **{prefix + "i": 1024**power for power, prefix in enumerate(("k", "m", "g", "t"), start=1)},
    **{prefix + "ib": 1024**power for power, prefix in enumerate(("k", "m", "g", "t"), start=1)},
}
_COUNT_UNITS = {"": 1, "k": 1000, "K": 1024, "m": 1000**2, "M": 1024**2, "g": 1000**3, "G": 1024**3}
_NUMBER = re.compile(r"([0-9][0-9_,]{0,40}(?:\.[0-9]{1,20})?)\s*([A-Za-z]*)")
_LARGEST = 1 << 60


def parse_size_bytes(text: str, *, what: str = "size") -> int:
    """Return the bytes that `text` names, such as `80GB`, `79.2GiB` or `512 MiB`.

    A number without a unit counts bytes, so `--gpu-free 20` would ask for twenty bytes: values under 1 MiB without
    a unit are refused, because they are always a forgotten unit.

    Raises: UsageError when there is no number, the unit is unknown, or the size is not positive.
    """
    match = _NUMBER.fullmatch(text.strip())
    if not match or match[2].lower() not in _SIZE_UNITS:
        raise UsageError(f"not a {what}: `{text:.60}`", hint="write it as 80GB, 79.2GiB or 512MiB")
    size_bytes, _ = _times(match[1], _SIZE_UNITS[match[2].lower()])
    if not match[2] and 0 < size_bytes < MIB:
        raise UsageError(f"{what} without a unit: `{text:.60}`", hint=f"write {text}GiB or {text}GB")
    if not 0 < size_bytes < _LARGEST:
        raise UsageError(
            f"{what} out of range: `{text:.60}`", hint="it must be more than zero bytes and less than 1 EiB"
        )
    return size_bytes


def parse_count(text: str, *, what: str = "number", minimum: int = 1) -> int:
    """Return the count that `text` names: `8192`, `8k` (8,000), `8K` (8,192), `1m` or `1M`.

    Raises: UsageError when it is not a whole number, or is below `minimum`.
    """
    match = _NUMBER.fullmatch(text.strip())
    if not match or match[2] not in _COUNT_UNITS:
        raise UsageError(f"not a {what}: `{text:.60}`", hint="write it as 8192, 8k (8,000) or 8K (8,192)")
    number, is_whole = _times(match[1], _COUNT_UNITS[match[2]])
    if not is_whole:
        raise UsageError(f"not a whole {what}: `{text:.60}`", hint="write it as 8192, 8k (8,000) or 8K (8,192)")
    if not minimum <= number < _LARGEST:
        raise UsageError(
            f"{what} out of range: `{text:.60}`", hint=f"it must be at least {minimum}, and less than 2^60"
        )
    return number


def parse_fraction(text: str, *, what: str = "rise of perplexity") -> float:
    """Return the part that `text` names: `2%` or `0.02`. Raises: UsageError for anything else."""
    digits = text.strip().removesuffix("%").strip()
    is_percent = text.strip().endswith("%")
    try:
        number = float(digits) / (100 if is_percent else 1)
    except ValueError:
        number = -1.0
    if not 0 <= number < 10 or (number >= 1 and not is_percent):
        raise UsageError(f"not a {what}: `{text:.60}`", hint="write it as 2% or 0.02")
    return number


def _times(digits: str, unit: int) -> tuple[int, bool]:
    """A decimal number times `unit`, rounded down, and whether it came out whole: exact, where a float is not."""
    whole, _, part = digits.replace("_", "").replace(",", "").partition(".")
    product, rest = divmod(int(whole + part) * unit, 10 ** len(part))
    return product, rest == 0


def format_gib(size_bytes: int | float, *, digits: int = 2) -> str:
    """Return `size_bytes` in GiB with its unit, such as `1.25 GiB`; small sizes come in MiB or KiB."""
    magnitude = abs(size_bytes)
    if magnitude >= 0.1 * GIB or size_bytes == 0:
        return f"{size_bytes / GIB:,.{digits}f} GiB"
    if magnitude >= 0.1 * MIB:
        return f"{size_bytes / MIB:,.1f} MiB"
    return f"{size_bytes / KIB:,.1f} KiB"


def format_count(number: int | float) -> str:
    """Return a count as people say it: `8.03 B` parameters, `131,072` tokens."""
    if abs(number) >= 1e12:
        return f"{number / 1e12:.2f} T"
    if abs(number) >= 1e9:
        return f"{number / 1e9:.2f} B"
    if abs(number) >= 1e7:
        return f"{number / 1e6:.1f} M"
    return f"{number:,.0f}"


def ceil_div(numerator: int, denominator: int) -> int:
    """Return `numerator / denominator` rounded up."""
    return -(-numerator // denominator)


def round_up(number: int, multiple: int) -> int:
    """Return the smallest multiple of `multiple` that is not below `number`."""
    return ceil_div(number, multiple) * multiple
