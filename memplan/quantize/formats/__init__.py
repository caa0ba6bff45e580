"""Layouts of quantized checkpoints: one file each, and the table that names them.

A format packs a matrix on its grid into the tensors that readers look for, gets the weights back out of them, and
writes the `quantization_config` of config.json. Weights are always proven from what was packed, never from memory.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol, cast

from memplan.errors import UsageError, did_you_mean
from memplan.quantize.methods import Method
from memplan.quantize.width import Width
from memplan.records import dataclass, field, replace

if TYPE_CHECKING:
    from torch import Tensor

    from memplan.quantize.grid import Quantized

FORMATS: Mapping[str, str] = {
    "compressed-tensors": "memplan.quantize.formats.compressed_tensors",
    "gptq": "memplan.quantize.formats.autogptq",
    "awq": "memplan.quantize.formats.autoawq",
    "bitsandbytes": "memplan.quantize.formats.bitsandbytes",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """What a format must know of a checkpoint as a whole.

    `kept` names the linear layers that were left in 16 bit, `lm_head` among them, and `widths` those that are stored in
    another width than the others.
    """

    method: Method
    bits: int
    group_size: int
    symmetric: bool
    damping: float
    kept: tuple[str, ...] = ()
    widths: Mapping[str, Width] = field(default_factory=dict)

    def of(self, module: str) -> Layout:
        """The layout of one layer, by its name in the checkpoint."""
        width = self.widths.get(module)
        return replace(self, bits=width.bits, group_size=width.group_size, widths={}) if width else self


class Format(Protocol):
    """A layout of quantized checkpoints, as a module."""

    check: Callable[[Layout], None]
    pack: Callable[[Quantized], dict[str, Tensor]]
    unpack: Callable[[Mapping[str, Tensor], Layout], Tensor]
    shape: Callable[[Mapping[str, tuple[int, ...]], Layout], tuple[int, int]]
    quantization_config: Callable[[Layout], dict[str, Any]]


def check_format(name: str) -> None:
    """Raises: UsageError for an unknown format, or one that is no layout of layers in a folder."""
    if name not in FORMATS:
        if name == "gguf":
            raise UsageError("a GGUF is written by a method of its own", hint="--method gguf:q8_0")
        hint = did_you_mean(name, list(FORMATS)) or f"use one of {', '.join(FORMATS)}"
        raise UsageError(f"unknown format: `{name}`", hint=hint)


def format_named(name: str) -> Format:
    """Return a format. Raises: UsageError for an unknown one."""
    check_format(name)
    return cast(Format, importlib.import_module(FORMATS[name]))
