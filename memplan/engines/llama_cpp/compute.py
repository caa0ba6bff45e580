"""Compute buffers: what every backend reserves for the largest step, from the graph and its allocation.

The engine builds the graph of a full micro-batch over a full cache, assigns its operations to backends and lets the
graph allocator find the size of each backend's buffer. This does the same.
"""

from __future__ import annotations

from collections.abc import Callable

from memplan.catalog.rules import Rules
from memplan.domain.model import ModelSpec
from memplan.engines.llama_cpp.ggml_allocator import reserve
from memplan.engines.llama_cpp.ggml_graph import TYPES, Value
from memplan.engines.llama_cpp.ggml_scheduler import PIPELINE_COPIES, Backends, Schedule, schedule
from memplan.engines.llama_cpp.graph_builder import Batch, GraphRules, Placement
from memplan.engines.llama_cpp.kv_cache import Cells, caches_latents
from memplan.engines.llama_cpp.model_graph import build_graph
from memplan.engines.llama_cpp.placement import Devices
from memplan.engines.llama_cpp.settings import LlamaSettings

_HOST_ALIGNMENT = 32
_ALIGNMENTS = {"CUDA": 128, "ROCm": 128, "SYCL": 128, "CANN": 128, "Metal": 32}
_ROW_ELEMENTS = 512
_PIPELINED = frozenset({"CUDA", "ROCm", "MUSA"})  # backends whose devices copy and signal asynchronously


def compute_bytes(
    spec: ModelSpec, settings: LlamaSettings, rules: Rules, devices: Devices, cells: Cells
) -> tuple[int, ...]:
    """Return the compute buffer of every device, the host's last."""
    planned = planned_schedule(spec, settings, rules, devices, cells)
    alignments = [_ALIGNMENTS.get(settings.backend, 128)] * settings.num_gpus + [_HOST_ALIGNMENT]
    return tuple(reserve(planned.nodes, planned.leafs, alignments, _size_on(settings)))


def planned_schedule(
    spec: ModelSpec, settings: LlamaSettings, rules: Rules, devices: Devices, cells: Cells, *, every_layer: bool = False
) -> Schedule:
    """Return the graph of the largest step, divided over the backends; `every_layer` leaves none out."""
    full = settings.n_gpu_layers > spec.num_layers
    forgets = rules["reserve_forgets"]
    placement = Placement(
        layers=devices.layers,
        caches=devices.caches,
        output=devices.output,
        cpu=devices.host,
        weight_device=devices.weight_device,
        divided=devices.divides_layers,
        head=devices.shared_device("output.weight", devices.output),
        forces_norms=full and not forgets,
        attends_on_cpu=not settings.kv_offload and not forgets,
    )
    batch, graph_rules = _batch(spec, settings, rules, cells), _graph_rules(spec, settings, rules)
    graph = build_graph(spec, batch, placement, graph_rules, every_layer=every_layer)
    pipelined = (
        rules["pipeline"]
        and settings.backend in _PIPELINED
        and settings.num_gpus > 1
        and full
        and settings.split_mode == "layer"
        and settings.kv_offload
        and not (devices.experts_on_host or devices.overrides)
    )
    backends = Backends(
        num_gpus=settings.num_gpus,
        op_offload=settings.op_offload and rules["offloads_large_batches"],
        expert_offload=settings.expert_offload,
        copies=PIPELINE_COPIES if pipelined else 1,
    )
    return schedule(graph, backends)


def _batch(spec: ModelSpec, settings: LlamaSettings, rules: Rules, cells: Cells) -> Batch:
    tokens = min(settings.ctx_size, settings.ubatch_size)
    tokens = -(-tokens // settings.slots) * settings.slots if rules["streams"] else tokens
    outputs = min(tokens, settings.slots) if rules["limits_outputs"] else tokens
    return Batch(
        tokens=tokens,
        outputs=outputs,
        sequences=settings.slots,
        cells=cells.context,
        window_cells=cells.window,
        streams=cells.streams,
        flash=settings.flash_attention and (cells.context % 256 == 0 or rules["streams"]),
        key_type=settings.cache_type_k,
        value_type=settings.cache_type_v,
    )


def _graph_rules(spec: ModelSpec, settings: LlamaSettings, rules: Rules) -> GraphRules:
    how = caches_latents(spec, settings, rules)
    return GraphRules(
        fused_glu=rules["fused_glu"],
        set_rows=rules["set_rows"],
        half_mask=rules["half_mask"],
        mask_multiple=rules["mask_multiple"],
        early_routing=rules["early_routing"],
        early_experts=rules["early_experts"],
        latent=how != "expanded",
        values_in_keys=how == "keys",
        values_before_keys=rules["values_before_keys"],
        rotates_tail=rules["rotates_tail"],
        copies_parts=rules["copies_parts"],
        copies_fused=rules["copies_fused"],
        embeds_either=rules["embeds_either"],
        selects_rows=rules["rows_of_outputs"] == "sequences",
        factors_per_layer=rules["factors_per_layer"],
        fused_norms=settings.fork == "ik",
    )


def _size_on(settings: LlamaSettings) -> Callable[[Value, int], int]:
    """The bytes of a value on a backend: GPUs pad the rows of quantized tensors."""

    def size(value: Value, backend: int) -> int:
        kind = TYPES[value.type]
        if kind.block == 1 or backend == settings.num_gpus or not value.shape[0] % _ROW_ELEMENTS:
            return value.size_bytes
        return value.size_bytes + (-value.shape[0] % _ROW_ELEMENTS) // kind.block * kind.block_bytes

    return size
