"""What SGLang's processes take before weights are loaded, and after the pools: context, communication, workspaces,
graphs.

The memory that is available before loading is what the fraction multiplies, so whatever comes before it (the CUDA
context, NCCL, another program) costs the cache only that share; what comes after has to fit into the rest.

The constants are fitted, see catalog/engines/sglang_fitted.yaml.

Source: sglang/srt/model_executor/model_runner.py (init_torch_distributed, init_memory_pool), cuda_graph_runner.py.
"""

from __future__ import annotations

from memplan.budget.activations import ForwardRules, forward_peak_bytes
from memplan.catalog.rules import Rules
from memplan.domain.gpu import GpuSpec
from memplan.domain.model import Layer, ModelSpec
from memplan.domain.serving import ServingSettings
from memplan.engines.sglang.defaults import capture_sizes, prefill_capture_sizes
from memplan.engines.sglang.fitted import Fitted
from memplan.engines.sglang.settings import SglangSettings, is_blackwell
from memplan.records import dataclass
from memplan.units import MIB

_TABLE_BYTES = 4
_TABLE_SPARE_TOKENS = 4
_LOGIT_BYTES = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class BeforeLoad:
    """What is available before loading, on the rank that has least, and whether the user gave it."""

    available_bytes: int
    is_given: bool


def before_load(
    gpu: GpuSpec, asked: ServingSettings, settings: SglangSettings, rules: Rules, fitted: Fitted
) -> BeforeLoad:
    """Free memory once the process and its communication are set up."""
    if settings.avail_before_bytes is not None:
        return BeforeLoad(available_bytes=settings.avail_before_bytes, is_given=True)
    free = min(gpu.memory_bytes, asked.gpu_free_bytes or gpu.memory_bytes)
    taken = context_bytes(gpu, rules, fitted) + communication_bytes(gpu, settings, fitted)
    return BeforeLoad(available_bytes=max(0, free - taken), is_given=False)


def context_bytes(gpu: GpuSpec, rules: Rules, fitted: Fitted) -> int:
    """The device context of a process with the modules it has loaded so far."""
    if gpu.vendor != "nvidia":
        return round(fitted.context_amd_mib * MIB)
    large = (gpu.cuda_capability or 9.0) in (8.0, 9.0, 10.0, 10.3)
    size = fitted.context_large_mib if large else fitted.context_mib
    return round((size + (fitted.context_growth_mib if rules.release >= (0, 5, 0) else 0)) * MIB)


def communication_bytes(gpu: GpuSpec, settings: SglangSettings, fitted: Fitted) -> int:
    """NCCL and all-reduce buffers of one rank: for every peer where an NVSwitch joins all, once elsewhere."""
    ranks = settings.ranks.tensor * settings.ranks.pipeline
    if ranks == 1:
        return 0
    if gpu.vendor != "nvidia":
        return round(fitted.communication_amd_mib_per_peer * (min(ranks, 8) - 1) * MIB)
    if _is_switched(gpu):
        return round(fitted.communication_mib_per_peer * (min(ranks, 8) - 1) * MIB)
    return round(fitted.communication_mib * MIB)


def _is_switched(gpu: GpuSpec) -> bool:
    """Whether the card is one of those that stand eight to an NVSwitch."""
    link = (gpu.interconnect or "").lower()
    return gpu.cuda_capability in (8.0, 9.0, 10.0, 10.3) and "nvl" in link


def first_kernels_bytes(settings: SglangSettings, gpu: GpuSpec, rules: Rules, fitted: Fitted) -> int:
    """Modules that kernels load on their first use while weights are read, where nothing has run before."""
    ranks = settings.ranks.tensor * settings.ranks.pipeline
    if rules.release >= (0, 4, 4):
        return 0
    return round((fitted.first_kernels_mib if ranks == 1 else fitted.first_kernels_ranks_mib) * MIB)


def max_running(tokens: int, settings: SglangSettings, rules: Rules) -> int:
    """How many requests the request table has rows for."""
    if settings.max_running is not None:
        return max(1, settings.max_running // settings.ranks.attention_groups)
    return min(max(int(tokens / settings.context_tokens * 512), 2048), int(rules["max_running_limit"]))


def request_table_bytes(tokens: int, settings: SglangSettings, rules: Rules) -> int:
    """The table from requests to token slots: a row of the whole context for every request that may run."""
    rows = max_running(tokens, settings, rules) + 1
    return rows * (settings.context_tokens + _TABLE_SPARE_TOKENS) * _TABLE_BYTES


def workspace_bytes(gpu: GpuSpec, fitted: Fitted) -> int:
    """Buffers of the attention kernels, made once the pools are."""
    if gpu.vendor != "nvidia":
        return round(fitted.workspace_amd_mib * MIB)
    if is_blackwell(gpu):
        return round(fitted.workspace_blackwell_mib * MIB)
    is_hopper = gpu.cuda_capability == 9.0
    return round((fitted.workspace_hopper_mib if is_hopper else fitted.workspace_mib) * MIB)


def decode_graph_bytes(num_layers: int, settings: SglangSettings, rules: Rules, fitted: Fitted) -> int:
    """Graphs of decoding steps: a fixed cost, and one for every layer at every captured batch."""
    if not settings.graph_batch:
        return 0
    sizes = capture_sizes(settings.graph_batch, rules, speculative=settings.drafting is not None)
    if rules.release < (0, 4, 4):
        return round(sizes * fitted.graph_old_size_mib * MIB)
    return round((fitted.graph_base_mib + sizes * num_layers * fitted.graph_piece_mib) * MIB)


def prefill_graph_bytes(num_layers: int, settings: SglangSettings, fitted: Fitted) -> int:
    """Graphs of prefill steps, which keep the activations of the largest one."""
    if not settings.prefill_graph_tokens:
        return 0
    sizes = prefill_capture_sizes(settings.prefill_graph_tokens)
    return round((fitted.prefill_graph_base_mib + sizes * num_layers * fitted.prefill_graph_piece_mib) * MIB)


def activation_bytes(spec: ModelSpec, layers: tuple[Layer, ...], settings: SglangSettings) -> int:
    """The peak of a prefill step, and the logits of the largest captured batch."""
    element_bytes = settings.dtype.bits // 8
    tokens = min(settings.step_tokens, settings.context_tokens if settings.chunk_tokens == 0 else settings.step_tokens)
    forward = forward_peak_bytes(layers, spec, tokens, settings.ranks.tensor, element_bytes, ForwardRules())
    return forward + max(settings.graph_batch, 1) * spec.vocab_size * _LOGIT_BYTES
