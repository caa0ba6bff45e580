"""The widest moment of a layer, by hand."""

from __future__ import annotations

import pytest

from memplan.budget.activations import ForwardRules, forward_peak_bytes
from memplan.domain.model import ModelSpec
from memplan.introspect.resolve import resolve_model

TOKENS = 1000
RULES = ForwardRules(hidden_copies=3)


def elements(spec: ModelSpec, kind: str, ranks: int = 1, *, alone: bool = True) -> float:
    """Elements per token of the layers of one kind, hidden states aside."""
    layers = tuple(layer for layer in spec.layers if layer.kind == kind)
    assert layers
    assert not alone or all(layer.mlp is None for layer in layers)
    return forward_peak_bytes(layers, spec, TOKENS, ranks, 2, RULES) / 2 / TOKENS - 3 * spec.hidden_size


@pytest.mark.parametrize(
    ("name", "kind", "projected", "convolved", "output"),
    [
        ("mistralai/Mamba-Codestral-7B-v0.1", "mamba2", 18560, 10240, 8192),
        ("tiiuae/falcon-mamba-7b-instruct", "mamba1", 16384, 8192, 8192),
        ("nvidia/NVIDIA-Nemotron-Nano-9B-v2", "mamba2", 22656, 12288, 10240),
    ],
)
def test_a_recurrent_mixer_holds_its_inputs_its_convolution_and_its_output(
    name: str, kind: str, projected: int, convolved: int, output: int
) -> None:
    """Widths of in_proj, conv1d and out_proj of the published checkpoints."""
    spec = resolve_model(name, offline=True)
    assert elements(spec, kind) == projected + convolved + output
    assert elements(spec, kind, ranks=2) == pytest.approx((projected + convolved + output) / 2)


def test_a_recurrent_mixer_decides_only_where_nothing_is_wider() -> None:
    """Qwen3.5-0.8B: the mixer's 6,144 + 2,048 + 2 x 16 + 6,144 + 2,048 elements are more than the MLP's 3 x 3,584."""
    spec = resolve_model("Qwen/Qwen3.5-0.8B", offline=True)
    assert elements(spec, "gated_delta_net", alone=False) == 6144 + 2048 + 2 * 16 + 6144 + 2048
    dense = resolve_model("ibm-granite/granite-4.0-h-micro", offline=True)
    assert elements(dense, "mamba2", alone=False) == 3 * 8192
