"""Bringing the names in a checkpoint's headers and those of a ModelSpec together.

Wrappers put `model.`, `language_model.`, `transformer.` in front of the same tensors, so both sides are compared
without them. Experts and the layers of towers are stored one by one and known once: their numbers become `*`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from memplan.introspect.inventory import StoredTensor
from memplan.records import dataclass

_WRAPPERS = re.compile(r"(?:(?:model|language_model|transformer|module|base_model|thinker|llm)\.)+")
_EXPERT = re.compile(r"(?<=experts\.)\d{1,5}(?=\.)")
_NUMBER = re.compile(r"(?<=\.)\d{1,5}(?=\.)")
_MAX_LAYERS = 4096


@dataclass(frozen=True, slots=True)
class Group:
    """Equal tensors under one name: the first of them, how many there are, and their bytes together."""

    first: StoredTensor
    count: int
    size_bytes: int

    @property
    def num_elements(self) -> int:
        return self.first.num_elements * self.count


@dataclass(frozen=True, slots=True)
class Sorted:
    """A checkpoint's tensors: those of each decoder layer by relative name, and the rest by name."""

    layers: Mapping[int, Mapping[str, Group]]
    rest: Mapping[str, Group]


def bare_name(name: str) -> str:
    """Return a tensor's name without what wrappers put in front of it."""
    match = _WRAPPERS.match(name)
    return name[match.end() :] if match and match.end() < len(name) else name


def sort_tensors(tensors: Mapping[str, StoredTensor], layer_prefix: str, num_layers: int) -> Sorted:
    """Sort a checkpoint's tensors into the layers of a model whose layers are named `layer_prefix` and a number.

    Where nothing has that prefix, the one that ends alike and holds as many layers is taken.
    """
    bare = {bare_name(name): tensor for name, tensor in tensors.items()}
    if len(bare) != len(tensors):
        bare = dict(tensors)
    prefix = _find_prefix(bare, bare_name(layer_prefix), layer_prefix, num_layers)
    layers: dict[int, dict[str, StoredTensor]] = {}
    rest: dict[str, StoredTensor] = {}
    for name, tensor in bare.items():
        number, _, inner = name[len(prefix) :].partition(".") if name.startswith(prefix) else ("", "", "")
        if inner and number.isdecimal() and len(number) < 6 and int(number) < num_layers:
            layers.setdefault(int(number), {})[inner] = tensor
        else:
            rest[name] = tensor
    return Sorted({index: collapse(own) for index, own in layers.items()}, collapse(rest))


def collapse(tensors: Mapping[str, StoredTensor]) -> dict[str, Group]:
    """Count tensors that differ in their expert's number alone as one."""
    first: dict[str, StoredTensor] = {}
    counts: dict[str, int] = {}
    sizes: dict[str, int] = {}
    for stored_name, tensor in tensors.items():
        name = _EXPERT.sub("*", stored_name) if "experts." in stored_name else stored_name
        if name in first:
            counts[name] += 1
            sizes[name] += tensor.size_bytes
        else:
            first[name], counts[name], sizes[name] = tensor, 1, tensor.size_bytes
    return {name: Group(tensor, counts[name], sizes[name]) for name, tensor in first.items()}


def collapse_numbers(groups: Mapping[str, Group], wanted: Iterable[str]) -> dict[str, Group]:
    """Count groups together whose names, with `*` for their numbers, are among those `wanted`; leave the others."""
    patterns = {pattern for pattern in wanted if "*" in pattern}
    stems = {pattern.rpartition(".")[0] for pattern in patterns}
    merged: dict[str, Group] = {}
    for name, group in groups.items():
        key = name
        for match in _NUMBER.finditer(name) if patterns else ():
            starred = f"{name[: match.start()]}*{name[match.end() :]}"
            if starred in patterns or any(starred.startswith(f"{stem}.") for stem in stems):
                key = starred
                break
        old = merged.get(key)
        merged[key] = (
            Group(old.first, old.count + group.count, old.size_bytes + group.size_bytes) if old is not None else group
        )
    return merged


def _find_prefix(names: Mapping[str, object], bare: str, full: str, num_layers: int) -> str:
    """The prefix of the decoder's layers in these names: the known one, or one that ends alike."""
    if any(name.startswith(bare) and name[len(bare) : len(bare) + 1].isdecimal() for name in names):
        return bare
    found: dict[str, set[str]] = {}
    for name in names:
        match = _NUMBER.search(name)
        if match:
            found.setdefault(name[: match.start()], set()).add(match[0])
    if not found:
        return bare
    if full in found:
        return full
    tail = bare.rstrip(".").rpartition(".")[2] + "."
    alike = [prefix for prefix, numbers in found.items() if prefix.endswith(tail) and len(numbers) >= num_layers]
    return min(alike, key=len) if alike else bare
