"""Who holds what stays: the name at the end of the chain of Python objects that refer to a tensor."""

from __future__ import annotations

import gc
import types
from collections.abc import Callable, Iterator

import pytest

torch = pytest.importorskip("torch")

import memplan.profile  # noqa: E402
from memplan.profile.attach import Attached  # noqa: E402
from memplan.profile.device_memory import RehearsedMemory  # noqa: E402
from memplan.profile.owners import Growth, owners  # noqa: E402
from memplan.units import KIB  # noqa: E402

SIDE = 191  # of tensors that no other test makes
kept_by_the_module: list[torch.Tensor] = []


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cache: list[torch.Tensor] = []


class Plain:
    def __init__(self, tensor: torch.Tensor) -> None:
        self.last = tensor


@pytest.fixture(autouse=True)
def _emptied() -> Iterator[None]:
    yield
    kept_by_the_module.clear()


def look(*, seconds: float = 20.0) -> str:
    found = owners(lambda tensor: "it" if tensor.shape == (SIDE,) else None, seconds=seconds)
    return found.get("it", "")


def made() -> torch.Tensor:
    return torch.ones(SIDE)


def test_a_global_is_named_with_its_file() -> None:
    kept_by_the_module.append(made())
    assert look() == "list `kept_by_the_module`, a global of test_owners.py"


def test_a_local_is_named_with_its_function_and_left_as_it_was() -> None:
    nested = {"deep": [(made(),)]}
    assert look() == (
        "dict `nested`, a local of test_a_local_is_named_with_its_function_and_left_as_it_was in test_owners.py"
    )
    del nested
    gc.collect()
    assert look() == ""


def test_a_local_that_is_the_tensor_itself_gives_way_to_what_keeps_it() -> None:
    direct = made()
    assert look().startswith("`direct`, a local of test_a_local")
    kept_by_the_module.append(direct)
    assert look().startswith("list `kept_by_the_module`, a global")


def test_an_attribute_of_a_model_is_named_with_its_class() -> None:
    net = Net()
    net.cache.append(made())
    assert look() == "list `cache`, an attribute of Net"


def test_an_object_is_named_by_who_has_it_and_by_its_attribute() -> None:
    plain = Plain(made())
    said = look()
    assert said.startswith("Plain `plain`, a local of")
    assert said.endswith("(`last`, an attribute of Plain)")
    del plain


def test_a_closure_is_named_with_its_function() -> None:
    def outer() -> Callable[[], int]:
        seen = [made()]
        return lambda: len(seen)

    hook = outer()
    assert "`seen`, in the closure of" in look()
    assert hook() == 1


def test_a_generator_is_named() -> None:
    def steps() -> Iterator[int]:
        held = [made()]
        yield len(held)

    running = steps()
    next(running)
    assert isinstance(running, types.GeneratorType)
    assert look().startswith("list in the generator steps of test_owners.py")


def test_what_only_a_graph_holds_is_named_by_the_tensors_that_came_out_of_it() -> None:
    weight = torch.ones(SIDE, requires_grad=True)
    losses = [(weight.exp() * 2).sum() for _ in range(3)]
    found = owners(lambda tensor: None, ["lost"], seconds=20.0)
    assert found["lost"].startswith("the autograd graph of list `losses`, a local of test_what_only")
    assert len(losses) == 3


def test_a_search_ends_when_its_time_is_up() -> None:
    kept_by_the_module.append(made())
    assert look(seconds=0.0) == ""


def test_growth_is_what_rises_from_run_to_run_after_the_first() -> None:
    growth = Growth()
    assert [growth.begins("forward", size * KIB) for size in (0, 500, 500, 500)] == [False] * 4
    assert not growth.is_growing
    growth = Growth()
    looks = [growth.begins("forward", number * 64 * KIB) for number in range(13)]
    assert [number + 1 for number, looked in enumerate(looks) if looked] == [3, 4, 6, 8, 12]
    assert growth.is_growing


def leaking_training(steps: int) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(256, 256), torch.nn.ReLU(), torch.nn.Linear(256, 256))
    optimizer = torch.optim.SGD(model.parameters())
    logged = []
    for _ in range(steps):
        loss = model(torch.ones(256, 256)).sum()
        logged.append(loss)
        loss.backward(retain_graph=True)
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("rehearsed", [False, True])
def test_a_leak_in_a_program_is_told_with_its_owner(rehearsed: bool) -> None:
    memory = RehearsedMemory() if rehearsed else None
    with Attached("mine", "cpu", memory=memory) as recording:
        leaking_training(5)
    assert recording.timeline is not None
    (leak,) = [finding for finding in recording.timeline.findings if finding.code == "leak"]
    assert "Held by the autograd graph of list `logged`, a local of leaking_training in test_owners.py" in leak.evidence


def test_a_leak_in_a_block_is_told_with_its_owner() -> None:
    model = torch.nn.Linear(256, 256)
    with memplan.profile.record("mine", device="cpu", show=False) as recording:
        for _ in range(5):
            with memplan.profile.record("prefill"), torch.no_grad():
                kept_by_the_module.append(model(torch.ones(256, 256)))
    assert recording.timeline is not None
    (leak,) = [finding for finding in recording.timeline.findings if finding.code == "leak"]
    assert "Held by list `kept_by_the_module`, a global of test_owners.py" in leak.evidence


def test_a_program_that_keeps_nothing_is_not_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*given: object) -> None:
        raise AssertionError("searched")

    monkeypatch.setattr("memplan.profile.recorder.owners", fails)
    model = torch.nn.Linear(256, 256)
    with Attached("mine", "cpu") as recording:
        for _ in range(5):
            model(torch.ones(256, 256)).sum().backward()
            model.zero_grad()
    assert recording.timeline is not None
