"""From a command's options to a PlanRequest: goal, traffic, limits, and the GPUs that may be taken."""

from __future__ import annotations

import re
from math import ceil
from typing import TYPE_CHECKING

from memplan.cli.measured_quality import measured_quality
from memplan.cli.options import Given
from memplan.cli.serving_options import Device, listed, parse_devices, serving_settings
from memplan.domain.lengths import FixedLength, Lengths, LogNormalLengths
from memplan.domain.model import ModelSpec
from memplan.domain.plan import GOALS, Goal, GpuOffer, Limits, PlanRequest, Speculation, Traffic
from memplan.domain.serving import ParallelLayout, ServingSettings
from memplan.errors import UsageError, did_you_mean
from memplan.records import replace
from memplan.units import parse_count, parse_fraction

if TYPE_CHECKING:
    from memplan.cli.request_files import Side

_COUNTS = (1, 2, 4, 8)
_TIME = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|)")
_MONEY = re.compile(r"\$?\s*(\d+(?:\.\d+)?)\s*(?:/\s*h(?:our)?)?")
_WIDTHS = frozenset({16, 8, 6, 5, 4, 3, 2})
_LARGEST_OUTPUT = 1024
# A time from here on without a unit may be milliseconds.
_NEEDS_A_UNIT = 10
# Slower than people read (about 240 words a minute): nobody waits for it. Left out for --offline-batch.
_READING_S = 0.2
_SERVERS = ("vllm", "sglang", "tensorrt-llm", "llama.cpp")


def plan_request(given: Given, spec: ModelSpec) -> PlanRequest:
    """Return what the options ask for `spec`.

    Raises: UsageError for an unknown goal, GPU or engine, and for a value that does not read or cannot be kept.
    """
    goal = _goal(given)
    devices = _devices(given)
    settings = replace(serving_settings(given), gpu_free_bytes=devices[0].free_bytes)
    layout = settings.layout if settings.layout.num_ranks > 1 else None
    return PlanRequest(
        goal=goal,
        traffic=_traffic(given, spec, settings),
        limits=_limits(given),
        offers=tuple(_offer(device, goal, layout) for device in devices),
        engines=_engines(given),
        settings=settings,
        schemes=_schemes(given),
        kv_dtypes=_kv_dtypes(given),
        layout=layout,
        drafts=_drafts(given, spec, goal),
        needs_draft="draft_model" in given and given["draft_model"].lower() != "none",
        apart=given.get("disaggregated"),
        measured=measured_quality(given, spec),
    )


def _goal(given: Given) -> Goal:
    asked = given.get("goal", "cost").strip().lower().replace("_", "-")
    for goal in GOALS:
        if asked == goal:
            return goal
    hint = did_you_mean(asked, list(GOALS)) or f"use one of {', '.join(GOALS)}"
    raise UsageError(f"unknown goal: `{given['goal']}`", hint=hint)


def _engines(given: Given) -> tuple[tuple[str, str | None], ...]:
    from memplan.engines.registry import parse_engine

    return tuple(parse_engine(name) for name in listed(given, "engine")) or tuple((name, None) for name in _SERVERS)


def _devices(given: Given) -> tuple[Device, ...]:
    """The GPUs that were named, else every GPU that has a price."""
    devices = parse_devices(given.get("gpu"), memory=given.get("gpu_memory"), free=given.get("gpu_free"))
    if devices:
        return devices
    from memplan.catalog.gpus import list_gpus

    return tuple(Device(gpu=gpu) for gpu in list_gpus() if gpu.price)


def _schemes(given: Given) -> tuple[str, ...]:
    """The weight schemes that were named. Raises: UsageError for one that there is not."""
    from memplan.catalog.quant_schemes import parse_scheme

    names = listed(given, "quant")
    for name in names:
        parse_scheme(name)
    return names


