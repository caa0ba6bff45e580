"""Live servers other than vLLM: pages in each engine's own format, read twice from a real local server.

Names as the engines export them: sglang/srt/observability/metrics_collector.py at v0.5.23 (0.5.9 for
cache_config_info), trtllm-serve's metrics/collector.py at 1.3, Triton's backend of TensorRT-LLM, llama.cpp's
server-task.cpp, TGI's reference.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from test_live import QUICK, serving

from memplan.cli.doctor_live import metrics_report, server_report
from memplan.cli.doctor_sources import report_on
from memplan.domain.diagnosis import DoctorReport


def told(report: DoctorReport) -> dict[str, float | str]:
    assert report.main is not None
    return {each.term: each.value for each in report.main.evidence}


def sglang(*, retracted: int = 0, usage: float = 0.4, waiting: int = 0, made: int = 0) -> str:
    labels = (
        'engine_type="unified",model_name="meta-llama/Llama-3.1-8B-Instruct",moe_ep_rank="0",pp_rank="0",tp_rank="0"'
    )
    return (
        "# HELP sglang:num_running_reqs The number of running requests.\n# TYPE sglang:num_running_reqs gauge\n"
        f"sglang:num_running_reqs{{{labels}}} 24.0\nsglang:num_queue_reqs{{{labels}}} {waiting}.0\n"
        f"sglang:token_usage{{{labels}}} {usage}\nsglang:num_used_tokens{{{labels}}} 18000.0\n"
        f"sglang:max_total_num_tokens{{{labels}}} 45312.0\nsglang:page_size{{{labels}}} 64.0\n"
        f"sglang:num_pages{{{labels}}} 708.0\nsglang:num_retracted_requests_total{{{labels}}} {retracted}.0\n"
        f"sglang:generation_tokens_total{{{labels}}} {made}.0\n"
        f'sglang:queue_time_seconds_bucket{{le="0.5",{labels}}} 3.0\n'
        f"sglang:queue_time_seconds_sum{{{labels}}} 6.0\nsglang:queue_time_seconds_count{{{labels}}} 12.0\n"
    )


def trtllm(*, usage: float = 0.3, waiting: int = 0) -> str:
    labels = 'engine_type="trtllm",model_name="llama-8b"'
    return (
        "# TYPE trtllm_kv_cache_utilization gauge\n"
        f"trtllm_kv_cache_utilization{{{labels}}} {usage}\ntrtllm_num_requests_running{{{labels}}} 8.0\n"
        f"trtllm_num_requests_waiting{{{labels}}} {waiting}.0\ntrtllm_kv_cache_max_blocks{{{labels}}} 1400.0\n"
        f"trtllm_kv_cache_tokens_per_block{{{labels}}} 32.0\ntrtllm_request_success_total{{{labels}}} 5.0\n"
    )


def triton(*, used: int = 100) -> str:
    def line(name: str, label: str, kind: str, value: float) -> str:
        return f'nv_trt_llm_{name}{{{label}="{kind}",model="tensorrt_llm",version="1"}} {value}\n'

    blocks = {"tokens_per": 64, "used": used, "free": 1000 - used, "max": 1000, "fraction": used / 1000}
    requests = {"context": 1, "scheduled": 6, "max": 512, "active": 9, "waiting": 3}
    return (
        'nv_inference_request_success{model="ensemble",version="1"} 10\n# TYPE nv_trt_llm_request_metrics gauge\n'
        + "".join(line("request_metrics", "request_type", *each) for each in requests.items())
        + "".join(line("kv_cache_block_metrics", "kv_cache_block_type", *each) for each in blocks.items())
    )


def llama_cpp(*, waiting: int = 0, made: int = 0) -> str:
    return (
        "# HELP llamacpp:prompt_tokens_total Number of prompt tokens processed.\n"
        f"llamacpp:prompt_tokens_total 1000\nllamacpp:tokens_predicted_total {made}\nllamacpp:n_decode_total 40\n"
        f"llamacpp:requests_processing 4\nllamacpp:requests_deferred {waiting}\nllamacpp:n_busy_slots_per_decode 3.87\n"
    )


def tgi(*, waiting: int = 0, made: int = 0) -> str:
    return (
        "# TYPE tgi_batch_current_size gauge\ntgi_batch_current_size 12\ntgi_batch_current_max_tokens 9000\n"
        f"tgi_queue_size {waiting}\ntgi_request_count 40\ntgi_request_success 30\n"
        '# TYPE tgi_request_generated_tokens histogram\ntgi_request_generated_tokens_bucket{le="+Inf"} 30\n'
        f"tgi_request_generated_tokens_sum {made}\ntgi_request_generated_tokens_count 30\n"
        "tgi_request_queue_duration_sum 3.0\ntgi_request_queue_duration_count 30\n"
    )


def test_sglang_tells_its_pool_its_pages_and_who_was_put_back() -> None:
    with serving(sglang(), sglang(retracted=3, usage=0.98, waiting=5)) as address:
        report = server_report(address, QUICK)
    assert report.recognised.engine == "sglang"
    assert report.main is not None
    assert report.main.cause == "preemption"
    assert report.main.sentence.startswith("3 requests lost their cache")
    assert report.main.mends[0].change.startswith("--max-running-requests ")
    figures = told(report)
    assert (figures["KV cache"], figures["blocks"], figures["mean wait in the queue, ms"]) == (45312, 708, 500.0)


def test_the_pages_of_sglang_0_5_9_stand_in_labels() -> None:
    page = 'sglang:cache_config_info{page_size="16",num_pages="2832"} 1.0\nsglang:token_usage{tp_rank="0"} 0.1\n'
    report = metrics_report(iter([page.encode()]), {})
    assert (told(report)["blocks"], told(report)["KV cache"]) == (2832, 45312)


def test_an_sglang_without_a_counter_tells_of_its_last_step_alone() -> None:
    page = 'sglang:num_retracted_reqs{tp_rank="0"} 2.0\nsglang:token_usage{tp_rank="0"} 0.99\n'
    with serving(page) as address:
        report = server_report(address, QUICK)
    assert report.main is not None
    assert report.main.cause == "preemption"
    assert "in the last step" in report.main.sentence


def test_trtllm_serve_tells_its_blocks_and_is_found_full() -> None:
    with serving(trtllm(), trtllm(usage=0.99, waiting=4)) as address:
        report = server_report(address, QUICK)
    assert report.recognised.engine == "tensorrt-llm"
    assert report.main is not None
    assert report.main.cause == "runs_full"
    assert report.main.mends[0].change.startswith("--max_batch_size ")
    assert told(report)["KV cache"] == 1400 * 32


def test_triton_s_figures_are_told_apart_by_their_labels() -> None:
    with serving(triton(used=100)) as address:
        report = server_report(address, QUICK)
    figures = told(report)
    assert report.recognised.engine == "tensorrt-llm"
    assert (figures["requests running"], figures["requests waiting"]) == (6, 3)
    assert (figures["blocks"], figures["KV cache"], figures["KV cache in use"]) == (1000, 64000, 0.1)
    assert report.main is not None
    assert report.main.cause == "waits_without_need"


@pytest.mark.parametrize(("page", "engine", "running"), [(llama_cpp, "llama.cpp", 4), (tgi, "tgi", 12)])
def test_a_server_that_does_not_tell_how_full_it_is_is_not_called_empty(
    page: Callable[..., str], engine: str, running: int
) -> None:
    with serving(page(), page(waiting=6, made=100)) as address:
        report = server_report(address, QUICK)
    assert report.recognised.engine == engine
    assert report.main is not None
    assert report.main.cause == "requests_wait"
    assert f"6 requests wait while {running} run" in report.main.sentence
    assert "0 %" not in report.main.sentence
    assert told(report)["tokens computed a second"]


@pytest.mark.parametrize("page", [sglang(), trtllm(), triton(), llama_cpp(), tgi()])
def test_a_saved_page_is_told_by_its_names(tmp_path: Path, page: str) -> None:
    saved = tmp_path / "page.txt"
    saved.write_text("\n".join(line for line in page.splitlines() if not line.startswith("#")) + "\n")
    assert report_on({"source": str(saved)}).recognised.kind == "metrics"


def test_a_model_on_an_engine_without_a_budget_is_said_to_have_none() -> None:
    with serving(tgi()) as address:
        report = server_report(address, {**QUICK, "model": "llama-8b", "gpu": "l4", "offline": True})
    assert any("no budget" in note for note in report.notes)
