"""What is loaded, what lies outside torch, what the profiling run leaves reserved, and what is loaded beside."""

from __future__ import annotations

import pytest
from vllm_start import DENSE, LATENT, model, start

from memplan.domain.serving import LoraSettings
from memplan.domain.tensors import Role
from memplan.engines.vllm.extras import Extras, extra_memory
from memplan.engines.vllm.fitted import load_fitted
from memplan.engines.vllm.loading import as_loaded, copied_bytes
from memplan.engines.vllm.overheads import Outside, has_multicast, outside_torch
from memplan.engines.vllm.replay import reserved_by_profiling
from memplan.units import MIB


def outside(version: str, gpu: str = "a100-80g", **asked: object) -> Outside:
    at = start(version, gpu, **asked)
    return outside_torch(at.gpu, at.settings, at.rules, load_fitted(), routed=False)


@pytest.mark.parametrize(
    ("version", "charges_context", "charges_nccl"),
    [
        ("0.2.7", True, True),  # total minus free
        ("0.5.4", False, True),  # free before minus free after
        ("0.6.4", True, True),  # everything outside torch
        ("0.7.3", False, True),  # growth since a snapshot before NCCL
        ("0.8.5", True, True),
        ("0.9.2", False, True),
        ("0.11.2", False, False),  # growth since a snapshot after NCCL
    ],
)
def test_what_is_charged_changed_with_the_accounting(version: str, charges_context: bool, charges_nccl: bool) -> None:
    """Source: determine_num_available_blocks and determine_available_memory at those tags."""
    alone, two = outside(version), outside(version, tp=2)
    assert (alone.charged_bytes >= alone.context_bytes) is charges_context
    assert (alone.uncharged_bytes == 0) is charges_context
    assert two.total_bytes > alone.total_bytes
    assert (two.uncharged_bytes == alone.uncharged_bytes) is charges_nccl


def test_one_rank_talks_to_nobody_and_stages_only_to_their_neighbours() -> None:
    alone, stages, ranks = outside("0.16.0"), outside("0.16.0", pp=2), outside("0.16.0", tp=2)
    assert alone.total_bytes < stages.total_bytes <= ranks.total_bytes


@pytest.mark.parametrize(("gpu", "found"), [("h100", True), ("b200", True), ("a100-80g", False), ("l40s", False)])
def test_multicast_needs_hopper_and_a_switch(gpu: str, found: bool) -> None:
    assert has_multicast(start("0.19.0", gpu).gpu) is found


@pytest.mark.parametrize(("version", "bits"), [("0.9.1", 4 + 8 / 64 + 32 / (64 * 256)), ("0.9.2", 4 + 32 / 64)])
def test_scales_of_bitsandbytes_are_expanded_from_0_9_2_on(version: str, bits: float) -> None:
    """Source: dequantize_dq of bitsandbytes_loader.py: scales of 64 weights, nested in 8 bits or plain in 32."""
    at = start(version, scheme="bnb-nf4")
    loaded = as_loaded(at.spec, at.rules, at.gpu, at.asked.layout)
    storage = next(t.storage for t in loaded.layers[0].tensors if t.storage is not None)
    nested = storage.nested_bits / (64 * storage.nested_group) if storage.nested_group else 0
    assert storage.bits + storage.scale_bits / 64 + nested == pytest.approx(bits)


def test_a_plain_model_is_loaded_as_it_is() -> None:
    at = start("0.19.0")
    assert as_loaded(at.spec, at.rules, at.gpu, at.asked.layout) is at.spec


def test_experts_in_fp4_were_copied_until_0_11_1() -> None:
    """Source: process_weights_after_loading of compressed_tensors_moe.py and modelopt.py."""
    spec = model("nvidia/DeepSeek-V3.2-NVFP4")
    layer = next(layer for layer in spec.layers if any(tensor.role is Role.EXPERT for tensor in layer.tensors))
    assert sum(copied_bytes((layer,), spec, start("0.10.2").rules, 8)) > 0
    assert copied_bytes((layer,), spec, start("0.11.2").rules, 8) == ()


@pytest.mark.parametrize("version", ["0.2.7", "0.5.4", "0.6.3"])
def test_the_replayed_run_reserves_whole_segments_and_no_less_than_it_held(version: str) -> None:
    """Source: PyTorch's caching allocator: blocks over 10 MiB are segments of whole 2 MiB."""
    at = start(version, "a100-80g", context=4096)
    reserved = reserved_by_profiling(at.spec, at.spec.layers[0], at.settings, splits_awq=False)
    logits = 256 * at.spec.vocab_size
    assert reserved % (2 * MIB) == 0
    assert logits * 38 <= reserved < logits * 80


def test_awq_kernels_of_0_3_0_kept_partial_sums() -> None:
    """Source: csrc/quantization/awq/gemm_kernels.cu split every output eight ways."""
    at = start("0.2.7", "a100-80g", scheme="awq-int4-g128", context=8192)
    plain, split = (
        reserved_by_profiling(at.spec, at.spec.layers[0], at.settings, splits_awq=splits) for splits in (False, True)
    )
    widest = 8192 * 2 * 14336 * 2
    assert split - plain > 4 * widest


def extras(version: str, name: str = DENSE, **asked: object) -> Extras:
    at = start(version, name=name, **asked)
    return extra_memory(at.spec.layers, at.asked, at.settings, at.rules, is_last=True)


def test_latent_attention_keeps_both_halves_of_its_projection_in_16_bits() -> None:
    """Source: process_weights_after_loading of the MLA backends, 0.8.0 on. 27 layers, 16 heads, latents of 512."""
    assert extras("0.19.0", LATENT).absorbed_bytes == 27 * 16 * 512 * (128 + 128) * 2
    assert extras("0.19.0", LATENT, tp=2).absorbed_bytes == 27 * 8 * 512 * (128 + 128) * 2
    assert extras("0.6.6", LATENT).absorbed_bytes == 0
    assert extras("0.7.3", LATENT).absorbed_bytes > extras("0.8.5", LATENT).absorbed_bytes


def test_adapters_take_two_stacks_for_every_linear_layer() -> None:
    """Source: vllm/lora/layers.py. Llama 3.1 8B: hidden 4,096, keys and values 1,024 wide, MLP 14,336, 32 layers."""
    widths = (4096 + 4096) * 2 + (4096 + 1024) * 2 + (4096 + 14336) * 3
    found = extras("0.19.0", lora=LoraSettings(max_loras=4, max_rank=16))
    assert found.lora_bytes == 32 * 4 * 16 * widths * 2
    assert extras("0.19.0").lora_bytes == 0


def test_a_draft_model_brings_its_weights_and_its_cache() -> None:
    draft = model("meta-llama/Llama-3.2-1B-Instruct")
    alone = start("0.19.0", context=8192).budget
    both = start("0.19.0", context=8192, draft=draft, num_speculative_tokens=3).budget
    weights = both.group_bytes("weights") - alone.group_bytes("weights")
    assert weights == pytest.approx(draft.parameters * 2, rel=0.01)
    assert both.kv.needed_bytes > alone.kv.needed_bytes
