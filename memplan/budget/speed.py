"""The speed of a deployment under a workload: time to first token, time per token, throughput, and what bounds them.

Formulas (docs/speed-model.md, "Serving"), for C requests in flight on a replica, prompts of n tokens, m of output:

    decode round   one step of every sequence; with p pipeline stages the batch runs as min(p, C) micro-batches
    cycle          (m - 1) / tau rounds + C prefills: the time in which each of the C requests is served once
    throughput     C / cycle requests a second
    tpot           (decode rounds + the other requests' prefills) / (m - 1)
    tau            (1 - a^(k+1)) / (1 - a) tokens a step, for k draft tokens accepted with probability a each

Where lengths differ, the time of a prompt is the mean over strata of prompts, another's prompt that is being read is a
long one more often than not (mean square over mean), and so is an answer that is being written: a sequence met in a
step has on average half of E[m^2] / E[m] tokens of its answer behind it.

Not modelled: queues of a load that the deployment cannot hold, preemption, detokenising, a draft's own prefill. Whether
the cache has room for C requests is the budget's to say.
"""

from __future__ import annotations

from functools import lru_cache

from memplan.budget.kv_cache import KvFormat
from memplan.budget.links import GPUS_PER_MACHINE, link_between, send_s
from memplan.budget.pass_time import PassTime, Rank, decode_pass, make_rank, prefill_pass, ridge_batch
from memplan.domain.budget import Provenance
from memplan.domain.dtypes import DType
from memplan.domain.gpu import GpuSpec
from memplan.domain.model import ModelSpec
from memplan.domain.serving import ParallelLayout
from memplan.domain.speed import Bound, Draft, Efficiency, Phase, ServingSpeed, SpeedLine, SpeedWorkload
from memplan.errors import UsageError
from memplan.records import Same, dataclass, replace
from memplan.units import ceil_div

_DOC = "docs/speed-model.md"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Round:
    """One step of every sequence of a replica: its time, the pass of one micro-batch, and the idle part of a stage."""

    seconds: float
    step: PassTime
    draft_s: float
    send_s: float
    bubble_fraction: float


def serving_speed(
    spec: ModelSpec,
    gpu: GpuSpec,
    layout: ParallelLayout,
    kv: KvFormat,
    dtype: DType,
    workload: SpeedWorkload,
    efficiency: Efficiency,
    offload_bytes: int = 0,
    draft: Draft | None = None,
    with_working: bool = True,
) -> ServingSpeed:
    """Return how fast a model serves `workload` on a layout of one kind of GPU.

    `offload_bytes` is what of every rank's weights lies in host memory. Without `with_working`, the ridge and the lines
    are left out, for a search that asks for thousands of speeds.
    Raises: UsageError when a length or a rate makes no sense, or the GPU's bandwidth is not known.
    """
    _check(workload, draft)
    rank = make_rank(spec, gpu, layout, kv, dtype, efficiency, offload_bytes)
    slots = ceil_div(workload.concurrency, layout.data)
    end = workload.prompt_tokens
    alone = prefill_pass(rank, 1, _start(workload, end), end, workload.batched_tokens)
    # the stages work on different requests, or on different chunks
    share = _uneven(spec, layout.pipeline) / layout.pipeline if layout.pipeline > 1 else 1.0
    read = _read_prompts(rank, workload, slots, share, alone)
    prefill_s = read.mean_s
    steps = workload.output_tokens - 1
    context = end + workload.output_tokens * workload.output_spread / 2
    turn = _decode_round(rank, gpu, layout, slots, context, _draft_rank(rank, gpu, layout, kv, dtype, draft), draft)
    decode_s = steps / tokens_per_step(draft) * turn.seconds
    cycle_s = decode_s + slots * prefill_s
    round_s = turn.seconds if steps else 0.0
    waits_s = _waits_s(read, cycle_s, round_s, slots, workload, efficiency.request_overhead_s)
    ttft_s = efficiency.request_overhead_s + max(read.alone_s, waits_s[0]) + waits_s[1]
    long_ttft_s = efficiency.request_overhead_s + max(read.long_s, waits_s[0]) + waits_s[1]
    tpot_s = (decode_s + (slots - 1) * prefill_s) / steps if steps else 0.0
    per_s = workload.concurrency / cycle_s
    bound: dict[Phase, Bound] = {"prefill": alone.bound, "decode": turn.step.bound}
    return ServingSpeed(
        ttft_s=ttft_s,
        tpot_s=tpot_s,
        step_s=turn.seconds,
        prefill_tokens_per_s=(end - _start(workload, end)) * layout.data / prefill_s,
        decode_tokens_per_s=per_s * workload.output_tokens,
        request_per_s=per_s,
        bound=bound,
        batch_at_ridge=ridge_batch(rank) if with_working else None,
        bubble_fraction=turn.bubble_fraction,
        lines=(*_lines("prefill", alone, rank, layout), *_decode_lines(turn, rank, layout)) if with_working else (),
        long_ttft_s=long_ttft_s,
        low_ttft_s=ttft_s / (1 + efficiency.prefill_error),
        high_ttft_s=ttft_s * (1 + efficiency.prefill_error),
        low_tpot_s=tpot_s / (1 + efficiency.decode_error),
        high_tpot_s=tpot_s * (1 + efficiency.decode_error),
        notes=_notes(gpu, layout, rank),
    )


