"""The methods by name: what each does to a block, and its defaults. Torch is not known here.

| method | scaling moved | rounding | defaults |
|---|---|---|---|
| `rtn` | none | to nearest | 4 bits, groups of 128 |
| `gptq` | none | GPTQ | 4 bits, groups of 128, symmetric |
| `awq` | AWQ | to nearest, ranges clipped | 4 bits, groups of 128, asymmetric |
| `awq+gptq` | AWQ | GPTQ | 4 bits, groups of 128, symmetric |
| `int8` | SmoothQuant | to nearest | 8 bits, whole rows, symmetric, activations by token |
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from memplan.errors import UsageError, did_you_mean
from memplan.records import dataclass

Scaling = Literal["none", "awq", "smooth"]
Rounding = Literal["nearest", "clipped", "gptq"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """What a method does. `activation_bits` is the width that an engine rounds inputs to, 16 for none."""

    name: str
    scaling: Scaling
    rounding: Rounding
    bits: int
    group_size: int
    symmetric: bool
    activation_bits: int = 16

    @property
    def needs_calibration(self) -> bool:
        """Whether the method looks at what the weights are multiplied by."""
        return self.scaling != "none" or self.rounding != "nearest"


METHODS: Mapping[str, Method] = {
    method.name: method
    for method in (
        Method(name="rtn", scaling="none", rounding="nearest", bits=4, group_size=128, symmetric=True),
        Method(name="gptq", scaling="none", rounding="gptq", bits=4, group_size=128, symmetric=True),
        Method(name="awq", scaling="awq", rounding="clipped", bits=4, group_size=128, symmetric=False),
        Method(name="awq+gptq", scaling="awq", rounding="gptq", bits=4, group_size=128, symmetric=True),
        Method(
            name="int8",
            scaling="smooth",
            rounding="nearest",
            bits=8,
            group_size=0,
            symmetric=True,
            activation_bits=8,
        ),
    )
}


def method_named(name: str) -> Method:
    """Return a method. Raises: UsageError for an unknown one."""
    if name not in METHODS:
        hint = did_you_mean(name, list(METHODS)) or f"use one of {', '.join(METHODS)}"
        raise UsageError(f"unknown method: `{name}`", hint=hint)
    return METHODS[name]
