"""What operators take inside themselves and give back before they return: workspaces, sorted copies, partial sums.

The recorder sits above the kernels and cannot see it; each function here says, for one operator, the sizes in bytes
that are alive together while it runs.
"""

from __future__ import annotations

from typing import Any

from memplan.profile.kernels import Target
from memplan.profile.recorder import Inside


def insides(target: Target, compute_capability: tuple[int, int]) -> dict[Any, Inside]:
    """By operator, what it takes inside on a device."""
    return {}
