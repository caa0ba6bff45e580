"""What a code stands for: an integer, a small float, or an entry of a table.

| element | values |
|---|---|
| `int` | 0 to 2**bits - 1, less a zero point |
| `e4m3` | 8-bit floats of four exponent bits, to 448 (Micikevicius et al., arXiv 2209.05433) |
| `e2m1` | 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives (OCP Microscaling Formats 1.0) |
| `nf4` | 16 quantiles of a normal distribution within -1 to 1 (Dettmers et al., QLoRA, arXiv 2305.14314) |

Codes are bytes: the bits of an e4m3 float, the sign and place of an e2m1 one (as files hold them), a place in the
table.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

# The largest value of each element but the integers, whose range a grid sets.
LARGEST: Mapping[str, float] = {"e4m3": 448.0, "e2m1": 6.0, "nf4": 1.0}

_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
# The table of bitsandbytes 0.50 (functional.py), to its last digit: readers look values up in the file's own copy.
NF4 = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)


def nearest(value: Tensor, element: str) -> Tensor:
    """Return the codes (uint8) of the nearest values; beyond the range, those of its ends. Not for `int`."""
    if element == "e4m3":
        return value.clamp(-LARGEST[element], LARGEST[element]).to(torch.float8_e4m3fn).view(torch.uint8)
    if element == "nf4":
        table = torch.tensor(NF4, device=value.device)
        return torch.bucketize(value, (table[1:] + table[:-1]) / 2).to(torch.uint8)
    size = value.abs()
    code = torch.bucketize(size, _e2m1_edges(value.device)).to(torch.uint8)
    return code | (torch.signbit(value).to(torch.uint8) << 3)


def values(code: Tensor, element: str) -> Tensor:
    """Return what codes (uint8) stand for, as float32. Not for `int`."""
    if element == "e4m3":
        return code.view(torch.float8_e4m3fn).to(torch.float32)
    table = NF4 if element == "nf4" else (*_E2M1, *(-size for size in _E2M1))
    return torch.tensor(table, device=code.device)[code.to(torch.int32)]


def _e2m1_edges(device: torch.device) -> Tensor:
    """Where one value ends and the next begins. In the very middle the even code wins, as everywhere in IEEE 754."""
    table = torch.tensor(_E2M1, device=device)
    middle = (table[1:] + table[:-1]) / 2
    below = torch.nextafter(middle, torch.zeros_like(middle))
    is_odd = torch.arange(len(middle), device=device) % 2 == 1
    return torch.where(is_odd, below, middle)
