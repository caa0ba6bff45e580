"""Adapters beside linear layers: which of them get one, and what they are made of."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from memplan.errors import UnsupportedModel, UsageError  # noqa: E402
from memplan.profile.adapters import AdaptedLinear, add_adapters  # noqa: E402


class Attention(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_proj = torch.nn.Linear(8, 16, dtype=torch.bfloat16)
        self.v_proj = torch.nn.Linear(8, 4, dtype=torch.bfloat16)


def adapted(model: torch.nn.Module) -> list[str]:
    return [name for name, each in model.named_modules() if isinstance(each, AdaptedLinear)]


def test_named_layers_alone_are_adapted() -> None:
    model = torch.nn.Sequential(Attention(), Attention())
    add_adapters(model, 2, ("v_proj",))
    assert adapted(model) == ["0.v_proj", "1.v_proj"]


def test_without_names_all_linear_layers_are_adapted_and_nothing_else_is_trained() -> None:
    model = torch.nn.Sequential(Attention())
    add_adapters(model, 2)
    assert adapted(model) == ["0.q_proj", "0.v_proj"]
    trained = [each for each in model.parameters() if each.requires_grad]
    assert sum(each.numel() for each in trained) == 2 * (8 + 16) + 2 * (8 + 4)
    assert {each.dtype for each in trained} == {torch.float32}


def test_a_name_that_no_linear_layer_has_is_said_with_one_that_is_near() -> None:
    with pytest.raises(UsageError, match="is named `q_prj`") as caught:
        add_adapters(torch.nn.Sequential(Attention()), 2, ("q_prj", "v_proj"))
    assert "q_proj" in str(caught.value.hint)


def test_a_model_without_linear_layers_has_nothing_to_adapt() -> None:
    with pytest.raises(UnsupportedModel):
        add_adapters(torch.nn.Sequential(torch.nn.ReLU()), 2)
