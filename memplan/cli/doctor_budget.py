"""From what a log or a config says to a question for the pipeline, and the same question again with a change."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memplan.catalog.rules import load_rules
from memplan.cli.options import Given
from memplan.doctor.facts import Facts, oom_total
from memplan.doctor.mends import Recompute
from memplan.domain.budget import MemoryBudget
from memplan.errors import MemplanError
from memplan.pipeline import Question, answer
from memplan.records import dataclass, replace

# Options that a log's settings fill in, and how their values are written.
_TEXTS = (
    "context",
    "max_num_seqs",
    "max_num_batched_tokens",
    "kv_cache_memory",
    "batch_size",
    "ubatch_size",
    "n_gpu_layers",
)
_PLAIN = ("tp", "pp", "dp", "ep", "gpu_memory_utilization", "eager", "block_size")
_DTYPES = ("float16", "bfloat16", "float32")
# What is an engine's own option, and under which name.
_OWN = (
    "mem_fraction_static",
    "chunked_prefill_size",
    "max_running_requests",
    "cuda_graph_max_bs",
    "free_gpu_memory_fraction",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reckoned:
    """A budget for what was read, and how to compute it again with some options changed.

    `plain` is the budget without what was learned before, `release` the engine's as corrections are kept for it.
    """

    budget: MemoryBudget
    plain: MemoryBudget
    release: str
    question: Question
    asked: Mapping[str, Any]
    recompute: Recompute


def reckon(facts: Facts, given: Given) -> tuple[Reckoned | None, str]:
    """Return the budget of what a text says, and in words why there is none: the model or the GPU is not known."""
    asked = asked_of(facts, given)
    if asked.get("model") is None or ("gpu" not in asked and "gpu_memory" not in asked):
        return None, ""
    try:
        return _reckoned(asked), ""
    except MemplanError as error:
        return None, f"no budget: {error.message}"


def asked_of(facts: Facts, given: Given) -> dict[str, Any]:
    """memplan's options for what a text says; what was given on the command line wins."""
    settings = facts.settings
    asked: dict[str, Any] = {name: str(settings[name]) for name in _TEXTS if settings.get(name) not in (None, "")}
    asked |= {name: settings[name] for name in _PLAIN if settings.get(name) is not None}
    if settings.get("dtype") in _DTYPES:
        asked["dtype"] = settings["dtype"]
    if "fp8" in str(settings.get("kv_dtype", "")):
        asked["kv_dtype"] = "fp8"
    own = [f"{name}={settings[name]}" for name in _OWN if settings.get(name) is not None]
    if own and facts.engine in ("sglang", "tensorrt-llm"):
        asked["set"] = own
    if facts.engine:
        asked["engine"] = f"{facts.engine}@{facts.version}" if facts.version else facts.engine
    if (name := known_model(str(settings.get("model", "")))) is not None:
        asked["model"] = name
    if total := oom_total(facts):
        asked["gpu_memory"] = f"{total / (1 << 30):.2f}GiB"
    if facts.engine == "llama.cpp" and facts.free_bytes and facts.total_bytes is None:
        asked["gpu_memory"] = f"{facts.free_bytes / (1 << 30):.2f}GiB"
    for name in ("model", "gpu", "gpu_memory", "engine"):
        if name in given:
            asked[name] = given[name]
    if "gpu" in given and "gpu_memory" not in given:
        asked.pop("gpu_memory", None)
    if "engine" in given and "@" not in given["engine"] and facts.version and given["engine"] == facts.engine:
        asked["engine"] = f"{facts.engine}@{facts.version}"
    asked["offline"] = bool(given.get("offline")) or "model" not in given
    return asked


def known_model(name: str) -> str | None:
    """The catalogue's name of a model that a log names, by its hub id or by the last part of its path; None for others.

    A log's words reach no disk and no network: only the catalogue is asked.
    """
    from memplan.catalog.models import find_model

    for candidate in (name, name.rstrip("/").rpartition("/")[2].removesuffix(".gguf")):
        if 2 < len(candidate) < 200 and candidate.lower() != "demo" and find_model(candidate) is not None:
            return candidate
    return None


def _reckoned(asked: Mapping[str, Any]) -> Reckoned:
    question, budget = answered(asked)

    def again(options: Mapping[str, object]) -> MemoryBudget | None:
        both = {**asked, **options}
        if "set" in options and "set" in asked:
            fresh = options["set"]
            assert isinstance(fresh, list)
            names = {pair.partition("=")[0] for pair in fresh}
            both["set"] = [*(pair for pair in asked["set"] if pair.partition("=")[0] not in names), *fresh]
        try:
            return answered(both)[1]
        except MemplanError:
            return None

    return Reckoned(
        budget=budget,
        plain=_unlearned(question, budget),
        release=load_rules(question.engine, question.version).version,
        question=question,
        asked=asked,
        recompute=again,
    )


def _unlearned(question: Question, budget: MemoryBudget) -> MemoryBudget:
    """The same budget as the formulas have it: what is learned must not be compared with itself."""
    if not question.settings.corrections:
        return budget
    return answer(replace(question, settings=replace(question.settings, corrections=())))


def answered(asked: Mapping[str, Any]) -> tuple[Question, MemoryBudget]:
    """Return the question that options ask, and its budget. Raises: MemplanError."""
    from memplan.cli.questions import ask

    question = ask({**asked, "quiet": True}).questions()[0]
    question = replace(question, with_remedies=False)
    return question, answer(question)
