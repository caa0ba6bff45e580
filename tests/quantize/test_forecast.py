"""The forecast: steps that add up, and what is held where."""

from __future__ import annotations

import subprocess
import sys

from memplan.introspect.resolve import resolve_model
from memplan.quantize.forecast import RUNTIME_BYTES, forecast, scheme_name
from memplan.quantize.request import quantize_request
from memplan.units import GIB


def test_gptq_holds_two_hessians_of_the_widest_layer() -> None:
    spec = resolve_model("llama-70b", offline=True)
    found = forecast(spec, quantize_request("gptq"))
    assert found.hungriest.name == "rounding"
    assert found.hungriest.holds["Hessians"] == 2 * 28672**2 * 4
    assert found.host_bytes == RUNTIME_BYTES + found.hungriest.total_bytes
    assert found.host_bytes < 12 * GIB


def test_a_gpu_takes_the_work_and_the_host_keeps_what_is_read_and_written() -> None:
    spec = resolve_model("llama-8b", offline=True)
    on_host = forecast(spec, quantize_request("awq"))
    on_gpu = forecast(spec, quantize_request("awq", device="cuda"))
    assert on_host.device_bytes == 0
    assert on_gpu.device_bytes > 0
    assert on_gpu.hungriest == on_host.hungriest
    assert on_gpu.host_bytes < on_host.host_bytes


def test_the_checkpoint_is_as_large_as_estimate_says_of_the_scheme() -> None:
    spec = resolve_model("llama-8b", offline=True)
    request = quantize_request("awq", format="awq")
    assert scheme_name(request) == "awq-int4-g128"
    assert abs(forecast(spec, request).output_bytes / (5.7 * 10**9) - 1) < 0.02


def test_a_forecast_needs_no_torch() -> None:
    code = "import sys, memplan.cli.quantize_request, memplan.report.quantize_text; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
