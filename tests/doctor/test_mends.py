"""Mends: as typed for the engine and release, each computed again by the budget or from the log's own figures."""

from __future__ import annotations

import pytest

from memplan.cli.doctor_budget import known_model, reckon
from memplan.doctor.diagnose_log import report_of
from memplan.doctor.facts import Facts, gather
from memplan.doctor.scan import scan
from memplan.domain.diagnosis import DoctorReport, Mend
from memplan.units import GIB

REFUSED = """Initializing an LLM engine (v0.6.4) with config: model='meta-llama/Llama-3.1-8B-Instruct', dtype=torch.bfloat16, max_seq_len=29000, tensor_parallel_size=1, quantization=None, enforce_eager=False
Loading model weights took 14.9888 GB
Memory profiling results: total_gpu_memory=23.58GiB initial_memory_usage=15.34GiB peak_torch_memory=17.98GiB memory_usage_post_profile=15.35GiB non_torch_memory=0.35GiB kv_cache_size=2.89GiB gpu_memory_utilization=0.90
ValueError: The model's max seq len (29000) is larger than the maximum number of tokens that can be stored in KV cache (23648)."""  # noqa: E501


def facts_of(text: str) -> Facts:
    return gather(scan(iter([text.encode()])))


def report(text: str, **given: object) -> DoctorReport:
    facts = facts_of(text)
    reckoned, _ = reckon(facts, given)
    return report_of(facts) if reckoned is None else report_of(facts, reckoned.budget, reckoned.recompute)


def changes(answer: DoctorReport) -> dict[str, Mend]:
    assert answer.main is not None
    return {mend.change: mend for mend in answer.main.mends}


def test_the_budget_stands_beside_what_the_log_measured_term_by_term() -> None:
    answer = report(REFUSED)
    assert answer.main is not None
    lines = {line.term: line for line in answer.main.why}
    for term in ("weights", "activations at the peak", "KV cache available"):
        budget, measured = lines[term].budget, lines[term].measured
        assert budget is not None
        assert measured is not None
        assert budget == pytest.approx(measured, rel=0.02)
    assert answer.budget_of == "meta-llama/Llama-3.1-8B-Instruct on rtx-3090, vLLM 0.6.4"


def test_mends_are_computed_again_and_those_that_are_enough_come_first() -> None:
    answer = report(REFUSED)
    assert answer.main is not None
    mends = answer.main.mends
    enough = [mend.mends for mend in mends]
    assert enough == sorted(enough, key=lambda each: {True: 0, None: 1, False: 2}[each])
    assert all(mend.basis == "budget" for mend in mends if mend.mends)
    found = changes(answer)
    assert found["--gpu-memory-utilization 0.95"].effect_bytes == pytest.approx(0.05 * 23.58 * GIB, rel=0.01)
    assert found["--kv-cache-dtype fp8"].risk == "medium"
    assert found["--max-model-len 23632"].mends is True


def test_the_utilization_that_is_proposed_is_the_least_that_is_enough() -> None:
    text = (
        "total_gpu_memory (79.20GiB) x gpu_memory_utilization (0.50) = 39.60GiB\n"
        "vLLM ValueError: To serve at least one request with the model's max seq len (32768), (4.00 GiB KV cache "
        "is needed, "
        "which is larger than the available KV cache memory (2.00 GiB)."
    )
    found = changes(report(text))
    raised = next(mend for name, mend in found.items() if name.startswith("--gpu-memory-utilization"))
    assert raised.change == "--gpu-memory-utilization 0.54"
    assert raised.mends is True
    assert raised.basis == "log"


def test_without_a_model_the_logs_own_figures_are_enough_for_a_length() -> None:
    text = (
        "vLLM ValueError: To serve at least one request with the models's max seq len (1048576), (24.00 GiB KV "
        "cache is "
        "needed, which is larger than the available KV cache memory (9.97 GiB)."
    )
    found = changes(report(text))
    assert found["--max-model-len 435456"].mends is True
    assert found["--kv-cache-dtype fp8"].mends is False


def test_flags_are_those_of_the_release() -> None:
    free = (
        "ValueError: Free memory on device (31.44/47.38 GiB) on startup is less than desired GPU memory "
        "utilization (0.95, 45.01 GiB)."
    )
    old, new = (changes(report(f"vLLM version {release}\n{free}")) for release in ("0.9.1", "0.11.0"))
    assert not any("--kv-cache-memory-bytes" in change for change in old)
    assert any("--kv-cache-memory-bytes" in change for change in new)
    assert "--gpu-memory-utilization 0.65" in old
    capture = "sglang {0}\nException: Capture cuda graph failed: CUDA out of memory. Tried to allocate 256.00 MiB."
    older, newer = (changes(report(capture.format(release))) for release in ("0.4.6", "0.5.23"))
    assert any(change.startswith("--cuda-graph-max-bs ") for change in older)
    assert any(change.startswith("--cuda-graph-max-bs-decode ") for change in newer)


