"""Models of different families run block by block: the logits are those of the whole model, to the last bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from memplan.errors import UnsupportedModel  # noqa: E402 - after the skip
from memplan.quantize.forward import StreamedModel, WholeModel  # noqa: E402
from memplan.quantize.kv_rounding import KvRounding  # noqa: E402

_SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# What each family has that others have not: soft caps and windows, norms of heads, positions learned and fused
# projections, experts, shared experts, parallel branches, an embedding scale.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "gemma2": {"head_dim": 8, "sliding_window": 16, "query_pre_attn_scalar": 8},
    "qwen3": {"head_dim": 8},
    "gpt2": {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 256},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    "cohere": {},
    "granite": {"embedding_multiplier": 3.0, "logits_scaling": 2.0},
    "phi3": {},
    "olmo2": {},
}
# Experts are one tensor in the model and many in the checkpoint: these are run whole only.


@pytest.fixture
def family(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder with a tiny model of a family, its weights drawn at random."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(request.param, **_SIZES | FAMILIES[request.param])
    model = transformers.AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(tmp_path)
    return tmp_path


def has_experts(folder: Path) -> bool:
    """Whether a model has routed experts."""
    return "experts" in (folder / "config.json").read_text()


def tokens() -> torch.Tensor:
    return torch.randint(3, 96, (40, 64), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("family", FAMILIES, indirect=True)
def test_logits_are_those_of_the_whole_model(family: Path) -> None:
    whole, streamed = (torch.cat(list(kind(family).logits(tokens()))) for kind in (WholeModel, StreamedModel))
    assert whole.shape == (40, 64, 96)
    # Experts are multiplied apart here and by slices of one tensor there: another order of the same sums.
    torch.testing.assert_close(streamed, whole, rtol=0, atol=1e-6 if has_experts(family) else 0)
    assert whole.std() > 0.001


@pytest.mark.parametrize("family", ["llama"], indirect=True)
def test_blocks_have_been_run_and_let_go_of_when_logits_are_handed_out(family: Path) -> None:
    done: list[tuple[int, int]] = []
    model = StreamedModel(family)
    logits = model.logits(tokens(), lambda *step: done.append(step))
    assert done == [(1, 3), (2, 3), (3, 3)]
    blocks = [model.skeleton.model.get_submodule(name) for name in model.skeleton.blocks]
    assert {value.device.type for block in blocks for value in block.parameters()} == {"meta"}
    assert sum(len(part) for part in logits) == 40


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "gpt2"], indirect=True)
def test_a_rounded_cache_changes_logits_alike_both_ways(family: Path) -> None:
    plain = torch.cat(list(WholeModel(family).logits(tokens())))
    rounded = [
        torch.cat(list(kind(family, kv=KvRounding("int8"), calibration_NT=tokens()[:4]).logits(tokens())))
        for kind in (WholeModel, StreamedModel)
    ]
    assert torch.equal(*rounded)
    assert 0 < (rounded[0] - plain).abs().max() < plain.std()


@pytest.mark.parametrize("family", ["gpt2"], indirect=True)
def test_a_family_that_hands_its_cache_on_otherwise_is_refused_block_by_block(family: Path) -> None:
    with pytest.raises(UnsupportedModel, match="hands its cache to its blocks"):
        list(StreamedModel(family, kv=KvRounding("int8"), calibration_NT=tokens()[:4]).logits(tokens()))
