"""The forecast: steps that add up, and what is held where."""

from __future__ import annotations

import subprocess
import sys

from memplan.budget.storage import checkpoint_bytes
from memplan.introspect.resolve import resolve_model
from memplan.quantize.forecast import RUNTIME_BYTES, forecast, scheme_name
from memplan.quantize.forecast_time import MachineSpeed
from memplan.quantize.request import quantize_request
from memplan.units import GIB


def test_gptq_holds_one_hessian_of_the_widest_layer_and_a_quarter_while_it_is_factorised() -> None:
    spec = resolve_model("llama-70b", offline=True)
    found = forecast(spec, quantize_request("gptq"))
    assert found.hungriest.name == "rounding"
    assert found.hungriest.holds["Hessians"] == 28672**2 * 4
    factor = next(step for step in found.steps if step.name == "factor")
    assert factor.holds["Hessians"] == 5 * 28672**2
    assert found.host_bytes == RUNTIME_BYTES + found.hungriest.total_bytes
    assert found.host_bytes < 12 * GIB


def test_a_gpu_takes_the_work_and_the_host_keeps_what_is_read_and_written() -> None:
    spec = resolve_model("llama-8b", offline=True)
    on_host = forecast(spec, quantize_request("awq"))
    on_gpu = forecast(spec, quantize_request("awq", device="cuda"))
    assert on_host.device_bytes == 0
    assert on_gpu.device_bytes > 0
    assert on_gpu.steps[:-2] == on_host.steps[:-2]
    assert on_gpu.steps[-2].total_bytes < on_host.steps[-2].total_bytes  # of the proof, in 16 bit
    assert on_gpu.host_bytes < on_host.host_bytes


def test_hessians_of_many_experts_are_measured_in_groups() -> None:
    few, many = (resolve_model(name, offline=True) for name in ("mixtral-8x7b", "deepseek-v3"))
    for spec, of_one_bytes in ((few, 14336**2 * 4), (many, 7168**2 * 4)):  # of one input after the other
        (statistics,) = (step for step in forecast(spec, quantize_request("gptq")).steps if step.name == "statistics")
        assert statistics.holds["Hessians"] in range(of_one_bytes, max(GIB, 18432**2 * 4) + 1)


def test_the_checkpoint_is_as_large_as_estimate_says_of_the_scheme() -> None:
    spec = resolve_model("llama-8b", offline=True)
    request = quantize_request("awq", format="awq")
    assert scheme_name(request) == "awq-int4-g128"
    assert abs(forecast(spec, request).output_bytes / (5.7 * 10**9) - 1) < 0.02


def test_time_is_work_over_speed() -> None:
    spec = resolve_model("llama-8b", offline=True)
    speed = MachineSpeed(half_flops_per_s=2e14, float_flops_per_s=5e13, factor_flops_per_s=2e13, elements_per_s=1e12)
    request = quantize_request("gptq")
    found, half = (forecast(spec, request, speed=each).seconds for each in (speed, speed.slower(2)))
    assert found is not None
    assert half == 2 * found
    assert forecast(spec, request).seconds is None
    assert forecast(spec, quantize_request("rtn"), speed=speed).seconds < found  # type: ignore[operator]


def test_a_proof_on_more_text_takes_longer_and_more_disk_but_no_more_memory() -> None:
    spec = resolve_model("llama-8b", offline=True)
    few, many = (forecast(spec, quantize_request("awq"), proof_tokens=count) for count in (80_000, 800_000))
    assert many.flops > few.flops
    assert many.disk_bytes > few.disk_bytes
    assert many.host_bytes == few.host_bytes


def test_a_forecast_needs_no_torch() -> None:
    code = "import sys, memplan.cli.quantize_request, memplan.report.quantize_text; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_mix_is_forecast_with_its_measurement_and_as_large_as_it_may_be() -> None:
    spec = resolve_model("llama-8b", offline=True)
    mix, plain = (forecast(spec, quantize_request(method)) for method in ("auto", "awq+gptq"))
    step = mix.steps[0]
    assert step.name == "sensitivity"
    assert step.holds["a block"] == 4 * max(layer.num_parameters for layer in spec.layers)
    assert step.holds["inputs and outputs"] == 2 * 16 * 512 * 4096 * 4
    assert mix.flops > plain.flops
    assert mix.output_bytes == plain.output_bytes
    assert forecast(spec, quantize_request("auto"), target_bytes=8 << 30).output_bytes == 8 << 30
    whole = forecast(spec, quantize_request("auto"), target_bytes=1 << 40).output_bytes
    assert whole == checkpoint_bytes(spec)


def test_a_block_is_written_without_its_own_weights_beside_it() -> None:
    spec = resolve_model("llama-8b", offline=True)
    steps = {step.name: step for step in forecast(spec, quantize_request("rtn")).steps}
    assert "the block" in steps["rounding"].holds
    assert "the block" not in steps["writing a block"].holds
    assert steps["writing a block"].total_bytes < steps["rounding"].total_bytes


def test_samples_of_tokens_are_held_for_smoothing_alone_and_are_bounded() -> None:
    spec = resolve_model("deepseek-v3", offline=True)
    held = {
        method: step.holds["samples of tokens"]
        for method in ("int8", "gptq", "awq")
        for step in forecast(spec, quantize_request(method)).steps
        if step.name == "statistics"
    }
    assert held["gptq"] == held["awq"] == 0
    assert 0 < held["int8"] <= GIB
