"""Which setup is written down: of what was asked, the first that fits, as a checkpoint that an engine can load."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from memplan.cli.checkpoints import online_quantization, published
from memplan.cli.mending import mend, with_changes
from memplan.cli.options import Given
from memplan.cli.questions import Asked, ask
from memplan.cli.serving_options import split_names
from memplan.cli.setup import Setup, refused_start, told
from memplan.cli.state import QuantizedOutput, quantized_output
from memplan.emit.registry import Format
from memplan.errors import DoesNotFit, MemplanError, UsageError
from memplan.records import replace
from memplan.units import format_gib

# Engines that refuse a length beyond the model's own.
_REFUSE_LONGER = ("vllm", "sglang", "tensorrt-llm")


def chosen_setup(given: Given, wanted: Format | None, *, strict: bool) -> Setup:
    """Return the setup to write: as asked when it fits, else the cheapest one near it that does.

    `wanted` is the format that was named. Raises: DoesNotFit when nothing near it fits, or `strict` refuses to look;
    UsageError when no GPU was named, or no engine can load what was asked for, or it would not start.
    """
    asked = _for_engine(ask(given), given, wanted)
    if not asked.devices:
        raise UsageError("no GPU was named", hint="add one, such as --gpu l40s; `memplan gpus` lists them")
    own = _own_output(given, asked)
    setups = [_answered(one) for one in _each(asked, own)]
    chosen = min(setups, key=_rank)  # the first of the best: what fits and starts
    if len(setups) > 1:
        print(f"using the first of {len(setups)} that fits: {_name(chosen)}", file=sys.stderr)
    if refused := refused_start(chosen.budget):
        raise UsageError(f"{_name(chosen)} cannot start: {refused['reason']}", hint=str(refused["hint"]))
    if chosen.budget.verdict != "does_not_fit":
        # A cache that most likely has no room for one request is no setup to write, however wide its interval.
        is_starved = chosen.budget.verdict == "tight" and (chosen.budget.kv.max_concurrency or 1.0) < 1.0
        return (mend(chosen, own) or chosen) if is_starved and not strict else chosen
    if strict:
        raise DoesNotFit(
            f"{chosen.budget.model_name} is {format_gib(chosen.budget.shortfall_bytes)} short on {_name(chosen)}",
            hint="without --strict, the cheapest change that fits is written",
        )
    mended = mend(chosen, own)
    if mended is None:
        raise DoesNotFit(
            f"{chosen.budget.model_name} is {format_gib(chosen.budget.shortfall_bytes)} short on {_name(chosen)}, "
            "and nothing near it fits",
            hint="lower --context or --concurrency, or name a larger GPU; `memplan estimate` shows what each returns",
        )
    return mended


def _own_output(given: Given, asked: Asked) -> QuantizedOutput | None:
    """What `memplan quantize` made of the model in this directory; a command that names its MODEL does not look."""
    found = None if "model" in given or "config" in given else quantized_output()
    return found if found is not None and found.model == asked.spec.name else None


def _rank(setup: Setup) -> tuple[bool, bool]:
    return refused_start(setup.budget) is not None, setup.budget.verdict == "does_not_fit"


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


def _each(asked: Asked, own: QuantizedOutput | None) -> Iterator[Asked]:
    """What was asked, one device, engine and weight scheme at a time, as a checkpoint that can be loaded."""
    names = split_names(str(asked.given["gpu"]), "--gpu") if "gpu" in asked.given else ()
    for index, device in enumerate(asked.devices):
        gpu = names[index] if len(names) == len(asked.devices) else asked.given.get("gpu")
        for engine, version in asked.engines:
            for scheme in asked.schemes:
                name = engine if version is None else f"{engine}@{version}"
                one = with_changes(asked.given, {"gpu": gpu, "engine": name, "quant": scheme})
                narrow = replace(asked, given=one, devices=(device,), engines=((engine, version),), schemes=(scheme,))
                yield _loadable(narrow, own)


def _loadable(asked: Asked, own: QuantizedOutput | None) -> Asked:
    """A weight scheme becomes a checkpoint that has it, the first that starts; what an engine quantizes itself stays.

    Raises: UsageError when there is neither.
    """
    scheme, engine = asked.schemes[0], asked.engines[0][0]
    if scheme is None or scheme == "none" or (engine == "llama.cpp" and scheme.startswith("gguf:")):
        return asked  # a GGUF file is made from any checkpoint
    forms = list(_forms(asked, scheme, own))
    if not forms and scheme.startswith("gguf:"):
        raise UsageError(
            f"{engine} does not make {scheme} weights", hint="use --engine llama.cpp, or name a .gguf file"
        )
    if not forms:
        raise UsageError(
            f"no published {scheme} checkpoint of {asked.spec.name} is known",
            hint="make one with `memplan quantize`, or name the directory or hub id of one as MODEL",
        )
    return next((form for form in forms[:-1] if _starts(form)), forms[-1])


def _forms(asked: Asked, scheme: str, own: QuantizedOutput | None) -> Iterator[Asked]:
    """What an engine can load for a scheme: the user's own, published ones, the plain weights that it quantizes.

    bitsandbytes makes of the named model what a published copy holds, so that no other's copy is taken.
    """
    engine = asked.engines[0][0]
    online = online_quantization(engine, scheme)
    if not asked.given.get("online_quant") and engine != "transformers":
        if own is not None and own.scheme == scheme:
            yield ask(with_changes(asked.given, {"model": str(own.output), "quant": None, "revision": None}))
        for known, hub_id in published(asked.spec) if online != "bitsandbytes" else ():
            if known == scheme:
                yield ask(with_changes(asked.given, {"model": hub_id, "quant": None, "revision": None}))
    if online is not None:
        yield asked


def _starts(asked: Asked) -> bool:
    try:
        return refused_start(told(asked.questions()[0])) is None
    except MemplanError:
        return False


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
