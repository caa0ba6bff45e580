"""Which card a total of device memory most likely means, when a person gives the size and no name.

The total that CUDA reports tells most cards apart. Where several share one, the commonest is taken and the answer
says so.

Checked by: tests/catalog/test_memory_classes.py, against the totals in gpus.yaml.
"""

from __future__ import annotations

from memplan.units import GIB

# Lowest and highest total in GiB, and the card. Source: the visible totals of gpus.yaml.
_CLASSES = (
    (14.5, 14.8, "t4"),
    (15.40, 15.49, "rtx-5080"),
    (15.7, 15.8, "v100-16g"),
    (15.9, 15.95, "rx-9070-xt"),
    (19.9, 20.0, "rx-7900-xt"),
    (21.95, 22.32, "a10g"),
    (23.49, 23.545, "rtx-4090"),
    (23.545, 23.75, "rtx-3090"),
    (23.9, 24.1, "rx-7900-xtx"),
    (31.3, 31.4, "rtx-5090"),
    (31.70, 31.78, "v100-32g"),
    (31.8, 31.9, "r9700"),
    (39.3, 39.65, "a100-40g"),
    (44.3, 44.6, "l40s"),
    (47.3, 47.6, "rtx-a6000"),
    (63.9, 64.0, "mi250x"),
    (79.0, 79.195, "h100"),
    (79.195, 79.4, "a100-80g"),
    (93.0, 93.15, "h100-nvl"),
    (94.9, 95.3, "h20"),
    (139.6, 139.9, "h200"),
    (178.3, 178.4, "b200"),
    (184.2, 184.4, "gb200"),
    (191.9, 192.1, "mi300x"),
    (267.5, 267.8, "b300"),
    (287.9, 288.1, "mi355x"),
)


def likely_card(memory_bytes: int) -> str | None:
    """Return the catalogue name of the card that most likely has this total; None when no card is known to."""
    gib = memory_bytes / GIB
    return next((name for low, high, name in _CLASSES if low <= gib <= high), None)
