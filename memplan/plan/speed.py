"""How fast a candidate serves the asked traffic: the speed model with an engine's own way to cut and to batch."""

from __future__ import annotations

from memplan.budget.kv_cache import KvFormat, kv_format
from memplan.budget.speed import serving_speed
from memplan.catalog.efficiency import efficiency_for
from memplan.domain.dtypes import DType
from memplan.domain.plan import Traffic
from memplan.domain.serving import ParallelLayout
from memplan.domain.speed import ServingSpeed, SpeedWorkload
from memplan.errors import UsageError
from memplan.plan.bounds import LLAMA_CPP_CACHE_BITS
from memplan.plan.cells import Cell
from memplan.plan.space import LAYER_SPLIT, STATIC_BATCHING

_ONE_GPU = ParallelLayout()
_USUAL_STEP = 8192


def speed_of(
    cell: Cell,
    traffic: Traffic,
    concurrency: int,
    *,
    offload_bytes: int = 0,
    batched_tokens: int | None = None,
    with_working: bool = False,
) -> ServingSpeed | None:
    """The speed at `concurrency` requests in all replicas; None where the GPU's bandwidth is not known.

    Engines that put whole layers on each GPU run them one after the other, so several GPUs are as fast as one that had
    room. `offload_bytes` of every rank's weights lie in host memory; `batched_tokens` are those of one step, None where
    the engine's default is not known before it is asked.
    """
    dtype = cell.stored.spec.dtype if cell.stored.spec.dtype in (DType.F16, DType.BF16) else DType.F16
    try:
        return serving_speed(
            cell.stored.spec,
            cell.gpu,
            _ONE_GPU if cell.engine in LAYER_SPLIT else cell.layout,
            _kv_format(cell.kv_dtype, dtype),
            dtype,
            SpeedWorkload(
                prompt_tokens=traffic.prompt_tokens,
                output_tokens=traffic.output_tokens,
                concurrency=concurrency,
                shared_prefix_tokens=traffic.shared_prefix_tokens,
                batched_tokens=batched_tokens or _USUAL_STEP,
                arrival="together" if cell.engine in STATIC_BATCHING else "steady",
            ),
            efficiency_for(cell.engine, cell.gpu),
            offload_bytes=offload_bytes,
            with_working=with_working,
        )
    except UsageError:
        return None


def _kv_format(name: str | None, dtype: DType) -> KvFormat:
    if name is not None and name in LLAMA_CPP_CACHE_BITS:
        return KvFormat(name=name, element_bits=LLAMA_CPP_CACHE_BITS[name])
    return kv_format("float16" if name == "f16" else name, dtype)
