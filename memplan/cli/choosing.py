"""Which setup is written down: of what was asked, the first that fits, as a checkpoint that an engine can load."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from memplan.cli.checkpoints import online_quantization, published
from memplan.cli.mending import mend, with_changes
from memplan.cli.options import Given
from memplan.cli.questions import Asked, ask
from memplan.cli.serving_options import split_names
from memplan.cli.setup import Setup, told
from memplan.emit.registry import Format
from memplan.errors import DoesNotFit, UsageError
from memplan.records import replace
from memplan.units import format_gib

# Engines that refuse a length beyond the model's own.
_REFUSE_LONGER = ("vllm", "sglang", "tensorrt-llm")


def chosen_setup(given: Given, wanted: Format | None, *, strict: bool) -> Setup:
    """Return the setup to write: as asked when it fits, else the cheapest one near it that does.

    `wanted` is the format that was named. Raises: DoesNotFit when nothing near it fits, or `strict` refuses to look;
    UsageError when no GPU was named, or no engine can load what was asked for.
    """
    asked = _for_engine(ask(given), given, wanted)
    if not asked.devices:
        raise UsageError("no GPU was named", hint="add one, such as --gpu l40s; `memplan gpus` lists them")
    setups = [_answered(one) for one in _each(asked)]
    if len(setups) > 1:
        chosen = next((setup for setup in setups if setup.budget.verdict != "does_not_fit"), setups[0])
        print(f"using the first of {len(setups)} that fits: {_name(chosen)}", file=sys.stderr)
    else:
        chosen = setups[0]
    if chosen.budget.verdict != "does_not_fit":
        # A cache that most likely has no room for one request is no setup to write, however wide its interval.
        is_starved = chosen.budget.verdict == "tight" and (chosen.budget.kv.max_concurrency or 1.0) < 1.0
        return (mend(chosen) or chosen) if is_starved and not strict else chosen
    if strict:
        raise DoesNotFit(
            f"{chosen.budget.model_name} is {format_gib(chosen.budget.shortfall_bytes)} short on {_name(chosen)}",
            hint="without --strict, the cheapest change that fits is written",
        )
    mended = mend(chosen)
    if mended is None:
        raise DoesNotFit(
            f"{chosen.budget.model_name} is {format_gib(chosen.budget.shortfall_bytes)} short on {_name(chosen)}, "
            "and nothing near it fits",
            hint="lower --context or --concurrency, or name a larger GPU; `memplan estimate` shows what each returns",
        )
    return mended


def _for_engine(asked: Asked, given: Given, wanted: Format | None) -> Asked:
    """The engine that the format is for, where none was named on the command line."""
    if wanted is None or not wanted.engines or asked.engines[0][0] in wanted.engines:
        return asked
    if "engine" in given:
        raise UsageError(
            f"this format is not for {asked.engines[0][0]}", hint=f"it is for {' and '.join(wanted.engines)}"
        )
    engine = wanted.engines[0]
    kept = {name: value for name, value in asked.given.items() if name != "set"}
    return ask({**kept, "engine": engine})


def _each(asked: Asked) -> Iterator[Asked]:
    """What was asked, one device, engine and weight scheme at a time, as a checkpoint that can be loaded."""
    names = split_names(str(asked.given["gpu"]), "--gpu") if "gpu" in asked.given else ()
    for index, device in enumerate(asked.devices):
        gpu = names[index] if len(names) == len(asked.devices) else asked.given.get("gpu")
        for engine, version in asked.engines:
            for scheme in asked.schemes:
                name = engine if version is None else f"{engine}@{version}"
                one = with_changes(asked.given, {"gpu": gpu, "engine": name, "quant": scheme})
                narrow = replace(asked, given=one, devices=(device,), engines=((engine, version),), schemes=(scheme,))
                yield _loadable(narrow)


def _loadable(asked: Asked) -> Asked:
    """A weight scheme becomes the published checkpoint that has it; what an engine quantizes itself stays as it is.

    Raises: UsageError when there is neither.
    """
    scheme, engine = asked.schemes[0], asked.engines[0][0]
    if scheme is None or scheme == "none" or (engine == "llama.cpp" and scheme.startswith("gguf:")):
        return asked  # a GGUF file is made from any checkpoint
    if not asked.given.get("online_quant") and engine != "transformers":
        for known, hub_id in published(asked.spec):
            if known == scheme:
                return ask(with_changes(asked.given, {"model": hub_id, "quant": None, "revision": None}))
    if online_quantization(engine, scheme) is not None:
        return asked
    raise UsageError(
        f"no published {scheme} checkpoint of {asked.spec.name} is known",
        hint="make one with `memplan quantize`, or name the directory or hub id of one as MODEL",
    )


def _answered(asked: Asked) -> Setup:
    question = asked.questions()[0]
    limit, wanted = question.spec.max_context_tokens, question.settings.workload.context_tokens
    if wanted and wanted > limit and question.engine in _REFUSE_LONGER:
        raise UsageError(
            f"{question.base_spec.name} takes {limit:,} tokens at most, and {question.engine} refuses {wanted:,}",
            hint=f"use --context {limit}",
        )
    return Setup(asked=asked, question=question, budget=told(question))


def _name(setup: Setup) -> str:
    budget = setup.budget
    return f"{budget.num_gpus} x {budget.gpu_name} under {budget.engine_name} {budget.engine_version}"
