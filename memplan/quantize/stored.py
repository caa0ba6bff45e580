"""Where a checkpoint keeps the parameters of a model, found by what transformers does with names when it loads one.

Checkpoints keep experts one by one, under names of their own (`block_sparse_moe.experts.3.w1`), or all in one tensor.
transformers says for every family which names it puts together, and how; read the other way round, that says where
each expert's own matrices are.

Axes: O out features, I in features, E experts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from torch import Tensor, nn

from memplan.quantize.checkpoint import Checkpoint
from memplan.quantize.experts import SplitExperts
from memplan.records import dataclass

Part = Literal["whole", "gate", "up"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """A tensor of a checkpoint that holds a parameter, or the part of it that does.

    With `expert` the tensor holds all experts of a module (E x ...), and the part is that expert's: all of it, or the
    rows of its gate or up, which lie below one another or, `interleaved`, in turn. `turned` are matrices that lie
    I x O, which only square ones do not show. `written` is the name under which the parameter stands once it is taken
    out of there.
    """

    name: str
    written: str
    expert: int | None = None
    part: Part = "whole"
    interleaved: bool = False
    turned: bool = False

    def read(self, checkpoint: Checkpoint, shape: tuple[int, ...]) -> Tensor:
        """Return the parameter, whose shape is known."""
        value = checkpoint.read(self.name)
        if self.expert is None:
            return value
        value = value[self.expert]
        rows = shape[0] if self.part == "whole" else 2 * shape[0]
        if value.dim() == 2 and (value.shape[0] != rows or (self.turned and rows == shape[1])):
            value = value.t()
        if self.part != "whole" and value.shape[0] == rows:
            second = self.part == "up"
            value = value[int(second) :: 2] if self.interleaved else value[second * shape[0] :][: shape[0]]
        return value.contiguous()


class StoredNames:
    """The parameters of a model by name, and where the checkpoint keeps them; so too the buffers that it keeps.

    A tied parameter that is stored once is found under the name of the other.
    """

    def __init__(self, model: nn.Module, checkpoint: Checkpoint) -> None:
        parameters = dict(model.named_parameters(remove_duplicate=False))
        fused = {
            f"{name}.{leaf}": experts
            for name, experts in model.named_modules()
            if isinstance(experts, SplitExperts)
            for leaf in experts.family._parameters
        }
        kept = {**parameters, **{name: None for name in model.state_dict() if name not in parameters}}
        self._found: dict[str, Stored] = {}
        self.unclaimed: list[str] = []  # tensors that no parameter is made of, as far as is known here
        pieces: dict[str, dict[str, list[str]]] = {}
        for stored, name, pattern in _renamed(model, checkpoint, {**kept, **fused}):
            if name in kept:
                self._found[name] = Stored(name=stored, written=stored)
            elif name in fused:
                pieces.setdefault(name, {}).setdefault(pattern, []).append(stored)
            else:
                self.unclaimed.append(stored)
        for name, by_pattern in pieces.items():
            self._found.update(_taken_apart(name, fused[name], by_pattern))
        for names in _tied(model):
            known = next((self._found[name] for name in names if name in self._found), None)
            if known is not None:
                self._found.update({name: self._found.get(name, known) for name in names})
        self._copies = Counter(self._found.values())

    def __contains__(self, name: str) -> bool:
        return name in self._found

    def __getitem__(self, name: str) -> Stored:
        return self._found[name]

    def is_tied(self, name: str) -> bool:
        """Whether the checkpoint keeps one tensor for this parameter and another."""
        return name in self._found and self._copies[self._found[name]] > 1


def _renamed(model: Any, checkpoint: Checkpoint, known: Mapping[str, object]) -> Iterator[tuple[str, str, str]]:
    """Every tensor's name, what transformers makes of it, and the pattern by which it is put together with others."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    changes = get_model_conversion_mapping(model)
    renamings = [change for change in changes if isinstance(change, WeightRenaming)]
    converters = [change for change in changes if isinstance(change, WeightConverter) and _is_plain(change)]
    prefix, names = str(model.base_model_prefix), dict(known)
    for stored in checkpoint.names():
        name, _ = rename_source_key(stored, renamings, [], prefix, names)
        pattern: str | None = None
        if name not in names:
            name, pattern = rename_source_key(stored, renamings, converters, prefix, names)
        order = next(
            (change.source_patterns.index(pattern) for change in converters if pattern in change.source_patterns), 0
        )
        yield stored, name, str(order)


def _is_plain(change: Any) -> bool:
    """Whether a change puts experts together in the one way known here: experts in order, then gate above up."""
    kinds = [(type(step).__name__, getattr(step, "dim", None)) for step in change.operations]
    turned = all(kind == "Transpose" for kind, _ in kinds) and len(change.source_patterns) == 1
    return turned or kinds in ([("MergeModulelist", 0)], [("MergeModulelist", 0), ("Concatenate", 1)])


def _taken_apart(name: str, experts: SplitExperts, by_pattern: Mapping[str, list[str]]) -> Iterator[tuple[str, Stored]]:
    """Where the layers of every expert are that the fused parameter `name` holds."""
    module, _, fused = name.rpartition(".")
    leaf = "bias" if fused.endswith("_bias") else "weight"
    is_down = fused.startswith("down_proj")
    layers = ("down_proj",) if is_down else experts.entries
    groups = [sorted(by_pattern[pattern], key=_natural) for pattern in sorted(by_pattern, key=int)]
    one_each = len(groups) == len(layers) and all(len(group) == experts.num_fused for group in groups)
    for number in range(experts.num_fused):
        for place, layer in enumerate(layers):
            own = f"{module}.{number}.{layer}.{leaf}"
            if one_each and not (experts.num_fused == 1 and groups[0][0].endswith(fused)):
                yield own, Stored(name=groups[place][number], written=groups[place][number])
            elif len(groups) == 1 and len(groups[0]) == 1:
                (stored,) = groups[0]
                part: Part = "whole" if len(layers) == 1 else ("gate", "up")[place]
                prefix = stored.removesuffix(fused) if stored.endswith(fused) else f"{module}."
                yield (
                    own,
                    Stored(
                        name=stored,
                        written=f"{prefix}{number}.{layer}.{leaf}",
                        expert=number,
                        part=part,
                        interleaved=experts.interleaved,
                        turned=experts.transposed,
                    ),
                )


def _natural(name: str) -> list[tuple[int, str]]:
    """Numbers in names in the order of numbers."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]


def _tied(model: Any) -> Iterator[list[str]]:
    """Names that share one parameter."""
    names: dict[int, list[str]] = {}
    for name, value in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(value), []).append(name)
    yield from (group for group in names.values() if len(group) > 1)
    if getattr(model.config, "tie_word_embeddings", False):
        ends = (model.get_input_embeddings(), model.get_output_embeddings())
        by_module = {id(module): name for name, module in model.named_modules()}
        if all(end is not None for end in ends):
            yield [f"{by_module[id(end)]}.weight" for end in ends]
