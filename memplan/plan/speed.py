"""How fast a candidate serves the asked traffic: the speed model with an engine's own way to cut and to batch."""

from __future__ import annotations

from memplan.budget.kv_cache import KvFormat, kv_format
from memplan.budget.pools import Pool, pooled_speed, transfer_between
from memplan.budget.speed import serving_speed
from memplan.catalog.efficiency import efficiency_for
from memplan.domain.dtypes import DType
from memplan.domain.plan import PlanRequest
from memplan.domain.serving import ParallelLayout
from memplan.domain.speed import Draft, ServingSpeed, SpeedWorkload
from memplan.errors import UsageError
from memplan.plan.bounds import LLAMA_CPP_CACHE_BITS
from memplan.plan.cells import Cell
from memplan.plan.loads import speed_workload
from memplan.plan.space import LAYER_SPLIT, STATIC_BATCHING
from memplan.records import replace

_ONE_GPU = ParallelLayout()
_USUAL_STEP = 8192
# Prompts that a prefill replica has at once, where short ones share a pass.
_READ_AT_ONCE = 8


def speed_of(
    cell: Cell,
    concurrency: int,
    request: PlanRequest,
    *,
    batched_tokens: int | None = None,
    with_working: bool = False,
) -> ServingSpeed | None:
    """The speed at `concurrency` requests in all replicas; None where the GPU's bandwidth is not known.

    Engines that put whole layers on each GPU run them one after the other, so several GPUs are as fast as one that had
    room. `batched_tokens` are those of one step, None where the engine's default is not known before it is asked.
    """
    if cell.pool is not None:
        prompt = request.traffic.prompt_tokens
        decode = _speed(cell, cell.layout, concurrency, request, None, with_working, shared_prefix_tokens=prompt)
        return pooled_speed(cell.pool, decode, request.traffic.output_tokens) if decode else None
    layout = _ONE_GPU if cell.engine in LAYER_SPLIT else cell.layout
    return _speed(cell, layout, concurrency, request, batched_tokens, with_working)


Reads = dict[tuple[object, ...], tuple[ServingSpeed, ServingSpeed]]
"""Speeds of a replica that reads prompts, one alone and several together, by what they depend on."""


def with_pool(cell: Cell, request: PlanRequest, known: Reads) -> Cell | None:
    """A cell with what its prefill replicas make of the load; None where the bandwidth is not known."""
    if cell.prefill is None:
        return cell
    prefill, decode = cell.prefill, cell.layout
    key = (cell.engine, cell.stored.scheme, cell.kv_dtype, cell.gpu.name, prefill.tensor)
    if key not in known:
        alone = replace(prefill, data=1)
        first = _speed(cell, alone, 1, request, None, True, output_tokens=1)
        several = _speed(cell, alone, _READ_AT_ONCE, request, None, False, output_tokens=1)
        if first is None or several is None:
            return None
        known[key] = first, several
    one, many = known[key]
    seconds, link = transfer_between(
        cell.stored.spec,
        cell.gpu,
        _kv_format(cell, request),
        request.traffic.prompt_tokens,
        (prefill.tensor, decode.tensor),
        prefill.num_ranks + decode.num_ranks,
        efficiency_for(cell.engine, cell.gpu),
    )
    pool = Pool(
        one=one,
        replicas=prefill.data,
        request_per_s=many.request_per_s * prefill.data,
        transfer_s=seconds,
        link=link,
    )
    return replace(cell, pool=pool)


def _speed(
    cell: Cell,
    layout: ParallelLayout,
    concurrency: int,
    request: PlanRequest,
    batched_tokens: int | None,
    with_working: bool,
    *,
    output_tokens: int | None = None,
    shared_prefix_tokens: int | None = None,
) -> ServingSpeed | None:
    load = speed_workload(request.traffic)
    drafted, draft = cell.speculation, None
    if drafted is not None:
        draft = Draft(spec=drafted.spec, num_tokens=drafted.num_tokens, acceptance=drafted.acceptance)
    try:
        return serving_speed(
            cell.stored.spec,
            cell.gpu,
            layout,
            _kv_format(cell, request),
            _compute_dtype(cell),
            SpeedWorkload(
                prompt_tokens=load.prompt_tokens,
                output_tokens=output_tokens or load.output_tokens,
                concurrency=concurrency,
                shared_prefix_tokens=(
                    load.shared_prefix_tokens if shared_prefix_tokens is None else shared_prefix_tokens
                ),
                batched_tokens=batched_tokens or _USUAL_STEP,
                arrival="together" if cell.engine in STATIC_BATCHING else "steady",
                prompt_strata=load.prompt_strata if shared_prefix_tokens is None else (),
                long_prompt_tokens=load.long_prompt_tokens if shared_prefix_tokens is None else None,
                output_spread=load.output_spread,
            ),
            efficiency_for(cell.engine, cell.gpu),
            offload_bytes=cell.offload_bytes,
            draft=draft,
            with_working=with_working,
        )
    except UsageError:
        return None


def _compute_dtype(cell: Cell) -> DType:
    return cell.stored.spec.dtype if cell.stored.spec.dtype in (DType.F16, DType.BF16) else DType.F16


def _kv_format(cell: Cell, request: PlanRequest) -> KvFormat:
    """How the cache is stored, and how much of it is left to read once it is pruned."""
    name = cell.kv_dtype
    if name is not None and name in LLAMA_CPP_CACHE_BITS:
        return KvFormat(name=name, element_bits=LLAMA_CPP_CACHE_BITS[name])
    form = kv_format("float16" if name == "f16" else name, _compute_dtype(cell))
    kept = request.settings.kv_keep_fraction
    return form if kept == 1.0 else replace(form, element_bits=form.element_bits * kept)
