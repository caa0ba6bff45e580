"""Other libraries as quantizers, behind one call: for a person who wants to compare them on a model of their own.

An adapter hands the library the 16-bit model and the same windows of text that the native pipeline would use, and lets
it save in its own way. Nothing of memplan's forecast, limits or resuming holds for what a library does. Libraries pin
other releases of torch and transformers than each other, so each wants an environment of its own.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from memplan.errors import MissingExtra, UsageError, did_you_mean
from memplan.quantize.request import QuantizeRequest
from memplan.records import dataclass

if TYPE_CHECKING:
    from torch import Tensor

Quantize = Callable[["QuantizeRequest", Path, "Tensor", Path], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """A library: its adapter, the package that is imported, the methods and the format that it has, how to install."""

    adapter: str
    package: str
    methods: tuple[str, ...]
    format: str
    install: str


BACKENDS: Mapping[str, Backend] = {
    "autoawq": Backend(
        adapter="memplan.quantize.backends.autoawq",
        package="awq",
        methods=("awq",),
        format="awq",
        install="pip install autoawq==0.2.9 transformers==4.51.3, in an environment of its own",
    ),
    "gptqmodel": Backend(
        adapter="memplan.quantize.backends.gptqmodel",
        package="gptqmodel",
        methods=("gptq",),
        format="gptq",
        install="pip install gptqmodel, in an environment of its own",
    ),
    "llmcompressor": Backend(
        adapter="memplan.quantize.backends.llmcompressor",
        package="llmcompressor",
        methods=("rtn", "gptq", "awq", "awq+gptq", "int8", "fp8", "fp8-static", "nvfp4"),
        format="compressed-tensors",
        install="pip install llmcompressor, in an environment of its own",
    ),
}


def check_backend(name: str, request: QuantizeRequest) -> None:
    """Raises: UsageError for an unknown library, or a method or format that it does not have."""
    if name not in BACKENDS:
        hint = did_you_mean(name, list(BACKENDS)) or f"use one of native, {', '.join(BACKENDS)}"
        raise UsageError(f"unknown backend: `{name}`", hint=hint)
    backend = BACKENDS[name]
    if request.method.name not in backend.methods:
        raise UsageError(
            f"{name} has no method {request.method.name}", hint=f"--method {' or '.join(backend.methods)}, or native"
        )
    if request.format != backend.format:
        raise UsageError(f"{name} writes {backend.format} alone", hint=f"--format {backend.format}")


def quantize_with(name: str, request: QuantizeRequest, source: Path, token_NT: Tensor, output: Path) -> None:
    """Have a library quantize the model in `source` on windows of tokens and save it in `output`.

    Raises: MissingExtra when the library is not installed; whatever it raises itself comes out as UsageError.
    """
    backend = BACKENDS[name]
    if importlib.util.find_spec(backend.package) is None:
        raise MissingExtra(f"--backend {name} needs {backend.package}", hint=backend.install)
    adapter = cast(Any, importlib.import_module(backend.adapter))
    adapter.quantize(request, source, token_NT, output)
