"""Which backend runs each value of a graph, and what is copied between backends.

Backends are numbered by priority: the GPUs, then the CPU as the last one. A value is run where its weight lies; values
in between follow their neighbours, GPUs first. Large batches on weights in host memory go to the first GPU, and the
weight is copied there (`op_offload`). Whenever a split of the graph reads a value that lies elsewhere, the copy is a
value of its own on the reading backend. Several GPUs that hold whole layers run as a pipeline and keep four copies of
every input.

Source: ggml/src/ggml-backend.cpp (ggml_backend_sched_split_graph), b2447 to b10900.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from memplan.engines.llama_cpp.ggml_graph import VIEW_OPS, Graph, Value
from memplan.records import dataclass, field

PIPELINE_COPIES = 4
_OFFLOAD_TOKENS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Backends:
    """The backends of one context: `num_gpus` GPUs and the CPU.

    `op_offload` lets the first GPU run large batches on weights in host memory, `copies` is how many copies of every
    input a pipeline keeps, `supports` refuses operations that a GPU does not have. Without `expert_offload` experts in
    host memory are multiplied there, whatever the batch.
    """

    num_gpus: int
    op_offload: bool = True
    expert_offload: bool = True
    copies: int = 1
    supports: Callable[[Value], bool] = field(default=lambda value: True)

    @property
    def cpu(self) -> int:
        return self.num_gpus

    @property
    def count(self) -> int:
        return self.num_gpus + 1


@dataclass(slots=True)
class Split:
    """A run of nodes on one backend, and the values that it reads from others."""

    backend: int
    start: int
    end: int = 0
    inputs: list[Value] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Schedule:
    """The graph as the allocator sees it: nodes and leafs with their backends, copies among them."""

    nodes: list[tuple[Value, int]]
    leafs: list[tuple[Value, int]]
    num_splits: int


def schedule(graph: Graph, backends: Backends) -> Schedule:
    """Assign every value of `graph` to a backend, and add what has to be copied."""
    _from_buffers(graph, backends)
    _expand(graph.nodes, backends)
    _fill_in(graph, backends)
    splits, copies = _split(graph, backends)
    return _with_copies(graph, backends, splits, copies)


def _from_buffers(graph: Graph, backends: Backends) -> None:
    for value in (*graph.leafs, *graph.nodes):
        if value.backend is None:
            value.backend = _backend_of(value, backends)


def _backend_of(value: Value, backends: Backends) -> int | None:
    """Where a value must run: with its own memory, as an input, or with its weight."""
    owner = value.base or value
    if owner.device is not None:
        return owner.device
    if value.is_input:
        return backends.cpu
    if value.op in ("rope", "flash_attn"):
        return None
    for source in value.sources:
        if not source.is_weight:
            continue
        assert source.device is not None
        if source.device != backends.cpu:
            return source.device if backends.supports(value) else backends.cpu
        wanted = backends.op_offload and (backends.expert_offload or value.op != "mul_mat_id")
        if wanted and backends.num_gpus and backends.supports(value) and offloads(value):
            return 0
        return backends.cpu
    return None


def offloads(value: Value) -> bool:
    """Whether a GPU wants this operation although its weight lies in host memory: from 32 tokens on."""
    if value.op == "get_rows":
        return False
    if value.op in ("mul_mat_id", "rope"):
        return value.shape[2] >= _OFFLOAD_TOKENS
    return value.shape[1] >= _OFFLOAD_TOKENS


def _expand(nodes: Sequence[Value], backends: Backends) -> None:
    """Give unassigned nodes the backend of their neighbours: GPUs down and up the graph, then whatever is left."""
    steps = [node for node in nodes if node.op not in VIEW_OPS]
    for order, only_gpus in ((steps, True), (steps[::-1], True), (steps, False), (steps[::-1], False)):
        current: int | None = None
        for node in order:
            if node.backend is not None:
                current = None if only_gpus and node.backend == backends.cpu else node.backend
            elif current is not None and (current == backends.cpu or backends.supports(node)):
                node.backend = current


def _fill_in(graph: Graph, backends: Backends) -> None:
    """Assign what is left: views lie with what they view, other sources with their first reader."""
    for node in graph.nodes:
        if node.backend is None and node.op not in VIEW_OPS:
            node.backend = backends.cpu if not backends.num_gpus or not backends.supports(node) else 0
    for node in graph.nodes:
        if node.backend is None and node.base is not None:
            node.backend = node.base.backend
        for source in node.sources:
            if source.backend is None:
                source.backend = source.base.backend if source.base is not None else node.backend
        if node.backend is None:
            node.backend = 0


def _is_near(value: Value, backend: int) -> bool:
    """Whether `backend` can read a value where it lies."""
    owner = value.base or value
    return (owner.device if owner.device is not None else owner.backend) == backend or value.backend == backend


def _split(graph: Graph, backends: Backends) -> tuple[list[Split], dict[tuple[int, int], list[Value]]]:
    first = next((node for node in graph.nodes if node.op not in VIEW_OPS), None)
    splits = [Split(first.backend or 0 if first else backends.cpu, 0)]
    copies: dict[tuple[int, int], list[Value]] = {}
    for index, node in enumerate(graph.nodes):
        if node.op in VIEW_OPS:
            continue
        assert node.backend is not None
        current = splits[-1]
        if node.backend != current.backend or (current.inputs and _reads_far_weight(node, current.backend)):
            current.end = index
            current = Split(node.backend, index)
            splits.append(current)
        for position, source in enumerate(node.sources):
            if _is_near(source, current.backend):
                continue
            key = id(source), current.backend
            if key not in copies:
                copies[key] = [_copy_of(source, backends) for _ in range(backends.copies)]
                current.inputs.append(source)
            node.sources[position] = copies[key][0]
    splits[-1].end = len(graph.nodes)
    return splits, copies


def _reads_far_weight(node: Value, backend: int) -> bool:
    """Whether a weight must be copied for this node: a new split lets the copies of the last one go first."""
    return any(source.is_weight and not _is_near(source, backend) for source in node.sources)


def _copy_of(source: Value, backends: Backends) -> Value:
    made = Value("none", source.type, source.shape, strides=source.strides, name=f"copy of {source.name}")
    made.is_input = made.is_output = backends.copies > 1
    return made


def _with_copies(
    graph: Graph, backends: Backends, splits: Sequence[Split], copies: dict[tuple[int, int], list[Value]]
) -> Schedule:
    nodes: list[tuple[Value, int]] = []
    leafs: list[tuple[Value, int]] = []
    for split in splits:
        for source in split.inputs:
            keep = Value("none", source.type, source.shape, (source,), base=source.base or source)
            nodes.append((keep, source.backend or 0))
            nodes.append((copies[id(source), split.backend][0], split.backend))
        nodes.extend((node, node.backend or 0) for node in graph.nodes[split.start : split.end])
    if backends.copies > 1:
        for leaf in graph.leafs:
            if leaf.is_input:
                leaf.is_output = True
                others = [_copy_of(leaf, backends) for _ in range(backends.copies - 1)]
                leafs.extend((value, backends.cpu) for value in (leaf, *others))
        for split in splits:
            for source in split.inputs:
                leafs.extend((value, split.backend) for value in copies[id(source), split.backend])
    leafs.extend((leaf, leaf.backend or 0) for leaf in graph.leafs)
    return Schedule(nodes, leafs, len(splits))
