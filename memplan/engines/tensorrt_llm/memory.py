"""What TensorRT-LLM holds beside its cache: weights, the profiled step, workspaces, graphs, what is outside torch.

    PyTorch flow   weights; the step of max_num_tokens; the attention workspace, tokens x queries and 32 MiB for the
                   matrix library; CUDA graphs, captured before profiling; outside torch: the context, libraries and
                   communication
    engine flow    the engine, the execution context (activations of max_num_tokens), runtime and decoder buffers of
                   max_batch_size x vocabulary, the context

Source: tensorrt_llm/_torch/pyexecutor/_util.py (KvCacheCreator), cpp/tensorrt_llm/common/attentionOp.cpp,
docs/source/reference/memory.md, 0.8 to 1.3.
"""

from __future__ import annotations

from memplan.budget.activations import ForwardRules, forward_peak_bytes
from memplan.budget.weights import stage_layers
from memplan.catalog.rules import Rules
from memplan.domain.gpu import GpuSpec
from memplan.domain.model import Layer, ModelSpec
from memplan.domain.serving import ServingSettings
from memplan.engines.tensorrt_llm.fitted import Fitted
from memplan.engines.tensorrt_llm.settings import TrtllmSettings
from memplan.engines.tensorrt_llm.weights import rank_weights
from memplan.records import dataclass
from memplan.units import MIB, ceil_div

_HIDDEN_COPIES = 4.0
_SWITCHED = (8.0, 9.0, 10.0, 10.3)
_LARGEST_SWITCH = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldMemory:
    """One rank's memory beside the cache, in bytes: weights by part, and what a step and the process add."""

    weights: dict[str, int]
    activation_bytes: int
    workspace_bytes: int
    buffers_bytes: int
    outside_bytes: int
    graph_bytes: int
    states_bytes: int

    @property
    def weights_bytes(self) -> int:
        return sum(self.weights.values())

    @property
    def charged_bytes(self) -> int:
        """What is taken off the device before the fraction is applied: everything."""
        step = self.activation_bytes + self.workspace_bytes + self.buffers_bytes
        return self.weights_bytes + step + self.outside_bytes + self.graph_bytes + self.states_bytes


def held_memory(
    spec: ModelSpec,
    gpu: GpuSpec,
    asked: ServingSettings,
    settings: TrtllmSettings,
    rules: Rules,
    fitted: Fitted,
    stage: int,
    state_bytes: int,
) -> HeldMemory:
    """What one rank of a stage holds beside its cache; `state_bytes` is the recurrent state of one request."""
    layers = stage_layers(spec, settings.layout.pipeline, stage)
    outside = outside_torch_bytes(gpu, settings, fitted)
    return HeldMemory(
        weights=rank_weights(spec, gpu, asked, settings, rules, fitted, stage),
        activation_bytes=activation_bytes(spec, layers, settings),
        workspace_bytes=workspace_bytes(layers, settings, rules),
        buffers_bytes=_buffers(spec, settings, rules),
        outside_bytes=outside if settings.outside_bytes is None else settings.outside_bytes,
        graph_bytes=0 if settings.outside_bytes is not None else graph_bytes(len(layers), settings, rules, fitted),
        states_bytes=state_bytes * settings.max_batch_size,
    )


def activation_bytes(spec: ModelSpec, layers: tuple[Layer, ...], settings: TrtllmSettings) -> int:
    """The peak of a step of max_num_tokens tokens."""
    element_bytes = settings.dtype.bits // 8
    rules = ForwardRules(hidden_copies=_HIDDEN_COPIES)
    ranks = settings.layout.tensor
    return forward_peak_bytes(layers, spec, settings.max_num_tokens, ranks, element_bytes, rules)


def workspace_bytes(layers: tuple[Layer, ...], settings: TrtllmSettings, rules: Rules) -> int:
    """What the attention kernels of the PyTorch flow keep: the queries of a step, or FlashInfer's one buffer.

    TinyLlama printed 67,462,144 bytes for 8,192 tokens, gpt-oss-120b 100,738,816: 32 MiB and the queries. Captured
    graphs have a workspace of their own from 1.1.0 on.
    """
    if settings.flow == "tensorrt":
        return 0
    if settings.attention_backend == "flashinfer":
        return round(float(rules["flashinfer_mib"]) * MIB)
    if settings.attention_backend != "trtllm":
        return 0
    queries = max((layer.query_width for layer in layers), default=0)
    kept = ceil_div(queries, settings.attention_ranks) * settings.max_num_tokens * settings.dtype.bits // 8
    bases = rules["attention_workspaces"] if settings.graph_batch else 1
    return kept + round(float(rules["attention_base_mib"]) * bases * MIB)


def _buffers(spec: ModelSpec, settings: TrtllmSettings, rules: Rules) -> int:
    """Buffers over the vocabulary for every request of a batch."""
    per_entry = rules["sampler_buffers"][settings.flow]
    if settings.flow == "tensorrt":
        per_entry += rules["runtime_buffers"]
    return int(per_entry * settings.max_batch_size * spec.vocab_size)


def outside_torch_bytes(gpu: GpuSpec, settings: TrtllmSettings, fitted: Fitted) -> int:
    """The context, libraries and communication of one rank."""
    own = fitted.outside_engine_mib if settings.flow == "tensorrt" else fitted.outside_mib
    ranks = settings.layout.tensor * settings.layout.pipeline
    if ranks == 1:
        return round(own * MIB)
    switched = gpu.cuda_capability in _SWITCHED and "nvl" in (gpu.interconnect or "").lower()
    peers = min(ranks, _LARGEST_SWITCH) - 1
    shared = fitted.communication_mib_per_peer * peers if switched else fitted.communication_mib
    return round((own + shared) * MIB)


def graph_bytes(num_layers: int, settings: TrtllmSettings, rules: Rules, fitted: Fitted) -> int:
    """CUDA graphs of decoding batches: captured before the step is profiled, so they lie in what is outside torch."""
    sizes = sum(int(size) <= settings.graph_batch for size in rules["graph_sizes"])
    if not sizes:
        return 0
    return round((fitted.graph_base_mib + sizes * num_layers * fitted.graph_piece_mib) * MIB)
