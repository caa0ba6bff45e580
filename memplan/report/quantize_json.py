"""A quantization as JSON: docs/schemas/memplan.quantization.json and memplan.quantize-forecast.json."""

from __future__ import annotations

from typing import Any

from memplan.quantize.forecast import Forecast, scheme_name
from memplan.quantize.mix import Choice
from memplan.quantize.request import QuantizeRequest
from memplan.quantize.result import QuantizeResult
from memplan.quantize.width import Width
from memplan.report.json_report import dump
from memplan.report.quality_json import quality_object


def forecast_json(forecast: Forecast, request: QuantizeRequest) -> str:
    """Return the forecast as one JSON object."""
    facts = {"schema": "memplan.quantize-forecast/1", "request": request_facts(request), **_forecast(forecast)}
    return dump(facts)


def result_json(result: QuantizeResult) -> str:
    """Return the result as one JSON object."""
    return dump(result_object(result))


def result_object(result: QuantizeResult) -> dict[str, Any]:
    """Return the result as plain values: what `--json` prints, and `quantization_report.json` keeps."""
    return {
        "schema": "memplan.quantization/1",
        "model": result.model_name,
        "request": request_facts(result.request),
        "forecast": _forecast(result.forecast),
        "output": str(result.folder),
        "output_bytes": result.output_bytes,
        "seconds": round(result.seconds, 3),
        "peak_bytes": result.peak_bytes,
        "memory": [{"seconds": at, "bytes": held, "phase": phase} for at, held, phase in result.memory],
        "verdict": result.gate.verdict,
        "quality": quality_object(result.quality, result.gate),
        "mix": [_choice(choice) for choice in result.mix],
        "blocks": list(result.blocks),
        "notes": list(result.notes),
    }


def _choice(choice: Choice) -> dict[str, Any]:
    return {
        "layers": list(choice.unit.modules),
        **_width(choice.width),
        "damage": choice.damage,
        "damage_by_width": [{**_width(width), "damage": damage} for width, damage in choice.unit.damage.items()],
    }


def _width(width: Width) -> dict[str, int]:
    return {"bits": width.bits, "group_size": width.group_size}


def request_facts(request: QuantizeRequest) -> dict[str, Any]:
    """What was asked, with defaults filled in."""
    return {
        "method": request.method.name,
        "bits": request.bits,
        "group_size": request.group_size,
        "symmetric": request.symmetric,
        "activation_bits": request.method.activation_bits,
        "format": request.format,
        "scheme": scheme_name(request),
        "calibration": request.calibration,
        "num_samples": request.num_samples,
        "window_tokens": request.window_tokens,
        "batch_size": request.batch_size,
        "damping": request.damping,
        "activation_order": request.activation_order,
        "static_groups": request.static_groups,
        "scale_search": request.scale_search,
        "true_sequential": request.true_sequential,
        "keeps": list(request.keeps),
        "seed": request.seed,
        "device": request.device,
    }


def _forecast(forecast: Forecast) -> dict[str, Any]:
    return {
        "model": forecast.model_name,
        "device": forecast.device,
        "host_bytes": forecast.host_bytes,
        "device_bytes": forecast.device_bytes,
        "disk_bytes": forecast.disk_bytes,
        "output_bytes": forecast.output_bytes,
        "flops": forecast.flops,
        "seconds": None if forecast.seconds is None else round(forecast.seconds, 1),
        "num_blocks": forecast.num_blocks,
        "calibration_tokens": forecast.calibration_tokens,
        "proof_tokens": forecast.proof_tokens,
        "steps": [{"name": step.name, "bytes": step.total_bytes, "holds": step.holds} for step in forecast.steps],
    }
