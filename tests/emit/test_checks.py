"""The fifteen complaints: a setup that would end in one is mended, and then fits, or refused with the reason."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from setups import setup

from memplan.domain.emission import Emission, EmitSubject, EmittedFile
from memplan.emit import finding, memory_checks, plan_checks
from memplan.emit.checks import CHECKS, check_setup, settled
from memplan.emit.file_checks import check_files, refuse_traps
from memplan.emit.registry import find_format, load_emitter
from memplan.emit.sizing import context_tokens
from memplan.errors import UsageError
from memplan.units import GIB


def after(check: str, subject: EmitSubject) -> EmitSubject:
    """The setup as the check's own mend leaves it; the check has nothing left to say of it."""
    module, attribute = CHECKS[check].split(":")
    rule = getattr(memory_checks if module.endswith("memory_checks") else plan_checks, attribute)
    found = rule(subject)
    assert found is not None
    assert found.action == "mended", found.reason
    mended = finding.checked_again(subject, found.settings)
    again = rule(mended)
    assert again is None or again.action == "noted"
    assert found.reason
    return mended


def refusal(subject: EmitSubject, check: str) -> str:
    (found,) = [each for each in check_setup(subject).refused if each.check == check]
    assert found.hint
    with pytest.raises(UsageError):
        settled(subject)
    return found.reason


def test_1_a_default_context_that_has_no_room_is_cut_to_what_has() -> None:
    subject = setup(gpu="l4", context=None, concurrency=1)
    assert context_tokens(subject) == 131072
    mended = after("context", subject)
    assert mended.budget.verdict != "does_not_fit"
    assert 16384 < context_tokens(mended) <= subject.budget.kv.max_context_tokens


def test_1_a_context_that_was_asked_for_is_not_cut_but_refused() -> None:
    assert "131,072 tokens has no room" in refusal(setup(gpu="l4", context=131072, concurrency=1), "context")


def test_2_utilization_leaves_room_for_graphs() -> None:
    mended = after("graph-capture", setup(gpu="h100", gpu_memory_utilization=0.99))
    assert mended.budget.settings["gpu_memory_utilization"] == 0.95


def test_2_without_graphs_utilization_may_stay() -> None:
    subject = setup(gpu="h100", gpu_memory_utilization=0.96, eager=True)
    assert memory_checks.graph_capture(subject) is None


def test_2_graphs_that_a_release_does_not_charge_find_room_beside_the_budget() -> None:
    subject = setup(version="0.18.1", gpu="l4", concurrency=1, gpu_memory_utilization=0.98)
    mended = after("graph-capture", subject)
    held = mended.budget.used_bytes - mended.budget.group_bytes("activation_peak")
    assert held <= mended.gpu.memory_bytes


def test_3_a_large_gpus_default_of_sequences_is_not_left_to_the_sampler() -> None:
    subject = setup(gpu="h100")
    assert subject.budget.settings["max_num_seqs"] == 1024
    mended = after("sampler-warm-up", subject)
    assert mended.budget.settings["max_num_seqs"] == 256
    assert mended.budget.group_bytes("activation_peak") <= subject.budget.group_bytes("activation_peak")


def test_3_sequences_that_were_asked_for_stay() -> None:
    assert memory_checks.sampler_warm_up(setup(gpu="h100", max_num_seqs=1024)) is None


def test_4_a_file_is_for_the_release_of_its_budget() -> None:
    subject = setup()
    assert plan_checks.release(subject) is None
    assert "budget is for 0.33.0" in refusal(replace(subject, version="0.10.2"), "release")


def test_4_the_release_is_in_every_file() -> None:
    for version in ("0.10.2", "0.33.0"):
        subject = setup(version=version)
        assert version in load_emitter(find_format("vllm", "vllm")[1])(subject).files[0].text


def test_5_no_more_is_asked_for_than_is_free() -> None:
    mended = after("free-memory", setup(gpu_free_bytes=60 * GIB))
    asked = mended.budget.settings["gpu_memory_utilization"] * mended.gpu.memory_bytes
    assert asked < 60 * GIB
    assert mended.budget.verdict == "fits"


def test_5_a_card_that_is_all_in_use_is_refused() -> None:
    assert "are free" in refusal(setup(gpu_free_bytes=2 * GIB), "free-memory")


def test_6_engines_that_share_a_gpu_are_given_their_cache_outright() -> None:
    command = "memplan emit-config llama-3.1-8b --sharing 2"
    subject = setup(gpu_memory_utilization=0.45, command=command)
    mended = after("shared-gpu", subject)
    given_bytes = mended.budget.settings["kv_cache_memory_bytes"]
    assert 0 < given_bytes <= subject.budget.group_bytes("kv_cache")
    assert memory_checks.shared_gpu(setup()) is None


def test_6_a_release_without_that_option_gets_a_note() -> None:
    found = memory_checks.shared_gpu(setup(version="0.9.2", command="x --sharing 2"))
    assert found is not None
    assert found.action == "noted"


