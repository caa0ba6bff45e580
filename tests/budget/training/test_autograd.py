"""Reverse-mode differentiation without numbers: which memory is taken and let go, in which order, to the block."""

from __future__ import annotations

import pytest

from memplan.budget.training.autograd import Graph, Parameter, Tensor
from memplan.budget.training.device import Block, Device

BLOCK = 512


class Kept:
    """Takes gradients over, as a placement does."""

    def __init__(self) -> None:
        self.grads: list[Block] = []

    def __call__(self, parameter: Parameter, grad: Block) -> None:
        self.grads.append(grad)


@pytest.fixture
def graph() -> Graph:
    device = Device()
    device.begin("forward")
    return Graph(device)


def weight(kept: Kept | None = None, blocks: int = 4) -> Parameter:
    return Parameter("weight", blocks * BLOCK, blocks * BLOCK, kept, blocks)


def blocks(graph: Graph) -> int:
    """How many blocks are allocated."""
    return graph.device.allocated_bytes // BLOCK


def peak(graph: Graph) -> int:
    return max(phase.peak_bytes for phase in graph.device.phases()) // BLOCK


def leaf(graph: Graph, size: int = 1) -> Tensor:
    return graph.tensor(size * BLOCK, "leaf", needs_grad=True)


def after(graph: Graph, entering: Tensor, size: int = 1, **how: object) -> Tensor:
    """An operator whose input is not named afterwards."""
    made = graph.op("operator", size * BLOCK, (entering,), **how)  # type: ignore[arg-type]
    graph.drop(entering)
    return made


def test_a_size_is_rounded_up_to_a_block(graph: Graph) -> None:
    graph.tensor(1, "small")
    assert graph.device.allocated_bytes == BLOCK


def test_an_input_that_no_backward_pass_needs_goes_with_its_name(graph: Graph) -> None:
    after(graph, leaf(graph, 8))
    assert blocks(graph) == 1


def test_an_input_that_is_kept_stays_until_its_operator_ran_backwards(graph: Graph) -> None:
    entering = leaf(graph, 8)
    made = after(graph, entering, keeps=(entering,))
    assert blocks(graph) == 9
    graph.backward(made)
    assert blocks(graph) == 0


def test_nothing_is_kept_where_no_input_needs_a_gradient(graph: Graph) -> None:
    entering = graph.tensor(8 * BLOCK, "data")
    made = after(graph, entering, keeps=(entering,), keeps_output=True)
    assert (made.needs_grad, blocks(graph)) == (False, 1)


def test_an_operator_holds_its_gradient_while_it_makes_its_inputs_one(graph: Graph) -> None:
    graph.backward(after(graph, after(graph, leaf(graph, 8), 8), 1))
    # 8 of the gradient that comes, 8 of the one that it makes of it.
    assert peak(graph) == 16


def test_a_gradient_that_is_passed_on_takes_nothing(graph: Graph) -> None:
    graph.backward(after(graph, after(graph, leaf(graph, 4), 4, grads=(None,)), 4, grads=(None,)))
    assert peak(graph) == 8  # two tensors of the forward pass; the gradient is one block


def test_a_second_gradient_is_added_to_the_first_in_place(graph: Graph) -> None:
    shared = after(graph, leaf(graph, 8), 8)
    first, second = (graph.op("branch", BLOCK, (shared,)) for _ in range(2))
    graph.drop(shared)
    joined = graph.op("join", BLOCK, (first, second))
    graph.drop(first, second)
    assert blocks(graph) == 1
    graph.device.begin("backward")
    graph.backward(joined)
    # Both branches' gradients of 8 meet, beside the one of 1 that the second still holds.
    assert graph.device.phases()[1].peak_bytes == 17 * BLOCK


def test_a_first_gradient_that_somebody_else_holds_is_not_written_over(graph: Graph) -> None:
    """A residual hands its own gradient to both sides; the branch's gradient then needs a third tensor."""
    state = after(graph, leaf(graph, 8), 8)
    branch = graph.op("branch", 8 * BLOCK, (state,))
    summed = graph.op("residual", 8 * BLOCK, (state, branch), grads=(None, None))
    graph.drop(state, branch)
    graph.backward(summed)
    names = [block.name for block in graph.device.blocks]
    assert names.count("sum of gradients") == 1


def test_a_trained_weight_keeps_its_gradient_and_a_frozen_one_has_none(graph: Graph) -> None:
    kept = Kept()
    graph.backward(after(graph, leaf(graph), parameters=(weight(kept),)))
    assert (len(kept.grads), blocks(graph)) == (1, 4)
    graph.backward(after(graph, leaf(graph), parameters=(weight(),)))
    assert blocks(graph) == 4


def test_both_gradients_of_a_tied_weight_and_their_sum_are_there_together(graph: Graph) -> None:
    kept = Kept()
    tied = weight(kept)
    tied.num_uses = 2
    graph.device.begin("backward")
    graph.backward(after(graph, after(graph, leaf(graph), parameters=(tied,)), parameters=(tied,)))
    assert (len(kept.grads), blocks(graph)) == (1, 4)
    assert graph.device.phases()[1].peak_bytes >= 12 * BLOCK


