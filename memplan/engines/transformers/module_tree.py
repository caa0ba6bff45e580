"""The tree of a model's modules, as far as placing them on devices depends on it: names, sizes, what stays whole.

A ModelSpec knows checkpoint tensors; the tree is made of their dotted names. Decoder layers are whole, as every
family's `_no_split_modules` says, and so are the numbered layers of a tower. Towers come before the language model,
which is the order of nearly all families.
"""

from __future__ import annotations

from collections.abc import Iterator

from memplan.domain.dtypes import DType
from memplan.domain.model import Layer, ModelSpec
from memplan.domain.tensors import Role, Tensor
from memplan.engines.transformers.loading import tensor_bytes
from memplan.records import dataclass

_ROTARY_BYTES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Module:
    """A module by its full name: its children in order, and the sizes of its own parameters and buffers by full name.

    `is_whole` says that it is never split over devices; `leaf_bytes` are then the sizes of the modules inside it that
    own parameters.
    """

    name: str
    children: tuple[Module, ...] = ()
    parameters: tuple[tuple[str, int], ...] = ()
    buffers: tuple[tuple[str, int], ...] = ()
    is_whole: bool = False
    leaf_bytes: tuple[int, ...] = ()

    def walk(self) -> Iterator[Module]:
        """This module and every one below it, in order."""
        yield self
        for child in self.children:
            yield from child.walk()

    @property
    def own_bytes(self) -> int:
        """Parameters and buffers that are its own."""
        return sum(size for _, size in (*self.parameters, *self.buffers))


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleTree:
    """A model's modules, and its tied parameters: each with the parameter whose storage it shares.

    A tied parameter has no size of its own.
    """

    root: Module
    tied: tuple[tuple[str, str], ...] = ()


def module_tree(spec: ModelSpec, dtype: DType) -> ModuleTree:
    """Return the tree of a model whose plain weights are loaded in `dtype`."""
    builder = _Node()
    for tower in spec.towers:
        for tensor in tower.tensors:
            _add_tower_tensor(builder, tensor, dtype)
    for tensor in spec.shared:
        if _is_at_start(tensor):
            builder.at(tensor.name).append((tensor.name, tensor_bytes(tensor, dtype)))
    stack = builder.node(spec.layer_prefix.rstrip("."))
    made: dict[int, _Node] = {}
    for index, layer in enumerate(spec.layers):
        if id(layer) not in made:
            made[id(layer)] = _layer_node(layer, dtype)
        stack.children[str(index)] = made[id(layer)]
    for tensor in spec.shared:
        if not _is_at_start(tensor):
            builder.at(tensor.name).append((tensor.name, tensor_bytes(tensor, dtype)))
    _add_rotary(builder, spec)
    tied = _tied(spec)
    for target, _ in tied:
        builder.at(target).append((target, 0))
    return ModuleTree(root=builder.build(""), tied=tied)


def layer_names(spec: ModelSpec) -> tuple[str, ...]:
    """The names of the decoder layers, in order."""
    prefix = spec.layer_prefix.rstrip(".")
    return tuple(f"{prefix}.{index}" for index in range(spec.num_layers))


class _Node:
    """A module under construction."""

    __slots__ = ("buffers", "children", "is_whole", "leaf_bytes", "parameters")

    def __init__(self) -> None:
        self.children: dict[str, _Node] = {}
        self.parameters: list[tuple[str, int]] = []
        self.buffers: list[tuple[str, int]] = []
        self.is_whole = False
        self.leaf_bytes: tuple[int, ...] = ()

    def node(self, path: str) -> _Node:
        """The node at a dotted path, made where it is missing."""
        found = self
        for part in path.split(".") if path else ():
            found = found.children.setdefault(part, _Node())
        return found

    def at(self, tensor_name: str) -> list[tuple[str, int]]:
        """The parameters of the module that owns a tensor of that name."""
        return self.node(tensor_name.rpartition(".")[0]).parameters

    def build(self, name: str) -> Module:
        prefix = f"{name}." if name else ""
        return Module(
            name=name,
            children=tuple(child.build(prefix + part) for part, child in self.children.items()),
            parameters=tuple(self.parameters),
            buffers=tuple(self.buffers),
            is_whole=self.is_whole,
            leaf_bytes=self.leaf_bytes,
        )


def _is_at_start(tensor: Tensor) -> bool:
    return tensor.role in (Role.EMBEDDING, Role.POSITION)


def _layer_node(layer: Layer, dtype: DType) -> _Node:
    """A whole layer: one nameless parameter of its size, and the sizes of the modules inside it."""
    leaves: dict[str, int] = {}
    copies: dict[str, int] = {}
    for tensor in layer.tensors:
        owner = tensor.name.rpartition(".")[0]
        leaves[owner] = leaves.get(owner, 0) + tensor_bytes(tensor, dtype)
        copies[owner] = tensor.count
    node = _Node()
    node.is_whole = True
    node.parameters.append(("", sum(leaves.values())))
    node.leaf_bytes = tuple(size // copies[owner] for owner, size in leaves.items() for _ in range(copies[owner]))
    return node


def _add_tower_tensor(builder: _Node, tensor: Tensor, dtype: DType) -> None:
    """Put a tower's tensor into the tree, once for each of its layers where its name has a number."""
    head, star, tail = tensor.name.partition(".*.")
    size = tensor_bytes(tensor, dtype)
    if not star:
        builder.at(tensor.name).append((tensor.name, size))
        return
    for index in range(tensor.count):
        layer = builder.node(f"{head}.{index}")
        layer.is_whole = True
        layer.parameters.append((f"{head}.{index}.{tail}", size // tensor.count))
        layer.leaf_bytes += (size // tensor.count,)


def _add_rotary(builder: _Node, spec: ModelSpec) -> None:
    """The inverse frequencies, kept twice, beside the layers."""
    if not spec.rotary:
        return
    parent = spec.layer_prefix.rstrip(".").rpartition(".")[0]
    path = f"{parent}.rotary_emb" if parent else "rotary_emb"
    size = sum(table.width // 2 * _ROTARY_BYTES * 2 for table in spec.rotary)
    builder.node(path).buffers.append((f"{path}.inv_freq", size))


def _tied(spec: ModelSpec) -> tuple[tuple[str, str], ...]:
    """The head that shares the embedding's storage."""
    source = next((tensor.name for tensor in spec.shared if tensor.role is Role.EMBEDDING), None)
    if not spec.tied_embeddings or source is None:
        return ()
    before_model = source.split("model.")[0] if "model." in source and not source.startswith("model.") else ""
    return ((f"{before_model}lm_head.weight", source),)
