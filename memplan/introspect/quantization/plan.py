"""What a checkpoint's quantization makes of each module, and applying it to every tensor of a model.

A reader turns one kind of `quantization_config` into a QuantPlan; here the plan meets the tensors. Layers that come
out equal stay one object.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

from memplan.domain.model import Layer, ModelSpec
from memplan.domain.tensors import Role, Storage, Tensor
from memplan.errors import UnsupportedModel
from memplan.introspect.quantization.rules import NOTHING, Module, Rules, ancestors, spellings
from memplan.records import dataclass, field, replace

DECODER_ROLES = frozenset({Role.ATTENTION, Role.STATE, Role.MLP, Role.EXPERT, Role.SHARED_EXPERT, Role.INDEXER})
TOWER_ROLES = frozenset({Role.VISION, Role.AUDIO, Role.PROJECTOR, Role.ENCODER})

# Linear layers of these names stay plain in every published checkpoint and are built without a quantization config by
# vLLM: the indexer's head weights, the input projection of multi-token prediction, what Kimi K3 has around its experts.
PLAIN_LEAVES = frozenset({"weights_proj", "eh_proj", "routed_expert_down_proj", "routed_expert_up_proj"})
_ROUTER_LEAVES = frozenset({"gate", "router", "shared_expert_gate"})


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantPlan:
    """Which module is stored how. The first of these that speaks of a module decides:

    `keep` modules stay plain; `exact` gives a storage (None: plain) by module name or the name of something above it;
    `named` by rules; then, for Linear layers of a role in `roles` (and `only` matching modules, where there is
    `only`), `experts` for routed experts and `linear` for the rest. `towers` lets Linear layers of towers in,
    `tables` embedding tables, `mtp` multi-token-prediction layers. A matrix whose input axis is no multiple of
    `in_multiple` stays plain.
    """

    linear: Storage
    experts: Storage | None = None
    roles: frozenset[Role] = DECODER_ROLES
    keep: Rules = NOTHING
    exact: Mapping[str, Storage | None] = field(default_factory=dict)
    named: tuple[tuple[Rules, Storage | None], ...] = ()
    only: Rules | None = None
    towers: bool = False
    tables: bool = False
    mtp: bool = True
    in_multiple: int = 1
    kv_cache_scheme: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def names_numbers(self) -> bool:
        """Whether layers may differ: any rule that names a number may mean one layer and not the next."""
        rules = (self.keep, *(rules for rules, _ in self.named), *((self.only,) if self.only else ()))
        return bool(self.exact) or any(each.names_numbers for each in rules)

    def storage_of(self, name: str, tensor: Tensor) -> Storage | None:
        """Return how a tensor of that full name is stored; None when it stays plain."""
        module = Module(name.removesuffix(".weight"))
        if self.keep.matches(module):
            return None
        if self.exact:
            found, storage = self._lookup(module)
            if found:
                return storage
        for rules, storage in self.named:
            if rules.matches(module):
                return storage
        role = role_of(tensor, module)
        if role not in self.roles or module.leaf in PLAIN_LEAVES or tensor.shape[-1] % self.in_multiple:
            return None
        if self.only is not None and not self.only.matches(module):
            return None
        return self.experts if role is Role.EXPERT and self.experts is not None else self.linear

    def _lookup(self, module: Module) -> tuple[bool, Storage | None]:
        names = [*spellings(module.full, module.short)]
        for other in module.others:
            names += spellings(other, other)
        for spelling in names:
            for name in ancestors(spelling):
                if name in self.exact:
                    return True, self.exact[name]
        return False, None


def role_of(tensor: Tensor, module: Module) -> Role:
    """The role that decides how a tensor is quantized: that of its part, where it stands for a whole module."""
    if tensor.role is not Role.MTP:
        return tensor.role
    if module.leaf in _ROUTER_LEAVES:
        return Role.ROUTER
    if module.leaf in ("head", "lm_head"):
        return Role.LM_HEAD
    return Role.EXPERT if ".experts." in module.full else Role.MLP


def apply_plan(spec: ModelSpec, plan: QuantPlan) -> ModelSpec:
    """Return `spec` with the storage of every tensor that the plan quantizes.

    Raises: UnsupportedModel when no tensor is: then the names of the config and of the model do not meet.
    """
    apply = _stripped(plan.storage_of, plan.tables)
    done = replace(
        spec,
        layers=_layers(spec, plan, apply),
        shared=tuple(apply(tensor.name, tensor) for tensor in spec.shared),
        towers=tuple(
            replace(tower, tensors=tuple(apply(each.name, each) for each in tower.tensors)) if plan.towers else tower
            for tower in spec.towers
        ),
        mtp=tuple(apply(tensor.name, tensor) for tensor in spec.mtp) if plan.mtp else spec.mtp,
        kv_cache_scheme=plan.kv_cache_scheme,
        notes=(*spec.notes, *plan.notes),
    )
    schemes = scheme_elements(done)
    if not schemes:
        raise UnsupportedModel(
            "the quantization config names no module of this model", hint="give the checkpoint's safetensors files"
        )
    return replace(done, quantization=schemes.most_common(1)[0][0])


def scheme_elements(spec: ModelSpec) -> Counter[str]:
    """Return how many weights are stored in each scheme."""
    counts: Counter[str] = Counter()
    copies = Counter(id(layer) for layer in spec.layers)
    distinct = {id(layer): layer for layer in spec.layers}
    for key, layer in distinct.items():
        for tensor in layer.tensors:
            if tensor.storage is not None:
                counts[tensor.storage.scheme] += copies[key] * tensor.num_elements
    towers = (tensor for tower in spec.towers for tensor in tower.tensors)
    for tensor in (*spec.shared, *towers):
        if tensor.storage is not None:
            counts[tensor.storage.scheme] += tensor.num_elements
    return counts


def stored(tensor: Tensor, storage: Storage | None) -> Tensor:
    """Return a tensor under `storage`; None makes a quantized tensor plain again, in the model's type."""
    if storage is tensor.storage:
        return tensor
    return replace(tensor, storage=storage, dtype=storage.element if storage else None)


