"""DeepSpeed's ZeRO: optimizer state in parts, then gradients, then weights, each stage with buffers of its own.

Per rank of N, for P parameters trained in 16 bits with FP32 copies: stage 1 keeps 2P of weights, 2P of gradients and
12P/N of state; stage 2 cuts the gradients to 2P/N; stage 3 the weights too. The step makes FP32 gradients of a rank's
part, 4P/N, out of a flat 16 bit copy.

Sources (0.18): runtime/zero/stage_1_and_2.py (backward_prologue takes a bucket of reduce_bucket_size elements for
every backward pass; step flattens averaged_gradients and casts them), stage3.py (the bucket and a flat buffer of all
gradients of the rank's part are there from the start; the step goes by sub-groups), zero/config.py (the sizes), zero/
partitioned_param_coordinator.py (parameters that are used again soon stay, up to stage3_max_live_parameters).
"""

from __future__ import annotations

from collections.abc import Mapping

from memplan.budget.training.autograd import GRADIENTS, WORKSPACE, Parameter
from memplan.budget.training.device import Block
from memplan.budget.training.sharding import BUFFERS, GATHERED, Fsdp1, Fsdp2, Unit, Whole

_FLOAT = 4
SUB_GROUP_ELEMENTS = 10**9


class Zero(Whole):
    """Stages 1 and 2: weights on every rank, gradients on the host where the optimizer is.

    Megatron's distributed optimizer has buffers of its own, and is Whole.
    """

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)  # type: ignore[arg-type]
        self._bucket: Block | None = None
        self._at_step: list[Block] = []
        self._elements = 0.0

    def settle(self, units: list[Unit]) -> None:
        """How much of the gradients is this rank's."""
        self._elements = sum(each.sharded_elements for each in units)

    def arrived(self, unit: Unit, parameter: Parameter, grad: Block) -> None:
        """Into the bucket; what is this rank's stays, and in stage 1 the rest as well."""
        training = self.training
        if not training.bucket_elements:
            super().arrived(unit, parameter, grad)
            return
        if self._bucket is None:
            size = training.bucket_elements * training.compute_bytes
            self._bucket = self.device.take(size, BUFFERS, "bucket of gradients")
        if training.sharding == "zero1":
            super().arrived(unit, parameter, grad)
            return
        self.device.free(grad)
        if training.offload_optimizer:
            return
        if parameter.name not in self.kept and unit.name not in self.kept:
            part = parameter.num_elements * training.grad_bytes * unit.sharded_elements / unit.trained_elements
            self.kept[parameter.name] = self.device.take(part, GRADIENTS, parameter.name)

    def before_step(self) -> None:
        """The rank's part of the gradients, flat in 16 bits and then in FP32."""
        training = self.training
        if training.master_bytes and training.bucket_elements and not training.offload_optimizer:
            flat = self.device.take(self._elements * training.grad_bytes, WORKSPACE, "flat gradients")
            self._at_step = [self.device.take(self._elements * _FLOAT, WORKSPACE, "gradients in FP32")]
            self.device.free(flat)

    def clear(self) -> None:
        """The bucket is let go at the next backward pass; here with the gradients."""
        for each in self._at_step:
            self.device.free(each)
        self._at_step = []
        if self._bucket is not None:
            self.device.free(self._bucket)
            self._bucket = None
        super().clear()


class Zero3(Fsdp1):
    """Stage 3: a unit is gathered before it runs; the bucket and the part of the gradients are there all the time."""

    def settle(self, units: list[Unit]) -> None:
        training, device = self.training, self.device
        self._elements = sum(each.sharded_elements for each in units)
        if not training.bucket_elements:
            return
        device.take(training.bucket_elements * training.compute_bytes, BUFFERS, "bucket of gradients")
        if training.live_elements:
            device.take(training.live_elements * training.compute_bytes, GATHERED, "kept for their next use")
        for unit in units:
            if unit.grad_bytes and not training.offload_optimizer:
                self.kept[unit.name] = device.take(self._kept_bytes(unit), GRADIENTS, unit.name.split(".")[0])

    def before_step(self) -> None:
        """FP32 gradients of one sub-group at a time."""
        training = self.training
        if training.master_bytes and not training.offload_optimizer:
            # Told where it is less than all: a short step of a deep model has fewer elements than the model.
            part = training.sub_group_elements or min(self._elements, SUB_GROUP_ELEMENTS)
            self.device.free(self.device.take(part * _FLOAT, WORKSPACE, "gradients in FP32"))

    def clear(self) -> None:
        """The part of the gradients stays."""
        if not self.training.bucket_elements:
            super().clear()


PLACEMENTS: Mapping[str, type[Whole]] = {
    "none": Whole,
    "ddp": Whole,
    "zero1": Zero,
    "zero2": Zero,
    "zero3": Zero3,
    "fsdp1": Fsdp1,
    "fsdp2": Fsdp2,
}
