"""ggml's compute graph, as far as memory depends on it: values with a shape, strides and sources, in ggml's order.

Shapes and strides are in ggml's order, the fastest axis first. A value is a leaf (weight, cache or input), a node that
needs memory of its own, or a view that lies inside another value. Nothing is computed; the order of `Graph.nodes` is
that in which ggml runs them: every `expand` adds a value after its sources, depth first.

Source: ggml/src/ggml.c of llama.cpp (constructors of operations, ggml_build_forward_expand), b2354 to b10900.
"""

from __future__ import annotations

from memplan.introspect.ggml_types import GGML_TYPES, GgmlType

Shape = tuple[int, int, int, int]

TYPES: dict[str, GgmlType] = {kind.name: kind for kind in GGML_TYPES.values()}
VIEW_OPS = frozenset({"view", "reshape", "permute", "transpose"})


class Value:
    """One tensor of the graph.

    `base` is the value that a view lies in. `device` is where a weight or cache lies already (None: still to be
    allocated), `is_weight` tells the two apart. `backend` is set by the scheduler, or beforehand to force it, `lease`
    is the allocator's.
    """

    __slots__ = (
        "backend",
        "base",
        "device",
        "is_input",
        "is_output",
        "is_weight",
        "lease",
        "name",
        "op",
        "shape",
        "sources",
        "strides",
        "type",
    )

    def __init__(
        self,
        op: str,
        kind: str,
        shape: Shape,
        sources: tuple[Value, ...] = (),
        *,
        strides: Shape | None = None,
        base: Value | None = None,
        device: int | None = None,
        is_weight: bool = False,
        is_input: bool = False,
        name: str = "",
    ) -> None:
        self.op = op
        self.type = kind
        self.shape = shape
        self.strides = strides or packed_strides(kind, shape)
        self.sources = list(sources)
        self.base = base
        self.device = device
        self.is_weight = is_weight
        self.is_input = is_input
        self.is_output = False
        self.backend: int | None = None
        self.lease: object = None
        self.name = name

    @property
    def size_bytes(self) -> int:
        """From the first byte to the last: with the gaps, where a copy keeps the strides of a view."""
        kind = TYPES[self.type]
        (first, second, third, fourth), (near, row, plane, volume) = self.shape, self.strides
        size = kind.block_bytes + (first - 1) * near if kind.block == 1 else first // kind.block * near
        return size + (second - 1) * row + (third - 1) * plane + (fourth - 1) * volume

    @property
    def is_allocated(self) -> bool:
        """Whether it lies in a weight or cache buffer, by itself or as a view."""
        return self.device is not None or (self.base is not None and self.base.device is not None)

    def __repr__(self) -> str:
        return f"<{self.op} {self.name} {self.type} {'x'.join(map(str, self.shape))}>"


def packed_strides(kind: str, shape: Shape) -> Shape:
    """The byte strides of a tensor without gaps."""
    form = TYPES[kind]
    row = shape[0] // form.block * form.block_bytes
    return (form.block_bytes, row, row * shape[1], row * shape[1] * shape[2])


def four(*axes: int) -> Shape:
    """A shape of four axes: those given, then ones."""
    return (*axes, 1, 1, 1)[:4]  # type: ignore[return-value]


class Graph:
    """A graph under construction."""

    def __init__(self) -> None:
        self.nodes: list[Value] = []
        self.leafs: list[Value] = []
        self._seen: set[int] = set()

    def expand(self, value: Value) -> Value:
        """Add a value and what it needs, sources first."""
        seen = self._seen
        if id(value) in seen:
            return value
        seen.add(id(value))
        path = [(value, iter(value.sources))]
        while path:
            current, sources = path[-1]
            for source in sources:
                if id(source) not in seen:
                    seen.add(id(source))
                    path.append((source, iter(source.sources)))
                    break
            else:
                path.pop()
                (self.leafs if current.op == "none" else self.nodes).append(current)
        return value


def leaf_input(name: str, kind: str, *shape: int) -> Value:
    """A graph input, filled by the caller before the run."""
    return Value("none", kind, four(*shape), is_input=True, name=name)


def weight(name: str, kind: str, device: int, *shape: int) -> Value:
    """A weight that lies on `device`."""
    return Value("none", kind, four(*shape), device=device, is_weight=True, name=name)


def cache(name: str, kind: str, device: int, *shape: int) -> Value:
    """A cache or state tensor that lies on `device`."""
    return Value("none", kind, four(*shape), device=device, name=name)


def like(op: str, value: Value, *others: Value, name: str = "") -> Value:
    """A new value of the shape and type of `value`, such as a sum, a norm or an activation."""
    return Value(op, value.type, value.shape, (value, *others), name=name)


def new(op: str, kind: str, shape: Shape, *sources: Value, name: str = "") -> Value:
    """A new value of any shape."""
    return Value(op, kind, shape, sources, name=name)


def matmul(left: Value, right: Value, name: str = "") -> Value:
    """The product that ggml writes `mul_mat(left, right)`: rows of `left` by rows of `right`, in FP32."""
    return new("mul_mat", "f32", (left.shape[1], *right.shape[1:]), left, right, name=name)


def matmul_experts(experts: Value, value: Value, ids: Value, name: str = "") -> Value:
    """Each token's product with the experts that `ids` names."""
    return new(
        "mul_mat_id", "f32", four(experts.shape[1], ids.shape[0], value.shape[2]), experts, value, ids, name=name
    )


def get_rows(table: Value, rows: Value, name: str = "") -> Value:
    """Rows of `table`, in FP32 (in INT32 from an INT32 table)."""
    kind = table.type if table.type == "i32" else "f32"
    return new("get_rows", kind, (table.shape[0], *rows.shape[:3]), table, rows, name=name)


def view(value: Value, shape: Shape, strides: Shape | None = None, *, op: str = "view", name: str = "") -> Value:
    """A part of `value` under another shape; its strides are those of the shape unless given."""
    base = value.base or value
    return Value(op, value.type, shape, (value,), strides=strides, base=base, name=name)


def reshape(value: Value, *shape: int) -> Value:
    """The same elements under another shape."""
    return view(value, four(*shape), op="reshape")


def permute(value: Value, *axes: int) -> Value:
    """A view whose axis `axes[i]` is the value's axis i."""
    shape, strides = [1, 1, 1, 1], [0, 0, 0, 0]
    for source, target in enumerate(axes):
        shape[target], strides[target] = value.shape[source], value.strides[source]
    return view(value, tuple(shape), tuple(strides), op="permute")  # type: ignore[arg-type]


def transpose(value: Value) -> Value:
    """A view with the first two axes exchanged."""
    (first, second, *rest), (near, far, *outer) = value.shape, value.strides
    return view(value, (second, first, *rest), (far, near, *outer), op="transpose")  # type: ignore[arg-type]


def contiguous(value: Value, *shape: int, name: str = "") -> Value:
    """A copy without gaps."""
    return new("cont", value.type, four(*shape) if shape else value.shape, value, name=name)


def cast(value: Value, kind: str) -> Value:
    """A copy in another type."""
    made = new("cpy", kind, value.shape, value)
    made.sources.append(made)
    return made


def copy_into(value: Value, target: Value) -> Value:
    """A copy into memory that is there already: a view of it."""
    return Value("cpy", target.type, target.shape, (value, target), strides=target.strides, base=target.base or target)


def set_rows(target: Value, value: Value, rows: Value) -> Value:
    """Rows written into memory that is there already: a view of it. The target is the last source."""
    base = target.base or target
    return Value("set_rows", target.type, target.shape, (value, rows, target), strides=target.strides, base=base)
