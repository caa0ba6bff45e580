"""Where parameters, gradients and optimizer state lie over the ranks, and what is gathered and reduced when.

A unit is what is gathered together: a layer, or what lies outside of the layers. `Whole` keeps everything on every rank
(also DDP); `Fsdp1` and `Fsdp2` gather a unit before it runs and cut it up again afterwards.

Sources: torch/distributed/fsdp/_runtime_utils.py, _flat_param.py (FSDP1: a flat buffer for each unit, the next unit's
gathered before a unit's backward pass, gradients of its views written into one flat gradient); torch/distributed/fsdp/
_fully_shard/_fsdp_param_group.py, _fsdp_collectives.py (FSDP2: gathered into a buffer, copied out; in the forward pass
the buffer lives until the next unit's, the reduced gradients' buffer until the next unit's in the backward pass). Where
parameters lie on the host, reduced gradients go there as well.
"""

from __future__ import annotations

from memplan.budget.training.autograd import GRADIENTS, Parameter
from memplan.budget.training.device import Block, Device
from memplan.domain.training import TrainingSpec

GATHERED = "gathered weights"
BUFFERS = "communication buffers"
# Streams of their own, whose blocks are not used for anything else.
GATHER_STREAM, REDUCE_STREAM = 1, 2


class Unit:
    """What is gathered together. Sizes are of the whole unit, before it is cut over ranks; `sharded_elements` are what
    this rank keeps of the trained ones where they are cut. `weights` and `states` are what is loaded on this rank.
    """

    __slots__ = (
        "computed_bytes",
        "grad_bytes",
        "grads",
        "live",
        "name",
        "sharded_elements",
        "states",
        "stays",
        "trained",
        "trained_elements",
        "weights",
    )

    def __init__(self, name: str, *, stays: bool) -> None:
        self.name = name
        self.stays = stays
        self.computed_bytes = 0.0
        self.grad_bytes = 0.0
        self.trained_elements = 0.0
        self.sharded_elements = 0.0
        self.weights: list[Block] = []
        self.states: list[Block] = []
        self.trained: list[Parameter] = []
        self.live: list[Block] = []
        self.grads: list[Block] = []


class Whole:
    """Every rank has all of it. DDP copies gradients into buckets that it keeps."""

    gathers = False

    def __init__(self, device: Device, training: TrainingSpec) -> None:
        self.device = device
        self.training = training
        self.kept: dict[str, Block] = {}

    def settle(self, units: list[Unit]) -> None:
        """After the weights: what is made once and stays."""
        if self.training.sharding == "ddp" and not self.training.keeps_gradients:
            total = sum(each.grad_bytes for each in units)
            self.device.take(total, BUFFERS, "gradient buckets")

    def before_forward(self, unit: Unit) -> None:
        """Nothing to gather."""

    def after_forward(self, unit: Unit) -> None:
        """Nothing to cut up."""

    def before_backward(self, unit: Unit, following: Unit | None) -> None:
        """Nothing to gather."""

    def after_backward(self, unit: Unit) -> None:
        """Nothing to reduce."""

    def end_forward(self) -> None:
        """The model's forward pass has returned."""

    def end_backward(self) -> None:
        """The backward pass of the whole model is through."""

    def arrived(self, unit: Unit, parameter: Parameter, grad: Block) -> None:
        """The gradient is taken over, or added to the one of the micro-batch before."""
        if self.training.optimizer_in_backward or parameter.name in self.kept or unit.name in self.kept:
            self.device.free(grad)
        else:
            self.kept[parameter.name] = grad

    def accumulated(self, units: list[Unit]) -> None:
        """Gradients of earlier micro-batches are there before this one."""
        for unit in units:
            if unit.grad_bytes:
                self.kept[unit.name] = self.device.take(self._kept_bytes(unit), GRADIENTS, unit.name)

    def before_step(self) -> None:
        """What is made of the gradients before the optimizer steps."""

    def _kept_bytes(self, unit: Unit) -> float:
        training = self.training
        is_cut = training.sharding == "zero2" and unit.trained_elements
        return unit.grad_bytes * (unit.sharded_elements / unit.trained_elements if is_cut else 1)

    def clear(self) -> None:
        """Gradients are dropped after the step."""
        for grad in self.kept.values():
            self.device.free(grad)
        self.kept.clear()


