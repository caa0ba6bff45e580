"""The visible pipeline: anything a person names, through a ModelSpec, to MemoryBudgets, every stage a recorded value.

name -> introspect -> ModelSpec -> engine -> MemoryBudget -> report
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from memplan.budget.kv_waste import kv_waste
from memplan.budget.storage import checkpoint_bytes
from memplan.domain.budget import ContextMap, KvWaste, MemoryBudget
from memplan.domain.gpu import GpuSpec
from memplan.domain.holders import Holders
from memplan.domain.model import ModelSpec
from memplan.domain.serving import ParallelLayout, ServingSettings
from memplan.engines.registry import Engine, load_engine
from memplan.engines.remedies import ranked_remedies
from memplan.engines.starts import with_support
from memplan.errors import MemplanError, UsageError
from memplan.records import dataclass, replace

_MAP_TOKENS = (2048, 4096, 8192, 16384, 32768, 65536, 131072, 262144, 524288, 1048576)
_MAX_SHARING = 64
_HOLDER_COUNTS = (1, 2, 4, 8, 16)


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One budget to compute: a model as loaded, on one GPU type, under one engine.

    `sharing` is how many engines like this one every GPU carries. `with_remedies` asks for the whole answer: the knobs,
    the context map and the cache's waste.
    """

    spec: ModelSpec
    base_spec: ModelSpec
    gpu: GpuSpec
    settings: ServingSettings
    engine: str
    version: str | None
    num_gpus: int | None = None
    sharing: int = 1
    with_remedies: bool = True


def load_model(
    name: str, *, revision: str | None, offline: bool, introspect: str, trust_remote_code: bool = False
) -> ModelSpec:
    """Return the ModelSpec of anything a person names."""
    from memplan.introspect.resolve import resolve_model

    return resolve_model(
        name, revision=revision, offline=offline, introspect=introspect, trust_remote_code=trust_remote_code
    )


def load_draft(
    spec: ModelSpec, name: str, *, revision: str | None, offline: bool, introspect: str, trust_remote_code: bool = False
) -> ModelSpec:
    """Return the model that drafts for `spec`: one of its own, or for `mtp` the predictors of its own checkpoint.

    Raises: UsageError for `mtp` when the checkpoint has none.
    """
    if name.lower() != "mtp":
        return load_model(
            name, revision=None, offline=offline, introspect=introspect, trust_remote_code=trust_remote_code
        )
    predictor = spec.predictor()
    if predictor is None:
        raise UsageError(
            f"{spec.name} has no multi-token-prediction layers", hint="name a draft model with --draft-model"
        )
    return predictor


def with_scheme(spec: ModelSpec, scheme: str | None) -> ModelSpec:
    """Return the model with its weights stored in `scheme`; unchanged for None, which keeps the checkpoint's own."""
    if scheme is None:
        return spec
    from memplan.catalog.quant_schemes import parse_scheme
    from memplan.introspect.quantized import quantize_spec

    return quantize_spec(spec, parse_scheme(scheme))


def answer(question: Question) -> MemoryBudget:
    """Return the budget of one question; a whole answer has the knobs that free memory, the map and the waste."""
    engine, settings = load_engine(question.engine), placed(question)
    question = replace(question, settings=settings)
    budget = _estimate(engine, question, settings)
    if not question.with_remedies:
        return with_support(budget, question.spec, question.gpu, settings, question.version)
    change = estimator(question)
    remedies = ranked_remedies(change, question.spec, question.base_spec, question.gpu, settings, budget)
    whole = replace(
        budget,
        remedies=remedies,
        context_map=_context_map(engine, question, budget),
        kv_waste=_waste(engine, question, budget),
    )
    return with_support(whole, question.spec, question.gpu, settings, question.version)


