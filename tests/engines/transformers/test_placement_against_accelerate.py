"""Where modules go, against the two real algorithms: accelerate's, which transformers used until 4.57, and the one that
transformers has carried itself since.

Both ask the driver what is free, and drop GPUs that are not there. Only that question is answered for them here.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator

import pytest

from memplan.engines.transformers.placement import (
    CPU,
    DISK,
    Device,
    PlacementRules,
    balanced_memory,
    module_sizes,
    place,
)

pytest.importorskip("torch")
accelerate = pytest.importorskip("accelerate")
integration = pytest.importorskip("transformers.integrations.accelerate")

from accelerate.utils import modeling  # noqa: E402
from real_models import FAMILIES, build, config_of, tree_of  # noqa: E402

ACCELERATE = PlacementRules(slack="first", opens_always=False)
OF_ITS_OWN = PlacementRules(slack="leaf", opens_always=True)
MODES = ("auto", "balanced_low_0", "sequential")
CASES_OF_A_FAMILY = 12

pytestmark = pytest.mark.skipif(
    not hasattr(integration, "get_balanced_memory"), reason="transformers before 5.0 has no algorithm of its own"
)


@pytest.fixture(autouse=True)
def _pretend_that_the_gpus_are_there(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def as_given(max_memory: dict[Device, float]) -> dict[Device, float]:
        return dict(max_memory)

    monkeypatch.setattr(modeling, "get_max_memory", as_given)
    monkeypatch.setattr(integration, "get_max_memory", as_given)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # accelerate warns of buffers that find no room
        yield


def memory_maps(total: int, seed: str) -> Iterator[tuple[str, dict[Device, float]]]:
    """Up to four GPUs, equal and unequal, with and without room for the whole model, and a host that may be small."""
    draw = random.Random(seed)
    for index in range(CASES_OF_A_FAMILY):
        num_gpus, most = 1 + index % 4, 0.15 if index < 4 else 1.2
        memory: dict[Device, float] = {gpu: int(total * draw.uniform(0.05, most)) for gpu in range(num_gpus)}
        if draw.random() < 0.5:
            memory = dict.fromkeys(memory, memory[0])
        memory[CPU] = int(total * draw.uniform(0.05, most))
        yield MODES[index % 3], memory


def by_accelerate(model: object, memory: dict[Device, float], mode: str) -> dict[str, Device]:
    whole = model._no_split_modules
    if mode != "sequential":
        memory = accelerate.utils.get_balanced_memory(
            model, max_memory=memory, no_split_module_classes=whole, low_zero=mode == "balanced_low_0"
        )
    return accelerate.infer_auto_device_map(model, max_memory=memory, no_split_module_classes=whole, clean_result=False)


def by_transformers(model: object, memory: dict[Device, float], mode: str) -> dict[str, Device]:
    whole = set(model._no_split_modules)
    if mode != "sequential":
        memory = integration.get_balanced_memory(
            model, max_memory=memory, no_split_module_classes=whole, low_zero=mode == "balanced_low_0"
        )
    return integration.infer_auto_device_map(
        model, max_memory=memory, no_split_module_classes=whole, clean_result=False
    )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("real", "rules"), [(by_accelerate, ACCELERATE), (by_transformers, OF_ITS_OWN)])
def test_every_module_goes_where_the_real_algorithm_puts_it(
    family: str, real: Callable[[object, dict[Device, float], str], dict[str, Device]], rules: PlacementRules
) -> None:
    model = build(config_of(family))
    tree = tree_of(model)
    seen: set[Device] = set()
    for mode, memory in memory_maps(module_sizes(tree)[""], family):
        expected = real(model, dict(memory), mode)
        shared = balanced_memory(tree, memory, mode, rules, is_given=True)  # type: ignore[arg-type]
        assert place(tree, shared, rules) == expected, (mode, memory)
        seen |= set(expected.values())
    assert {0, 1, CPU, DISK} <= seen  # the cases reach every kind of device
