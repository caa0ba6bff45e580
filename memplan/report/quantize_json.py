"""A quantization as JSON: docs/schemas/memplan.quantization.json and memplan.quantize-forecast.json."""

from __future__ import annotations

import json
from typing import Any

from memplan.domain.quality import DomainQuality
from memplan.quantize.forecast import Forecast, scheme_name
from memplan.quantize.request import QuantizeRequest
from memplan.quantize.result import QuantizeResult


def forecast_json(forecast: Forecast, request: QuantizeRequest) -> str:
    """Return the forecast as one JSON object."""
    facts = {"schema": "memplan.quantize-forecast/1", "request": request_facts(request), **_forecast(forecast)}
    return json.dumps(facts, indent=2) + "\n"


def result_json(result: QuantizeResult) -> str:
    """Return the result as one JSON object."""
    facts = {
        "schema": "memplan.quantization/1",
        "model": result.model_name,
        "request": request_facts(result.request),
        "forecast": _forecast(result.forecast),
        "output": str(result.folder),
        "output_bytes": result.output_bytes,
        "seconds": round(result.seconds, 3),
        "peak_bytes": result.peak_bytes,
        "verdict": result.gate.verdict,
        "domains": [_domain(each) for each in result.quality.domains],
        "overall": _domain(result.quality.overall),
        "text_set": result.quality.text_set,
        "blocks": list(result.blocks),
        "notes": list(result.notes),
    }
    return json.dumps(facts, indent=2) + "\n"


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
        "num_blocks": forecast.num_blocks,
        "steps": [{"name": step.name, "bytes": step.total_bytes, "holds": step.holds} for step in forecast.steps],
    }


def _domain(quality: DomainQuality) -> dict[str, Any]:
    facts: dict[str, Any] = {"domain": quality.domain, "tokens": quality.tokens, "perplexity": quality.perplexity}
    if quality.difference is not None:
        facts |= {
            "base_perplexity": quality.difference.base_perplexity,
            "increase_fraction": quality.difference.perplexity_increase,
            "increase_standard_error": quality.difference.perplexity_increase_standard_error,
            "kl_divergence": quality.difference.kl_divergence.mean,
            "top1_agreement": quality.difference.top1_agreement.mean,
        }
    return facts
