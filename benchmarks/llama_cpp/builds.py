"""llama.cpp's build numbers by month, for records that print a date and no build."""

from __future__ import annotations

# The last build of each month; from March 2026 on interpolated between two tagged days (b8250 on 9 March 2026, b10459
# on 17 August). Source: the number of commits on the main branch.
_LAST_OF_MONTH = (
    ("2024-01", 2038),
    ("2024-02", 2298),
    ("2024-03", 2583),
    ("2024-04", 2776),
    ("2024-05", 3062),
    ("2024-06", 3269),
    ("2024-07", 3499),
    ("2024-08", 3651),
    ("2024-09", 3854),
    ("2024-10", 4001),
    ("2024-11", 4231),
    ("2024-12", 4404),
    ("2025-01", 4607),
    ("2025-02", 4794),
    ("2025-03", 5014),
    ("2025-04", 5237),
    ("2025-05", 5558),
    ("2025-06", 5787),
    ("2025-07", 6052),
    ("2025-08", 6338),
    ("2025-09", 6653),
    ("2025-10", 6907),
    ("2025-11", 7212),
    ("2025-12", 7598),
    ("2026-01", 7899),
    ("2026-02", 8182),
    ("2026-03", 8580),
    ("2026-04", 8990),
    ("2026-05", 9400),
    ("2026-06", 9820),
    ("2026-07", 10240),
    ("2026-08", 10660),
    ("2026-09", 10850),
)


def build_at(date: str) -> int:
    """The build that was newest on a day such as `2025-01-06`, counted evenly within its month."""
    month, day = date[:7], int(date[8:10] or 15)
    for index, (name, last) in enumerate(_LAST_OF_MONTH):
        if name == month:
            before = _LAST_OF_MONTH[index - 1][1] if index else last - 200
            return before + (last - before) * day // 31
    return _LAST_OF_MONTH[0][1] if month < _LAST_OF_MONTH[0][0] else 11000
