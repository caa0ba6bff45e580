"""The profiling run: the sampler's path by release, what a logit costs there, images, and buffers that stay."""

from __future__ import annotations

import pytest
from vllm_start import DENSE, ROUTED, VISION, Start, start

from memplan.engines.vllm.profile import ActivationPeak, activation_peak, media_peak, sampler_path
from memplan.engines.vllm.workspaces import cublas_bytes, shared_workspace_bytes, triton_sampler_bytes
from memplan.units import MIB


def peak(at: Start) -> ActivationPeak:
    return activation_peak(
        at.spec, at.spec.layers, at.gpu, at.asked, at.settings, at.rules, kept_mib=0, is_first=True, is_last=True
    )


def path(version: str, gpu: str = "a100-80g", sequences: int = 256, **asked: object) -> str:
    at = start(version, gpu, **asked)
    return sampler_path(at.gpu, at.asked, at.settings, at.rules, sequences)


@pytest.mark.parametrize(
    ("version", "gpu", "sequences", "found"),
    [
        ("0.6.3", "a100-80g", 256, "sort"),
        ("0.16.0", "a100-80g", 256, "sort"),
        ("0.17.1", "a100-80g", 256, "triton"),
        ("0.17.1", "a100-80g", 7, "sort"),
        ("0.21.0", "a100-80g", 256, "flashinfer"),
        ("0.21.0", "mi300x", 256, "triton"),
        ("0.21.0", "v100-32g", 256, "triton"),
        ("0.29.0", "a100-80g", 256, "raw"),
        ("0.33.0", "a100-80g", 256, "flashinfer"),
    ],
)
def test_the_sampler_changed_four_times(version: str, gpu: str, sequences: int, found: str) -> None:
    """Source: vllm/v1/sample/ops/topk_topp_sampler.py and vllm/v1/worker/gpu, as catalog/engines/vllm.yaml says."""
    assert path(version, gpu, sequences) == found


def test_the_sampler_can_be_told() -> None:
    assert path("0.16.0", engine_options={"flashinfer_sampler": True}) == "flashinfer"
    assert path("0.21.0", engine_options={"flashinfer_sampler": False}) == "triton"


@pytest.mark.parametrize(("version", "per_logit"), [("0.16.0", 38), ("0.21.0", 14)])
def test_the_peak_of_many_sequences_is_the_sampler(version: str, per_logit: int) -> None:
    at = start(version, "a100-80g", max_num_seqs=1024, max_num_batched_tokens=2048)
    found = peak(at)
    logits = 1024 * 128_256
    hidden = (2048 + 1024) * 4096 * 2
    assert found.cause == "sampler"
    assert found.sampler_bytes == pytest.approx(logits * per_logit + hidden, rel=0.002)


def test_few_sequences_leave_the_peak_to_the_forward_pass() -> None:
    found = peak(start("0.16.0", max_num_seqs=4, max_num_batched_tokens=16384))
    assert found.cause == "forward pass"
    widest = 16384 * (2 * 14336 + 14336) * 2
    assert widest < found.forward_bytes < 2 * widest


def test_only_the_last_stage_samples() -> None:
    at = start("0.19.0", max_num_seqs=1024, pp=2)
    first = activation_peak(
        at.spec, at.spec.layers[:16], at.gpu, at.asked, at.settings, at.rules, kept_mib=0, is_first=True, is_last=False
    )
    assert first.sampler_bytes == 0


def test_prompt_logprobs_keep_logits_of_every_token() -> None:
    plain, reserved = (peak(start("0.19.0", prompt_logprobs=reserve)) for reserve in (False, True))
    assert reserved.sampler_bytes - plain.sampler_bytes == pytest.approx(8192 * 128_256 * 6, rel=0.01)


@pytest.mark.parametrize(("gpu", "size"), [("a100-80g", 8.125), ("l4", 8.125), ("h100", 32), ("b200", 32)])
def test_cublas_has_a_larger_workspace_on_hopper(gpu: str, size: float) -> None:
    """Source: PyTorch's CublasHandlePool.cpp, the default workspace by compute capability."""
    assert cublas_bytes(start("0.19.0", gpu).gpu) == size * MIB


def test_the_triton_sampler_keeps_a_row_for_every_multiprocessor() -> None:
    """Source: vllm/v1/sample/ops/topk_topp_triton.py. An A100 has 108 multiprocessors."""
    gpu = start("0.19.0", "a100-80g").gpu
    assert triton_sampler_bytes(gpu, 256, 1000) == 108 * 1000 * 4
    assert triton_sampler_bytes(gpu, 16, 1000) == 16 * 1000 * 4


@pytest.mark.parametrize(
    ("version", "name", "tokens"),
    [
        ("0.13.0", ROUTED, 0),
        ("0.14.1", DENSE, 0),
        ("0.14.1", ROUTED, 16384),
        ("0.18.1", ROUTED, 16384),
        ("0.19.0", ROUTED, 32768),
    ],
)
def test_experts_share_one_workspace_in_chunks_until_0_19(version: str, name: str, tokens: int) -> None:
    """Source: vllm/v1/worker/workspace.py; VLLM_FUSED_MOE_CHUNK_SIZE is 16,384 at 0.12.0 and gone with 0.19.

    Qwen3-30B-A3B sends a token to 8 experts of width 768, its hidden size is 2,048.
    """
    at = start(version, name=name, max_num_batched_tokens=32768)
    found = shared_workspace_bytes(at.spec.layers, at.spec, at.gpu, at.settings, at.rules)
    assert found == tokens * 8 * (2048 + 2048) * 2


def test_the_largest_image_is_profiled_as_often_as_a_step_holds_it() -> None:
    at = start("0.19.0", name=VISION, context=32768, media_per_prompt={"video": 0})
    image = next(media for tower in at.spec.towers for media in tower.media if media.modality == "image")
    found = media_peak(at.spec, at.asked, at.settings, 2)
    assert found.items == max(1, at.settings.batched_tokens // image.max_tokens)
    assert found.kept_bytes >= found.items * image.max_tokens * at.spec.hidden_size * 2
    assert found.peak_bytes > found.kept_bytes


def test_no_media_are_profiled_when_none_may_come() -> None:
    at = start("0.19.0", name=VISION, context=32768, media_per_prompt={"image": 0, "video": 0})
    assert media_peak(at.spec, at.asked, at.settings, 2).peak_bytes == 0
