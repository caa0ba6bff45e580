"""Peaks that training runs on real GPUs reported, against the same runs simulated.

Source: the benchmark table of foundation-model-stack/fms-acceleration (a100_80gb.csv, commit 876e2ed6fc): one A100,
torch 2.4.1, transformers 4.48.1, weights, gradients and AdamW's moments in bfloat16, batch 4 of 4096 tokens, every
layer checkpointed, FlashAttention 2; `mem_peak_torch_mem_alloc_in_bytes`, in GiB.
"""

from __future__ import annotations

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers", minversion="5.0")

from memplan.profile.request import TRAINING, ProfileRequest
from memplan.profile.run import profile_model


@pytest.mark.parametrize(
    ("model", "peak_gib"), [("mistralai/Mistral-7B-v0.1", 67.460), ("meta-llama/Meta-Llama-3-8B", 74.802)]
)
def test_a_full_training_step_peaks_where_it_did_on_an_a100(model: str, peak_gib: float) -> None:
    asked = ProfileRequest(
        model=model, offline=True, phases=TRAINING, batch=4, prompt_tokens=4096, attention="flash", checkpointing=True
    )
    timeline, _ = profile_model(asked)
    assert timeline.peak.phase == "optimizer"
    assert timeline.peak.peak.allocated_bytes / 2**30 == pytest.approx(peak_gib, rel=0.001)
