"""From a request to cells: every engine, GPU count, layout, scheme and cache type that no cheap check rules out.

A cell leaves open how many requests run at once and how large a step is: the search fills that in.
"""

from __future__ import annotations

from collections.abc import Iterator

from memplan.budget.pools import Pool
from memplan.catalog.rules import parse_release
from memplan.catalog.servable import Support, support
from memplan.domain.gpu import GpuSpec
from memplan.domain.model import ModelSpec
from memplan.domain.plan import GpuOffer, Limit, PlanRequest, Quality, Speculation
from memplan.domain.serving import ParallelLayout
from memplan.errors import MemplanError
from memplan.plan import space
from memplan.plan.bounds import missing_for_weights, request_bytes, weight_bytes
from memplan.plan.ledger import Ledger
from memplan.plan.loads import Fullness, fullness_of
from memplan.records import dataclass, replace
from memplan.units import GIB, round_up

_ONE_GPU = ParallelLayout()
_UNKNOWN = Support(runs=False, kernel="", reason="not looked up", hint="", source="", speed="slow")
# Of a GPU's memory, the part that weights may take where the rest of them is in host memory: beside them are a step's
# activations and the engine's own.
_KEPT_ON_GPU = 0.7


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredModel:
    """A model in one weight scheme: None for the checkpoint as it is."""

    scheme: str | None
    spec: ModelSpec
    weights_bytes: int
    bits: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One combination of everything but the batch. `request_bytes` is the least that the longest request keeps in the
    cache, `fullness` what requests keep of that.

    `is_first_choice` marks the engine that was named first, or the default one. With a `pool`, `layout` is that of the
    GPUs that decode, and `prefill` that of the pool.
    """

    engine: str
    is_first_choice: bool
    version: str | None
    gpu: GpuSpec
    layout: ParallelLayout
    stored: StoredModel
    kv_dtype: str | None
    request_bytes: float
    fullness: Fullness
    quality: Quality
    support: Support
    usd_per_hour: float | None
    offload_bytes: int = 0
    speculation: Speculation | None = None
    prefill: ParallelLayout | None = None
    pool: Pool | None = None

    @property
    def num_gpus(self) -> int:
        return self.layout.num_ranks + (self.prefill.num_ranks if self.prefill else 0)

    @property
    def is_doubted(self) -> bool:
        """Whether it must be faster than others by more than the speed model's error, to be chosen for its speed."""
        return not self.is_first_choice or self.prefill is not None or self.speculation is not None

    @property
    def region(self) -> str:
        """The region that a rejection names: GPUs, weights and engine."""
        return f"{gpus_text(self.gpu, self.num_gpus)}, {weights_text(self.stored)}, {self.engine}"


def gpus_text(gpu: GpuSpec, count: int) -> str:
    """`4 x h100`."""
    return f"{count} x {gpu.name}"


def weights_text(stored: StoredModel) -> str:
    """How weights are stored, in a region's name."""
    return stored.scheme or stored.spec.quantization or stored.spec.dtype.value


def cells(spec: ModelSpec, request: PlanRequest, ledger: Ledger) -> Iterator[Cell]:
    """Yield what is left after precision, quality, price, divisibility, servability and the size of the weights."""
    models: dict[str | None, StoredModel | None] = {}
    rises: dict[tuple[str | None, str | None], Quality] = {}
    for engine, version in request.engines:
        for scheme in space.schemes(spec, request, engine):
            stored = _stored(spec, scheme, models, ledger, engine)
            if stored is None or not _keeps_precision(stored, request, ledger, engine):
                continue
            for kv_dtype in space.kv_dtypes(request, engine):
                quality = _quality(spec, stored.scheme, kv_dtype, request, rises)
                limit = request.limits.max_perplexity_increase
                if limit is not None and quality.perplexity_increase > limit:
                    reason = f"perplexity rises by {quality.perplexity_increase:.1%}, {limit:.1%} allowed"
                    region = f"{weights_text(stored)} weights, {kv_dtype or 'plain'} cache"
                    ledger.rule_out("quality", region, reason, source=quality.source)
                    continue
                per_request = request_bytes(stored.spec, kv_dtype, request.traffic.context_tokens)
                per_request *= request.settings.kv_keep_fraction
                fullness = fullness_of(stored.spec, kv_dtype, engine, request.traffic)
                for offer in request.offers:
                    base = Cell(
                        engine=engine,
                        is_first_choice=engine == request.engines[0][0],
                        version=version,
                        gpu=offer.gpu,
                        layout=_ONE_GPU,
                        stored=stored,
                        kv_dtype=kv_dtype,
                        request_bytes=per_request,
                        fullness=fullness,
                        quality=quality,
                        support=_UNKNOWN,
                        usd_per_hour=None,
                        offload_bytes=request.settings.weight_offload_bytes,
                    )
                    yield from _on(offer, base, request, ledger)


