"""The time of one pass on one rank: a roofline over matrices and attention, and what comes on top of it.

Formula (docs/speed-model.md, "Roofline"): matrices take max(FLOPs / rate, bytes / bandwidth), attention the same of its
own, one after the other; collectives, weights that come from the host and the overhead of the pass are added.
"""

from __future__ import annotations

from functools import lru_cache

from memplan.budget.kv_cache import KvFormat
from memplan.budget.links import Link, all_reduce_s, all_to_all_s, link_between, pcie_bytes_per_s
from memplan.budget.traffic import (
    Passes,
    Rate,
    attention_flops,
    cache_read_bytes,
    experts_read_bytes,
    matrix_flops,
    model_passes,
    weights_read_bytes,
)
from memplan.domain.dtypes import DType
from memplan.domain.gpu import GpuSpec
from memplan.domain.model import ModelSpec
from memplan.domain.serving import ParallelLayout
from memplan.domain.speed import Bound, Efficiency
from memplan.errors import UsageError
from memplan.records import Same, dataclass

# Where a sheet has no tensor rate, it is taken from the bandwidth. Assumed: Apple's GPUs compute 26 to 35 FP16
# operations for every byte (M1 Max to M3 Max), small cards of NVIDIA and Intel about 80.
_APPLE_FLOPS_PER_BYTE = 32.0
_OTHER_FLOPS_PER_BYTE = 80.0
_ACTIVATION_BYTES = 2
# A batch from which llama.cpp copies host weights to the GPU instead of computing on the CPU.
_COPIED_FROM_TOKENS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Rank:
    """One tensor-parallel rank with its passes, and the rates that an engine reaches on it.

    `offloaded` is the part of its weights that lies in host memory. `peers` are the ranks that experts are spread over.
    """

    passes: Passes
    form: KvFormat
    rates: dict[Rate, float]
    bytes_per_s: float
    link: Link
    peer_link: Link
    peers: int
    efficiency: Efficiency
    offloaded: float
    pcie_bytes_per_s: float
    assumes_rate: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PassTime:
    """The parts of a pass, in seconds, with what they move and compute."""

    matrix_compute_s: float
    matrix_bandwidth_s: float
    attention_compute_s: float
    attention_bandwidth_s: float
    link_s: float
    overhead_s: float
    offload_s: float
    weights_bytes: float
    cache_bytes: float
    flops: float
    attention_flops: float
    link_bytes: float

    @property
    def total_s(self) -> float:
        return (
            max(self.matrix_compute_s, self.matrix_bandwidth_s)
            + max(self.attention_compute_s, self.attention_bandwidth_s)
            + self.link_s
            + self.overhead_s
            + self.offload_s
        )

    @property
    def bound(self) -> Bound:
        """What most of the pass waits for."""
        waits: dict[Bound, float] = {"compute": 0.0, "bandwidth": 0.0}
        for compute, bandwidth in (
            (self.matrix_compute_s, self.matrix_bandwidth_s),
            (self.attention_compute_s, self.attention_bandwidth_s),
        ):
            waits["compute" if compute > bandwidth else "bandwidth"] += max(compute, bandwidth)
        waits |= {"link": self.link_s, "overhead": self.overhead_s, "offload": self.offload_s}
        return max(waits, key=lambda name: waits[name])


def make_rank(
    spec: ModelSpec,
    gpu: GpuSpec,
    layout: ParallelLayout,
    form: KvFormat,
    dtype: DType,
    efficiency: Efficiency,
    offload_bytes: int = 0,
) -> Rank:
    """The rank of a layout, with rates as the engine reaches them. The last ones are kept: a search asks for the speed
    of one rank under many loads.

    Raises: UsageError when the catalogue has no memory bandwidth for the GPU.
    """
    return _rank(Same(spec), Same(gpu), layout, form, dtype, Same(efficiency), offload_bytes)


@lru_cache(maxsize=4096)
def _rank(
    spec_key: Same,
    gpu_key: Same,
    layout: ParallelLayout,
    form: KvFormat,
    dtype: DType,
    efficiency_key: Same,
    offload_bytes: int,
) -> Rank:
    spec, gpu, efficiency = spec_key.record, gpu_key.record, efficiency_key.record
    assert isinstance(spec, ModelSpec)
    assert isinstance(gpu, GpuSpec)
    assert isinstance(efficiency, Efficiency)
    if not gpu.bandwidth_bytes_per_s:
        raise UsageError(f"the memory bandwidth of {gpu.name} is not known", hint="name a GPU that has one")
    passes = model_passes(spec, layout, dtype)
    rates, assumed = matrix_rates(gpu, dtype)
    reached = efficiency.compute_fraction * (1.0 - passes.packed_share * (1.0 - efficiency.packed_compute_fraction))
    peers = layout.tensor * layout.data if layout.expert else 1
    return Rank(
        passes=passes,
        form=form,
        rates={
            name: rate * reached * (1.0 if rate <= rates["16"] else efficiency.narrow_fraction)
            for name, rate in rates.items()
        },
        bytes_per_s=gpu.bandwidth_bytes_per_s * efficiency.bandwidth_fraction,
        link=link_between(gpu, layout.tensor, efficiency),
        peer_link=link_between(gpu, peers, efficiency),
        peers=peers,
        efficiency=efficiency,
        offloaded=min(1.0, offload_bytes * layout.pipeline / max(1, passes.weights_bytes)),
        pcie_bytes_per_s=pcie_bytes_per_s(gpu) * efficiency.pcie_fraction,
        assumes_rate=assumed,
    )


