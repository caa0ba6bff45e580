"""How fast this machine does what a quantization is made of, probed in about a second."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from memplan.quantize.forecast_time import MachineSpeed

_LONG_ENOUGH_S = 0.15
_SIDE, _GPU_SIDE = 1536, 8192
_ELEMENTS = 1 << 22


def is_there(device: str) -> bool:
    """Whether this machine has the device."""
    return device == "cpu" or torch.cuda.is_available()


@torch.no_grad()
def probe(device: str = "cpu") -> MachineSpeed:
    """Return the speed of a device. `half` is bfloat16; factorisations are in float32."""
    side = _SIDE if device == "cpu" else _GPU_SIDE
    generator = torch.Generator(device).manual_seed(0)
    left, right = (torch.randn((side, side), generator=generator, device=device) for _ in range(2))
    product = 2 * side**3
    definite = left @ left.t()
    definite.diagonal().add_(side)
    half_left, half_right = left.bfloat16(), right.bfloat16()
    element = torch.randn(_ELEMENTS, generator=generator, device=device)
    return MachineSpeed(
        half_flops_per_s=product / _seconds(lambda: half_left @ half_right, device),
        float_flops_per_s=product / _seconds(lambda: left @ right, device),
        factor_flops_per_s=side**3 / 3 / _seconds(lambda: torch.linalg.cholesky(definite), device),
        elements_per_s=_ELEMENTS / _seconds(lambda: element.div(3.0), device),
    )


def _seconds(work: Callable[[], object], device: str) -> float:
    """How long something takes once it is warm, the shortest of some runs."""
    work()
    shortest, start = float("inf"), time.perf_counter()
    while time.perf_counter() - start < _LONG_ENOUGH_S:
        begun = time.perf_counter()
        work()
        if device != "cpu":
            torch.cuda.synchronize()
        shortest = min(shortest, time.perf_counter() - begun)
    return shortest
