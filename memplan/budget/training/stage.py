"""What one rank holds of a model: its layers as blocks of operators, their weights in units, and the optimizer's state.

A pipeline stage has its share of the layers, the first one the embedding, the last one the last norm and the head.
"""

from __future__ import annotations

from memplan.budget.training.autograd import WORKSPACE, Parameter
from memplan.budget.training.blocks import Layer
from memplan.budget.training.build import Builder
from memplan.budget.training.device import Device
from memplan.budget.training.float8 import HISTORY_BYTES, is_gathered_cast
from memplan.budget.training.linear import Linear
from memplan.budget.training.optimizer import state_sizes
from memplan.budget.training.sharding import Unit
from memplan.budget.training.zero import PLACEMENTS
from memplan.domain.model import ModelSpec
from memplan.domain.tensors import Role
from memplan.domain.training import TrainingSpec
from memplan.errors import UsageError
from memplan.units import ceil_div

# NF4: half a byte, and a scale of 32 bits for every 64 weights.
_PACKED_BYTES = 0.5 + 4 / 64
_FLOAT = 4


class Stage:
    """Loads its weights onto the device as it is made."""

    def __init__(self, device: Device, spec: ModelSpec, training: TrainingSpec, number: int) -> None:
        self.device = device
        self.spec = spec
        self.training = training
        self.number = number
        self.place = PLACEMENTS[training.sharding](device, training)
        self.trained: list[Parameter] = []
        self.units: list[Unit] = []
        device.take(training.workspace_bytes, WORKSPACE, "matrix products")
        builder = Builder(spec, training, self._parameter)
        self.state_share = builder.state_share
        self.first_unit = self._unit("outside", stays=not training.splits_outside)
        self.last_unit = self.first_unit
        self.embedding: Parameter | None = None
        self.positions: Parameter | None = None
        self.embedding_norm: Parameter | None = None
        self.last_norm: Parameter | None = None
        self.head: Linear | None = None
        self._load_outside(builder)
        self.layers: list[tuple[Unit, Layer]] = []
        for position in self._positions():
            unit = self._unit(f"layers.{position}", stays=False)
            self.layers.append((unit, builder.layer(spec.layers[position], position)))
        if not self.trained and self.layers:
            raise UsageError(
                f"no linear layer to put an adapter beside is named {' or '.join(training.lora_targets)}",
                hint="leave the targets out for every linear layer",
            )
        if training.float8 == "delayed":
            device.take(builder.num_float8 * HISTORY_BYTES, WORKSPACE, "FP8 histories of largest values")
        self._load_states()
        self.place.settle(self.units)
        if training.accumulation > 1 or training.keeps_gradients:
            self.place.accumulated(self.units)

    @property
    def is_full(self) -> bool:
        """Whether the model's own weights are trained."""
        return self.training.method == "full"

    @property
    def is_last(self) -> bool:
        return self.number == self.training.layout.pipeline - 1

    def _positions(self) -> range:
        """The numbers of the layers of this stage."""
        size = ceil_div(self.spec.num_layers, self.training.layout.pipeline)
        return range(self.number * size, min((self.number + 1) * size, self.spec.num_layers))

    def _load_outside(self, builder: Builder) -> None:
        hidden = self.spec.hidden_size
        vocabulary = ceil_div(self.spec.vocab_size, self.training.layout.tensor)
        if self.number == 0:
            self.embedding = self._parameter("embed_tokens", vocabulary * hidden, self.is_full)
            positions = self._shared_elements(Role.POSITION)
            if positions:
                self.positions = self._parameter("positions", positions, self.is_full)
            if self.training.kernels == "transformers":
                towers = sum(each.num_parameters for each in self.spec.towers if not each.optional)
                self._parameter("towers", towers, False)
            norms = self._shared_elements(Role.NORM, of_embedding=True)
            if norms:
                self.embedding_norm = self._parameter("embedding's norm", norms, self.is_full)
        if not self.is_last:
            return
        if self.training.splits_outside:
            self.last_unit = self._unit("head", stays=True)
        self.last_norm = builder.norm("norm", self._shared_elements(Role.NORM))
        tied = self.embedding if self.spec.tied_embeddings else None
        if tied is not None:
            tied.num_uses = 2
        self.head = builder.linear("lm_head", vocabulary, hidden, tied=tied)

    def _shared_elements(self, role: Role, *, of_embedding: bool = False) -> int:
        return sum(
            each.num_elements
            for each in self.spec.shared
            if each.role is role and (role is not Role.NORM or ("embeddings" in each.name) == of_embedding)
        )

    def _unit(self, name: str, *, stays: bool) -> Unit:
        self.units.append(Unit(name, stays=stays))
        return self.units[-1]

    def _parameter(self, name: str, elements: float, is_trained: bool) -> Parameter:
        """A weight of the unit that was begun last."""
        training, unit = self.training, self.units[-1]
        is_adapter = name.endswith((".A", ".B", ".magnitude"))
        in_float = is_adapter and training.adapters_in_float
        width = _FLOAT if in_float else training.weight_bytes
        is_packed = (
            training.method == "qlora" and not is_adapter and unit.name.startswith("layers") and "norm" not in name
        )
        stored = elements * (_PACKED_BYTES if is_packed else width)
        shards = self._shards_of(name) if self.place.gathers else 1.0
        if not training.offload_parameters:
            block = self.device.take(stored / shards, "weights", "adapters" if is_adapter else "parameters")
            unit.weights.append(block)
        is_cast = unit.name.startswith("layers") and is_gathered_cast(training, name)
        computed = 1 if is_cast else min(width, training.compute_bytes)
        unit.computed_bytes += stored if is_packed else elements * computed
        kept_grad = elements * (_FLOAT if in_float else training.grad_bytes)
        is_brief = self.place.gathers or training.keeps_gradients
        grad = elements * training.compute_bytes if is_brief else kept_grad
        made = Parameter(name, stored / shards, grad, None, elements / shards)
        if is_trained:
            made.on_gradient = lambda parameter, block: self.place.arrived(unit, parameter, block)
            unit.grad_bytes += grad if self.place.gathers else kept_grad
            unit.trained_elements += elements
            unit.sharded_elements += elements / self._shards_of(name)
            self.trained.append(made)
            unit.trained.append(made)
        return made

    def _shards_of(self, name: str) -> float:
        """Over how many ranks a weight is cut where it is. Routed experts are on some of these ranks each already."""
        layout = self.training.layout
        return max(layout.shards / (layout.expert if ".experts." in name else 1), 1.0)

    def _load_states(self) -> None:
        training = self.training
        if training.offload_optimizer:
            return
        is_cut = training.sharding in ("zero1", "zero2")
        for unit in self.units:
            for each in unit.trained:
                elements = each.num_elements / (self._shards_of(each.name) if is_cut else 1)
                for state_bytes in state_sizes(training, elements):
                    self._state(unit, state_bytes, training.optimizer)
                if training.master_bytes:
                    self._state(unit, elements * training.master_bytes, "master weights")

    def _state(self, unit: Unit, size_bytes: float, name: str) -> None:
        unit.states.append(self.device.take(size_bytes, "optimizer state", name))
