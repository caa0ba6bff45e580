"""A simulation from options to an answer: the setups that were asked for, one after another under the same traffic."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from memplan.cli.mending import with_changes
from memplan.cli.options import WORKLOAD, Given
from memplan.cli.progress import Step, progress
from memplan.cli.questions import Asked, ask
from memplan.cli.simulate_request import AskedTraffic, asked_promise, asked_scheduling, asked_traffic, summary_of
from memplan.cli.simulate_what_if import ONLY_COMPARED, WhatIf, what_ifs
from memplan.domain.budget import MemoryBudget
from memplan.domain.simulated import Promise, SimulatedSetup, SimulationAnswer
from memplan.domain.simulation import SimulationSettings, StepTimes, Traffic
from memplan.errors import MemplanError, UsageError
from memplan.pipeline import Question, answer, placed
from memplan.records import dataclass, replace
from memplan.simulate.promises import MAX_REPLICAS, fewest_replicas, goodput_of, keeps
from memplan.simulate.run import simulate
from memplan.simulate.setup import cache_type, compute_dtype, simulation_settings

_TRAFFIC = frozenset(
    {"request_rate", "prompt_tokens", "output_tokens", "trace", "burstiness", "bursts", "shared_prefix"}
)
_NOT_OF_A_SETUP = _TRAFFIC | {"turns", "think_time", "max_ttft", "max_tpot", "concurrency"}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Case:
    """One setup before it is simulated."""

    name: str
    given: Given
    question: Question
    budget: MemoryBudget
    settings: SimulationSettings
    is_deployable: bool = True


def simulated(given: Given) -> SimulationAnswer:
    """Return the answer to a command's options.

    Raises: MemplanError for what does not read, and for a setup that has no room for a cache.
    """
    asked = ask(given)
    # A concurrency that an earlier command left behind is no closed loop where a rate was left, too.
    own = {name: value for name, value in asked.given.items() if name != "concurrency" or _is_loop(given, asked.given)}
    if {"concurrency", "request_rate"} <= given.keys():
        raise UsageError("--rate and --concurrency exclude each other", hint="a closed loop has no rate of its own")
    if not asked.devices:
        raise UsageError("no GPU was named", hint="add one, such as --gpu l40s; `memplan gpus` lists them")
    traffic, promise = asked_traffic(own), asked_promise(own)
    cases = [_case(question, own, _title(question, asked)) for question in asked.questions()]
    more, refused = _others(own, cases[0])
    cases += more
    if "swap_space" in given and all(case.settings.preemption != "swap" for case in cases):
        raise UsageError("--swap-space without --preemption swap", hint="caches are computed again otherwise")
    summary = summary_of(traffic, traffic.make(cases[0].settings.context_tokens))
    with progress("simulating") as step:
        setups = _run_all(cases, traffic, promise, step)
        least, where = _least(cases, setups, traffic, promise, step) if promise.is_made else (None, ())
    return SimulationAnswer(
        model_name=asked.spec.name,
        parameters=asked.spec.parameters,
        traffic=summary,
        promise=promise,
        setups=tuple(setups),
        least=least,
        notes=(*refused, *where, *_budget_notes(cases[0].budget)),
    )


def _is_loop(given: Given, filled: Given) -> bool:
    return "concurrency" in given or not ({"request_rate", "trace"} & filled.keys())


def _title(question: Question, asked: Asked) -> str:
    """What tells a setup from the others that were named."""
    words = []
    if len(asked.devices) > 1:
        words.append(question.gpu.name if not question.num_gpus else f"{question.num_gpus} x {question.gpu.name}")
    if len(asked.engines) > 1:
        words.append(question.engine)
    if len(asked.schemes) > 1:
        words.append(question.settings.quant or "as it is")
    return ", ".join(words) or "as asked"


def _case(question: Question, given: Given, name: str, *, is_deployable: bool = True) -> _Case:
    """The budget of one question, and the deployment that it describes."""
    question = replace(question, with_remedies=False)
    settings = placed(question)
    question = replace(question, settings=settings, num_gpus=None, sharing=1)
    budget = answer(question)
    from memplan.catalog.efficiency import efficiency_for

    efficiency = efficiency_for(question.engine, question.gpu)
    steps = _steps(question, budget, given)
    found = simulation_settings(
        budget, question.spec, question.gpu, settings.layout, efficiency, steps, asked_scheduling(given)
    )
    return _Case(name=name, given=given, question=question, budget=budget, settings=found, is_deployable=is_deployable)


def _steps(question: Question, budget: MemoryBudget, given: Given) -> StepTimes:
    if "step_times" in given:
        from memplan.cli.step_times import read_step_times

        return read_step_times(given["step_times"])
    from memplan.budget.kv_cache import kv_format
    from memplan.catalog.efficiency import efficiency_for
    from memplan.simulate.step_times import modelled_steps

    dtype = compute_dtype(question.spec)
    return modelled_steps(
        question.spec,
        question.gpu,
        replace(question.settings.layout, data=1),
        kv_format(cache_type(budget), dtype),
        dtype,
        efficiency_for(question.engine, question.gpu),
        question.settings.weight_offload_bytes,
    )


def _others(given: Given, base: _Case) -> tuple[list[_Case], tuple[str, ...]]:
    """The what-ifs; a usual one that the engine refuses, and one that has no room, is a note."""
    found: list[_Case] = []
    notes: list[str] = []
    for change in what_ifs(given, base.budget):
        try:
            found.append(_changed(given, base, change))
        except MemplanError as error:
            if isinstance(error, UsageError) and not change.is_usual:
                raise
            notes.append(
                f"what-if {change.name} is left out: {error.message}" + (f" ({error.hint})" if error.hint else "")
            )
    return found, tuple(notes)


def _changed(given: Given, base: _Case, change: WhatIf) -> _Case:
    """The first setup with some options changed."""
    asked = ask(with_changes(given, change.options))
    return _case(
        asked.questions()[0], asked.given, change.name, is_deployable=not ONLY_COMPARED & change.options.keys()
    )


def _run_all(cases: list[_Case], traffic: AskedTraffic, promise: Promise, step: Step) -> list[SimulatedSetup]:
    found: list[SimulatedSetup] = []
    for number, case in enumerate(cases):
        made = traffic.make(case.settings.context_tokens)
        found.append(_simulated(case, case.settings, made, promise, _shown(step, number, cases, made)))
    step(len(cases), len(cases))
    return found


def _shown(step: Step, number: int, cases: list[_Case], traffic: Traffic) -> Callable[[int], None]:
    """Show how many requests of all setups have arrived, and which setup it is."""

    def told(arrived: int) -> None:
        step(number * traffic.num_requests + arrived, len(cases) * traffic.num_requests, cases[number].name)

    told(0)
    return told


def _simulated(
    case: _Case,
    settings: SimulationSettings,
    traffic: Traffic,
    promise: Promise,
    told: Callable[[int], None] | None = None,
) -> SimulatedSetup:
    result = simulate(settings, traffic, told=told)
    goodput = goodput_of(result, traffic, promise)
    layout = case.question.settings.layout
    gpus = layout.tensor * layout.pipeline * (settings.replicas + settings.prefill_replicas)
    return SimulatedSetup(
        name=case.name,
        options=_options(case, settings.replicas, traffic),
        budget=replace(case.budget, num_gpus=gpus),
        result=result,
        goodput=goodput,
        keeps=keeps(goodput, promise),
    )


def _options(case: _Case, replicas: int, traffic: Traffic) -> dict[str, Any]:
    """The options that ask `memplan estimate` for this setup: one device, one engine, its layout outright."""
    question = case.question
    layout = question.settings.layout
    kept = {name: value for name, value in case.given.items() if name in WORKLOAD and name not in _NOT_OF_A_SETUP}
    engine = f"{question.engine}@{question.version}" if question.version else question.engine
    changed: dict[str, Any] = {
        "gpu": question.gpu.name if "gpu" in kept else None,
        "engine": engine,
        "quant": question.settings.quant,
        "tp": layout.tensor,
        "pp": layout.pipeline,
        "dp": replicas,
        "mean_length": str(round((sum(traffic.prompt_tokens) + sum(traffic.output_tokens)) / traffic.num_requests)),
    }
    return {
        name: str(value) if hasattr(value, "__fspath__") else value
        for name, value in {**kept, **changed}.items()
        if value is not None
    }


def _least(
    cases: list[_Case], setups: list[SimulatedSetup], traffic: AskedTraffic, promise: Promise, step: Step
) -> tuple[SimulatedSetup | None, tuple[str, ...]]:
    """The setup with the fewest replicas that keeps the promise, of all the one that costs least."""
    best: SimulatedSetup | None = None
    by_price = all(case.budget.price is not None for case in cases)
    for number, (case, known) in enumerate(zip(cases, setups, strict=True)):
        if not case.is_deployable or case.settings.prefill_replicas:
            continue
        step(number, len(cases), f"the fewest replicas, {case.name}")
        made = traffic.make(case.settings.context_tokens)
        tried: dict[int, SimulatedSetup] = {case.settings.replicas: known}
        most = MAX_REPLICAS if best is None else _affordable(case, best, by_price)
        replicas = fewest_replicas(_keeps_with(case, made, promise, tried), most) if most else None
        if replicas is not None and (best is None or _cost(tried[replicas], by_price) < _cost(best, by_price)):
            best = tried[replicas]
    if best is not None:
        return best, ()
    return None, (f"no setup that was looked at keeps the limits for {promise.share:.0%} of the requests",)


def _keeps_with(
    case: _Case, traffic: Traffic, promise: Promise, tried: dict[int, SimulatedSetup]
) -> Callable[[int], bool]:
    def does(replicas: int) -> bool:
        if replicas not in tried:
            tried[replicas] = _simulated(case, replace(case.settings, replicas=replicas), traffic, promise)
        return bool(tried[replicas].keeps)

    return does


def _affordable(case: _Case, best: SimulatedSetup, by_price: bool) -> int:
    """The most replicas of a case that cost less than the best found so far."""
    layout = case.question.settings.layout
    one = replace(best, budget=replace(case.budget, num_gpus=layout.tensor * layout.pipeline))
    return min(MAX_REPLICAS, int(_cost(best, by_price) / _cost(one, by_price) * 0.9999))


def _cost(setup: SimulatedSetup, by_price: bool) -> float:
    """Dollars an hour; without a price, the memory of all GPUs."""
    if by_price and setup.usd_per_hour:
        return setup.usd_per_hour
    return float(setup.num_gpus * setup.budget.gpu_memory_bytes)


def _budget_notes(budget: MemoryBudget) -> tuple[str, ...]:
    if budget.verdict == "fits":
        return budget.warnings
    words = "is tight" if budget.verdict == "tight" else "does not fit"
    return (f"by its budget the setup {words} for the asked context and concurrency", *budget.warnings)