def test_7_no_more_is_admitted_than_the_cache_holds() -> None:
    subject = setup(gpu="l4", context=8192, concurrency=2, mean=4000)
    mended = after("preemption", subject)
    seqs = mended.budget.settings["max_num_seqs"]
    assert 2 <= seqs < 256
    assert seqs * 4000 <= mended.budget.kv.capacity_tokens * 1.01


def test_7_without_a_length_the_default_is_lowered_to_what_the_cache_holds_of_short_requests_only() -> None:
    small, large = setup(gpu="l4", context=16384, concurrency=1), setup(gpu="a100-80g", context=16384)
    mended = after("preemption", small)
    seqs = mended.budget.settings["max_num_seqs"]
    assert abs(seqs - small.budget.kv.capacity_tokens // 1024) <= 1
    assert seqs * 1024 <= mended.budget.kv.capacity_tokens
    assert plan_checks.preemption(large) is None


def test_7_an_assumption_does_not_overrule_a_number_that_was_given() -> None:
    assert plan_checks.preemption(setup(gpu="l4", context=8192, concurrency=2, max_num_seqs=256)) is None
    assert plan_checks.preemption(setup(gpu="l4", context=8192, concurrency=2, max_num_seqs=256, mean=4000))


def test_8_a_request_as_long_as_the_pool_leaves_a_block() -> None:
    subject = setup(gpu="l4", context=32768, concurrency=1)
    block = subject.budget.group_bytes("kv_cache") // subject.budget.kv.blocks
    exact = replace(subject.budget.kv, needed_bytes=subject.budget.group_bytes("kv_cache") - block // 2)
    full = replace(subject, budget=replace(subject.budget, kv=exact))
    found = plan_checks.spare_block(full)
    assert found is not None
    assert found.action == "refused"
    assert "--context 32736" in found.hint
    assert plan_checks.spare_block(subject) is None


def test_9_a_step_takes_every_sequence() -> None:
    subject = setup()
    shown = {**subject.budget.settings, "max_num_batched_tokens": 128, "max_num_seqs": 256}
    found = plan_checks.step_tokens(replace(subject, budget=replace(subject.budget, settings=shown)))
    assert found is not None
    assert found.settings is not None
    assert found.settings.max_num_batched_tokens == 256


def test_9_a_step_takes_a_prompt_that_is_not_cut() -> None:
    subject = setup(context=16384)
    shown = {**subject.budget.settings, "enable_chunked_prefill": False, "max_num_batched_tokens": 8192}
    found = plan_checks.step_tokens(replace(subject, budget=replace(subject.budget, settings=shown)))
    assert found is not None
    assert found.settings is not None
    assert found.settings.max_num_batched_tokens == 16384


def test_10_no_more_sequences_than_recurrent_states_have_room() -> None:
    subject = setup("qwen3-next-80b", "h200", tp=2, context=8192, max_num_seqs=4096, max_num_batched_tokens=8192)
    mended = after("state-blocks", subject)
    assert 8 <= mended.budget.settings["max_num_seqs"] < 4096
    assert plan_checks.state_blocks(setup()) is None


def test_11_a_multimodal_model_gets_limits_on_its_media() -> None:
    subject = setup("qwen2.5-vl-7b", "l4", context=8192, concurrency=1)
    mended = after("media-profile", subject)
    assert mended.settings.media_per_prompt == {"image": 1, "video": 0}
    assert mended.budget.group_bytes("activation_peak") <= subject.budget.group_bytes("activation_peak")
    assert memory_checks.media_profile(setup("qwen2.5-vl-7b", language_model_only=True)) is None


def test_12_prompt_logprobs_get_a_reserve_that_fits() -> None:
    subject = setup(gpu="h100", prompt_logprobs=True, max_num_batched_tokens=16384, max_num_seqs=256)
    mended = after("logprobs", subject)
    assert mended.budget.settings["max_num_batched_tokens"] == 2048
    assert mended.budget.group_bytes("activation_peak") < subject.budget.group_bytes("activation_peak")


def test_12_an_engine_without_a_reserve_for_them_is_refused() -> None:
    assert "no reserve" in refusal(setup(engine="sglang", prompt_logprobs=True), "logprobs")


def test_13_quantized_groups_are_not_cut() -> None:
    subject = setup("qwen2-72b", scheme="awq-int4-g128", context=8192, tp=8)
    found = plan_checks.shards(subject)
    assert found is not None
    assert "29,568 wide, quantized in groups of 128, cannot be cut into 8 parts" in found.reason
    assert found.hint == "use --tp 1 --pp 8"


def test_13_heads_are_spread_evenly() -> None:
    subject = setup()
    layout = replace(subject.settings.layout, tensor=3)
    found = plan_checks.shards(replace(subject, settings=replace(subject.settings, layout=layout)))
    assert found is not None
    assert "32 attention heads" in found.reason


def test_14_a_container_without_shared_memory_is_refused() -> None:
    subject = setup()
    for format_name in ("docker", "compose", "kubernetes"):
        emission = load_emitter(find_format(format_name, "vllm")[1])(subject)
        assert check_files(subject, format_name, emission) == ()
        text = emission.files[0].text
        for word in ("--shm-size", "shm_size", "/dev/shm"):
            text = text.replace(word, "gone")
        broken = Emission(files=(EmittedFile(name="file", text=text),))
        assert [each.check for each in check_files(subject, format_name, broken)] == ["shared-memory"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("enable-prefix-caching: false", "drops `enable-prefix-caching: false`"),
        ('enforce-eager: "true"', "names the model to vLLM"),
        ("quantization: null", "has no value"),
        ("seed:", "has no value"),
    ],
)
def test_15_what_vllms_reader_drops_is_never_written(line: str, said: str) -> None:
    subject = setup()
    emission = Emission(files=(EmittedFile(name="vllm.yaml", text=f"model: x\n{line}\nmax-num-seqs: 4\n"),))
    with pytest.raises(UsageError, match=said):
        refuse_traps(subject, "vllm", emission)


def test_15_nested_options_are_no_trap() -> None:
    text = "model: x\nspeculative-config:\n  method: mtp\nno-enable-prefix-caching: true\n"
    emission = Emission(files=(EmittedFile(name="vllm.yaml", text=text),))
    assert refuse_traps(setup(), "vllm", emission) is emission


@pytest.mark.parametrize(
    ("before", "after_", "check"),
    [
        ("enableServiceLinks: false", "enableServiceLinks: true", "service-links"),
        ("startupProbe:", "otherProbe:", "probes"),
        ("vllm/vllm-openai:v0.33.0", "vllm/vllm-openai:latest", "image"),
        ("name: llm-llama-3-1-8b-instruct\n", "name: vllm\n", "service-name"),
        ('"--config", /etc/memplan/vllm.yaml', "--config=/etc/memplan/vllm.yaml", "config-option"),
    ],
)
def test_15_options_reach_the_engine_in_a_manifest(before: str, after_: str, check: str) -> None:
    subject = setup()
    text = load_emitter(find_format("kubernetes", "vllm")[1])(subject).files[0].text
    assert before in text
    broken = Emission(files=(EmittedFile(name="kubernetes.yaml", text=text.replace(before, after_)),))
    assert check in {each.check for each in check_files(subject, "kubernetes", broken)}


def test_15_memory_that_the_system_lives_in_is_not_taken_whole() -> None:
    assert after("unified-memory", setup(gpu="gb10")).budget.settings["gpu_memory_utilization"] == 0.85
    small = setup("qwen3-0.6b", "jetson-orin-nx-16g", context=2048, concurrency=1)
    assert after("unified-memory", small).budget.settings["gpu_memory_utilization"] == 0.7
    assert memory_checks.unified_memory(setup()) is None


def test_a_mend_that_loses_the_asked_requests_is_a_refusal() -> None:
    subject = setup(gpu="l4", context=16384, concurrency=2, gpu_memory_utilization=0.98, gpu_free_bytes=20 * GIB)
    checked = check_setup(subject)
    assert all(each.settings is None for each in checked.refused)
    if subject.budget.verdict != "does_not_fit":
        assert checked.subject.budget.verdict != "does_not_fit"


def test_what_was_mended_is_told() -> None:
    subject = settled(setup(gpu="h100", gpu_memory_utilization=0.99))
    assert any("utilization 0.95" in change for change in subject.changes)
    text = load_emitter(find_format("vllm", "vllm")[1])(subject).files[0].text
    assert "gpu-memory-utilization: 0.95" in text
    assert "NOTE: utilization 0.99" in text


@hypothesis_settings(max_examples=40)
@given(
    gpu=st.sampled_from(("l4", "a100-80g", "h100", "gb10")),
    context=st.sampled_from((None, 2048, 16384, 65536)),
    concurrency=st.integers(1, 40),
    utilization=st.sampled_from((None, 0.5, 0.9, 0.97, 1.0)),
    version=st.sampled_from(("0.8.5", "0.10.2", "0.18.1", "0.33.0")),
    mean=st.sampled_from((None, 700)),
)
def test_a_settled_setup_has_nothing_left_to_mend(
    gpu: str, context: int | None, concurrency: int, utilization: float | None, version: str, mean: int | None
) -> None:
    subject = setup(
        gpu=gpu,
        context=context,
        concurrency=concurrency,
        mean=mean,
        version=version,
        gpu_memory_utilization=utilization,
    )
    checked = check_setup(subject)
    again = check_setup(checked.subject)
    assert [each.check for each in again.findings if each.action == "mended"] == []
    if subject.budget.verdict == "fits":
        assert checked.subject.budget.verdict != "does_not_fit"


def test_1_more_than_the_model_was_made_for_is_no_lack_of_room() -> None:
    subject = setup("gemma-2-9b", context=32768, concurrency=1)
    assert subject.budget.kv.max_context_tokens == 8192
    assert plan_checks.context(subject) is None
