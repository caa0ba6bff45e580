"""What is asked of a quantization, checked. Torch is not known here.

A request is everything that decides the result: two equal requests on the same checkpoint and the same texts give the
same files, bit for bit, on the same machine with the same number of threads.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from fnmatch import fnmatchcase

from memplan.errors import UsageError
from memplan.quantize.formats import check_format
from memplan.quantize.methods import Method, method_named
from memplan.quantize.width import Width
from memplan.records import dataclass, field
from memplan.units import GIB

# A router picks experts by small differences and holds next to nothing; so do the gates of shared experts and the decay
# of linear attention.
_ALWAYS_KEPT = re.compile(
    r"(^|\.)(router|gate|shared_expert_gate|lm_head|embed_\w+|weights_proj|in_proj_(a|b|ba))(\.|$)"
)

# What scales are searched for: errors of outputs, by how large inputs are; errors of weights; not at all.
SCALE_SEARCHES = ("inputs", "mse", "none")

# Hessians of experts of one module that are measured together; more experts than that are measured in groups.
POOL_BYTES = GIB


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizeRequest:
    """A quantization. `group_size` 0 means whole rows; `keeps` are patterns of module names that stay in 16 bit.

    `num_samples` windows of `window_tokens` tokens of the text set `calibration` are used, `batch_size` at a time. An
    expert with fewer than `min_expert_tokens` of them (None: than its layers have in features) is shown others as well.
    `scale_search` is one of SCALE_SEARCHES. `mix` has layers, by their full names, that are stored in another width.
    """

    method: Method
    bits: int
    group_size: int
    symmetric: bool
    format: str
    scale_search: str = "inputs"
    damping: float = 0.01
    activation_order: bool = True
    static_groups: bool = False
    true_sequential: bool = True
    keeps: tuple[str, ...] = ()
    calibration: str = "builtin"
    num_samples: int = 128
    window_tokens: int = 512
    batch_size: int = 8
    min_expert_tokens: int | None = None
    seed: int = 0
    device: str = "cpu"
    mix: Mapping[str, Width] = field(default_factory=dict)

    @property
    def searches_range(self) -> bool:
        """Whether scales that clip a little are tried."""
        return self.scale_search != "none"

    def width(self, module: str) -> Width:
        """How a linear layer, by its full name, is stored unless it is kept."""
        return self.mix.get(module) or Width(self.bits, self.group_size)

    def kept(self, module: str) -> bool:
        """Whether a linear layer, by its full name, stays in 16 bit."""
        if _ALWAYS_KEPT.search(module) or self.width(module).is_plain:
            return True
        return any(fnmatchcase(module, pattern) or fnmatchcase(module, f"{pattern}.*") for pattern in self.keeps)

    def fingerprint(self) -> str:
        """A hash of all that decides the result, but for the model and the texts."""
        facts = {name: getattr(self, name) for name in self.__slots__ if name != "method"}
        facts["method"] = {name: getattr(self.method, name) for name in self.method.__slots__}
        return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def quantize_request(
    method: str,
    *,
    bits: int | None = None,
    group_size: int | None = None,
    symmetric: bool | None = None,
    weights_only: bool = False,
    format: str | None = None,
    **settings: object,
) -> QuantizeRequest:
    """Return a request with the method's defaults filled in. Raises: UsageError for what cannot be."""
    known = method_named(method)
    if weights_only and known.activation_bits < 16:
        from memplan.records import replace

        known = replace(known, activation_bits=16, activations="none")
    request = QuantizeRequest(
        method=known,
        bits=known.bits if bits is None else bits,
        group_size=known.group_size if group_size is None else group_size,
        symmetric=known.symmetric if symmetric is None else symmetric,
        format=format or known.format,
        **settings,  # type: ignore[arg-type]
    )
    if known.format == "gguf" and request.format != "gguf":
        raise UsageError(f"{known.name} is a file of its own, not {request.format}", hint="leave --format out")
    if known.format != "gguf":
        check_format(request.format)
    _check_fixed(request, bits=bits, group_size=group_size, symmetric=symmetric)
    if not 2 <= request.bits <= 8:
        raise UsageError(f"not a width that is supported: {request.bits} bits", hint="use 2 to 8")
    if request.group_size < 0 or request.group_size % 8:
        raise UsageError(f"not a group size: {request.group_size}", hint="use 32, 64, 128, or 0 for whole rows")
    for name in ("num_samples", "window_tokens", "batch_size"):
        if getattr(request, name) < 1:
            raise UsageError(
                f"not a number of {name.replace('_', ' ')}: {getattr(request, name)}", hint="give 1 or more"
            )
    if request.min_expert_tokens is not None and request.min_expert_tokens < 0:
        raise UsageError(
            f"not a number of tokens of an expert: {request.min_expert_tokens}", hint="give 0 for its own alone"
        )
    if request.scale_search not in SCALE_SEARCHES:
        raise UsageError(
            f"not a way to search scales: `{request.scale_search}`", hint=f"use one of {', '.join(SCALE_SEARCHES)}"
        )
    if not 0 < request.damping <= 1:
        raise UsageError(f"not a damping: {request.damping}", hint="give a part of the mean, such as 0.01")
    return request


def _check_fixed(request: QuantizeRequest, **given: object) -> None:
    """Raises: UsageError for a width, group or zero point that the method's format does not leave to choose."""
    method = request.method
    if method.element == "int" and method.format == "compressed-tensors":
        return
    for name, value in given.items():
        if value is not None and value != getattr(method, name):
            option = "--" + name.replace("_", "-")
            raise UsageError(f"{method.name} has no choice of {name.replace('_', ' ')}", hint=f"leave {option} out")