def tokens_per_step(draft: Draft | None) -> float:
    """Tokens that a step yields: one, and those of the draft that are accepted before the first that is not.

    Source: Leviathan, Kalman and Matias, "Fast Inference from Transformers via Speculative Decoding" (2023), eq. 1.
    """
    if draft is None:
        return 1.0
    if draft.acceptance == 1.0:
        return draft.num_tokens + 1.0
    return (1.0 - draft.acceptance ** (draft.num_tokens + 1)) / (1.0 - draft.acceptance)


def _check(workload: SpeedWorkload, draft: Draft | None) -> None:
    for name in ("prompt_tokens", "output_tokens", "concurrency", "batched_tokens"):
        if getattr(workload, name) < 1:
            raise UsageError(f"{name.replace('_', ' ')} below one: {getattr(workload, name)}", hint="give at least 1")
    if not 0 <= workload.shared_prefix_tokens <= workload.prompt_tokens:
        raise UsageError(
            f"a shared prefix of {workload.shared_prefix_tokens} tokens in prompts of {workload.prompt_tokens}",
            hint="give a prefix between 0 and the prompt's length",
        )
    if draft and not (0.0 <= draft.acceptance <= 1.0 and draft.num_tokens >= 1):
        raise UsageError(
            f"{draft.num_tokens} draft tokens accepted at {draft.acceptance:g}",
            hint="give at least one token and a rate between 0 and 1",
        )


def _draft_rank(
    rank: Rank, gpu: GpuSpec, layout: ParallelLayout, kv: KvFormat, dtype: DType, draft: Draft | None
) -> Rank | None:
    """The rank on which the draft runs. Predictors of the model's own checkpoint borrow its head."""
    if draft is None or draft.spec is None:
        return None
    own = make_rank(draft.spec, gpu, replace(layout, pipeline=1), kv, dtype, rank.efficiency)
    if own.passes.head_bytes:
        return own
    return replace(
        own, passes=replace(own.passes, head_bytes=rank.passes.head_bytes, head_flops=rank.passes.head_flops)
    )


def _decode_round(
    rank: Rank,
    gpu: GpuSpec,
    layout: ParallelLayout,
    slots: int,
    context: float,
    drafting: Rank | None,
    draft: Draft | None,
) -> _Round:
    """One step of `slots` sequences through all stages.

    A stage is busy with one micro-batch after another; with fewer of them than stages, a round takes as long as one
    pass through all stages and each stage idles the rest of it.
    """
    stages = layout.pipeline
    batches = min(stages, slots)
    checked = draft.num_tokens + 1 if draft else 1
    step = decode_pass(rank, slots / batches, context, tokens_each=checked)
    draft_s = 0.0
    if drafting and draft:
        draft_s = draft.num_tokens * decode_pass(drafting, slots / batches, context).total_s
    message = slots / batches * checked * rank.passes.hidden_size * 2
    sends = (stages - 1) * send_s(link_between(gpu, min(layout.num_ranks, _reach(layout)), rank.efficiency), message)
    busy = batches * (step.total_s * _uneven_layers(rank.passes.num_layers, stages) / stages + draft_s)
    return _Round(
        seconds=max(step.total_s + draft_s + sends, busy + sends / stages),
        step=step,
        draft_s=draft_s,
        send_s=sends,
        bubble_fraction=1.0 - batches / stages,
    )


