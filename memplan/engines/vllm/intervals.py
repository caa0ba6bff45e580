"""How far a budget's terms may be from what a run reports, at 90 %.

Widths come from recorded start-ups, by what decides them: the scheme of the weights, what sets the activation peak, and
for the cache the release and whether the batch and the utilization were told or left to the defaults. They are not
symmetric: a sampler that may run on FlashInfer's kernels takes less, never more. benchmarks/vllm/calibrate.py fits
them; docs/accuracy/vllm.md says how often they held.
"""

from __future__ import annotations

from math import sqrt

from memplan.domain.gpu import GpuSpec
from memplan.domain.model import ModelSpec
from memplan.domain.serving import ServingSettings
from memplan.engines.vllm.fitted import Fitted
from memplan.engines.vllm.rank import RankPlan
from memplan.engines.vllm.settings import VllmSettings
from memplan.records import dataclass, replace
from memplan.units import MIB

# Unsloth's dynamic checkpoints leave some layers in 16 bits, which ones only their config says. Printed weights were 1
# to 20 % above a plain checkpoint's (phi-4, Qwen2.5-0.5B, QwQ-32B on two stages).
_DYNAMIC = "-unsloth-bnb-4bit"
_KEPT_SHARE = 0.2
# Engines print GiB with two digits.
_PRINTED_BYTES = round(0.006 * 2**30)


@dataclass(frozen=True, slots=True, kw_only=True)
class Width:
    """How far the real value may lie below and above the predicted one, in bytes."""

    below_bytes: int = 0
    above_bytes: int = 0

    @property
    def half_bytes(self) -> int:
        return (self.below_bytes + self.above_bytes) // 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Intervals:
    """The width of every term, of the cache as recorded, of the card's visible memory, and of what is left for the
    cache as the sum of its terms: `rest` reaches as far below as the terms may be larger.
    """

    weights: Width
    activation: Width
    outside: Width
    graphs: Width
    kv: Width
    memory_bytes: int
    rest: Width


def intervals_of(
    spec: ModelSpec,
    gpu: GpuSpec,
    asked: ServingSettings,
    settings: VllmSettings,
    release: tuple[int, ...],
    fitted: Fitted,
    plan: RankPlan,
) -> Intervals:
    """The widths of one rank's terms."""
    shares = fitted.intervals
    weights = _weights(spec, plan, shares["weights_quantized" if spec.quantization else "weights"])
    activation = _activation(plan, shares[activation_class(plan.activation.cause, settings.generation, release)])
    ranks = settings.layout.tensor * settings.layout.pipeline
    outside = _around(fitted.non_torch_width_mib if ranks == 1 else fitted.non_torch_ranks_width_mib)
    held = max(plan.graphs.charged_bytes, plan.graphs.held_bytes)
    graphs = _share(held, shares["cuda_graph"])
    memory = round((gpu.visible_high_bytes - gpu.visible_low_bytes) / 2 * settings.utilization)
    charged = [weights, activation, outside, *([graphs] if plan.graphs.charged_bytes else [])]
    rest = Width(
        below_bytes=_in_squares(memory, *(term.above_bytes for term in charged)),
        above_bytes=_in_squares(memory, *(term.below_bytes for term in charged)),
    )
    is_told = settings.kv_cache_memory_bytes is not None
    return Intervals(
        weights=weights,
        activation=activation,
        outside=outside,
        graphs=graphs,
        kv=Width() if is_told else _share(gpu.memory_bytes, shares[cache_class(asked, settings.generation, release)]),
        memory_bytes=memory,
        rest=Width() if is_told else rest,
    )


def activation_class(cause: str, generation: str, release: tuple[int, ...]) -> str:
    """Which records an activation peak is compared with, by the part of the run that reached it."""
    if cause == "media tower":
        return "activation_media"
    era = "v0" if generation == "v0" else "v1" if release < (0, 17, 0) else "fused"
    return f"activation_{'sampler' if cause == 'sampler' else 'forward'}_{era}"


def cache_class(asked: ServingSettings, generation: str, release: tuple[int, ...]) -> str:
    """Which records a cache is compared with."""
    if generation == "v0":
        return "kv_v0_early" if release < (0, 7, 0) else "kv_v0"
    if release < (0, 11, 0):
        return "kv_v1_early"
    told = (asked.gpu_memory_utilization, asked.max_num_seqs, asked.max_num_batched_tokens)
    return "kv_v1_told" if None not in told else "kv_v1"


def _weights(spec: ModelSpec, plan: RankPlan, shares: list[float]) -> Width:
    width = _share(plan.weight_bytes, shares)
    if not spec.name.lower().endswith(_DYNAMIC):
        return width
    return replace(width, above_bytes=max(width.above_bytes, round(_KEPT_SHARE * plan.weight_bytes)))


def _in_squares(*parts: int) -> int:
    """The sum of independent errors."""
    return round(sqrt(sum(part**2 for part in parts)))


def _activation(plan: RankPlan, shares: list[float]) -> Width:
    width = _share(plan.activation.size_bytes, shares)
    open_bytes = plan.activation.size_bytes - plan.activation.least_bytes
    return Width(below_bytes=max(width.below_bytes, open_bytes + _PRINTED_BYTES), above_bytes=width.above_bytes)


def _share(size: int, shares: list[float]) -> Width:
    low, high = shares
    return Width(
        below_bytes=round(max(0.0, -low) * size) + _PRINTED_BYTES,
        above_bytes=round(max(0.0, high) * size) + _PRINTED_BYTES,
    )


def _around(mib: float) -> Width:
    return Width(below_bytes=round(mib * MIB), above_bytes=round(mib * MIB))