def matrix_rates(gpu: GpuSpec, dtype: DType) -> tuple[dict[Rate, float], bool]:
    """FLOP/s by kind of matrix, and whether they are assumed. A GPU without a narrow type computes in 16 bit.

    MXFP4 weights meet FP8 activations where there are FP4 tensor cores, and 16-bit ones elsewhere.
    """
    sheet = gpu.flops_per_s or {}
    known = sheet.get("bf16" if dtype is DType.BF16 else "fp16") or sheet.get("fp16") or sheet.get("bf16")
    ratio = _APPLE_FLOPS_PER_BYTE if gpu.vendor == "apple" else _OTHER_FLOPS_PER_BYTE
    half = known or ratio * (gpu.bandwidth_bytes_per_s or 0.0)
    fp8 = sheet.get("fp8") or half
    rates: dict[Rate, float] = {
        "16": half,
        "fp8": fp8,
        "int8": sheet.get("int8") or half,
        "fp4": sheet.get("fp4") or half,
        "mxfp4": fp8 if sheet.get("fp4") else half,
    }
    return rates, known is None


def decode_pass(rank: Rank, batch: float, context_tokens: float, *, tokens_each: int = 1) -> PassTime:
    """A step that extends `batch` sequences of `context_tokens` tokens by `tokens_each` tokens (to be checked)."""
    scored = batch * attention_flops(rank.passes, context_tokens, context_tokens + tokens_each)
    cached = batch * cache_read_bytes(rank.passes, rank.form, context_tokens)
    return _pass(rank, batch * tokens_each, batch * tokens_each, scored, cached, passes=1, sequences=batch)


def prefill_pass(rank: Rank, prompts: float, start: float, end: float, batched_tokens: int) -> PassTime:
    """The passes that compute positions `start` to `end` of `prompts` sequences, up to `batched_tokens` at a time."""
    tokens = prompts * (end - start)
    passes = max(1, -(-int(tokens) // batched_tokens))
    scored = prompts * attention_flops(rank.passes, start, end, expanded=True)
    longest = -(-int(end - start) // batched_tokens)
    cached = prompts * longest * cache_read_bytes(rank.passes, rank.form, (start + end) / 2)
    return _pass(rank, tokens, prompts, scored, cached, passes=passes, sequences=prompts)


def _pass(
    rank: Rank, tokens: float, sampled: float, scored: float, cached: float, *, passes: int, sequences: float
) -> PassTime:
    """`passes` equal passes over `tokens` tokens of `sequences` in all, `sampled` of which go through the head."""
    own, use = rank.passes, rank.efficiency
    each = tokens / passes
    flops = matrix_flops(own, tokens, sampled)
    seen = each * _seen_by_experts(rank)
    read = passes * weights_read_bytes(own, seen)
    from_host = read * rank.offloaded
    by_cpu = use.computes_on_host and each < _COPIED_FROM_TOKENS
    message = each * own.hidden_size * _ACTIVATION_BYTES
    link_s, link_bytes = _collectives(rank, message)
    return PassTime(
        matrix_compute_s=sum(work / rank.rates[name] for name, work in flops.items()),
        matrix_bandwidth_s=passes * _matrix_read_s(rank, seen) * (1.0 - rank.offloaded),
        attention_compute_s=scored / rank.rates["16"],
        attention_bandwidth_s=cached / rank.bytes_per_s,
        link_s=passes * link_s,
        overhead_s=passes
        * (use.step_overhead_s + own.num_layers * use.layer_overhead_s + own.expert_layers * use.experts_overhead_s)
        + sequences * use.sequence_overhead_s,
        offload_s=from_host / (use.host_bytes_per_s if by_cpu else rank.pcie_bytes_per_s),
        weights_bytes=read,
        cache_bytes=cached,
        flops=sum(flops.values()),
        attention_flops=scored,
        link_bytes=passes * link_bytes,
    )


def _matrix_read_s(rank: Rank, seen: float) -> float:
    """Time to read the weights of one pass, `seen` tokens choosing among its experts; packed ones come slower."""
    own, use = rank.passes, rank.efficiency
    routed = experts_read_bytes(own, seen)
    slowed = 1.0 + own.packed_share * (1.0 / use.packed_fraction - 1.0)
    return (own.dense_bytes + own.head_bytes + routed / use.experts_fraction) * slowed / rank.bytes_per_s


def _seen_by_experts(rank: Rank) -> float:
    """How many replicas send their tokens to the experts of one rank."""
    return max(1.0, rank.peers / rank.passes.tensor)


def _collectives(rank: Rank, message_bytes: float) -> tuple[float, float]:
    """Seconds and bytes of a pass's collectives: all-reduces, and two exchanges in layers whose experts are spread."""
    own = rank.passes
    seconds = own.reductions * all_reduce_s(rank.link, own.tensor, message_bytes)
    size = 0.0 if own.tensor == 1 else own.reductions * message_bytes
    if rank.peers > own.tensor and own.experts:
        sent = message_bytes * own.experts[0].experts_per_token
        seconds += 2 * own.expert_layers * all_to_all_s(rank.peer_link, rank.peers, sent)
        size += 2 * own.expert_layers * sent
    return seconds, size


def ridge_batch(rank: Rank, *, limit: int = 1 << 16) -> int | None:
    """The smallest batch whose matrices take longer to compute than to read; None when none below `limit` does.

    For dense weights of b bytes an element this is rate x b / (2 x bandwidth); experts move it up, because a larger
    batch touches more of them.
    """

    def computes(batch: int) -> bool:
        flops = matrix_flops(rank.passes, batch, batch)
        return sum(work / rank.rates[name] for name, work in flops.items()) >= _matrix_read_s(
            rank, batch * _seen_by_experts(rank)
        )

    if not computes(limit):
        return None
    low, high = 0, limit
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if computes(middle) else (middle, high)
    return high