def test_a_context_that_fits_beside_the_weights_is_proposed_to_llama_cpp() -> None:
    text = (
        "llama_model_load_from_file_impl: using device CUDA0 (NVIDIA GeForce RTX 3060) - 11500 MiB free\n"
        "load_tensors:        CUDA0 model buffer size =  4685.30 MiB\nllama_init_from_model: n_ctx         = 131072\n"
        "ggml_backend_cuda_buffer_type_alloc_buffer: allocating 16384.00 MiB on device 0: cudaMalloc failed: out "
        "of memory\n"
        "llama_kv_cache_init: failed to allocate buffer for kv cache\n"
    )
    found = changes(report(text))
    shorter = next(mend for change, mend in found.items() if change.startswith("-c "))
    context = int(shorter.change.split()[1])
    assert context % 256 == 0
    assert 16384 * context / 131072 < 11500 - 4685.3
    assert shorter.mends is True
    assert found["-fa on -ctk q8_0 -ctv q8_0"].mends is False


def test_other_processes_are_named_before_anything_is_changed() -> None:
    text = (
        "CUDA out of memory. Tried to allocate 86.00 MiB. GPU 0 has a total capacity of 23.64 GiB of which "
        "264.00 MiB is free. "
        "Including non-PyTorch memory, this process has 8.04 GiB memory in use. Process 2797307 has 14.85 GiB "
        "memory in use. "
        "Of the allocated memory 7.63 GiB is allocated by PyTorch, and 40.11 MiB is reserved by PyTorch but "
        "unallocated."
    )
    answer = report(text)
    assert answer.main is not None
    assert answer.main.cause == "other_process"
    assert "2797307" in answer.main.mends[0].change
    assert answer.main.mends[0].effect_bytes == round(14.85 * GIB)


def test_a_process_that_names_itself_is_not_another_one() -> None:
    text = (
        "CUDA out of memory. Tried to allocate 1.58 GiB. GPU 0 has a total capacity of 23.69 GiB of which 115.69 "
        "MiB is free. "
        "Process 21422 has 23.57 GiB memory in use. Of the allocated memory 22.99 GiB is allocated by PyTorch, "
        "and 10.35 MiB "
        "is reserved by PyTorch but unallocated."
    )
    assert facts_of(text).others_bytes == 0
    answer = report(text)
    assert answer.main is not None
    assert answer.main.cause == "capacity"


def test_a_model_that_a_log_names_reaches_no_disk_and_no_network() -> None:
    assert known_model("meta-llama/Llama-3.1-8B-Instruct") == "meta-llama/Llama-3.1-8B-Instruct"
    assert known_model("/models/Qwen3-32B") == "Qwen3-32B"
    assert known_model("/etc/passwd") is None
    assert known_model("nobody/no-such-model") is None
    assert known_model("demo") is None


OUT = """Initializing a V1 LLM engine (v0.8.5) with config: model='meta-llama/Llama-3.1-70B-Instruct', trust_remote_code=False, dtype=torch.bfloat16, max_seq_len=131072, tensor_parallel_size=1, quantization=None, enforce_eager=False
torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 448.00 MiB. GPU 0 has a total capacity of 79.25 GiB of which 300.75 MiB is free. Process 1234 has 78.90 GiB memory in use. Of the allocated memory 77.90 GiB is allocated by PyTorch, and 40.71 MiB is reserved by PyTorch but unallocated."""  # noqa: E501


def test_of_more_gpus_the_fewest_that_are_enough_are_told_and_what_falls_short_says_so() -> None:
    answer = report(OUT)
    assert answer.main is not None
    assert answer.main.cause == "weights_oom"
    found = changes(answer)
    assert [change for change in found if "tensor-parallel" in change] == ["--tensor-parallel-size 4"]
    assert found["--tensor-parallel-size 4"].mends is True
    assert found["--cpu-offload-gb 20"].mends is False
    assert answer.main.mends[0].change == "--tensor-parallel-size 4"


def test_the_size_that_pytorch_named_is_the_gpu_of_the_budget() -> None:
    assert report(OUT).budget_of == "meta-llama/Llama-3.1-70B-Instruct on a100-80g, vLLM 0.8.5"


def test_a_long_line_is_quoted_from_the_start_of_a_word() -> None:
    answer = report(OUT)
    assert answer.main is not None
    said = str(next(each.value for each in answer.main.evidence if each.term == "said"))
    assert said.startswith("torch.OutOfMemoryError: CUDA out of memory.")
