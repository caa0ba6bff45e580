"""One step of training on one rank: the states that stay, then forward, backward and the optimizer's step.

The step is one of those after the first: optimizer state is there from the beginning. Gradients of earlier
micro-batches are there where several make a step.
"""

from __future__ import annotations

from memplan.budget.training.autograd import ACTIVATIONS, WORKSPACE, Graph, Tensor
from memplan.budget.training.blocks import ATTENDING, Layer, dropped, gathered, run_layer
from memplan.budget.training.device import Block, Device, PhaseHeld
from memplan.budget.training.families import family_of, kernels_of
from memplan.budget.training.kernels import Kernels, embedding_sums
from memplan.budget.training.kernels import norm as run_norm
from memplan.budget.training.loss import run_loss
from memplan.budget.training.optimizer import temporary_sizes
from memplan.budget.training.sharding import Unit
from memplan.budget.training.stage import Stage
from memplan.domain.model import ModelSpec
from memplan.domain.training import TrainingSpec

KERNELS = {
    "transformers": Kernels(norm="eager", rotary="eager", gate="eager"),
    "fused": Kernels(norm="fused", rotary="fused", gate="eager"),
    "compiled": Kernels(norm="fused", rotary="fused", gate="fused"),
}
_FLOAT, _INDEX_BYTES = 4, 8


