"""Where `device_map="auto"` puts each module: on the GPUs in order, then the CPU, then the disk.

Two rules decide. First, how full each GPU may get: "auto" and "balanced" share the model out evenly, with a slack of
1.25 times the largest layer on every GPU but the last, which may take all that is free; one GPU alone is filled to 90
% when the user sets no limit. Then the modules are dealt out in order: one that does not fit is opened and its children
are dealt instead, a whole one goes to the next device, and nothing ever goes back. The first GPU and the CPU keep room
for the largest module that is still to be placed, because that is where offloaded modules are brought to run; the room
kept counts as used once a device is left. A module takes those along whose parameters are tied to its own.

Source: accelerate/utils/modeling.py (infer_auto_device_map, get_balanced_memory, get_max_layer_size), 0.20 to 1.15,
which transformers used until 4.57; integrations/accelerate.py of transformers 5.0 to 5.23.
Checked by: tests/engines/transformers/test_placement_against_accelerate.py.
"""

from __future__ import annotations

from collections.abc import Mapping

from memplan.catalog.rules import Rules
from memplan.engines.transformers.module_tree import Module, ModuleTree
from memplan.engines.transformers.settings import DeviceMap
from memplan.records import dataclass

CPU = "cpu"
DISK = "disk"
Device = int | str

_SLACK = 1.25
_LONE_GPU_SHARE = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementRules:
    """How a release shares a model out.

    `slack` names what the slack is made of: `first` is the first layer or the mean of the leaf modules, `largest` the
    largest layer or that mean, `leaf` the largest layer or the largest leaf. `opens_always` opens a module that does
    not fit with what it is tied to, even when it fits alone.
    """

    slack: str
    opens_always: bool


def placement_rules(rules: Rules) -> PlacementRules:
    """The rules of a release."""
    return PlacementRules(slack=rules["placement_slack"], opens_always=rules["placement_opens_always"])


def balanced_memory(
    tree: ModuleTree,
    free: Mapping[Device, float],
    device_map: DeviceMap,
    rules: PlacementRules,
    *,
    is_given: bool,
) -> dict[Device, float]:
    """Return how much each device may take. `free` has the GPUs by number and the CPU; `is_given` says that the user
    set the limits.
    """
    memory = dict(free)
    gpus = sorted(device for device in memory if isinstance(device, int) and memory[device] > 0)
    if device_map == "sequential" or not gpus:
        return memory
    sizes = module_sizes(tree)
    if len(gpus) == 1 and not is_given:
        memory[gpus[0]] *= _LONE_GPU_SHARE
    spares_first = device_map == "balanced_low_0" and len(gpus) > 1
    per_gpu = sizes[""] // (len(gpus) - (1 if spares_first else 0)) + slack_bytes(tree, sizes, rules)
    for gpu in gpus[:-1]:
        share = memory[gpu] if spares_first and gpu == gpus[0] else per_gpu
        memory[gpu] = min(share, memory[gpu])
    if spares_first:
        rest = max(0, sizes[""] - sum(memory[gpu] for gpu in gpus[1:]))
        memory[gpus[0]] = min(rest, memory[gpus[0]])
    return memory


def slack_bytes(tree: ModuleTree, sizes: Mapping[str, int], rules: PlacementRules) -> int:
    """What a GPU may take beyond its even share, so that whole layers find room."""
    whole = [sizes[module.name] for module in tree.root.walk() if module.is_whole]
    leaves = [size for module in tree.root.walk() for size in _leaves(module)]
    block = (whole[0] if rules.slack == "first" else max(whole)) if whole else 0
    leaf = max(leaves, default=0) if rules.slack == "leaf" else int(sum(leaves) / max(1, len(leaves)))
    return int(_SLACK * max(block, leaf))


def _leaves(module: Module) -> tuple[int, ...]:
    if module.is_whole:
        return module.leaf_bytes
    return (module.own_bytes,) if module.own_bytes else ()


def module_sizes(tree: ModuleTree) -> dict[str, int]:
    """The bytes of every module, and of every parameter and buffer, by name; the whole model under the empty name."""
    sizes: dict[str, int] = {}

    def add(module: Module) -> int:
        total = module.own_bytes
        for name, size in (*module.parameters, *module.buffers):
            sizes[name or f"{module.name}.*"] = size
        for child in module.children:
            total += add(child)
        sizes[module.name] = total
        return total

    add(tree.root)
    return sizes


def place(tree: ModuleTree, memory: Mapping[Device, float], rules: PlacementRules) -> dict[str, Device]:
    """Return the device of every module that was placed as a whole, and of every parameter placed on its own."""
    return _Dealer(tree, memory, rules).deal()


def device_of(placement: Mapping[str, Device], name: str) -> Device:
    """The device of a module or parameter, by the longest name in the placement that it lies under.

    Raises: KeyError when nothing above it was placed.
    """
    found = name
    while found not in placement:
        head, dot, _ = found.rpartition(".")
        if not dot:
            return placement[""]
        found = head
    return placement[found]


