"""`--gpu NAMExN`: where a name ends and a number of GPUs begins."""

from __future__ import annotations

import pytest

from memplan.catalog.gpus import find_gpu
from memplan.cli.serving_options import split_count


@pytest.mark.parametrize(
    ("text", "name", "count"),
    [
        ("h100x8", "h100", 8),
        ("a100-80gx4", "a100-80g", 4),
        ("v100-16gx2", "v100-16g", 2),
        ("rtx-4090x2", "rtx-4090", 2),
        ("rtx4090x2", "rtx4090", 2),
        ("H200 x8", "H200", 8),
        ("mi300xx8", "mi300x", 8),
        ("a100-80g:3g.40gbx2", "a100-80g:3g.40gb", 2),
    ],
)
def test_a_number_of_gpus_is_told_from_their_name(text: str, name: str, count: int) -> None:
    assert split_count(text) == (name, count)
    assert find_gpu(name)


@pytest.mark.parametrize("text", ["rtx4090", "NVIDIA RTX4090", "gtx1080", "gx10", "a100-80g", "mi300x", "rx-7900-xt"])
def test_an_x_of_a_name_is_no_number_of_gpus(text: str) -> None:
    assert split_count(text) == (text, None)
