"""What is loaded, what lies outside torch, what the profiling run leaves reserved, and what is loaded beside."""

from __future__ import annotations

import pytest
from vllm_start import DENSE, LATENT, model, start

from memplan.domain.serving import LoraSettings
from memplan.domain.tensors import Role
from memplan.engines.vllm.extras import Extras, extra_memory
from memplan.engines.vllm.fitted import load_fitted
from memplan.engines.vllm.loading import as_loaded, copied_bytes
from memplan.engines.vllm.overheads import Outside, has_multicast, nccl_bytes, outside_torch
from memplan.engines.vllm.rank import rotary_bytes
from memplan.engines.vllm.replay import Habits, habits_of, reserved_by_profiling
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


@pytest.mark.parametrize(
    ("version", "narrow", "wide"),
    [("0.8.4", "h800", "h100"), ("0.20.2", "h800", "h100"), ("0.8.4", "a800-80g", "a100-80g")],
)
def test_eight_links_have_two_thirds_of_the_channels(version: str, narrow: str, wide: str) -> None:
    """Source: logs of H800 say 16 coll channels, those of H100 and A100 say 24."""
    kept = []
    for gpu in (narrow, wide):
        at, fitted = start(version, gpu, tp=8), load_fitted()
        fixed = 0.0 if has_multicast(at.gpu) else fitted.nccl_mib
        kept.append(nccl_bytes(at.gpu, at.settings, at.rules, fitted, routed=False)[0] - fixed * MIB)
    assert kept[0] == pytest.approx(kept[1] * 2 / 3, abs=2)


def test_v1_counted_what_the_first_kernels_set_aside_until_it_took_a_snapshot() -> None:
    """Source: determine_available_memory of v1/worker/gpu_worker.py: all outside torch at 0.8.2, growth at 0.9.1."""
    small, large = (outside("0.8.2", gpu) for gpu in ("a10g", "l40s"))
    assert large.charged_bytes - large.context_bytes > small.charged_bytes - small.context_bytes
    small, large = (outside("0.9.2", gpu) for gpu in ("a10g", "l40s"))
    assert large.charged_bytes == small.charged_bytes


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


def test_experts_in_nvfp4_were_copied_until_0_11_1() -> None:
    """Source: process_weights_after_loading of compressed_tensors_moe.py and modelopt.py."""
    spec = model("nvidia/DeepSeek-V3.2-NVFP4")
    layer = next(layer for layer in spec.layers if any(tensor.role is Role.EXPERT for tensor in layer.tensors))
    assert sum(copied_bytes((layer,), spec, start("0.10.2").rules, 8)) > 0
    assert copied_bytes((layer,), spec, start("0.11.2").rules, 8) == ()


def test_experts_in_mxfp4_were_not_copied() -> None:
    """Source: quantization/mxfp4.py of 0.10 repacks in place; a public log of 0.10 says 65.9651 GiB."""
    spec = model("openai/gpt-oss-120b")
    assert copied_bytes(spec.layers, spec, start("0.11.0").rules, 1) == ()


@pytest.mark.parametrize(
    ("name", "version", "owners"),
    [
        (DENSE, "0.2.1", 32),
        (DENSE, "0.2.3", 1),
        ("google/gemma-2-9b-it", "0.5.4", 42),
        ("google/gemma-2-9b-it", "0.5.5", 1),
    ],
)
def test_layers_that_made_rotary_tables_of_their_own(name: str, version: str, owners: int) -> None:
    """Source: layers/attention.py of 0.2.2, models/gemma2.py of 0.5.4. Sliding layers ask for the same table."""
    at = start(version, name=name)
    tables = rotary_bytes(at.spec, at.settings, at.rules, len(at.spec.layers))
    assert len(tables) == owners * len(at.spec.rotary)
    assert len(set(tables)) == 1


@pytest.mark.parametrize("version", ["0.2.7", "0.5.4", "0.6.3"])
def test_the_replayed_run_reserves_whole_segments_and_no_less_than_it_held(version: str) -> None:
    """Source: PyTorch's caching allocator: blocks over 10 MiB are segments of whole 2 MiB."""
    at = start(version, "a100-80g", context=4096)
    reserved = reserved_by_profiling(at.spec, at.spec.layers[0], at.settings, Habits())
    logits = 256 * at.spec.vocab_size
    assert reserved % (2 * MIB) == 0
    assert logits * 38 <= reserved < logits * 80