@dataclass(frozen=True, slots=True)
class _Item:
    """A module, or one parameter or buffer of an opened one, that is still to be placed."""

    name: str
    module: Module | None

    @property
    def can_open(self) -> bool:
        return self.module is not None and bool(self.module.children) and not self.module.is_whole

    def inside(self) -> list[_Item]:
        """What it consists of: its own parameters, then its children."""
        assert self.module is not None
        own = [_Item(name, None) for name, _ in self.module.parameters]
        return own + [_Item(child.name, child) for child in self.module.children]

    def holds(self, parameter: str) -> bool:
        return f"{self.name}." in f"{parameter}."


class _Dealer:
    """One pass over the modules, device after device."""

    def __init__(self, tree: ModuleTree, memory: Mapping[Device, float], rules: PlacementRules) -> None:
        self._sizes = module_sizes(tree)
        self._rules = rules
        gpus = sorted(device for device in memory if isinstance(device, int))
        self._devices: list[Device] = [*gpus, *([CPU] if CPU in memory else []), DISK]
        self._memory = memory
        self._keeps_room: set[Device] = {*gpus[:1], CPU}
        self._used = dict.fromkeys(self._devices, 0.0)
        self._current = 0
        self._placed: dict[str, Device] = {}
        root = tree.root
        self._queue = [_Item(name, None) for name, _ in root.parameters]
        self._queue += [_Item(child.name, child) for child in root.children]
        self._queue += [_Item(name, None) for name, _ in root.buffers]
        groups: dict[str, list[str]] = {}
        for target, source in tree.tied:
            groups.setdefault(source, []).append(target)
        self._tied = [sorted([source, *targets]) for source, targets in groups.items()]
        self._room, self._room_names = self._largest(with_parameters=True)

    def deal(self) -> dict[str, Device]:
        while self._queue:
            item = self._queue.pop(0)
            self._update_room(item)
            ties = self._ties(item)
            limit = self._limit()
            if limit is None or self._used[self._device] + self._size_with(item, ties) <= limit:
                self._put(item, ties)
            elif not self._open_tied(item, ties, limit) and not self._open(item, limit):
                self._next_device(item)
        return self._placed

    @property
    def _device(self) -> Device:
        return self._devices[self._current]

    def _limit(self) -> float | None:
        """What the current device may hold, less the room it keeps; None for the disk."""
        if self._device == DISK:
            return None
        return self._memory[self._device] - (self._room if self._device in self._keeps_room else 0)

    def _update_room(self, item: _Item) -> None:
        """The room to keep shrinks only once every module of that size has been looked at."""
        names = [n for n in self._room_names if n != item.name and not n.startswith(f"{item.name}.")]
        self._room_names = names
        if not names:
            self._room, self._room_names = self._largest()

    def _largest(self, *, with_parameters: bool = False) -> tuple[int, list[str]]:
        """The largest module of the queue that would be placed whole, and all of that size."""
        most = 0
        names: list[str] = []
        stack = [item for item in reversed(self._queue) if item.module is not None or with_parameters]
        while stack:
            item = stack.pop()
            if item.can_open:
                assert item.module is not None
                stack.extend(_Item(child.name, child) for child in reversed(item.module.children))
                continue
            size = self._sizes.get(item.name, 0)
            if size > most:
                most, names = size, [item.name]
            elif size == most:
                names.append(item.name)
        return most, names

    def _ties(self, item: _Item) -> list[_Item]:
        """The queued modules that hold parameters tied to the item's own."""
        names = [
            parameter
            for group in self._tied
            if any(item.holds(parameter) for parameter in group)
            for parameter in group
            if not item.holds(parameter)
        ]
        found: list[_Item] = []
        for name in names:
            owner = next((other for other in self._queue if name.startswith(f"{other.name}.")), None)
            if owner is not None and owner not in found:
                found.append(owner)
        return found

    def _size_with(self, item: _Item, ties: list[_Item]) -> int:
        return self._sizes.get(item.name, 0) + sum(self._sizes.get(tie.name, 0) for tie in ties)

    def _put(self, item: _Item, ties: list[_Item]) -> None:
        self._used[self._device] += self._size_with(item, ties)
        self._placed[item.name] = self._device
        for tie in ties:
            self._queue.remove(tie)
            self._placed[tie.name] = self._device

    def _open_tied(self, item: _Item, ties: list[_Item], limit: float) -> bool:
        """Open the first tied module that can be, when the item fits but not with what it is tied to."""
        if not ties or self._used[self._device] + self._sizes.get(item.name, 0) > limit:
            return False
        for tie in ties:
            if tie.can_open:
                index = self._queue.index(tie)
                self._queue[index : index + 1] = tie.inside()
                self._queue.insert(0, item)
                self._room, self._room_names = self._largest()
                return True
        return False

    def _open(self, item: _Item, limit: float) -> bool:
        """Deal the item's children instead of it."""
        fits_alone = self._used[self._device] + self._sizes.get(item.name, 0) < limit
        if not item.can_open or (fits_alone and not self._rules.opens_always):
            return False
        self._queue[:0] = item.inside()
        self._room, self._room_names = self._largest()
        return True

    def _next_device(self, item: _Item) -> None:
        if self._device in self._keeps_room:
            self._used[self._device] += self._room
        self._current += 1
        self._queue.insert(0, item)