def is_matrix(tensor: Tensor, *, tables: bool) -> bool:
    """Whether quantizers look at a tensor at all."""
    return len(tensor.shape) >= 2 and (tensor.linear or (tables and tensor.role is Role.EMBEDDING))


def _stripped(choose: Callable[[str, Tensor], Storage | None], tables: bool) -> Callable[[str, Tensor], Tensor]:
    """A function that stores a tensor as `choose` says, and leaves what is no matrix alone."""

    def apply(name: str, tensor: Tensor) -> Tensor:
        return stored(tensor, choose(name, tensor)) if is_matrix(tensor, tables=tables) else tensor

    return apply


def _layers(spec: ModelSpec, plan: QuantPlan, apply: Callable[[str, Tensor], Tensor]) -> tuple[Layer, ...]:
    if not plan.names_numbers:
        return each_layer_once(spec, lambda prefix, layer: _layer(layer, prefix, apply))
    made: dict[tuple[int, ...], Layer] = {}
    layers: list[Layer] = []
    for index, layer in enumerate(spec.layers):
        prefix = f"{spec.layer_prefix}{index}."
        matrices = [tensor for tensor in layer.tensors if is_matrix(tensor, tables=plan.tables)]
        choices = [plan.storage_of(prefix + tensor.name, tensor) for tensor in matrices]
        key = (id(layer), *map(id, choices))
        if key not in made:
            chosen = dict(zip(map(id, matrices), choices, strict=True))
            tensors = (
                stored(tensor, chosen[id(tensor)]) if id(tensor) in chosen else tensor for tensor in layer.tensors
            )
            made[key] = replace(layer, tensors=tuple(tensors))
        layers.append(made[key])
    return tuple(layers)


def each_layer_once(spec: ModelSpec, change: Callable[[str, Layer], Layer]) -> tuple[Layer, ...]:
    """Return the layers of a model, each distinct one changed once; `change` is given the prefix of its first use."""
    made: dict[int, Layer] = {}
    for index, layer in enumerate(spec.layers):
        if id(layer) not in made:
            made[id(layer)] = change(f"{spec.layer_prefix}{index}.", layer)
    return tuple(made[id(layer)] for layer in spec.layers)


def _layer(layer: Layer, prefix: str, apply: Callable[[str, Tensor], Tensor]) -> Layer:
    return replace(layer, tensors=tuple(apply(prefix + tensor.name, tensor) for tensor in layer.tensors))
