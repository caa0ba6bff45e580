"""What is written when the asked setup does not fit: the cheapest one near it that does, and what was changed.

In this order: less slack (utilization, batch sizes); a shorter limit, when no length was asked for; what the user has
quantized of the model; a published quantized checkpoint (for llama.cpp a GGUF mix), each at full length or, when no
length was asked for, a shorter one; more GPUs of the kind. Every candidate is a set of options to change, asked and
answered anew.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from memplan.catalog.servable import support
from memplan.cli.checkpoints import published
from memplan.cli.options import WORKLOAD, Given
from memplan.cli.questions import ask
from memplan.cli.serving_options import split_count
from memplan.cli.setup import Setup, refused_start, told
from memplan.cli.state import QuantizedOutput
from memplan.domain.budget import MemoryBudget
from memplan.engines.remedies import ranked_remedies
from memplan.errors import MemplanError
from memplan.pipeline import Question, estimator
from memplan.records import replace
from memplan.units import format_gib

_LEAST_CONTEXT = 8192
_STEP_TOKENS = 1024
_FACTORS = (2, 4, 8, 16)
# Changes that cost no quality, no length and no hardware.
_SLACK = ("--gpu-memory-utilization", "--max-num-seqs", "--max-num-batched-tokens")
# GGUF mixes from the least loss of quality to the most that is usual.
_MIXES = ("gguf:q8_0", "gguf:q6_k", "gguf:q5_k_m", "gguf:q4_k_m")


def mend(setup: Setup, own: QuantizedOutput | None) -> Setup | None:
    """Return the cheapest setup near this one that fits and starts; None when none does.

    `own` is what the user has quantized of this model.
    """
    for changed, words in _candidates(setup, own):
        found = _try(setup, changed, words)
        if found is not None:
            return found
    return None


def _try(setup: Setup, changed: Mapping[str, Any], words: tuple[str, ...]) -> Setup | None:
    """The setup with options changed, if it can be and fits."""
    try:
        asked = ask(with_changes(setup.asked.given, changed))
        question = asked.questions()[0]
        budget = told(question)
    except MemplanError:
        return None
    if budget.verdict != "fits" or refused_start(budget):
        return None
    return Setup(asked=asked, question=question, budget=budget, changes=words)


def with_changes(given: Given, changed: Mapping[str, Any]) -> Given:
    """Options with some changed, and those that are changed to None left out."""
    return {name: value for name, value in {**given, **changed}.items() if value is not None}


def _candidates(setup: Setup, own: QuantizedOutput | None) -> Iterator[tuple[dict[str, Any], tuple[str, ...]]]:
    yield from _slack(setup)
    if (part := _free_part(setup)) is not None:
        words = (f"--gpu-memory-utilization {part:g}, because no more of the GPU is free",)
        yield {"gpu_memory_utilization": part}, words
        yield from _shorter(setup, {"gpu_memory_utilization": part}, words)
    yield from _shorter(setup, {}, ())
    if own is not None and setup.question.settings.quant is None:
        mine: dict[str, Any] = {"model": str(own.output), "revision": None, "quant": None}
        kind = f"{own.scheme}, {own.quality}" if own.quality else own.scheme
        words = (f"the weights are {own.output}, quantized here ({kind}), because {_missing(setup.budget)}",)
        yield mine, words
        yield from _shorter(setup, mine, words)
    if _is_plain_gguf(setup.question):
        for mix in _MIXES:
            changed: dict[str, Any] = {"quant": mix}
            words = (f"the weights are converted to {mix}, because {_missing(setup.budget)}",)
            yield changed, words
            yield from _shorter(setup, changed, words)
    elif setup.question.settings.quant is None:
        for scheme, hub_id in _startable(setup.question):
            other: dict[str, Any] = {"model": hub_id, "revision": None, "quant": None}
            words = (f"the weights are {hub_id}, a published {scheme} checkpoint, because {_missing(setup.budget)}",)
            yield other, words
            yield from _shorter(setup, other, words)
    yield from _more_gpus(setup)


def _is_plain_gguf(question: Question) -> bool:
    """Whether llama.cpp is to load weights that nobody has chosen a mix for yet: any checkpoint can be converted."""
    return question.engine == "llama.cpp" and question.settings.quant is None and not question.base_spec.quantization


def _free_part(setup: Setup) -> float | None:
    """The part of a shared GPU that an engine can have, when it wants more; None when it does not."""
    free, part = setup.question.settings.gpu_free_bytes, setup.budget.settings.get("gpu_memory_utilization")
    total = setup.question.gpu.memory_bytes
    if free is None or not isinstance(part, float) or part * total <= free:
        return None
    return max(0.01, int(100 * free / total - 1) / 100)


def _startable(question: Question) -> list[tuple[str, str]]:
    """The published checkpoints that start on the GPU: those of 8 bits first, of one width those with kernels of their
    own first.
    """
    spec, gpu = question.base_spec, question.gpu
    found: list[tuple[bool, bool, str, str]] = []
    for scheme, hub_id in published(spec):
        start = support(spec, scheme, None, gpu, question.settings.layout, question.engine, question.version)
        if start.runs:
            found.append(("4" in scheme, start.speed != "native", scheme, hub_id))
    found.sort(key=lambda each: each[:2])
    return [(scheme, hub_id) for _, _, scheme, hub_id in found]


def _missing(budget: MemoryBudget) -> str:
    where = f"{budget.num_gpus} x {budget.gpu_name}"
    return f"{budget.model_name} as asked is {format_gib(budget.shortfall_bytes)} short on each GPU of {where}"


def _slack(setup: Setup) -> Iterator[tuple[dict[str, Any], tuple[str, ...]]]:
    """The changes of slack that fit, as the knobs of the engine name them."""
    question = setup.question
    for remedy in ranked_remedies(
        estimator(question), question.spec, question.base_spec, question.gpu, question.settings, setup.budget
    ):
        flag, _, rest = remedy.change.partition(" ")
        if flag in _SLACK and remedy.verdict == "fits":
            value = rest.split("->")[-1].strip()
            name = flag.removeprefix("--").replace("-", "_")
            kind = WORKLOAD[name].kind
            yield {name: kind(value)}, (f"{remedy.change}, because {_missing(setup.budget)}",)


def _shorter(
    setup: Setup, changed: Mapping[str, Any], words: tuple[str, ...]
) -> Iterator[tuple[dict[str, Any], tuple[str, ...]]]:
    """The longest requests that have room, when no length was asked for and they are not too short to be of use."""
    if "context" in setup.asked.given:
        return
    try:
        question = ask(with_changes(setup.asked.given, changed)).questions()[0]
    except MemplanError:
        return
    low, high = _LEAST_CONTEXT // _STEP_TOKENS, question.spec.max_context_tokens // _STEP_TOKENS
    if high <= low or not _fits_at(question, low * _STEP_TOKENS):
        return
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _fits_at(question, middle * _STEP_TOKENS) else (low, middle)
    tokens = low * _STEP_TOKENS
    limit = question.spec.max_context_tokens
    reason = f"requests are limited to {tokens:,} tokens, the longest that fit, because no --context was given"
    yield {**changed, "context": str(tokens)}, (*words, f"{reason}; the model's own limit is {limit:,}")


def _fits_at(question: Question, tokens: int) -> bool:
    workload = replace(question.settings.workload, context_tokens=tokens)
    changed = replace(question, settings=replace(question.settings, workload=workload))
    try:
        budget = told(changed)
    except MemplanError:
        return False
    # A request that fills the whole pool leaves its scheduler nothing to go on with.
    room, spare = budget.kv.max_context_tokens, 2 * (budget.kv.block_size or 1)
    return budget.verdict == "fits" and (room is None or room >= min(tokens + spare, question.spec.max_context_tokens))


def _more_gpus(setup: Setup) -> Iterator[tuple[dict[str, Any], tuple[str, ...]]]:
    """More GPUs of the same kind: as many times the number asked for."""
    given: Given = setup.asked.given
    base, count = split_count(str(given["gpu"])) if "gpu" in given else ("", None)
    layout = setup.question.settings.layout
    for factor in _FACTORS:
        changed: dict[str, Any] = {}
        if count is not None:
            changed["gpu"] = f"{base}x{count * factor}"
        if count is None or layout.num_ranks > 1:
            changed["tp"] = layout.tensor * factor
        more = setup.budget.num_gpus * factor
        words = (f"{more} GPUs instead of {setup.budget.num_gpus}, because {_missing(setup.budget)}",)
        mixes = (_MIXES[0], _MIXES[-1]) if _is_plain_gguf(setup.question) else ()
        for mix in mixes:
            yield {**changed, "quant": mix}, (*words, f"the weights are converted to {mix}")
        yield changed, words