def estimator(question: Question) -> Callable[[ModelSpec, ServingSettings], MemoryBudget]:
    """How changes of a question are computed: with what start-ups showed, as far as they ran on as many ranks."""
    engine, ranks = load_engine(question.engine), question.settings.layout.num_ranks

    def estimate(spec: ModelSpec, settings: ServingSettings) -> MemoryBudget:
        if settings.layout.num_ranks != ranks and question.engine != "transformers":
            settings = replace(settings, corrections=())
        return _estimate(engine, replace(question, spec=spec), settings)

    return estimate


def placed(question: Question) -> ServingSettings:
    """The settings that one engine of a question really has: laid out over its GPUs, with its part of a shared one."""
    settings = question.settings
    if question.num_gpus:
        settings = replace(settings, layout=_layout(question.spec, settings.layout, question.num_gpus))
    if question.sharing != 1:
        settings = _shared(load_engine(question.engine), question, settings)
    return settings


def _estimate(engine: Engine, question: Question, settings: ServingSettings) -> MemoryBudget:
    budget = engine.estimate(question.spec, question.gpu, settings, question.version)
    if settings.corrections and question.engine != "transformers":
        from memplan.engines.learned import with_learned

        budget = with_learned(budget, settings.corrections)
    return replace(
        budget,
        settings={**budget.settings, "concurrency": settings.workload.concurrency},
        weights_scheme=question.spec.quantization or question.spec.dtype.value,
        price=question.gpu.price,
    )