def test_awq_kernels_of_0_3_0_kept_partial_sums() -> None:
    """Source: csrc/quantization/awq/gemm_kernels.cu split every output eight ways."""
    at = start("0.2.7", "a100-80g", scheme="awq-int4-g128", context=8192)
    plain, split = (
        reserved_by_profiling(at.spec, at.spec.layers[0], at.settings, Habits(splits_awq=splits))
        for splits in (False, True)
    )
    widest = 8192 * 2 * 14336 * 2
    assert split - plain > 4 * widest


def reserved(version: str, gpu: str, name: str = DENSE, **asked: object) -> int:
    at = start(version, gpu, name, **asked)
    habits = habits_of(at.gpu, at.settings, at.rules)
    return reserved_by_profiling(at.spec, at.spec.layers[0], at.settings, habits, len(at.spec.layers))


def test_groups_of_heads_leave_blocks_on_32_streams_before_ampere() -> None:
    """Source: cutlass.FwOp.apply of xformers 0.0.23 to 0.0.27. A group of 4 heads and 8,192 tokens takes 8 MiB, in a
    segment of 20 MiB.
    """
    old, new = (reserved("0.5.0", gpu, dtype="float16", context=8192) for gpu in ("t4", "a10g"))
    assert 32 * 20 * MIB <= old - new <= 32 * 20 * MIB + 3 * 8192 * 4096 * 2


def test_heads_that_share_nothing_run_on_one_stream() -> None:
    old, new = (reserved("0.5.0", gpu, "meta-llama/Llama-2-7b-hf", context=4096) for gpu in ("t4", "a10g"))
    assert old == new


def test_partial_sums_beyond_32_bit_offsets_need_an_accumulator() -> None:
    """Source: gpu_reduce_kernel. Two A100 that served Mixtral in AWQ with 0.2.7 at half of their memory had 20,238 MiB
    in use once cached blocks were gone, and 6,487 blocks of 1 MiB (vllm-project/vllm#2382): 19.8 GiB were cached.
    """
    found = reserved("0.2.7", "a100-80g", "mistralai/Mixtral-8x7B-v0.1", scheme="awq-int4-g128", tp=2, context=32768)
    real = 0.5 * 79.15 * 1024 - 20238
    assert found / MIB == pytest.approx(real, rel=0.02)


def test_what_nccl_had_reduced_was_held_until_0_2_7() -> None:
    """Two sums of 4,096 rows for each of 80 layers. Four A100 had 12 GiB less for the cache than before
    (vllm-project/vllm#2031).
    """
    name, row = "meta-llama/Llama-2-70b-hf", 4096 * 8192 * 2
    holding, free = (reserved(version, "a100-80g", name, tp=4, context=4096) for version in ("0.2.6", "0.2.7"))
    assert 158 * row <= holding - free < 220 * row
    assert reserved("0.2.6", "a100-80g", name, context=4096) == reserved("0.2.7", "a100-80g", name, context=4096)


def test_a_sort_of_16_bit_logits_holds_30_bytes_for_each_and_one_of_float32_38() -> None:
    """Source: Sampler.forward (vllm/model_executor/layers/sampler.py) makes logits float32 from 0.5.5 on."""
    old, new = (
        start(version, "a100-40g", context=512).budget.group_bytes("activation_peak") for version in ("0.5.4", "0.5.5")
    )
    assert new - old == pytest.approx(256 * 128256 * 8, abs=MIB)


def test_libraries_of_v0_grow_with_the_threads_of_a_card_and_not_with_hopper() -> None:
    """Source: the driver reserves local memory for every thread a multiprocessor holds."""
    small, large = (outside("0.7.3", gpu).charged_bytes for gpu in ("rtx-4060", "h100"))
    assert small < large < small + 120 * MIB


def test_gemma_4_keeps_keys_twice_and_its_tower_whole() -> None:
    """Printed: 58.90 GiB on one H200. 10 full layers with 4 heads of 512, a tower of 1.06 GiB of transformers' own."""
    name = "google/gemma-4-31B-it"
    alone, two = (start("0.19.0", "h200", name, tp=tp).budget.group_bytes("weights") for tp in (1, 2))
    assert alone / 2**30 == pytest.approx(58.90, abs=0.02)
    assert two > alone / 2 + 0.45 * 2**30


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