def _kv_dtypes(given: Given) -> tuple[str | None, ...]:
    """The cache types that were named, None for the model's own. Raises: UsageError for one that no engine has."""
    from memplan.catalog.servable import known_kv_dtypes

    names = listed(given, "kv_dtype")
    known = known_kv_dtypes()
    for name in names:
        if name.lower() not in known:
            hint = did_you_mean(name, sorted(known)) or "such as auto, fp8, q8_0"
            raise UsageError(f"unknown type of cache: `{name}`", hint=hint)
    return tuple(None if name == "auto" else name for name in names)


def _offer(device: Device, goal: Goal, layout: ParallelLayout | None) -> GpuOffer:
    """Powers of two up to the number that is owned, and that number itself; up to eight where none was given. A layout
    that is given has its own number.

    Raises: UsageError when it takes more GPUs than there are.
    """
    counts: tuple[int, ...] = _COUNTS
    if layout is not None:
        if device.count is not None and layout.num_ranks > device.count:
            raise UsageError(
                f"{layout.num_ranks} ranks on {device.count} x {device.gpu.name}",
                hint="make --tp, --pp and --dp multiply to no more than the number of GPUs",
            )
        counts = (layout.num_ranks,)
    elif device.count is not None:
        counts = tuple(sorted({*(1 << power for power in range(device.count.bit_length())), device.count}))
    if goal == "single-gpu" or device.gpu.vendor == "cpu":
        counts = (1,)
    return GpuOffer(gpu=device.gpu, counts=counts, is_owned=device.count is not None)