def _layout(spec: ModelSpec, asked: ParallelLayout, num_gpus: int) -> ParallelLayout:
    """Spread one replica over `num_gpus`: as much tensor parallelism as the heads and a node of eight allow.

    Raises: UsageError when the ranks that were asked for do not multiply to the number of GPUs.
    """
    if asked.num_ranks > 1:
        if num_gpus % asked.num_ranks:
            raise UsageError(
                f"{num_gpus} GPUs do not hold {asked.num_ranks} ranks evenly",
                hint="leave --tp, --pp and --dp out, or make them multiply to the number of GPUs",
            )
        return replace(asked, data=asked.data * (num_gpus // asked.num_ranks))
    heads = [layer.num_heads for layer in spec.layers if layer.num_heads] or [1]
    tensor = max(
        size for size in range(1, min(8, num_gpus) + 1) if num_gpus % size == 0 and all(h % size == 0 for h in heads)
    )
    return replace(asked, tensor=tensor, pipeline=num_gpus // tensor)


def _shared(engine: Engine, question: Question, settings: ServingSettings) -> ServingSettings:
    """The settings of one of several equal engines on a GPU, started last: an equal part each, and the rest in use.

    Raises: UsageError for a number of engines out of range.
    """
    sharing = question.sharing
    if not 1 <= sharing <= _MAX_SHARING:
        raise UsageError(f"--sharing out of range: {sharing}", hint=f"it must be between 1 and {_MAX_SHARING}")
    part = settings.gpu_memory_utilization
    if part is None:
        whole = _estimate(engine, question, settings).settings.get("gpu_memory_utilization")
        part = (whole if isinstance(whole, float) else 0.9) / sharing
    settings = replace(settings, gpu_memory_utilization=part)
    alone = _estimate(engine, question, settings)
    free = question.gpu.memory_bytes - (sharing - 1) * alone.used_bytes
    return replace(settings, gpu_free_bytes=max(1, min(free, settings.gpu_free_bytes or free)))


def _context_map(engine: Engine, question: Question, budget: MemoryBudget) -> ContextMap | None:
    """How many requests have room at every length: a budget for each, because steps may grow with the length."""
    limit = question.spec.max_context_tokens
    asked = question.settings.workload.context_tokens
    lengths = sorted({tokens for tokens in (*_MAP_TOKENS, limit, asked or limit) if tokens <= max(limit, asked or 0)})
    found: list[tuple[int, float]] = []
    for tokens in lengths:
        most = _max_concurrency(engine, question, tokens)
        if most is not None:
            found.append((tokens, most))
    if len(found) < 2 or budget.kv.capacity_tokens is None:
        return None
    return ContextMap(context_tokens=tuple(tokens for tokens, _ in found), max_concurrency=tuple(n for _, n in found))


def _max_concurrency(engine: Engine, question: Question, tokens: int) -> float | None:
    workload = replace(question.settings.workload, context_tokens=tokens, concurrency=1)
    try:
        return _estimate(engine, question, replace(question.settings, workload=workload)).kv.max_concurrency
    except MemplanError:
        return None


def _waste(engine: Engine, question: Question, budget: MemoryBudget) -> KvWaste | None:
    """The cache's waste at the mean length that was given; None without one, or when nothing is cached."""
    workload = question.settings.workload
    context = budget.settings.get("max_model_len") or workload.context_tokens or question.spec.max_context_tokens
    if workload.mean_tokens is None or budget.kv.capacity_tokens is None or not isinstance(context, int):
        return None
    mean = min(workload.mean_tokens, context)
    costs = [
        _estimate(
            engine,
            question,
            replace(question.settings, workload=replace(workload, context_tokens=tokens, concurrency=1)),
        ).kv.needed_bytes
        for tokens in (mean, context)
    ]
    pool = budget.group_bytes("kv_cache")
    return kv_waste(
        pool_bytes=pool,
        mean_tokens=mean,
        context_tokens=context,
        mean_bytes=costs[0],
        context_bytes=costs[1],
        page_tokens=budget.kv.block_size or 1,
    )


def find_holders(question: Question, gpus: Iterable[GpuSpec]) -> Holders:
    """Return what a model needs, and the smallest number of each GPU that holds it and the asked requests.

    The GPU of `question` does not matter. Powers of two up to 16 are tried.
    """
    engine = load_engine(question.engine)
    weights_bytes = checkpoint_bytes(question.spec)
    budgets: list[MemoryBudget] = []
    left_out: list[str] = []
    for gpu in gpus:
        held = _smallest(engine, replace(question, gpu=gpu, with_remedies=False), weights_bytes)
        if held is None:
            left_out.append(gpu.name)
        else:
            budgets.append(held)
    roomy = replace(question.gpu, memory_bytes=1 << 44, visible_low_bytes=1 << 44, visible_high_bytes=1 << 44)
    whole = engine.estimate(question.spec, roomy, _usual_steps(question, budgets), question.version)
    context = whole.kv.needed_tokens // question.settings.workload.concurrency
    return Holders(
        model_name=question.spec.name,
        parameters=question.spec.parameters,
        weights_bytes=whole.group_bytes("weights"),
        running_bytes=sum(whole.group_bytes(group) for group in ("activation_peak", "cuda_graph", "non_torch")),
        kv_bytes=whole.kv.needed_bytes,
        kv_bytes_per_token=whole.kv.bytes_per_token,
        context_tokens=context,
        concurrency=question.settings.workload.concurrency,
        budgets=tuple(budgets),
        left_out=tuple(left_out),
    )


def _usual_steps(question: Question, budgets: list[MemoryBudget]) -> ServingSettings:
    """The settings with the batch that the first holder takes: a default may depend on the size of the GPU."""
    seqs = budgets[0].settings.get("max_num_seqs") if budgets else None
    if question.settings.max_num_seqs is not None or not isinstance(seqs, int):
        return question.settings
    return replace(question.settings, max_num_seqs=seqs)


def _smallest(engine: Engine, question: Question, weights_bytes: int) -> MemoryBudget | None:
    """The budget on the fewest GPUs that is not refused; None when none of the numbers tried is enough."""
    for count in _HOLDER_COUNTS:
        if count * question.gpu.memory_bytes < weights_bytes:
            continue
        try:
            layout = _layout(question.spec, question.settings.layout, count)
            budget = _estimate(engine, question, replace(question.settings, layout=layout))
        except MemplanError:
            continue
        if budget.verdict != "does_not_fit":
            return replace(budget, price=question.gpu.price)
    return None