def _on(offer: GpuOffer, base: Cell, request: PlanRequest, ledger: Ledger) -> Iterator[Cell]:
    """The cells of one GPU type, the smallest number of GPUs first."""
    gpu = offer.gpu
    known: dict[tuple[int, bool], Support] = {}

    def runs(layout: ParallelLayout) -> Support:
        cut = (layout.tensor, layout.expert)
        if cut not in known:
            scheme = base.stored.scheme
            known[cut] = support(base.stored.spec, scheme, base.kv_dtype, gpu, layout, base.engine, base.version)
        return known[cut]

    for count in offer.counts:
        price = gpu.price.low * count if gpu.price else None
        most = request.limits.max_usd_per_hour
        if most is not None and not offer.is_owned and (price is None or price > most):
            reason = f"${price:,.2f} an hour" if price is not None else "no price is known"
            ledger.rule_out("budget", f"{gpus_text(gpu, count)} and more", reason)
            break
        for layout in () if request.apart else space.layouts(base.stored.spec, request, base.engine, count):
            ledger.considered += 1
            cell = replace(base, layout=layout, support=runs(layout), usd_per_hour=price)
            refused = _refusal(cell, request)
            if refused is None:
                yield from _drafting(cell, request, ledger)
            elif refused[0] == "memory" and (offloaded := with_offload(cell, request)):
                yield offloaded
            else:
                ledger.rule_out(refused[0], cell.region, refused[1], source=refused[2])
        for prefill, decode in space.pools(base.stored.spec, request, base.engine, base.version, count):
            ledger.considered += 1
            cell = replace(base, layout=decode, prefill=prefill, support=runs(decode), usd_per_hour=price)
            refused = _refusal(cell, request) or _refusal(replace(cell, layout=prefill), request)
            if refused is None:
                yield cell
            else:
                ledger.rule_out(refused[0], cell.region, refused[1], source=refused[2])


def _drafting(cell: Cell, request: PlanRequest, ledger: Ledger) -> Iterator[Cell]:
    """A cell without a draft, and with every draft that its engine runs."""
    if not request.needs_draft:
        yield cell
    for draft in request.drafts:
        ledger.considered += 1
        if cell.layout.pipeline > 1:
            region = f"{cell.region}, pipelines"
            ledger.rule_out("servable", region, "drafts are not searched with pipeline stages")
            continue
        since = draft.engines.get(cell.engine)
        if since is None or (cell.version is not None and parse_release(cell.version) < parse_release(since)):
            named = f"{cell.engine} {cell.version}" if cell.version and since else cell.engine
            what = "the model's own predictors" if draft.name == "mtp" else "a draft model"
            ledger.rule_out("servable", cell.region, f"{named} is not known to draft with {what}", source=draft.source)
        else:
            yield replace(cell, speculation=draft)


def with_offload(cell: Cell, request: PlanRequest) -> Cell | None:
    """A cell whose weights do not fit, with what is too much of them in host memory; for batch jobs only, since every
    step then waits for the bus.
    """
    if not request.settings.offline_batch or request.settings.weight_offload_bytes or cell.engine not in space.OFFLOADS:
        return None
    ranks = cell.layout.tensor * cell.layout.pipeline * (cell.layout.data if cell.layout.expert else 1)
    kept = _KEPT_ON_GPU * cell.gpu.visible_low_bytes - cell.request_bytes / ranks
    if kept <= 0:
        return None
    return replace(cell, offload_bytes=round_up(int(cell.stored.weights_bytes / ranks - kept), GIB))


def _refusal(cell: Cell, request: PlanRequest) -> tuple[Limit, str, str] | None:
    """The first check that a cell does not pass: limit, reason and source."""
    if not cell.support.runs:
        return "servable", cell.support.reason, cell.support.source
    if cell.support.speed == "slow" and cell.stored.scheme is not None and cell.stored.scheme not in request.schemes:
        reason = (
            f"it runs, well behind 16 bit: {cell.support.kernel}; --quant {cell.stored.scheme} takes it all the same"
        )
        return "servable", reason, cell.support.source
    missing = missing_for_weights(cell.stored.weights_bytes, cell.gpu, cell.layout, cell.offload_bytes)
    return ("memory", missing, "docs/memory-model.md, Weights") if missing else None


def _stored(
    spec: ModelSpec,
    scheme: str | None,
    known: dict[str | None, StoredModel | None],
    ledger: Ledger,
    engine: str,
) -> StoredModel | None:
    if scheme not in known:
        known[scheme] = _make_stored(spec, scheme, ledger, engine)
    return known[scheme]


def _make_stored(spec: ModelSpec, scheme: str | None, ledger: Ledger, engine: str) -> StoredModel | None:
    from memplan.catalog.quality import scheme_bits
    from memplan.catalog.quant_schemes import parse_scheme
    from memplan.introspect.quantized import quantize_spec

    made = spec
    if scheme is not None:
        try:
            made = quantize_spec(spec, parse_scheme(scheme))
        except MemplanError as error:
            ledger.rule_out("servable", f"{scheme} weights, {engine}", error.message)
            return None
    bits = scheme_bits(made.quantization or "none") if made.quantization else made.dtype.bits
    return StoredModel(scheme=scheme, spec=made, weights_bytes=weight_bytes(made), bits=bits)


def _keeps_precision(stored: StoredModel, request: PlanRequest, ledger: Ledger, engine: str) -> bool:
    allowed = request.limits.weight_bits
    if not allowed or stored.bits in allowed:
        return True
    names = ", ".join(str(bits) for bits in sorted(allowed, reverse=True))
    ledger.rule_out(
        "precision", f"{weights_text(stored)} weights, {engine}", f"{stored.bits}-bit weights, {names} allowed"
    )
    return False


def _quality(
    spec: ModelSpec,
    scheme: str | None,
    kv_dtype: str | None,
    request: PlanRequest,
    known: dict[tuple[str | None, str | None], Quality],
) -> Quality:
    """What was measured of the weights, else what is published of their scheme; with what the cache costs."""
    from memplan.catalog.quality import quality_of, with_cache

    if (scheme, kv_dtype) not in known:
        kept, measured = request.settings.kv_keep_fraction, dict(request.measured)
        known[scheme, kv_dtype] = (
            with_cache(measured[scheme], kv_dtype, spec.parameters, kept)
            if scheme in measured
            else quality_of(scheme, kv_dtype, spec.parameters, kept)
        )
    return known[scheme, kv_dtype]
