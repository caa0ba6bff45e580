"""What a serving engine refuses is mended where the user did not ask for it, and refused where they did."""

from __future__ import annotations

import pytest

from memplan.cli.quantize_limits import Limits, mends, shortage
from memplan.cli.quantize_target import fitted_to
from memplan.errors import UsageError
from memplan.introspect.resolve import resolve_model
from memplan.quantize.forecast import forecast
from memplan.quantize.request import quantize_request
from memplan.units import GIB

SPEC = resolve_model("llama-8b", offline=True)


def test_what_an_engine_starts_is_left_alone() -> None:
    request = quantize_request("awq")
    assert fitted_to("vllm@0.33.0", SPEC, request, {}) == (request, "")


def test_zero_points_that_a_release_refuses_are_left_out_and_said() -> None:
    request = quantize_request("awq", format="gptq")
    assert fitted_to("vllm@0.21.0", SPEC, request, {"format": "gptq"}) == (request, "")
    mended, said = fitted_to("vllm@0.33.0", SPEC, request, {"format": "gptq"})
    assert mended.symmetric
    assert "asymmetric GPTQ" in said


def test_what_was_asked_for_is_refused_and_not_changed() -> None:
    request = quantize_request("awq", format="gptq", symmetric=False)
    with pytest.raises(UsageError, match="would not start"):
        fitted_to("vllm@0.33.0", SPEC, request, {"format": "gptq", "symmetric": False})


def test_an_engine_that_is_not_known_is_told() -> None:
    with pytest.raises(UsageError, match="unknown engine: `vlm`"):
        fitted_to("vlm@0.33.0", SPEC, quantize_request("awq"), {})


def test_what_does_not_fit_is_said_with_what_would() -> None:
    request = quantize_request("gptq", batch_size=64)
    found = forecast(SPEC, request)
    limits = Limits(ram_bytes=3 * GIB, gpu_bytes=None, disk_bytes=None)
    assert "of memory" in str(shortage(found, limits))
    assert "--batch-size 1" in mends(SPEC, request, found, limits)
    assert shortage(found, Limits(ram_bytes=None, gpu_bytes=None, disk_bytes=None)) is None
    assert "of disk" in str(shortage(found, Limits(ram_bytes=None, gpu_bytes=None, disk_bytes=GIB)))