class Step:
    """Runs a step and keeps its device. `stage` is the pipeline stage, the last one by default."""

    def __init__(self, spec: ModelSpec, training: TrainingSpec, stage: int | None = None) -> None:
        self.device = Device()
        self.device.begin("load")
        number = training.layout.pipeline - 1 if stage is None else stage
        self.stage = Stage(self.device, spec, training, number)
        self._graph = Graph(self.device)
        self.training = training
        self._family = family_of(spec, training)
        self._kernels = kernels_of(spec, training, KERNELS[training.kernels])
        self._width = training.compute_bytes
        self._layer_width = _FLOAT if training.wide_state else self._width
        self._tokens = training.micro_batch * training.sequence_tokens / training.layout.context
        self._lasting: list[Block] = []

    def run(self) -> tuple[PhaseHeld, ...]:
        """All phases, each with its peak."""
        self.perform()
        return self.device.phases()

    def perform(self) -> None:
        """Forward, backward and the optimizer's step, on the device."""
        device, stage, place = self.device, self.stage, self.stage.place
        device.begin("forward")
        inputs = [device.take(self._tokens * _INDEX_BYTES, WORKSPACE, "token ids") for _ in range(3)]
        mask = device.take(self._mask_bytes(), ACTIVATIONS, "mask")
        made = self._forward()
        if self.training.checkpointing == "none":
            device.free(mask)
        else:
            self._lasting.append(mask)
        device.begin("backward")
        self._graph.backward(made)
        place.after_backward(stage.first_unit)
        place.end_backward()
        for each in self._lasting:
            device.free(each)
        device.begin("optimizer")
        self._optimizer_step()
        for each in inputs:
            device.free(each)

    def evaluate(self) -> tuple[PhaseHeld, ...]:
        """Loading, and a forward pass over as many sequences that records nothing for a backward pass."""
        self._graph.is_recording = False
        self.device.begin("evaluation")
        self._forward()
        return self.device.phases()

    def _mask_bytes(self) -> float:
        """The mask that attention's code is handed: numbers for a model's own formula, truths for PyTorch's kernels."""
        found = [half.heads for _, layer in self.stage.layers for half in layer.halves if isinstance(half, ATTENDING)]
        squared = self.training.micro_batch * float(self.training.sequence_tokens) ** 2
        if any(heads.kernel == "eager" for heads in found):
            caches = {type(each.caches[0]) for each, _ in self.stage.spec.distinct_layers() if each.caches}
            return squared * self._width * len(caches)
        return squared if any(heads.is_masked for heads in found) else 0.0

    def _forward(self) -> Tensor:
        """The loss; of a stage that is not the last, what it hands on."""
        state = self._embedded()
        before: Unit | None = None
        for unit, layer in self.stage.layers:
            made = self._layer(unit, before, layer, state)
            self._graph.drop(state)
            self.device.mark()
            state, before = made, unit
        self._other_micro_batches()
        return self._loss(state)

    def _embedded(self) -> Tensor:
        stage, graph, place = self.stage, self._graph, self.stage.place
        place.before_forward(stage.first_unit)
        weight = stage.embedding
        size = self._tokens * stage.spec.hidden_size * self._width / stage.state_share
        state = graph.op(
            "embedding",
            size,
            (),
            parameters=(weight,) if weight else (),
            grads=(),
            backward_temporaries=embedding_sums(self._tokens, stage.spec.vocab_size, stage.spec.hidden_size),
        )
        state = self._positioned(state)
        if not state.needs_grad:
            state.needs_grad = self._asks_for_gradient()
        if stage.first_unit.stays:
            return state
        place.after_forward(stage.first_unit)
        return graph.mark(state, lambda: place.before_backward(stage.first_unit, None))

    def _asks_for_gradient(self) -> bool:
        """Whether what a frozen embedding makes is asked for a gradient all the same: what comes from another stage,
        and what checkpointed layers read, is.
        """
        training = self.training
        return self.stage.embedding is None or training.checkpointing != "none" or training.method == "qlora"

    def _positioned(self, state: Tensor) -> Tensor:
        """The embedding with what some families add to it."""
        stage, graph = self.stage, self._graph
        if stage.positions is not None:
            size = state.size_bytes / self.training.micro_batch
            places = graph.op("positions", size, (), parameters=(stage.positions,), grads=())
            summed = graph.op("embedding with positions", state.size_bytes, (state, places), grads=(None, size))
            graph.drop(state, places)
            state = summed
        if stage.embedding_norm is not None:
            normed = run_norm(graph, state, stage.embedding_norm, self._tokens, self._width, self._kernels)
            graph.drop(state)
            state = normed
        return dropped(graph, state, self._width) if self._family.has_dropout else state

    def _layer(self, unit: Unit, before: Unit | None, layer: Layer, state: Tensor) -> Tensor:
        graph, place, training = self._graph, self.stage.place, self.training

        def body(entering: Tensor) -> Tensor:
            place.before_forward(unit)
            made = run_layer(graph, layer, entering, self._tokens, self._layer_width, self._kernels)
            if not graph.is_rerunning:
                place.after_forward(unit)
            return made

        def left() -> None:
            place.after_backward(unit)
            graph.device.mark()

        graph.device.share(state.block)
        marked = graph.mark(state, left)
        if training.checkpointing == "none":
            made = body(marked)
        else:
            made = graph.checkpoint(
                "layer",
                body,
                marked,
                keeps_gradient=self._lasting if self._keeps_entered() else None,
                is_selective=training.checkpointing == "selective",
                is_offloaded=training.offload_activations,
                is_reentrant=training.reentrant,
            )
        graph.drop(marked)
        return graph.mark(made, lambda: place.before_backward(unit, before))

    def _keeps_entered(self) -> bool:
        """Whether what enters a checkpointed layer, and its gradient, outlive the layer's backward pass.

        FSDP1 waits for the gradients of what enters a unit that is frozen, in a hook that holds it to the end.
        """
        training = self.training
        return training.sharding == "fsdp1" and training.method != "full" and training.checkpointing == "full"

    def _other_micro_batches(self) -> None:
        """Activations of micro-batches that are under way beside this one: one forward, one backward (1F1B), with
        several chunks of layers for each stage the interleaved form of it.
        """
        layout, device = self.training.layout, self.device
        if layout.pipeline == 1:
            return
        behind = layout.pipeline - self.stage.number - 1
        chunks = float(behind + 1)
        if layout.virtual_stages > 1:
            chunks = (2 * behind + (layout.virtual_stages - 1) * layout.pipeline + 1) / layout.virtual_stages
        others = min(chunks, self.training.accumulation) - 1
        held = sum(each.size_bytes for each in device.blocks if each.holders > 0 and each.category == ACTIVATIONS)
        if others > 0:
            self._lasting.append(device.take(held * others, ACTIVATIONS, "other micro-batches"))

    def _loss(self, state: Tensor) -> Tensor:
        stage, graph, training = self.stage, self._graph, self.training
        if stage.head is None or stage.last_norm is None:
            return state
        if stage.last_unit is not stage.first_unit:
            stage.place.before_forward(stage.last_unit)
            state = graph.mark(state, lambda: stage.place.after_backward(stage.last_unit))
        rows = self._tokens / stage.state_share
        norm_width = _FLOAT if self._family.wide_residual else self._layer_width
        normed = run_norm(graph, state, stage.last_norm, rows, norm_width, self._kernels)
        graph.drop(state)
        if norm_width != self._width:
            narrow = graph.op("head's cast", normed.size_bytes / norm_width * self._width, (normed,))
            graph.drop(normed)
            normed = narrow
        if stage.state_share > 1:
            normed = gathered(graph, normed, stage.state_share, is_kept=not training.gathers_again)
        if training.kernels != "transformers":
            # Their loss stands outside of the model.
            stage.place.end_forward()
        form = "narrow" if self._family.has_narrow_loss and training.loss == "plain" else training.loss
        return run_loss(
            graph,
            stage.head,
            normed,
            self._tokens,
            self._width,
            form,
            chunks=training.loss_chunks,
            # Models with a state in FP32 cast their logits where they are made.
            keeps_logits=training.keeps_logits and not self._family.wide_residual,
            gathered_ranks=1 if training.loss_parallel else training.layout.tensor,
            lasting=self._lasting if training.keeps_wide_logits else None,
            is_compiled=training.kernels == "compiled",
            casts=training.autocast or training.wide_state,
            is_parallel=training.loss_parallel and training.layout.tensor > 1,
        )

    def _optimizer_step(self) -> None:
        training, device = self.training, self.device
        self.stage.place.before_step()
        sizes = [each.size_bytes for each in self.stage.trained]
        is_elsewhere = training.offload_optimizer or training.optimizer_in_backward
        taken = [
            device.take(size, WORKSPACE, "optimizer's temporaries")
            for size in ([] if is_elsewhere else temporary_sizes(training, sizes))
        ]
        for each in taken:
            device.free(each)
        self.stage.place.clear()
