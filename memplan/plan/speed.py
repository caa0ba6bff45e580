"""How fast a candidate serves the asked traffic."""

from __future__ import annotations

from memplan.domain.plan import Speed, Traffic
from memplan.plan.bounds import request_bytes
from memplan.plan.cells import Cell

_PREFILL, _DECODE, _STEP_S = 0.5, 0.6, 0.0005


def speed_of(cell: Cell, traffic: Traffic, concurrency: int) -> Speed | None:
    """The speed at `concurrency` requests in all replicas; None where the GPU's rates are not known.

    A roofline of its own until the speed model is there: prefill at half the 16-bit rate, decode at 60 % of bandwidth.
    """
    spec, gpu, layout, kv_dtype = cell.stored.spec, cell.gpu, cell.layout, cell.kv_dtype
    rates = gpu.flops_per_s or {}
    flops = rates.get("bf16") or rates.get("fp16")
    if not flops or not gpu.bandwidth_bytes_per_s:
        return None
    per_replica = -(-concurrency // layout.data)
    prompt = max(1, traffic.prompt_tokens - traffic.shared_prefix_tokens)
    ttft = 2 * spec.active_parameters * prompt / (flops * _PREFILL * layout.tensor * layout.pipeline)
    length = traffic.prompt_tokens + traffic.output_tokens // 2
    share = spec.active_parameters / max(1, spec.parameters)
    read = cell.stored.weights_bytes * max(share, min(1.0, share * per_replica)) / layout.tensor
    read += request_bytes(spec, kv_dtype, length) * per_replica / layout.tensor
    tpot = read / (gpu.bandwidth_bytes_per_s * _DECODE) + _STEP_S * (layout.pipeline + layout.tensor.bit_length())
    prefill = prompt * layout.data / ttft
    seconds = per_replica * ttft + traffic.output_tokens * tpot
    return Speed(
        ttft_s=ttft,
        tpot_s=tpot,
        prefill_tokens_per_s=prefill,
        decode_tokens_per_s=concurrency / tpot,
        request_per_s=concurrency / seconds,
        bound={"prefill": "compute", "decode": "bandwidth"},
    )
