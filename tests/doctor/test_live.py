"""A server's metrics, read twice from a real local server: how full, what was done again, how far from the budget."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from memplan.cli.doctor_live import metrics_report, server_report
from memplan.doctor.metrics import read_metrics
from memplan.errors import Offline, SourceError, UsageError

LABELS = 'engine="0",model_name="meta-llama/Llama-3.1-8B-Instruct"'
INFO = (
    'block_size="16",cache_dtype="auto",gpu_memory_utilization="0.9",num_gpu_blocks="2832",enable_prefix_caching="True"'
)


def page(*, preemptions: int = 0, usage: float = 0.1, running: int = 3, waiting: int = 0, tokens: int = 0) -> str:
    return (
        "# HELP vllm:num_requests_running Requests in a step.\n# TYPE vllm:num_requests_running gauge\n"
        f"vllm:num_requests_running{{{LABELS}}} {running}.0\nvllm:num_requests_waiting{{{LABELS}}} {waiting}.0\n"
        f"vllm:kv_cache_usage_perc{{{LABELS}}} {usage}\nvllm:num_preemptions_total{{{LABELS}}} {preemptions}.0\n"
        f"vllm:generation_tokens_total{{{LABELS}}} {tokens}.0\nvllm:cache_config_info{{{INFO}}} 1.0\n"
    )


@contextmanager
def serving(*pages: str, status: int = 200) -> Iterator[str]:
    """A server that answers /metrics with one page after the other, the last one again and again."""
    left = list(pages)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = {"/version": '{"version": "0.11.0"}'}.get(self.path, "")
            if self.path == "/metrics":
                body = left.pop(0) if len(left) > 1 else left[0]
            self.send_response(status if body else 404)
            self.send_header("Content-Length", str(len(body.encode())))
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *arguments: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


QUICK = {"seconds": 0.01}


def test_a_server_at_rest_is_fine_and_tells_its_release_and_its_cache() -> None:
    with serving(page()) as address:
        report = server_report(address, QUICK)
    assert report.main is not None
    assert (report.main.cause, report.main.severity) == ("runs_fine", "fine")
    assert "45,312 tokens" in report.main.sentence
    assert report.recognised.version == "0.11.0"
    assert report.recognised.engine == "vllm"


def test_requests_that_lost_their_cache_between_two_looks_are_a_warning() -> None:
    with serving(page(preemptions=10), page(preemptions=14, usage=0.99, running=60, waiting=7)) as address:
        report = server_report(address, QUICK)
    assert report.main is not None
    assert report.main.cause == "preemption"
    assert report.main.sentence.startswith("4 requests lost their cache")
    assert report.main.mends[0].change.startswith("--max-num-seqs ")


def test_preemptions_of_long_ago_are_only_noted() -> None:
    with serving(page(preemptions=10)) as address:
        report = server_report(address, QUICK)
    assert report.main is not None
    assert (report.main.cause, report.main.severity) == ("preemption", "note")


def test_requests_that_wait_beside_an_empty_cache_are_held_by_another_limit() -> None:
    with serving(page(waiting=9, usage=0.2)) as address:
        report = server_report(address, QUICK)
    assert report.main is not None
    assert report.main.cause == "waits_without_need"


def test_the_predicted_cache_stands_beside_the_reported_one_and_drift_is_told() -> None:
    with serving(page()) as address:
        report = server_report(address, {**QUICK, "gpu": "rtx-4090"})
    main = report.main
    assert main is not None
    line = next(line for line in main.why if line.term == "KV cache")
    assert line.measured == 45312
    assert line.budget
    drift = any(each.cause == "capacity_drift" for each in report.diagnoses)
    assert drift == (abs(45312 / line.budget - 1) > 0.05)


def test_a_page_that_was_saved_is_read_like_a_server() -> None:
    report = metrics_report(iter([page(usage=0.97, waiting=4).encode()]), {})
    assert report.main is not None
    assert report.main.cause == "runs_full"


def test_two_ranks_of_one_server_are_summed_and_the_fuller_cache_counts() -> None:
    lines = [
        line
        for n in (3, 8)
        for line in (f'vllm:num_requests_running{{engine="{n}"}} 4', f'vllm:kv_cache_usage_perc{{engine="{n}"}} 0.{n}')
    ]
    scrape = read_metrics(iter(lines))
    assert scrape.get("running") == 8
    assert scrape.get("usage") == 0.8


@pytest.mark.parametrize(
    "line",
    [
        "vllm:x{",
        'vllm:x{a="b} 1',
        "vllm:x nan nan",
        "vllm:x " + "9" * 400,
        "\x00\x01",
        "vllm:num_requests_running 1e999",
    ],
)
def test_lines_that_are_no_metrics_are_passed_over(line: str) -> None:
    assert read_metrics(iter([line])).get("running") is None


def test_an_address_without_a_server_is_said_in_one_line() -> None:
    with serving(page()) as address:
        pass
    with pytest.raises(Offline, match="cannot reach"):
        server_report(address, QUICK)


def test_a_page_without_an_engines_metrics_is_said() -> None:
    with serving("up 1\n") as address, pytest.raises(SourceError, match="no metrics of an engine"):
        server_report(address, QUICK)


@pytest.mark.parametrize("url", ["http://", "http://user:secret@127.0.0.1:1/", "http://127.0.0.1:99999999"])
def test_addresses_that_are_none_are_refused_without_repeating_a_login(url: str) -> None:
    with pytest.raises(UsageError) as caught:
        server_report(url, QUICK)
    assert "secret" not in caught.value.message
