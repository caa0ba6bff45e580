"""The factor of an inverse: it is that, in the matrix' own memory, and the same on every number of threads."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from memplan.quantize.factor import inverse_factor, reorder, turn_around


@pytest.fixture(autouse=True)
def _threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def hessian(num_in: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    input_TI = torch.randn((2 * num_in, num_in), generator=generator)
    return input_TI.t() @ input_TI / (2 * num_in)


@pytest.mark.parametrize("num_in", [1, 2, 80, 512, 513, 700, 1600])
def test_the_factor_is_that_of_the_inverse(num_in: int) -> None:
    hessian_II = hessian(num_in)
    before_II = hessian_II.clone()
    upper_II, added = inverse_factor(hessian_II, 0.01)
    assert upper_II is not None
    assert upper_II.data_ptr() == hessian_II.data_ptr()
    assert torch.equal(upper_II.triu(), upper_II)
    inverse_II = torch.linalg.inv((before_II + added * torch.eye(num_in)).double())
    found_II = (upper_II.t() @ upper_II).double()
    assert torch.allclose(found_II, inverse_II, rtol=1e-3, atol=1e-4 * float(inverse_II.abs().max()))


def test_the_factor_is_the_same_to_the_last_bit_on_one_thread_and_on_two() -> None:
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        upper_II, _ = inverse_factor(hessian(1100), 0.01)
        assert upper_II is not None
        found.append(upper_II)
        assert torch.get_num_threads() == threads
    assert torch.equal(*found)


def test_damping_that_is_not_enough_is_raised_and_leaves_nothing_behind() -> None:
    generator = torch.Generator().manual_seed(0)
    input_TI = torch.randn((40, 600), generator=generator)
    hessian_II = input_TI.t() @ input_TI
    hessian_II -= 0.05 * float(hessian_II.diagonal().mean()) * torch.eye(600)
    before_II = hessian_II.clone()
    upper_II, added = inverse_factor(hessian_II, 0.01)
    assert upper_II is not None
    assert added == pytest.approx(0.1 * float(before_II.diagonal().mean()), rel=1e-5)
    again_II, _ = inverse_factor(before_II, 0.1)
    assert again_II is not None
    assert torch.equal(upper_II, again_II)


def test_no_damping_makes_up_for_what_is_not_finite_or_far_below_zero() -> None:
    broken_II = hessian(40)
    broken_II[3, 3] = torch.nan
    assert inverse_factor(broken_II, 0.01) == (None, 0.0)
    assert inverse_factor(torch.full((600, 600), 5.0) - 3.0 * torch.eye(600), 0.01) == (None, 0.0)


@pytest.mark.parametrize("num_in", [1, 5, 1030])
def test_orders_are_changed_in_place(num_in: int) -> None:
    matrix_II = torch.arange(num_in * num_in, dtype=torch.float32).reshape(num_in, num_in)
    order_I = torch.randperm(num_in, generator=torch.Generator().manual_seed(0))
    ordered_II, turned_II = matrix_II.clone(), matrix_II.clone()
    reorder(ordered_II, order_I)
    turn_around(turned_II)
    assert torch.equal(ordered_II, matrix_II[order_I][:, order_I])
    assert torch.equal(turned_II, matrix_II.flip(0, 1))
