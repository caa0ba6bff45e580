"""A profiled step of DeepSeek V4, by hand: 8,192 tokens through layers of 4 lanes, and heads padded to 64."""

from __future__ import annotations

import pytest
from vllm_start import DENSE, start

from memplan.engines.vllm.lanes import gathered_bytes, has_lanes, lanes_peak_bytes, predictor_buffer_bytes
from memplan.engines.vllm.workspaces import shared_workspace_bytes
from memplan.units import GIB, MIB

FLASH = "deepseek-ai/DeepSeek-V4-Flash"
TOKENS = 8192


@pytest.mark.parametrize("tp", [1, 2, 4])
def test_a_step_holds_lanes_padded_heads_and_an_indexers_logits(tp: int) -> None:
    """Source: attention_impl of models/deepseek_v4/attention.py and sparse_attn_indexer of 0.22: hidden 4,096, heads of
    512, an indexer of 64 heads of 128. Compressors write keys and scores for two overlapping groups, in FP32.
    """
    at = start("0.22.0", "h200", FLASH, tp=tp, context=65536, max_num_batched_tokens=TOKENS)
    lanes, heads, indexer = 5 * 4096 * 2, 64 * 512 * 2, 64 * 128
    scores = 4 * (4 * 512 + 4 * 128)
    token = lanes + 2 * heads + indexer * 3 + scores
    assert lanes_peak_bytes(at.spec.layers, at.spec, at.settings) == TOKENS * token + 512 * MIB


def test_the_lanes_of_a_step_are_kept_for_a_predictor() -> None:
    """Source: _mtp_hidden_buffer of models/deepseek_v4, 0.20 to 0.33."""
    at = start("0.22.0", "h200", FLASH, max_num_batched_tokens=TOKENS)
    assert predictor_buffer_bytes(at.spec, at.settings) == TOKENS * 4 * 4096 * 2
    other = start("0.22.0", "h200", DENSE)
    assert predictor_buffer_bytes(other.spec, other.settings) == 0
    assert has_lanes(at.spec.layers)
    assert not has_lanes(other.spec.layers)


def test_attention_gathers_latents_of_four_requests() -> None:
    """Source: forward_mqa of models/deepseek_v4/nvidia/flashmla.py: a fourth of the context, the window, the step."""
    at = start("0.22.0", "h200", FLASH, context=800000, max_num_batched_tokens=TOKENS)
    assert gathered_bytes(at.spec.layers, at.settings) == 4 * (200000 + 128 + TOKENS) * 512 * 2


def test_its_experts_share_the_workspace_but_for_data_centre_blackwell() -> None:
    """Source: MarlinExperts.workspace_shapes; select_deepseek_v4_mxfp4_moe_backend. 6 experts for a token."""
    asked = {"context": 8192, "max_num_batched_tokens": TOKENS}
    hopper, blackwell = (start("0.22.0", gpu, FLASH, tp=2, **asked) for gpu in ("h200", "b200"))
    sizes = [
        shared_workspace_bytes(at.spec.layers, at.spec, at.gpu, at.settings, at.rules) for at in (hopper, blackwell)
    ]
    assert sizes[0] == TOKENS * 6 * (4096 + 4096) * 2 == 0.75 * GIB
    assert sizes[1] < sizes[0] // 4
