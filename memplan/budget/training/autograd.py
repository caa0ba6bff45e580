"""Reverse-mode differentiation as PyTorch does it, without numbers: which tensors an operator keeps for its backward
pass, and which gradients and temporaries that pass makes, in its order.

A Tensor here is a share in a block of memory. Code that would hold a Python name holds the tensor, and drops it where
the name would go. Operators are recorded only while gradients are wanted and an input needs one.

Rules (PyTorch 2.x, torch/csrc/autograd/engine.cpp, input_buffer.cpp): nodes run backwards in the order they were
made; a second gradient for the same tensor is added in place when nobody else holds the first; what a node kept is
released when it has run; a leaf's first gradient is taken over, later ones are added to it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from memplan.budget.training.device import Block, Device
from memplan.records import dataclass

ACTIVATIONS, GRADIENTS, WORKSPACE = "activations", "gradients", "workspace"


class Tensor:
    """A tensor of the step: its memory, and the operator that made it. `is_gathered_again`: who needs it for a backward
    pass does not keep it, but has it gathered once more.
    """

    __slots__ = ("block", "is_gathered_again", "needs_grad", "node", "size_bytes")

    def __init__(self, block: Block, size_bytes: float, *, needs_grad: bool, node: Node | None = None) -> None:
        self.block = block
        self.size_bytes = size_bytes
        self.needs_grad = needs_grad
        self.node = node
        self.is_gathered_again = False


class Parameter:
    """A weight as operators see it: how large its gradient is, and what happens when there is one."""

    __slots__ = ("grad_bytes", "name", "num_elements", "num_uses", "on_gradient", "size_bytes", "waiting")

    def __init__(
        self,
        name: str,
        size_bytes: float,
        grad_bytes: float,
        on_gradient: Callable[[Parameter, Block], None] | None,
        num_elements: float,
    ) -> None:
        self.name = name
        self.size_bytes = size_bytes
        self.grad_bytes = grad_bytes
        self.on_gradient = on_gradient
        self.num_elements = num_elements
        self.num_uses = 1
        self.waiting: Block | None = None

    @property
    def is_trained(self) -> bool:
        return self.on_gradient is not None


class Node:
    """One recorded operator.

    `grads` says for each input how large its gradient is; None where it is the output's own gradient, passed on.
    """

    __slots__ = (
        "backward_temporaries",
        "grads",
        "inputs",
        "kept",
        "name",
        "parameters",
        "run",
        "takes_gradient",
        "waiting",
    )

    def __init__(
        self,
        name: str,
        inputs: Sequence[Tensor],
        grads: Sequence[float | None],
        kept: list[Block],
        backward_temporaries: Sequence[float],
        parameters: Sequence[Parameter],
    ) -> None:
        self.name = name
        self.inputs = inputs
        self.grads = grads
        self.kept = kept
        self.backward_temporaries = backward_temporaries
        self.parameters = parameters
        self.waiting: Block | None = None
        self.run: Callable[[Block], None] | None = None
        self.takes_gradient = False  # `run` frees the gradient


@dataclass(frozen=True, slots=True, kw_only=True)
class Rerun:
    """What was run without recording, and how it is run again: see `Graph.checkpoint`."""

    body: Callable[[Tensor], Tensor]
    stash: list[Block] | None
    keeps_gradient: list[Block] | None
    is_reentrant: bool


class Graph:
    """Operators on one device, with the graph that is being recorded."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.is_recording = True
        self.is_rerunning = False
        self.num_products = 0
        self.cast_input: Block | None = None  # what the latest FP8 product read
        self._stash: list[Block] | None = None
        self._last_kept = 0  # the moment at which an operator kept something last
        self._nodes: list[Node] = []
        self._leaf_grads: dict[int, Block] = {}

    def tensor(self, size_bytes: float, name: str, *, needs_grad: bool = False, category: str = ACTIVATIONS) -> Tensor:
        """A tensor that no recorded operator made."""
        return Tensor(self.device.take(size_bytes, category, name), size_bytes, needs_grad=needs_grad)

    def alias(self, tensor: Tensor) -> Tensor:
        """One more name for a tensor."""
        self.device.share(tensor.block)
        return tensor

    def drop(self, *tensors: Tensor) -> None:
        """Let names go."""
        for each in tensors:
            self.device.free(each.block)

    def op(
        self,
        name: str,
        size_bytes: float,
        inputs: Sequence[Tensor],
        *,
        keeps: Sequence[Tensor] = (),
        keeps_bytes: Sequence[float] = (),
        keeps_output: bool = False,
        grads: Sequence[float | None] | None = None,
        temporaries: Sequence[float] = (),
        backward_temporaries: Sequence[float] = (),
        parameters: Sequence[Parameter] = (),
        in_place_of: Tensor | None = None,
        is_stashed: bool = False,
    ) -> Tensor:
        """Run an operator and return what it makes.

        keeps: inputs that its backward pass needs; keeps_bytes: other tensors that it makes for that pass.
        in_place_of: the tensor whose memory the output takes over. is_stashed: under selective checkpointing its output
        is kept instead of being computed again.
        """
        device = self.device
        start = device.position
        taken = [device.take(each, WORKSPACE, name) for each in temporaries] if temporaries else ()
        if in_place_of is not None:
            block = device.share(in_place_of.block)
        elif is_stashed and self._stash and self.is_rerunning:
            block = self._stash.pop(0)
        else:
            block = device.take(size_bytes, ACTIVATIONS, name)
        for each in taken:
            device.free(each)
        if is_stashed and self._stash is not None and not self.is_rerunning:
            self._stash.append(device.share(block))
        if not self.is_recording:
            return Tensor(block, size_bytes, needs_grad=False)
        trained = [each for each in parameters if each.on_gradient is not None] if parameters else ()
        needs_grad = bool(trained)
        for entering in inputs:
            needs_grad = needs_grad or entering.needs_grad
        if not needs_grad:
            return Tensor(block, size_bytes, needs_grad=False)
        made = Tensor(block, size_bytes, needs_grad=True)
        again = [each.size_bytes for each in keeps if each.is_gathered_again]
        kept = [device.share(each.block) for each in keeps if not each.is_gathered_again]
        for each_bytes in keeps_bytes:
            kept.append(device.take(each_bytes, ACTIVATIONS, name))
        if keeps_output:
            kept.append(device.share(block))
        if kept:
            # Inputs are kept before an operator runs, what it makes after.
            self._last_kept = device.position if keeps_output or keeps_bytes else start
        sizes: Sequence[float | None] = grads if grads is not None else [each.size_bytes for each in inputs]
        made.node = Node(name, tuple(inputs), sizes, kept, (*again, *backward_temporaries), trained)
        self._nodes.append(made.node)
        return made

    def split(self, name: str, entering: Tensor, sizes: Sequence[float]) -> list[Tensor]:
        """Views of one tensor. Their gradients wait for each other and are then joined in one. The caller keeps it."""
        if not (self.is_recording and entering.needs_grad):
            return [Tensor(self.device.share(entering.block), size, needs_grad=False) for size in sizes]
        arrived: list[Block] = []
        joint = Node(name, (entering,), (entering.size_bytes,), [], (), ())

        def join(grad: Block) -> None:
            made = self.device.take(entering.size_bytes, ACTIVATIONS, f"gradient of {name}")
            for each in arrived:
                self.device.free(each)
            self.pass_on(entering, made)

        def keep(grad: Block) -> None:
            arrived.append(self.device.share(grad))
            if joint.waiting is None:
                joint.waiting = self.device.share(grad)

        joint.run = join
        self._nodes.append(joint)
        views = []
        for size in sizes:
            node = Node(name, (entering,), (None,), [], (), ())
            node.run = keep
            self._nodes.append(node)
            views.append(Tensor(self.device.share(entering.block), size, needs_grad=True, node=node))
        return views

    def mark(self, entering: Tensor, on_backward: Callable[[], None]) -> Tensor:
        """The same tensor, with something to do when its gradient comes by. Takes over what enters."""
        if not (self.is_recording and entering.needs_grad):
            return entering
        node = Node("mark", (entering,), (None,), [], (), ())

        def run(grad: Block) -> None:
            on_backward()
            self.pass_on(entering, self.device.share(grad))

        node.run = run
        self._nodes.append(node)
        return Tensor(entering.block, entering.size_bytes, needs_grad=True, node=node)

    def checkpoint(
        self,
        name: str,
        body: Callable[[Tensor], Tensor],
        entering: Tensor,
        *,
        keeps_gradient: list[Block] | None = None,
        is_selective: bool = False,
        is_offloaded: bool = False,
        is_reentrant: bool = True,
    ) -> Tensor:
        """Run `body` without recording, and again in the backward pass, which keeps only what entered.

        keeps_gradient: where what entered and its gradient are left instead of being freed. is_selective: outputs of
        operators that say so are kept too. is_reentrant: the whole body is run again before anything goes backwards
        and its output is held; else it is run where the first kept tensor is wanted, until the last one is there.

        Source: torch/utils/checkpoint.py of PyTorch 2.1 to 2.13.
        """
        if not self.is_recording:
            return body(entering)
        stash: list[Block] | None = [] if is_selective else None
        self.is_recording, self._stash, self.num_products = False, stash, 0
        made = body(entering)
        self.is_recording, self._stash = True, None
        kept = [] if is_offloaded else [self.device.share(entering.block)]
        node = Node(name, (entering,), (None,), kept, (), ())
        rerun = Rerun(body=body, stash=stash, keeps_gradient=keeps_gradient, is_reentrant=is_reentrant)
        node.takes_gradient = not is_reentrant
        node.run = lambda grad: self._run_again(node, rerun, grad)
        self._nodes.append(node)
        return Tensor(made.block, made.size_bytes, needs_grad=True, node=node)

    def backward(self, loss: Tensor) -> None:
        """Run the recorded graph backwards from `loss` and drop it."""
        nodes, self._nodes = self._nodes, []
        if loss.node is not None:
            loss.node.waiting = self.device.take(loss.size_bytes, GRADIENTS, "gradient of the loss")
        self.drop(loss)
        while nodes:
            self._run(nodes.pop())
        for grad in self._leaf_grads.values():
            self.device.free(grad)
        self._leaf_grads.clear()

    def _run(self, node: Node) -> None:
        grad, node.waiting = node.waiting, None
        if grad is not None:
            if node.run is not None:
                node.run(grad)
            else:
                self._run_operator(node, grad)
            if not node.takes_gradient:
                self.device.free(grad)
        for each in node.kept:
            self.device.free(each)

    def _run_operator(self, node: Node, grad: Block) -> None:
        device = self.device
        temporaries: Sequence[Block] = ()
        if node.backward_temporaries:
            temporaries = [device.take(each, WORKSPACE, node.name) for each in node.backward_temporaries]
        for entering, size in zip(node.inputs, node.grads, strict=True):
            if entering.needs_grad:
                if size is None:
                    made = device.share(grad)
                else:
                    made = device.take(size, ACTIVATIONS, f"gradient of {node.name}")
                self.pass_on(entering, made)
        for parameter in node.parameters:
            self.gradient_of(parameter, device.take(parameter.grad_bytes, GRADIENTS, parameter.name))
        for each in temporaries:
            device.free(each)

    def gradient_of(self, parameter: Parameter, made: Block) -> None:
        """A gradient of a weight; of one that is used twice both are summed in a third first.

        Checked by: a tied linear layer on a CPU, whose peak rises by three times the weight.
        """
        if parameter.num_uses > 1:
            if parameter.waiting is None:
                parameter.waiting = made
                return
            summed = self.device.take(parameter.grad_bytes, GRADIENTS, parameter.name)
            self.device.free(parameter.waiting)
            self.device.free(made)
            parameter.waiting, made = None, summed
        if parameter.on_gradient is not None:
            parameter.on_gradient(parameter, made)

    def pass_on(self, entering: Tensor, made: Block) -> None:
        """A gradient for what entered an operator."""
        if entering.node is None:
            self._add(self._leaf_grads, id(entering), made)
            return
        node = entering.node
        if node.waiting is None:
            node.waiting = made
            return
        node.waiting = self._sum(node.waiting, made)

    def _add(self, where: dict[int, Block], key: int, made: Block) -> None:
        where[key] = self._sum(where[key], made) if key in where else made

    def _sum(self, first: Block, second: Block) -> Block:
        """Both as one: in place of the first if nobody else holds it, else of the second if that is free, else anew."""
        if first.holders > 1:
            third = self.device.take(first.size_bytes, ACTIVATIONS, "sum of gradients")
            self.device.free(first)
            self.device.free(second)
            return third
        self.device.free(second)
        return first

    def _run_again(self, node: Node, rerun: Rerun, grad: Block) -> None:
        """The body once more, recorded, and then backwards."""
        device = self.device
        start = device.position
        again, made, inner = self._rerun(node, rerun)
        if rerun.is_reentrant:
            if made.node is not None:
                made.node.waiting = device.share(grad)
        else:
            device.free(made.block)
            device.undo(max(self._last_kept, start))
            self._go_to_kept(made, inner, grad, start)
        while inner:
            self._run(inner.pop())
        if rerun.is_reentrant:
            device.free(made.block)
        self._hand_on(node.inputs[0], again, rerun.keeps_gradient)

    def _go_to_kept(self, made: Tensor, inner: list[Node], grad: Block, start: int) -> None:
        """What goes backwards before the first kept tensor is wanted has happened before the body was run again."""
        middle = self.device.position
        if made.node is not None:
            made.node.waiting = grad
        else:
            self.device.free(grad)
        while inner and not inner[-1].kept:
            self._run(inner.pop())
        self.device.swap(start, middle)

    def _rerun(self, node: Node, rerun: Rerun) -> tuple[Tensor, Tensor, list[Node]]:
        """What enters, what it makes, and the operators that this records."""
        outer, self._nodes = self._nodes, []
        entering = node.inputs[0]
        if node.kept:
            block = self.device.share(entering.block)
        else:
            block = self.device.take(entering.size_bytes, ACTIVATIONS, "brought back")
        again = Tensor(block, entering.size_bytes, needs_grad=True)
        self.is_rerunning, self._stash, self.num_products = True, rerun.stash, 0
        made = rerun.body(again)
        self.is_rerunning, self._stash = False, None
        inner, self._nodes = self._nodes, outer
        return again, made, inner

    def _hand_on(self, entering: Tensor, again: Tensor, lasting: list[Block] | None) -> None:
        """The gradient of what entered goes on to what made it."""
        self.device.free(again.block)
        arrived = self._leaf_grads.pop(id(again), None)
        if arrived is None:
            return
        if lasting is not None:
            lasting += (self.device.share(arrived), self.device.share(entering.block))
        if entering.needs_grad:
            self.pass_on(entering, arrived)
        else:
            self.device.free(arrived)
