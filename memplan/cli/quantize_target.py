"""A quantization held against the engine that will serve it, before hours are spent: what it refuses is mended or told.

The tables are those of `estimate` and `plan` (docs/servable.md). A setting that the user did not give is changed to
one that starts; one that was given is refused with what would start.
"""

from __future__ import annotations

from collections.abc import Iterator

from memplan.catalog.gpus import find_gpu
from memplan.catalog.quant_schemes import parse_scheme
from memplan.catalog.servable import ENGINES, Support, support
from memplan.cli.options import Given
from memplan.domain.model import ModelSpec
from memplan.domain.serving import ParallelLayout
from memplan.errors import UsageError, did_you_mean
from memplan.introspect.quantized import quantize_spec
from memplan.quantize.forecast import scheme_name
from memplan.quantize.request import QuantizeRequest
from memplan.records import replace

# Cards that stand for their generations, the ones that most people rent first; a result must start on one of them.
_CARDS = ("a100-80g", "h100-80g", "l40s", "b200", "t4")


def fitted_to(target: str, spec: ModelSpec, request: QuantizeRequest, given: Given) -> tuple[QuantizeRequest, str]:
    """Return the request that starts on `target` (vllm@0.33.0), and what was changed or is to be known of it.

    Raises: UsageError for an unknown engine or release, and for what it refuses and cannot be mended.
    """
    engine, _, version = target.partition("@")
    if engine not in ENGINES:
        hint = did_you_mean(engine, list(ENGINES)) or f"use one of {', '.join(ENGINES)}"
        raise UsageError(f"unknown engine: `{engine}`", hint=hint)
    refused = _refusal(spec, request, engine, version or None)
    if refused is None:
        return request, ""
    for changed, words, options in _changes(request):
        if not any(option in given for option in options) and _refusal(spec, changed, engine, version or None) is None:
            return changed, f"{words}, because {target} would not start: {refused.reason}"
    offered = (
        " or ".join(options)
        for changed, _, options in _changes(request)
        if _refusal(spec, changed, engine, version or None) is None
    )
    option = next(offered, "")
    way_out = f"leave out --{option.replace('_', '-')}" if option else refused.hint
    raise UsageError(f"{target} would not start {scheme_name(request)}: {refused.reason}", hint=way_out)


def _refusal(spec: ModelSpec, request: QuantizeRequest, engine: str, version: str | None) -> Support | None:
    """Why no card starts it; None where one does."""
    made = quantize_spec(spec, parse_scheme(scheme_name(request)))
    traits = ("prequantized",) if request.symmetric else ("prequantized", "asymmetric")
    made = replace(made, quantization_traits=traits)
    answers = [support(made, None, None, find_gpu(card), ParallelLayout(), engine, version) for card in _CARDS]
    return None if any(answer.runs for answer in answers) else answers[0]


def _changes(request: QuantizeRequest) -> Iterator[tuple[QuantizeRequest, str, tuple[str, ...]]]:
    """Requests near this one, what was changed in words, and the options that say the opposite."""
    if not request.symmetric:
        yield replace(request, symmetric=True), "weights are symmetric", ("symmetric",)
    if request.format != "compressed-tensors":
        yield replace(request, format="compressed-tensors"), "written as compressed-tensors", ("format",)
        both = replace(request, format="compressed-tensors", symmetric=True)
        yield both, "symmetric, and written as compressed-tensors", ("symmetric", "format")
    for size in (128, 32, 0):
        if request.group_size != size and request.method.element == "int" and request.method.group_size:
            yield replace(request, group_size=size), f"groups of {size or 'whole rows'}", ("group_size",)
    if request.bits not in (4, 8) and request.method.element == "int":
        yield replace(request, bits=4), "weights of 4 bits", ("bits",)