def _traffic(given: Given, spec: ModelSpec, settings: ServingSettings) -> Traffic:
    """The requests: a context alone is filled by a prompt and an answer of up to a quarter of it or 1,024 tokens."""
    context = settings.workload.context_tokens
    prompts = _lengths(given, "prompt", context or spec.max_context_tokens)
    outputs = _lengths(given, "output", context or spec.max_context_tokens)
    if context is None:
        context = _usual_longest(prompts) + _usual_longest(outputs) if prompts and outputs else spec.max_context_tokens
        if any(lengths is not None and not isinstance(lengths, FixedLength) for lengths in (prompts, outputs)):
            context = min(context, spec.max_context_tokens)
    prompt, output = (round(side.mean) if side else None for side in (prompts, outputs))
    if output is None:
        output = max(1, min(_LARGEST_OUTPUT, context // 4, context - (prompt or 0)))
    if prompt is None:
        prompt = max(1, context - output)
    if prompt + output > context:
        raise UsageError(
            f"a prompt of {prompt:,} and an answer of {output:,} tokens are more than --context {context:,}",
            hint=f"raise --context to {prompt + output}, or lower --prompt-tokens or --output-tokens",
        )
    if context > spec.max_context_tokens:
        raise UsageError(
            f"--context {context:,} is more than {spec.name} takes: {spec.max_context_tokens:,}",
            hint=f"use --context {spec.max_context_tokens} or less",
        )
    shared = _tokens(given, "shared_prefix") or 0
    if shared > prompt:
        raise UsageError(f"--shared-prefix {shared:,} is longer than the prompt: {prompt:,}", hint="lower it")
    rate = given.get("request_rate")
    if rate is not None and rate <= 0:
        raise UsageError(f"--request-rate out of range: {rate}", hint="it must be above 0")
    if rate is not None and "concurrency" in given:
        raise UsageError(
            "--request-rate and --concurrency exclude each other", hint="a rate decides how many run at once"
        )
    return Traffic(
        context_tokens=context,
        prompt_tokens=prompt,
        output_tokens=output,
        concurrency=settings.workload.concurrency if "concurrency" in given else None,
        request_per_s=rate,
        shared_prefix_tokens=shared,
        prompt=prompts,
        output=outputs,
    )


def _drafts(given: Given, spec: ModelSpec, goal: Goal) -> tuple[Speculation, ...]:
    """The drafts that were named; without a name, those that are known where every token is to come soon."""
    from memplan.catalog.drafts import known_drafts, speculations
    from memplan.pipeline import load_draft

    named = listed(given, "draft_model")
    if [name.lower() for name in named] == ["none"]:
        return ()
    count, acceptance = given.get("num_speculative_tokens"), given.get("draft_acceptance")
    if acceptance is not None and not 0 < acceptance <= 1:
        raise UsageError(f"--draft-acceptance out of range: {acceptance}", hint="it must be above 0 and at most 1")
    if count == 0:
        raise UsageError("--num-speculative-tokens out of range: 0", hint="it must be between 1 and 64")
    found: list[Speculation] = []
    for name in named or (known_drafts(spec) if goal == "latency" else ()):
        draft = load_draft(spec, name, revision=None, offline=given.get("offline", False), introspect="auto")
        if draft.vocab_size == spec.vocab_size:
            found += speculations(name, draft, spec, num_tokens=count, acceptance=acceptance)
        elif named:
            raise UsageError(
                f"{draft.name} has another vocabulary than {spec.name}: {draft.vocab_size:,} and {spec.vocab_size:,}",
                hint="a draft shares its target's tokenizer",
            )
    if not found and (count or acceptance):
        what = "--num-speculative-tokens" if count else "--draft-acceptance"
        raise UsageError(f"{what} without a draft", hint="name one with --draft-model, or mtp for the model's own")
    return tuple(found)


def _lengths(given: Given, side: Side, longest: int) -> Lengths | None:
    """How long prompts or answers are, as the option says; None where it is not given."""
    name = f"{side}_tokens"
    if name not in given:
        return None
    from memplan.cli.request_files import read_lengths

    return read_lengths(given[name], side, longest=longest, flag=f"--{side}-tokens")


def _usual_longest(lengths: Lengths) -> int:
    """The longest that is planned for where no context is given: of a distribution without an end, 999 in 1,000."""
    if isinstance(lengths, LogNormalLengths):
        return ceil(lengths.quantile(0.999))
    return lengths.longest


def _limits(given: Given) -> Limits:
    slowest = seconds_of(given, "max_tpot")
    assumed = slowest is None and not given.get("offline_batch")
    return Limits(
        max_ttft_s=seconds_of(given, "max_ttft"),
        max_tpot_s=_READING_S if assumed else slowest,
        tpot_is_assumed=assumed,
        max_perplexity_increase=_part(given.get("max_perplexity_increase")),
        max_usd_per_hour=_dollars(given.get("budget")),
        weight_bits=frozenset(_width(name) for name in listed(given, "precision")),
    )


def _tokens(given: Given, name: str) -> int | None:
    return parse_count(given[name], what=f"--{name.replace('_', '-')}") if name in given else None


def seconds_of(given: Given, name: str) -> float | None:
    """The seconds of an option such as 500ms or 0.5s. Raises: UsageError when it does not read."""
    if name not in given:
        return None
    flag, text = f"--{name.replace('_', '-')}", given[name]
    match = _TIME.fullmatch(text.strip().lower())
    if match is None or (not match[2] and float(match[1]) >= _NEEDS_A_UNIT):
        raise UsageError(f"not a time for {flag}: `{text}`", hint="write it as 500ms or 0.5s")
    seconds = float(match[1]) / (1000 if match[2] == "ms" else 1)
    if seconds <= 0:
        raise UsageError(f"{flag} out of range: `{text}`", hint="it must be above 0")
    return seconds


def _part(text: str | None) -> float | None:
    """A part of the perplexity: `2%` or 0.02."""
    return None if text is None else parse_fraction(text)


def _dollars(text: str | None) -> float | None:
    if text is None:
        return None
    match = _MONEY.fullmatch(text.strip().lower())
    if match is None or float(match[1]) <= 0:
        raise UsageError(f"not a budget: `{text}`", hint="write it as 10/h, in US dollars")
    return float(match[1])


def _width(name: str) -> int:
    """`16`, `bf16`, `int4`, `fp8`, `4-bit` as a number of bits."""
    match = re.fullmatch(r"(?:bf|fp|int|q|w)?(\d{1,2})(?:-?bits?)?", name.strip().lower())
    if match is None or int(match[1]) not in _WIDTHS:
        raise UsageError(f"not a width of weights: `{name}`", hint="use 16, 8, 6, 5 or 4, several with commas")
    return int(match[1])