class Fsdp1(Whole):
    """One flat buffer for each unit."""

    gathers = True

    def before_forward(self, unit: Unit) -> None:
        if unit.live:
            return
        training, device = self.training, self.device
        cast = None
        if training.weight_bytes != training.compute_bytes and unit.trained_elements:
            cast = device.take(unit.computed_bytes / training.layout.shards, BUFFERS, "shard in 16 bits", GATHER_STREAM)
        unit.live = [device.take(unit.computed_bytes, GATHERED, unit.name.split(".")[0], GATHER_STREAM)]
        if cast is not None:
            device.free(cast)

    def after_forward(self, unit: Unit) -> None:
        if not unit.stays:
            self._release(unit)

    def before_backward(self, unit: Unit, following: Unit | None) -> None:
        self.before_forward(unit)
        if following is not None:
            self.before_forward(following)

    def after_backward(self, unit: Unit) -> None:
        if unit.grads:
            flat = self.device.take(unit.grad_bytes, BUFFERS, "flat gradient")
            for each in unit.grads:
                self.device.free(each)
            unit.grads = []
            self._reduce(unit)
            self.device.free(flat)
        self._release(unit)

    def _reduce(self, unit: Unit) -> None:
        training = self.training
        wide = None
        if (training.reduce_bytes or training.compute_bytes) > training.compute_bytes:
            wide = self.device.take(
                unit.trained_elements * (training.reduce_bytes or 0), BUFFERS, "gradients to reduce", REDUCE_STREAM
            )
        part = unit.sharded_elements / unit.trained_elements
        reduced = self.device.take(unit.grad_bytes * part, BUFFERS, "reduced gradient", REDUCE_STREAM)
        if wide is not None:
            self.device.free(wide)
        if unit.name in self.kept or training.offload_parameters:
            self.device.free(reduced)
            return
        if self._kept_bytes(unit) != unit.grad_bytes * part:
            kept = self.device.take(self._kept_bytes(unit), GRADIENTS, unit.name.split(".")[0])
            self.device.free(reduced)
            reduced = kept
        reduced.category = GRADIENTS
        self.kept[unit.name] = reduced

    def arrived(self, unit: Unit, parameter: Parameter, grad: Block) -> None:
        unit.grads.append(grad)

    def _kept_bytes(self, unit: Unit) -> float:
        return unit.sharded_elements * self.training.grad_bytes

    def _release(self, unit: Unit) -> None:
        for each in unit.live:
            self.device.free(each)
        unit.live = []


class Fsdp2(Fsdp1):
    """Every parameter is cut by itself; a unit is gathered into one buffer and copied out of it."""

    def __init__(self, device: Device, training: TrainingSpec) -> None:
        super().__init__(device, training)
        self._gathered: Block | None = None
        self._ahead: dict[str, Block] = {}
        self._reduced: Block | None = None

    def before_forward(self, unit: Unit) -> None:
        if unit.live:
            return
        buffer = self._gather(unit)
        unit.live = [self.device.take(unit.computed_bytes, GATHERED, unit.name.split(".")[0])]
        # The buffer of the unit before is held by name until this one's is copied out.
        self.end_forward()
        self._gathered = buffer

    def before_backward(self, unit: Unit, following: Unit | None) -> None:
        self.end_forward()
        if not unit.live:
            buffer = self._ahead.pop(unit.name, None) or self._gather(unit)
            unit.live = [self.device.take(unit.computed_bytes, GATHERED, unit.name.split(".")[0])]
            self.device.free(buffer)
        if following is not None and not following.live and following.name not in self._ahead:
            self._ahead[following.name] = self._gather(following)

    def after_backward(self, unit: Unit) -> None:
        device, training = self.device, self.training
        self._release(unit)
        if not unit.grads:
            return
        if self._reduced is not None:
            device.free(self._reduced)
        reduce_bytes = training.reduce_bytes or training.compute_bytes
        self._reduced = device.take(unit.trained_elements * reduce_bytes, BUFFERS, "gradients to reduce")
        for each in unit.grads:
            device.free(each)
        unit.grads = []
        kept = device.take(unit.sharded_elements * reduce_bytes, GRADIENTS, unit.name.split(".")[0], REDUCE_STREAM)
        if unit.name in self.kept or training.offload_parameters:
            device.free(kept)
            return
        if reduce_bytes != training.grad_bytes:
            other = device.take(self._kept_bytes(unit), GRADIENTS, unit.name.split(".")[0])
            device.free(kept)
            kept = other
        self.kept[unit.name] = kept

    def _gather(self, unit: Unit) -> Block:
        device, training = self.device, self.training
        cast = None
        if training.weight_bytes != training.compute_bytes:
            shard_bytes = unit.computed_bytes / training.layout.shards
            cast = device.take(shard_bytes, BUFFERS, "shards in 16 bits", GATHER_STREAM)
        buffer = device.take(unit.computed_bytes, BUFFERS, "gathered", GATHER_STREAM)
        if cast is not None:
            device.free(cast)
        return buffer

    def end_forward(self) -> None:
        if self._gathered is not None:
            self.device.free(self._gathered)
            self._gathered = None

    def end_backward(self) -> None:
        self.end_forward()
        if self._reduced is not None:
            self.device.free(self._reduced)
            self._reduced = None
