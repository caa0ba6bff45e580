"""How fast a model serves: the workload that is asked about, what an engine reaches of a GPU, and the answer."""

from __future__ import annotations

from typing import Literal

from memplan.domain.budget import Provenance
from memplan.domain.model import ModelSpec
from memplan.records import dataclass

Phase = Literal["prefill", "decode"]
Bound = Literal["compute", "bandwidth", "link", "overhead", "offload"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeedWorkload:
    """Requests of one length, `concurrency` of them in flight at any time over the whole deployment.

    The first `shared_prefix_tokens` of a prompt are in the cache already: they are not computed again, and are read
    like any other. `arrival` `steady` starts a request whenever one ends; `together` starts all of them at once, as a
    static batch or a benchmark of as many prompts as slots does. `batched_tokens` is how many tokens of prompts one
    pass takes at most. Where lengths differ, the two above are their means, `prompt_strata` are prompts that stand for
    equal parts of all, `long_prompt_tokens` is what 95 % of them stay under, and `output_spread` is the mean square of
    the outputs over their squared mean.
    """

    prompt_tokens: int
    output_tokens: int
    concurrency: int = 1
    shared_prefix_tokens: int = 0
    arrival: Literal["steady", "together"] = "steady"
    batched_tokens: int = 8192
    prompt_strata: tuple[float, ...] = ()
    long_prompt_tokens: int | None = None
    output_spread: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """Speculative decoding: `spec` proposes `num_tokens` tokens a step, each accepted with `acceptance` while all
    before it were. A draft without tensors of its own (n-gram look-up) is None: it costs nothing but the checking.
    """

    spec: ModelSpec | None
    num_tokens: int
    acceptance: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Efficiency:
    """What an engine reaches of a class of GPUs. Factors are fitted by benchmarks/serving_speed/fit.py.

    `compute_fraction` and `bandwidth_fraction` are parts of the dense tensor rate and of the memory bandwidth in
    the vendor's sheet; types narrower than 16 bit reach `narrow_fraction` of that once more (activations are
    quantized on the way), and weights that are unpacked to 16 bit before they are multiplied (GPTQ, AWQ, GGUF below
    8 bit) `packed_fraction` of the bandwidth; routed experts, whose matrices are small and unevenly used,
    `experts_fraction`. Packed ones are multiplied at `packed_compute_fraction` of the rate of plain ones.
    Every pass costs `step_overhead_s`, `layer_overhead_s` for each layer, `experts_overhead_s` for each that
    routes, (kernels that wait for one another) and `sequence_overhead_s` for each sequence that it extends
    (sampling, and the host's bookkeeping). A collective among ranks costs `link_latency_s` and runs at
    `link_fraction` of the link. Weights in host memory are read at `pcie_fraction` of the bus by the GPU, or, where
    `computes_on_host`, by the CPU at `host_bytes_per_s`. `prefill_error` and `decode_error` are the 90 % quantiles
    of |log(predicted / measured)|.
    """

    name: str
    compute_fraction: float
    bandwidth_fraction: float
    narrow_fraction: float = 1.0
    packed_fraction: float = 1.0
    packed_compute_fraction: float = 1.0
    experts_fraction: float = 1.0
    step_overhead_s: float
    layer_overhead_s: float
    experts_overhead_s: float = 0.0
    sequence_overhead_s: float = 0.0
    request_overhead_s: float = 0.0
    link_fraction: float = 0.7
    link_latency_s: float = 1e-5
    pcie_fraction: float = 0.8
    host_bytes_per_s: float = 30e9
    computes_on_host: bool = False
    prefill_error: float = 0.7
    decode_error: float = 0.7
    provenance: Provenance = "modelled"
    source: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeedLine:
    """One part of a phase's time, on the slowest rank. `size_bytes` and `flops` are what it moves and computes.

    A matrix pass takes the longer of its `compute` and its `bandwidth`: both are shown, and `counts` tells which one
    the sum has.
    """

    name: str
    phase: Phase
    bound: Bound
    seconds: float
    formula: str
    provenance: Provenance
    size_bytes: float = 0.0
    flops: float = 0.0
    counts: bool = True
    source: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingSpeed:
    """The speed of a deployment under a workload.

    `ttft_s` is the mean time to the first token, `long_ttft_s` that of a prompt which 95 % are shorter than (the same
    where all are alike), `tpot_s` the mean time of every further one, with the prompts of others between. `step_s` is
    one decode step with nothing between. `decode_tokens_per_s` are output tokens per second of all requests together,
    the time for their prompts included; `prefill_tokens_per_s` is how fast prompts are read when nothing else runs.
    Both, and `request_per_s`, are of all replicas. `bound` names what either phase waits for most. `batch_at_ridge` is
    the batch of one replica at which a decode step's matrix passes become compute-bound, None when that never happens.
    `bubble_fraction` is the part of a decode round in which a pipeline stage idles. The low and high times bound 90 %
    of the published measurements.
    """

    ttft_s: float
    tpot_s: float
    step_s: float
    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    request_per_s: float
    bound: dict[Phase, Bound]
    batch_at_ridge: int | None
    bubble_fraction: float
    lines: tuple[SpeedLine, ...]
    long_ttft_s: float = 0.0
    low_ttft_s: float = 0.0
    high_ttft_s: float = 0.0
    low_tpot_s: float = 0.0
    high_tpot_s: float = 0.0
    notes: tuple[str, ...] = ()
