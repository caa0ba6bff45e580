"""The modules that hold a peak as a tree: dotted names opened up, equal layers drawn together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from memplan.domain.timeline import MemoryTimeline, ModuleShare
from memplan.records import dataclass, replace
from memplan.report.profile_words import CATEGORY_NAMES
from memplan.units import format_gib

OUTSIDE = "outside of modules"
_REST = "smaller ones"


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A module with all that is below it, the largest part first. `count` modules of one name pattern are one node.

    What one operator made in a module is a node of its own, without parts.
    """

    name: str
    path: str
    size_bytes: int
    count: int = 1
    children: tuple[Node, ...] = ()
    is_operator: bool = False


class _Growing:
    """A node while names are still being added."""

    __slots__ = ("children", "count", "is_operator", "numbers", "own_bytes")

    def __init__(self) -> None:
        self.own_bytes = 0
        self.count = 0
        self.is_operator = False
        self.numbers: set[str] = set()
        self.children: dict[str, _Growing] = {}


def of_peak(timeline: MemoryTimeline) -> Node | None:
    """Return what was alive at the peak, by category and module; by module alone where no trace was kept."""
    peak = timeline.peak
    title = f"{peak.phase}, {format_gib(peak.peak.allocated_bytes)}"
    if timeline.at_peak:
        whole = _frozen(title, "", _by_category(timeline.at_peak))
        return replace(whole, children=tuple(_opened_below(category) for category in whole.children))
    return opened(module_tree(peak.by_module, title)) if peak.by_module else None


def without_weights(tree: Node) -> Node | None:
    """The same tree without the category that is most of it, so that the rest can be seen; None where it is not."""
    rest = [child for child in tree.children if child.name != CATEGORY_NAMES["weights"]]
    size = sum(child.size_bytes for child in rest)
    if not rest or len(rest) == len(tree.children) or size > tree.size_bytes // 2:
        return None
    return Node(name=f"the rest, {format_gib(size)}", path="", size_bytes=size, children=tuple(rest))


def _opened_below(category: Node) -> Node:
    return replace(category, children=tuple(opened(child) for child in category.children))


def _by_category(shares: Sequence[ModuleShare]) -> _Growing:
    """Category above modules above the operator that made what is there; weights were made by nobody."""
    root = _Growing()
    for share in shares:
        at = root.children.setdefault(CATEGORY_NAMES[share.category], _Growing())
        parts = share.module.split(".") if share.module else [OUTSIDE]
        for depth, part in enumerate(parts):
            at = at.children.setdefault(part, _Growing())
            if part == "*" and "*" not in parts[:depth]:
                at.count = max(at.count, share.count)
        if share.operator and share.category != "weights":
            at = at.children.setdefault(share.operator, _Growing())
            at.is_operator = True
        at.own_bytes += share.size_bytes
    return root


def module_tree(by_module: Mapping[str, int], title: str) -> Node:
    """Return the tree of a peak: siblings that are numbered, as layers are, become one node named `*`."""
    root = _Growing()
    for module, size in by_module.items():
        at = root
        for part in module.split(".") if module else [OUTSIDE]:
            name = "*" if part.isdigit() else part
            at = at.children.setdefault(name, _Growing())
            at.numbers.add(part)
        at.own_bytes += size
    return _frozen(title, "", root)


def _frozen(name: str, path: str, grown: _Growing) -> Node:
    children = [_frozen(child, f"{path}.{child}" if path else child, below) for child, below in grown.children.items()]
    children = [child for child in children if child.size_bytes]
    size = grown.own_bytes + sum(child.size_bytes for child in children)
    ordered = sorted(children, key=lambda child: -child.size_bytes)
    return Node(
        name=name,
        path=path,
        size_bytes=size,
        count=max(1, grown.count, len(grown.numbers)),
        children=tuple(ordered),
        is_operator=grown.is_operator,
    )


def opened(node: Node) -> Node:
    """Leave out what only wraps one child of the same size: `model` around `model.layers` says nothing of its own."""
    children = tuple(opened(child) for child in node.children)
    only = children[0] if len(children) == 1 else None
    if only is not None and only.size_bytes == node.size_bytes and node.path and not only.is_operator:
        return replace(only, name=f"{node.name}.{only.name}", count=max(node.count, only.count))
    return replace(node, children=children)


def label(node: Node) -> str:
    """A node's name, with how many modules it stands for: `layers.* (32)`."""
    return f"{node.name} ({node.count:,})" if node.count > 1 else node.name


def rows(node: Node, *, least_share: float = 0.01, depth: int = 4) -> list[tuple[int, str, int]]:
    """Return the tree as (indent, label, bytes), without its root; what is below the least share stands together."""
    found: list[tuple[int, str, int]] = []

    def walk(at: Node, indent: int) -> None:
        rest = 0
        for child in at.children:
            if child.size_bytes < least_share * node.size_bytes:
                rest += child.size_bytes
                continue
            found.append((indent, label(child), child.size_bytes))
            if indent + 1 < depth:
                walk(child, indent + 1)
        if rest >= least_share * node.size_bytes:
            found.append((indent, _REST, rest))

    walk(node, 0)
    return found