def test_the_gradient_of_what_no_operator_made_goes_with_the_backward_pass(graph: Graph) -> None:
    graph.backward(after(graph, leaf(graph, 4)))
    assert blocks(graph) == 0


def test_gradients_of_views_wait_for_each_other_and_are_joined(graph: Graph) -> None:
    fused = after(graph, leaf(graph, 6), 6)
    views = graph.split("split", fused, (2 * BLOCK, 4 * BLOCK))
    graph.drop(fused)
    assert blocks(graph) == 6
    sides = [graph.op("side", each.size_bytes, (each,)) for each in views]
    graph.drop(*views)
    joined = graph.op("join", BLOCK, sides)
    graph.drop(*sides)
    assert blocks(graph) == 1
    graph.device.begin("backward")
    graph.backward(joined)
    held = graph.device.phases()[1].held
    assert held == {("activations", "gradient of side"): 6 * BLOCK, ("activations", "gradient of split"): 6 * BLOCK}


def layer(graph: Graph, kept: Kept) -> object:
    def body(entering: Tensor) -> Tensor:
        first = graph.op("first", 8 * BLOCK, (entering,), keeps=(entering,), parameters=(weight(kept),))
        second = graph.op("second", 8 * BLOCK, (first,), keeps=(first,), parameters=(weight(kept),))
        graph.drop(first)
        last = graph.op("last", 2 * BLOCK, (second,))
        graph.drop(second)
        return last

    return body


def test_a_checkpoint_keeps_only_what_entered(graph: Graph) -> None:
    entering = leaf(graph, 2)
    made = graph.checkpoint("layer", layer(graph, Kept()), entering)  # type: ignore[arg-type]
    graph.drop(entering)
    assert blocks(graph) == 4
    graph.drop(made)
    assert blocks(graph) == 2


@pytest.mark.parametrize(("is_reentrant", "expected"), [(True, 34), (False, 30)])
def test_the_older_checkpoint_holds_its_output_and_the_gradient_of_it(
    graph: Graph, is_reentrant: bool, expected: int
) -> None:
    """Backwards through `second`: 2 that entered, 8 kept, two gradients of 8, a weight's of 4; in the older form also 2
    that were computed again, and 2 of their gradient.
    """
    entering, kept = leaf(graph, 2), Kept()
    made = graph.checkpoint("layer", layer(graph, kept), entering, is_reentrant=is_reentrant)  # type: ignore[arg-type]
    graph.drop(entering)
    graph.device.begin("backward")
    graph.backward(made)
    assert (len(kept.grads), blocks(graph)) == (2, 8)
    assert graph.device.phases()[1].peak_bytes == expected * BLOCK


def test_the_newer_checkpoint_does_not_compute_what_nothing_keeps(graph: Graph) -> None:
    """`last` keeps nothing: its gradient is made first, then the layer is run again as far as `second`'s input."""
    entering = leaf(graph, 2)
    made = graph.checkpoint("layer", layer(graph, Kept()), entering, is_reentrant=False)  # type: ignore[arg-type]
    graph.drop(entering)
    start = graph.device.position
    graph.backward(made)
    order = [graph.device.blocks[number].name for number in graph.device.events()[start:] if number >= 0]
    assert order[:3] == ["gradient of the loss", "gradient of last", "first"]
    assert not {"second", "last"} & set(order)


def test_selective_checkpointing_takes_what_it_stashed_in_place_of_computing_it(graph: Graph) -> None:
    def body(entering: Tensor) -> Tensor:
        first = graph.op("product", 8 * BLOCK, (entering,), keeps=(entering,), is_stashed=True)
        made = graph.op("other", BLOCK, (first,), keeps=(first,))
        graph.drop(first)
        return made

    entering = leaf(graph, 2)
    made = graph.checkpoint("layer", body, entering, is_selective=True)
    graph.drop(entering)
    assert blocks(graph) == 2 + 8 + 1
    start = graph.device.position
    graph.backward(made)
    order = [graph.device.blocks[number].name for number in graph.device.events()[start:] if number >= 0]
    assert {"product", "other"} & set(order) == {"other"}
    assert blocks(graph) == 0


def test_an_offloaded_checkpoint_keeps_nothing_and_brings_back_what_entered(graph: Graph) -> None:
    entering = leaf(graph, 2)
    made = graph.checkpoint("layer", layer(graph, Kept()), entering, is_offloaded=True)  # type: ignore[arg-type]
    graph.drop(entering)
    assert blocks(graph) == 2  # its output
    graph.backward(made)
    assert "brought back" in [block.name for block in graph.device.blocks]


def test_two_moments_can_change_places(graph: Graph) -> None:
    device = graph.device
    start = device.position
    device.free(device.take(BLOCK, "a", "first"))
    middle = device.position
    device.free(device.take(BLOCK, "a", "second"))
    device.swap(start, middle)
    assert [device.blocks[number].name for number in device.events() if number >= 0] == ["second", "first"]


def test_what_is_undone_leaves_the_frees_of_what_was_there_before(graph: Graph) -> None:
    device = graph.device
    before = device.take(BLOCK, "a", "before")
    start = device.position
    device.free(device.take(BLOCK, "a", "undone"))
    device.free(before)
    device.undo(start)
    assert device.events() == (before.number, ~before.number)