def _reach(layout: ParallelLayout) -> int:
    """Neighbouring stages are on one machine, unless one stage fills it."""
    return 2 if layout.tensor * 2 <= GPUS_PER_MACHINE else 2 * layout.tensor


def _uneven(spec: ModelSpec, stages: int) -> float:
    return _uneven_layers(spec.num_layers, stages)


def _uneven_layers(layers: int, stages: int) -> float:
    """How much longer the longest stage is than an equal part."""
    return ceil_div(layers, stages) * stages / layers


def _start(workload: SpeedWorkload, end: float) -> float:
    """Where the part of a prompt begins that is not in the cache yet."""
    return min(workload.shared_prefix_tokens, end - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Prompts:
    """What prompts cost: one read alone on average and a long one, the share of one among others, and its square."""

    alone_s: float
    long_s: float
    mean_s: float
    square_mean_s2: float


def _read_prompts(rank: Rank, workload: SpeedWorkload, slots: int, share: float, usual: PassTime) -> _Prompts:
    """Prompts of every stratum, read alone and in passes that they share. `share` is what one counts of a pipeline,
    `usual` the pass of a prompt of the mean length.
    """
    limit = workload.batched_tokens
    if not workload.prompt_strata:
        end, one_s = workload.prompt_tokens, usual.total_s
        start = _start(workload, end)
        together = min(slots, max(1, int(limit // (end - start))))
        shared_s = one_s if together == 1 else prefill_pass(rank, together, start, end, limit).total_s / together
        return _Prompts(alone_s=one_s, long_s=one_s, mean_s=share * shared_s, square_mean_s2=(share * shared_s) ** 2)
    most = int(limit // max(1.0, workload.prompt_strata[0] - _start(workload, workload.prompt_strata[0])))
    long = workload.long_prompt_tokens or workload.prompt_strata[-1]
    prefix = workload.shared_prefix_tokens
    return _read_strata(Same(rank), workload.prompt_strata, long, prefix, limit, min(slots, max(1, most)), share)


@lru_cache(maxsize=4096)
def _read_strata(
    key: Same, strata: tuple[float, ...], long: float, prefix: int, limit: int, slots: int, share: float
) -> _Prompts:
    """The same for prompts of several lengths, the shortest first. More slots than share a pass change nothing."""
    alone = _read_alone(key, (*strata, long), prefix, limit)
    among: list[float] = []
    for end, one_s in zip(strata, alone, strict=False):
        start = min(prefix, end - 1)
        together = min(slots, max(1, int(limit // (end - start))))
        shared_s = (
            prefill_pass(_rank_of(key), together, start, end, limit).total_s / together if together > 1 else one_s
        )
        among.append(share * shared_s)
    return _Prompts(
        alone_s=sum(alone[:-1]) / len(strata),
        long_s=alone[-1],
        mean_s=sum(among) / len(among),
        square_mean_s2=sum(seconds**2 for seconds in among) / len(among),
    )


@lru_cache(maxsize=2048)
def _read_alone(key: Same, prompts: tuple[float, ...], prefix: int, limit: int) -> tuple[float, ...]:
    """Seconds of each prompt, read alone."""
    rank = _rank_of(key)
    return tuple(prefill_pass(rank, 1, min(prefix, end - 1), end, limit).total_s for end in prompts)


def _rank_of(key: Same) -> Rank:
    assert isinstance(key.record, Rank)
    return key.record


def _waits_s(
    read: _Prompts, cycle_s: float, round_s: float, slots: int, workload: SpeedWorkload, request_s: float
) -> tuple[float, float]:
    """What a first token waits for beside its own prompt: at least the first time, and the second on top.

    Requests that start at once are taken in and read one after another: the middle one waits for half of them. In a
    steady state C - 1 others are being read for their share of every `cycle_s`, and half a decode step is in the way.
    """
    if slots == 1:
        return 0.0, 0.0
    if workload.arrival == "together":
        return (slots + 1) / 2 * read.mean_s, (slots - 1) / 2 * request_s
    return 0.0, (slots - 1) * read.square_mean_s2 / cycle_s + round_s / 2


def _lines(phase: Phase, cost: PassTime, rank: Rank, layout: ParallelLayout) -> tuple[SpeedLine, ...]:
    """The parts of a pass, those that the sum does not have marked so."""
    bandwidth = cost.matrix_bandwidth_s >= cost.matrix_compute_s
    reads = cost.attention_bandwidth_s >= cost.attention_compute_s
    rated: Provenance = "assumed" if rank.assumes_rate else "modelled"
    parts: list[tuple[str, Bound, float, str, Provenance, float, float, bool]] = [
        ("matrices: read weights", "bandwidth", cost.matrix_bandwidth_s, "weights read / bandwidth", "modelled",
         cost.weights_bytes * (1 - rank.offloaded), 0.0, bandwidth),
        ("matrices: multiply", "compute", cost.matrix_compute_s, "2 x elements x tokens / rate", rated,
         0.0, cost.flops, not bandwidth),
        ("attention: read cache", "bandwidth", cost.attention_bandwidth_s, "cache of every sequence / bandwidth",
         "modelled", cost.cache_bytes, 0.0, reads),
        ("attention: scores", "compute", cost.attention_compute_s, "2 x heads x widths x pairs / rate", rated,
         0.0, cost.attention_flops, not reads),
        ("collectives", "link", cost.link_s, f"all-reduces over {layout.tensor} ranks, {rank.link.kind}", "modelled",
         cost.link_bytes, 0.0, True),
        ("weights from the host", "offload", cost.offload_s, "offloaded weights read / bus", "assumed",
         cost.weights_bytes * rank.offloaded, 0.0, True),
        ("launches and scheduling", "overhead", cost.overhead_s, "per pass + layers x per layer", "modelled",
         0.0, 0.0, True),
    ]  # fmt: skip
    return tuple(
        SpeedLine(
            name=name,
            phase=phase,
            bound=bound,
            seconds=seconds,
            formula=formula,
            provenance=provenance,
            size_bytes=size,
            flops=flops,
            counts=counts,
            source=_DOC,
        )
        for name, bound, seconds, formula, provenance, size, flops, counts in parts
        if seconds
    )


def _decode_lines(turn: _Round, rank: Rank, layout: ParallelLayout) -> tuple[SpeedLine, ...]:
    lines = list(_lines("decode", turn.step, rank, layout))
    waits = turn.seconds - turn.step.total_s - turn.draft_s
    for name, bound, seconds, formula in (
        ("draft", "bandwidth", turn.draft_s, "draft tokens x step of the draft model"),
        ("pipeline", "link", waits, "sends between stages, and the longest stage"),
    ):
        if seconds > 0:
            lines.append(
                SpeedLine(
                    name=name,
                    phase="decode",
                    bound="bandwidth" if bound == "bandwidth" else "link",
                    seconds=seconds,
                    formula=formula,
                    provenance="modelled",
                    source=_DOC,
                )
            )
    return tuple(lines)


def _notes(gpu: GpuSpec, layout: ParallelLayout, rank: Rank) -> tuple[str, ...]:
    notes = []
    if rank.assumes_rate:
        notes.append(f"{gpu.name}: no tensor rate is known; it is assumed from the memory bandwidth")
    if layout.num_ranks > GPUS_PER_MACHINE:
        notes.append(f"{layout.num_ranks} GPUs are more than one machine's: a 400 Gbit/s network is assumed")
    if rank.offloaded and gpu.pcie is None:
        notes.append(f"{gpu.name}: the bus is not known; PCIe 4.0 x16 is assumed")
    return tuple(notes)
