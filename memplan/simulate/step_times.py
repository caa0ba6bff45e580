"""The planner's speed model as tables of step times, from which a clock reads straight lines.

A step is one pass over all its tokens: weights, collectives and overheads by the number of tokens (`pass_s`), and
attention on top, of each decoding sequence by its context, of a chunk of a prompt by its place in it. With p pipeline
stages a step's sequences run as p micro-batches, of which each stage works on another.

Not modelled: that a single prompt passes through the stages one after the other; chunks that read the cache of what is
before them slower than they compute; drafts.
Checked by: tests/simulate/test_step_times.py, against the speed model's own figures for a steady load.
"""

from __future__ import annotations

from memplan.budget.kv_cache import KvFormat
from memplan.budget.links import link_between, send_s
from memplan.budget.pass_time import PassTime, Rank, decode_pass, make_rank, prefill_pass
from memplan.budget.traffic import attention_flops
from memplan.domain.dtypes import DType
from memplan.domain.gpu import GpuSpec
from memplan.domain.model import ModelSpec
from memplan.domain.serving import ParallelLayout
from memplan.domain.simulation import ModelledSteps
from memplan.domain.speed import Efficiency
from memplan.units import ceil_div

_MOST_TOKENS = 1 << 18
_MOST_POSITIONS = 1 << 21
# From here on tokens of a pass are those of prompts, of which only the last is sampled.
_PROMPTS_FROM = 512
# Points between two powers of two: the error of a line between two points of a parabola stays below 1 %.
_POINTS_PER_DOUBLING = 4


def modelled_steps(
    spec: ModelSpec,
    gpu: GpuSpec,
    layout: ParallelLayout,
    form: KvFormat,
    dtype: DType,
    efficiency: Efficiency,
    offload_bytes: int = 0,
) -> ModelledSteps:
    """Return how long the steps of one replica take.

    Raises: UsageError when the catalogue has no memory bandwidth for the GPU.
    """
    rank = make_rank(spec, gpu, layout, form, dtype, efficiency, offload_bytes)
    stages = layout.pipeline
    share = ceil_div(spec.num_layers, stages) / spec.num_layers  # of a pass, on the stage with the most layers
    tokens = _points(_MOST_TOKENS)
    positions = (0, *_points(_MOST_POSITIONS))
    message_s = _sends_s(rank, gpu, layout)
    return ModelledSteps(
        tokens=tuple(float(each) for each in tokens),
        pass_s=tuple(
            _without_attention(rank, max(1.0, each / stages)) * stages * share + message_s * each for each in tokens
        ),
        positions=tuple(float(each) for each in positions),
        decode_s=tuple(share * _attention_s(decode_pass(rank, 1, each)) for each in positions),
        prompt_s=tuple(
            share * attention_flops(rank.passes, 0, each, expanded=True) / rank.rates["16"] for each in positions
        ),
        sequence_s=efficiency.sequence_overhead_s,
        request_s=efficiency.request_overhead_s,
        source=f"the speed model's {efficiency.name} ({efficiency.provenance}): {efficiency.source}".rstrip(": "),
    )


def _points(most: int) -> tuple[int, ...]:
    """Whole numbers from 1 to `most`, as many in every doubling."""
    doublings = most.bit_length() - 1
    found = {round(2 ** (step / _POINTS_PER_DOUBLING)) for step in range(doublings * _POINTS_PER_DOUBLING + 1)}
    return tuple(sorted(found))


def _without_attention(rank: Rank, tokens: float) -> float:
    """A pass over so many tokens, without attention and without what every sequence costs."""
    if tokens < _PROMPTS_FROM:
        whole, sequences = decode_pass(rank, tokens, 0.0), tokens
    else:
        whole, sequences = prefill_pass(rank, 1, 0, tokens, int(tokens) + 1), 1.0
    return whole.total_s - _attention_s(whole) - sequences * rank.efficiency.sequence_overhead_s


def _attention_s(whole: PassTime) -> float:
    return max(whole.attention_compute_s, whole.attention_bandwidth_s)


def _sends_s(rank: Rank, gpu: GpuSpec, layout: ParallelLayout) -> float:
    """Seconds that a token's activations take between two stages, for each token of a step."""
    if layout.pipeline == 1:
        return 0.0
    link = link_between(gpu, 2, rank.efficiency)
    size = rank.passes.hidden_size * 2
    return (send_s(link, 1024 * size) - send_s(link, 0)) / 1024
