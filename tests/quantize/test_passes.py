"""Passes over a block: what is left out of them, and that it changes nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_families import save_family
from small_models import save_model, windows

from memplan.quantize.calls import Surroundings
from memplan.quantize.passes import Passes, find_tails
from memplan.quantize.skeleton import Skeleton

_TAILS = {
    "llama": {"self_attn": "self_attn.o_proj", "mlp": "mlp.down_proj"},
    "phi3": {"self_attn": "self_attn.o_proj", "mlp": "mlp.down_proj"},
    "gpt_neox": {"attention": "attention.dense", "mlp": "mlp.dense_4h_to_h"},
    "opt": {"self_attn": "self_attn.out_proj"},
    "mixtral": {"self_attn": "self_attn.o_proj"},
}


def _opened(name: str, folder: Path) -> tuple[torch.nn.Module, list[tuple[torch.Tensor, object]]]:
    save = save_model if name in ("llama", "phi3", "gpt_neox", "opt") else save_family
    skeleton = Skeleton(save(name, folder))
    skeleton.load_outside_blocks()
    surroundings = Surroundings(skeleton)
    found = [surroundings.calls(batch) for batch in windows(4, 2, 12)]
    return skeleton.load(skeleton.blocks[0]), [(hidden_BNH, calls[0]) for hidden_BNH, calls in found]


@pytest.mark.parametrize("name", list(_TAILS))
@torch.no_grad()
def test_a_module_whose_last_input_is_known_is_that_layer_alone_and_outputs_stay(name: str, tmp_path: Path) -> None:
    block, batches = _opened(name, tmp_path / "model")
    tails = find_tails(block, lambda trial: batches[0][1].run(trial, batches[0][0]))
    assert {tail.module: tail.layer for tail in tails} == _TAILS[name]
    wanted = list(Passes(block, batches).outputs())
    with Passes(block, batches, tails, tmp_path) as passes:
        for tail in tails:
            with passes.once(tail.layer) as runs:
                for run in runs:
                    run()
        with passes.once():
            assert all("forward" in vars(block.get_submodule(tail.module)) for tail in tails)
        assert all("forward" not in vars(block.get_submodule(tail.module)) for tail in tails)
        assert all(torch.equal(a, b) for a, b in zip(wanted, passes.outputs(), strict=True))
    assert not list(tmp_path.glob("*.bin"))
