"""What a block is made of, found by trying: the sites of families that store and scale things in their own ways."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_models import FAMILIES, save_model, windows

from memplan.quantize.anatomy import Anatomy, inspect_block, move_scaling
from memplan.quantize.calls import Surroundings
from memplan.quantize.linears import linears
from memplan.quantize.skeleton import Skeleton

_LLAMA_SITES = {
    "norm input_layernorm": ("q_proj", "k_proj", "v_proj"),
    "linear v_proj": ("o_proj",),
    "norm post_attention_layernorm": ("gate_proj", "up_proj"),
    "linear up_proj": ("down_proj",),
}
_SITES = {
    "llama": _LLAMA_SITES,
    "qwen3": _LLAMA_SITES,
    "gemma3": {
        "unit_norm input_layernorm": ("q_proj", "k_proj", "v_proj"),
        "linear v_proj": ("o_proj",),
        "unit_norm pre_feedforward_layernorm": ("gate_proj", "up_proj"),
        "linear up_proj": ("down_proj",),
    },
    "phi3": {
        "norm input_layernorm": ("qkv_proj",),
        "linear qkv_proj": ("o_proj",),
        "norm post_attention_layernorm": ("gate_up_proj",),
        "linear gate_up_proj": ("down_proj",),
    },
    "cohere": {
        "norm input_layernorm": ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"),
        "linear v_proj": ("o_proj",),
        "linear up_proj": ("down_proj",),
    },
    "opt": {
        "norm self_attn_layer_norm": ("q_proj", "k_proj", "v_proj"),
        "linear v_proj": ("out_proj",),
        "norm final_layer_norm": ("fc1",),
        "linear fc1": ("fc2",),  # its activation keeps the scale of what is positive
    },
    # Heads lie interleaved in its one matrix for queries, keys and values, and its activation is not linear.
    "gpt_neox": {
        "norm input_layernorm": ("query_key_value",),
        "norm post_attention_layernorm": ("dense_h_to_4h",),
    },
    "gpt2": {"norm ln_1": ("c_attn",), "linear c_attn": ("c_proj",), "norm ln_2": ("c_fc",)},
}


@pytest.fixture(scope="module", params=FAMILIES)
def opened(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Skeleton]:
    """A family's name, and its skeleton with everything outside of the blocks loaded."""
    skeleton = Skeleton(save_model(request.param, tmp_path_factory.mktemp(request.param)))
    skeleton.load_outside_blocks()
    return request.param, skeleton


def _inspected(skeleton: Skeleton) -> tuple[torch.nn.Module, Anatomy, torch.Tensor, object]:
    hidden_BNH, calls = Surroundings(skeleton).calls(windows(1, 1, 12)[0])
    block, call = skeleton.load(skeleton.blocks[-1]), calls[-1].as_float()
    input_BNH = hidden_BNH.float()
    anatomy = inspect_block(block, lambda trial: call.run(trial, input_BNH), head_dim=skeleton.head_dim(block))
    return block, anatomy, input_BNH, call


def test_sites_are_those_that_the_family_has(opened: tuple[str, Skeleton]) -> None:
    family, skeleton = opened
    _, anatomy, _, _ = _inspected(skeleton)
    found = {
        f"{site.kind} {site.producer.rsplit('.', 1)[-1]}": tuple(name.rsplit(".", 1)[-1] for name in site.consumers)
        for site in anatomy.sites
    }
    assert found == _SITES[family]


def test_every_linear_layer_is_in_one_subset(opened: tuple[str, Skeleton]) -> None:
    _, skeleton = opened
    block, anatomy, _, _ = _inspected(skeleton)
    assert sorted(name for subset in anatomy.subsets for name in subset) == sorted(name for name, _ in linears(block))
    assert anatomy.unreached == ()


def test_moved_scalings_leave_outputs_as_they_were(opened: tuple[str, Skeleton]) -> None:
    _, skeleton = opened
    block, anatomy, input_BNH, call = _inspected(skeleton)
    block = block.float()
    with torch.no_grad():
        before_BNH = call.run(block, input_BNH)  # type: ignore[attr-defined]
        for number, site in enumerate(anatomy.sites):
            num_in = block.get_submodule(site.consumers[0]).weight.numel() // _num_out(block, site.consumers[0])
            scale_P = torch.rand(num_in // site.repeats, generator=torch.Generator().manual_seed(number)) + 0.5
            move_scaling(block, site, scale_P)
        after_BNH = call.run(block, input_BNH)  # type: ignore[attr-defined]
    skeleton.drop(skeleton.blocks[-1])
    assert torch.allclose(before_BNH, after_BNH, atol=2e-4 * float(before_BNH.abs().max()))


def _num_out(block: torch.nn.Module, name: str) -> int:
    from memplan.quantize.linears import weight_of

    return int(weight_of(block.get_submodule(name)).shape[0])


def test_blocks_run_one_by_one_come_to_what_the_whole_model_does(tmp_path: Path) -> None:
    import transformers

    folder = save_model("gemma3", tmp_path)
    skeleton = Skeleton(folder)
    skeleton.load_outside_blocks()
    tokens_BN = windows(1, 2, 24)[0]
    hidden_BNH, calls = Surroundings(skeleton).calls(tokens_BN)
    whole = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    with torch.no_grad():
        for name, call in zip(skeleton.blocks, calls, strict=True):
            hidden_BNH = call.run(skeleton.load(name), hidden_BNH)
        got = skeleton.model.base_model.norm(hidden_BNH)
        assert torch.equal(got, whole.base_model(tokens_BN).last_hidden_state)
