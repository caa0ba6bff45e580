"""The recorder writes what a program makes and frees, and who made it."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from memplan.profile.events import EventLog  # noqa: E402
from memplan.profile.recorder import Recorder  # noqa: E402


def _steps(log: EventLog) -> list[int]:
    """Sizes in the order of events: positive when made, negative when freed."""
    return [log.sizes[event - 1] if event > 0 else -log.sizes[-event - 1] for event in log.order]


def _live_bytes(log: EventLog) -> int:
    return sum(_steps(log))


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_a_storage_is_freed_when_its_last_view_is(device: str) -> None:
    with Recorder(device) as recorder:
        recorder.begin("forward")
        whole = torch.ones(1000, device=device)
        part = whole[10:20]
        del whole
        assert _steps(recorder.log) == [4000]
        del part
        assert _steps(recorder.log) == [4000, -4000]


def test_views_and_writes_in_place_make_nothing() -> None:
    with Recorder("meta") as recorder:
        recorder.begin("forward")
        made = torch.ones(64, device="meta")
        made.view(8, 8).t().add_(1).reshape(8, 8)
        made.mul_(2)
    assert _steps(recorder.log) == [256]


def test_what_is_freed_after_the_recorder_left_is_not_in_the_trace() -> None:
    with Recorder("meta") as recorder:
        recorder.begin("forward")
        made = torch.ones(64, device="meta")
    del made
    assert _steps(recorder.log) == [256]


def test_tensors_of_other_devices_are_not_counted() -> None:
    with Recorder("meta") as recorder:
        recorder.begin("forward")
        torch.ones(64)
    assert _steps(recorder.log) == []


class _Two(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(8, 8, bias=False, device="meta")
        self.second = torch.nn.Linear(8, 8, bias=False, device="meta")

    def forward(self, hidden):  # type: ignore[no-untyped-def]
        return self.second(torch.sin(self.first(hidden)))


def test_an_allocation_knows_its_module_and_the_line_that_made_it() -> None:
    model = _Two()
    with Recorder("meta") as recorder:
        recorder.name_modules(model)
        recorder.begin("forward")
        model(torch.ones(4, 8, device="meta"))
    made = {label.operator: label for label in recorder.log.labels}
    assert [label.module for label in recorder.log.labels if label.operator == "aten.mm"] == ["first", "second"]
    assert made["aten.sin"].module == ""
    assert made["aten.sin"].where.endswith("forward")
    assert "test_recorder.py" in made["aten.sin"].where
    assert made["aten.sin"].shape == (4, 8)
    assert made["aten.sin"].dtype == "float32"


def test_a_backward_pass_is_told_by_the_modules_of_its_forward_pass() -> None:
    model = _Two()
    with Recorder("meta") as recorder:
        recorder.name_modules(model)
        recorder.begin("forward")
        loss = model(torch.ones(4, 8, device="meta")).sum()
        recorder.begin("backward")
        start = len(recorder.log.sizes)
        loss.backward()
    labels = [recorder.log.labels[number] for number in recorder.log.label_of[start:]]
    assert {label.module for label in labels if label.operator == "aten.mm"} == {"first", "second"}
    assert all("test_recorder.py" in label.where for label in labels if label.operator == "aten.mm")


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_gradients_that_meet_are_added_into_the_first_as_without_a_recorder(device: str) -> None:
    leaf = torch.ones(1000, device=device, requires_grad=True)
    with Recorder(device) as recorder:
        recorder.begin("forward")
        middle = leaf * 2
        total = (middle * 3).sum() + (middle * 4).sum() + (middle * 5).sum()
        recorder.begin("backward")
        start = len(recorder.log.sizes)
        total.backward()
    made = [size for size in recorder.log.sizes[start:] if size == 4000]
    assert len(made) == 4  # one for each product with `middle`, one for the leaf; none for the two sums
    if device == "cpu":
        assert leaf.grad is not None
        assert leaf.grad[0] == 24


def test_a_gradient_that_two_branches_hold_is_not_written_into() -> None:
    leaf = torch.ones(1000, device="meta", requires_grad=True)
    with Recorder("meta") as recorder:
        recorder.begin("forward")
        middle = leaf * 2
        total = (middle + middle).mul(3).sum()
        recorder.begin("backward")
        start = len(recorder.log.sizes)
        total.backward()
    assert [size for size in recorder.log.sizes[start:] if size == 4000] == [4000, 4000, 4000]


def test_the_call_of_modules_is_as_it_was_after_the_recorder() -> None:
    before = torch.nn.Module.__call__
    with Recorder("meta"):
        assert torch.nn.Module.__call__ is not before
    assert torch.nn.Module.__call__ is before


def test_many_operators_are_recorded_in_little_time() -> None:
    with Recorder("meta") as recorder:
        recorder.begin("forward")
        tensor = torch.ones(64, device="meta")
        for _ in range(2000):
            tensor = tensor + 1
    assert len(recorder.log.sizes) == 2001
    assert len(recorder.log.labels) < 5
