"""The search for a way to train: sharding and layout, checkpointing, loss, micro-batch with accumulation, and where
nothing fits the rungs below: offload, moments of 8 bits, everything in 16 bits.

Every candidate's step is run without numbers and its time computed, so that the order of the field comes out of it. A
rung is only stepped on when no candidate of the rungs above has room.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

from memplan.budget.training.step_time import StepTime, step_time
from memplan.catalog.efficiency import efficiency_for
from memplan.domain.gpu import GpuSpec
from memplan.domain.model import ModelSpec
from memplan.domain.training import TrainingSpec
from memplan.domain.training_plan import (
    TrainingCandidate,
    TrainingOffer,
    TrainingPlanAnswer,
    TrainingPlanRequest,
)
from memplan.domain.training_question import Trainer, TrainingQuestion
from memplan.engines.training.answer import TrainingAsked, answer_training
from memplan.engines.training.choose import choose_training
from memplan.engines.training.flavors import find_flavor
from memplan.engines.training.held import trained_parameters
from memplan.engines.training.limits import find_limits
from memplan.engines.training.measure import Measured, measure
from memplan.engines.training.presets import PRESETS
from memplan.errors import MemplanError
from memplan.plan.training_changes import changes_of
from memplan.plan.training_ledger import TrainingLedger
from memplan.records import dataclass, replace

_MACHINE = 8
_LIGER = ("transformers", "trl", "axolotl")
# Links and buses that take less than this part of a step are no reason to try a slower form with a larger micro-batch.
_HIDDEN = 0.1
_LARGEST_MICRO_BATCH = 64
_SHOWN = 8
_LEAST_PART = 8192  # tokens of a sequence on one rank
# A micro-batch of more tokens makes no product faster; a candidate stops growing there.
_AMPLE_TOKENS = 32768


@dataclass(frozen=True, slots=True, kw_only=True)
class Rung:
    """What is changed in every candidate when nothing above has room. `name` is empty for the first."""

    name: str
    fields: dict[str, Any]


def plan_training(spec: ModelSpec, request: TrainingPlanRequest) -> TrainingPlanAnswer:
    """Return the best way to train by the request's goal, and what else there is.

    Raises: MemplanError where the run as asked cannot be computed at all.
    """
    was_enabled = gc.isenabled()
    gc.disable()  # thousands of small objects, none of them in a cycle that matters
    try:
        return _plan(spec, request)
    finally:
        if was_enabled:
            gc.enable()


def _plan(spec: ModelSpec, request: TrainingPlanRequest) -> TrainingPlanAnswer:
    offer = request.offers[0]
    question = replace(request.question, num_gpus=max(offer.counts))
    subject = TrainingAsked(
        spec=spec, gpu=offer.gpu, question=question, free_bytes=offer.free_bytes, with_remedies=False
    )
    asked = answer_training(subject)
    if asked.verdict != "fits":
        asked = answer_training(replace(subject, with_remedies=True))
    ledger = TrainingLedger()
    found: list[TrainingCandidate] = []
    for rung in _rungs(request):
        for each in request.offers:
            found += _on_offer(spec, request, each, rung, ledger)
        if any(not each.is_tight for each in found):
            break
    ranked = sorted(found, key=lambda each: _rank(request, each))
    winner = ranked[0] if ranked else None
    changes, smallest = changes_of(spec, offer.gpu, question, asked)
    return TrainingPlanAnswer(
        goal=request.goal,
        asked=asked,
        changes=changes,
        smallest=smallest,
        winner=winner,
        limits=_limits(spec, request, winner),
        alternatives=tuple(_front(ranked)[:_SHOWN]),
        rejections=ledger.rejections({_region(each.question) for each in found}),
        considered=ledger.considered,
        notes=tuple(_notes(request, winner)),
    )


def _rungs(request: TrainingPlanRequest) -> Iterator[Rung]:
    question, fixed = request.question, request.fixed
    yield Rung(name="", fields={})
    if "offloaded" not in fixed:
        if question.method != "full":
            yield Rung(name="offload", fields={"offloaded": ("activations",)})
        yield Rung(name="offload", fields={"offloaded": ("optimizer", "parameters")})
    if "optimizer" not in fixed:
        yield Rung(name="moments of 8 bits", fields={"optimizer": "adamw-8bit"})
    if "precision" not in fixed and question.method == "full":
        yield Rung(name="everything in 16 bits", fields={"precision": "none"})


def _on_offer(
    spec: ModelSpec, request: TrainingPlanRequest, offer: TrainingOffer, rung: Rung, ledger: TrainingLedger
) -> Iterator[TrainingCandidate]:
    """Candidates with room. Of one sharing, the forms of a step are tried from the quickest on, until one has room and
    its communication hides; a model is cut by tensors or stages only where that is needed or the ranks are many.
    """
    for count in offer.counts:
        has_room = False
        for sharing in _sharings(spec, request, count, rung):
            question = replace(sharing, num_gpus=count)
            region = _region(question)
            cut = question.tensor * question.pipeline * question.context
            if has_room and cut > 1 and count <= _MACHINE:
                ledger.rule_out(region, "not needed: whole layers have room, and what products cannot hide is added")
                continue
            for form in _forms(request, question):
                ledger.considered += 1
                try:
                    made = _largest_batch(spec, request, offer, form)
                except MemplanError as error:
                    ledger.rule_out(region, str(error))
                    break
                if made is None:
                    ledger.rule_out(region, "its ranks do not divide the global batch")
                    break
                measured, form = made
                candidate = None
                if measured.verdict == "does_not_fit":
                    ledger.no_room(region, measured.allocated_bytes - measured.room_bytes)
                    if (measured.step.phases[0].after_bytes or 0) > measured.room_bytes:
                        break  # what is there before the first token is too much: no form of the step mends that
                else:
                    candidate = _candidate(spec, offer.gpu, form, measured, rung)
                if candidate is None:
                    continue
                yield candidate
                if candidate.is_tight or request.goal == "memory":
                    continue
                has_room = True
                if candidate.parts_s["communication"] + candidate.parts_s["offload"] < _HIDDEN * candidate.step_s:
                    break


def _region(question: TrainingQuestion) -> str:
    cut = f", tp {question.tensor}, pp {question.pipeline}" if question.tensor * question.pipeline > 1 else ""
    cut += f", cp {question.context}" if question.context > 1 else ""
    cut += ", ep" if question.expert else ""
    return f"{question.trainer}, {question.sharding}{cut}"


def _sharings(spec: ModelSpec, request: TrainingPlanRequest, count: int, rung: Rung) -> Iterator[TrainingQuestion]:
    """Every way to share the model that the request leaves open, those that leave layers whole first."""
    base, fixed = replace(request.question, **rung.fields), request.fixed
    found: list[TrainingQuestion] = []
    for trainer in [base.trainer] if "trainer" in fixed else _trainers(spec, base, count):
        preset = PRESETS[trainer]
        layouts = [(base.tensor, base.pipeline)]
        if not fixed & {"tensor", "pipeline", "data"}:
            layouts = _layouts(preset.cuts, count)
        for tensor, pipeline in layouts:
            cut = tensor * pipeline
            for context in [base.context] if "context" in fixed else _contexts(base, preset.cuts, count // cut):
                for sharding in _shardings(request, base, preset.shardings, count, cut, context):
                    cuts: dict[str, Any] = {
                        "trainer": trainer,
                        "tensor": tensor,
                        "pipeline": pipeline,
                        "context": context,
                        "sharding": sharding,
                    }
                    found.append(replace(base, **cuts))
    if "expert" not in fixed:
        found += [replace(each, expert=True) for each in found if _may_move_experts(spec, each, count)]
    yield from sorted(found, key=lambda each: each.tensor * each.pipeline * each.context)


def _forms(request: TrainingPlanRequest, question: TrainingQuestion) -> Iterator[TrainingQuestion]:
    """Checkpointing and loss of one sharing, the quickest step first."""
    fixed, trainer = request.fixed, question.trainer
    checkpoints: tuple[Any, ...] = ("none", "selective", "full") if trainer == "torchtitan" else ("none", "full")
    losses: tuple[Any, ...] = (None, "linear") if trainer in _LIGER else (None,)
    for checkpointing in (question.checkpointing,) if "checkpointing" in fixed else checkpoints:
        for loss in (question.loss,) if "loss" in fixed else losses:
            yield replace(question, checkpointing=checkpointing, loss=loss)


def _trainers(spec: ModelSpec, base: TrainingQuestion, count: int) -> list[Trainer]:
    """The Trainer of transformers, and where all weights are trained over several GPUs torchtitan, of a model that it
    has.
    """
    has_both = base.method == "full" and count > 1 and find_flavor(spec) is not None
    return ["transformers", "torchtitan"] if has_both else ["transformers"]


def _layouts(cuts: tuple[str, ...], count: int) -> list[tuple[int, int]]:
    """Tensor parallelism within a machine, pipeline stages over machines."""
    found = [(1, 1)]
    if "pipeline" in cuts and "tensor" in cuts:
        found += [(tensor, 1) for tensor in (2, 4, 8) if count % tensor == 0 and tensor <= count]
        machines = count // _MACHINE
        found += [(_MACHINE, stages) for stages in (2, 4, 8) if machines % stages == 0 and stages <= machines]
    return found


def _contexts(base: TrainingQuestion, cuts: tuple[str, ...], ranks: int) -> list[int]:
    """Ranks that sequences may be cut over: where they are long, down to parts that still fill a product."""
    found = [1]
    if "context" in cuts:
        parts = (base.sequence_tokens or 0) // _LEAST_PART
        found += [each for each in (2, 4, 8) if ranks % each == 0 and each <= parts]
    return found


def _may_move_experts(spec: ModelSpec, question: TrainingQuestion, count: int) -> bool:
    """Whether a trainer can leave experts whole on some ranks each."""
    data = count // (question.tensor * question.pipeline * question.context)
    has_experts = any(layer.mlp and layer.mlp.num_experts for layer in spec.layers)
    return has_experts and data > 1 and "expert" in PRESETS[question.trainer].cuts


def _shardings(
    request: TrainingPlanRequest, base: TrainingQuestion, able: tuple[str, ...], count: int, cut: int, context: int
) -> list[str]:
    """Shardings that a trainer is able to do over what is left of `count` GPUs beside ranks that cut the model."""
    data = count // cut // context
    if "sharding" in request.fixed and request.question.sharding:
        return [request.question.sharding]
    if context > 1:
        return [each for each in ("fsdp2",) if each in able]
    if data == 1:
        return ["fsdp2" if base.offloaded else "none"]
    wanted = ["ddp", "zero1", "zero2", "zero3", "fsdp2"] if cut == 1 else ["fsdp2", "zero1"]
    if "parameters" in base.offloaded:
        wanted = ["zero3", "fsdp2"] if cut == 1 else ["fsdp2"]
    if cut == 1 and data > _MACHINE:
        wanted.append("hsdp")
    return [each for each in wanted if each in able]


def _largest_batch(
    spec: ModelSpec, request: TrainingPlanRequest, offer: TrainingOffer, question: TrainingQuestion
) -> tuple[Measured, TrainingQuestion] | None:
    """The largest micro-batch that has room, with the accumulation that makes the global batch; None where none does.

    Memory grows by the same amount with every sequence: two steps say where it ends, a third makes sure.
    """
    if question.offloaded and question.sharding in ("none", "ddp"):
        question = replace(question, sharding="fsdp2")
    first = choose_training(question, spec, offer.gpu)
    data = first.layout.data
    per_rank = _per_rank(request, data)
    if per_rank == 0:
        return None

    def of(number: int) -> tuple[Measured, TrainingQuestion]:
        made = replace(question, micro_batch=number, accumulation=max(1, (per_rank or number) // number))
        if per_rank is None:
            made = replace(made, accumulation=question.accumulation)
        if first.layout.pipeline > 1 and per_rank is None:
            made = replace(made, accumulation=max(question.accumulation, 4 * first.layout.pipeline))
        return measure(spec, choose_training(made, spec, offer.gpu), offer.gpu, offer.free_bytes), made

    if "micro_batch" in request.fixed:
        return of(question.micro_batch)
    most = max(1, min(_LARGEST_MICRO_BATCH, _AMPLE_TOKENS // first.sequence_tokens, per_rank or _LARGEST_MICRO_BATCH))
    allowed = [number for number in _halves(most) if per_rank is None or per_rank % number == 0] or [1]
    one = of(1)
    if one[0].verdict != "fits" or len(allowed) == 1:
        return one
    two = of(allowed[1])
    if two[0].verdict != "fits":
        return one
    slope = max(1, (two[0].high_bytes - one[0].high_bytes) // (allowed[1] - 1))
    guess = 1 + (one[0].room_bytes - one[0].high_bytes) // slope
    for number in reversed(allowed):
        if number <= guess:
            best = of(number) if number > allowed[1] else two
            return best if best[0].verdict == "fits" else two
    return two


def _halves(most: int) -> list[int]:
    return [1 << power for power in range(most.bit_length()) if 1 << power <= most]


def _per_rank(request: TrainingPlanRequest, data: int) -> int | None:
    """Sequences of a step on one data-parallel rank; 0 where the ranks do not divide the global batch."""
    if request.global_batch is None:
        return None
    return 0 if request.global_batch % data else request.global_batch // data


def timed(spec: ModelSpec, gpu: GpuSpec, training: TrainingSpec) -> StepTime | None:
    """The time of a step; None for a GPU whose rates are not known."""
    return step_time(spec, training, trained_parameters(spec, training), gpu, efficiency_for("transformers", gpu))


def _candidate(
    spec: ModelSpec, gpu: GpuSpec, question: TrainingQuestion, measured: Measured, rung: Rung
) -> TrainingCandidate | None:
    time = timed(spec, gpu, measured.training)
    if time is None:
        return None
    parts = ("compute", "recompute", "communication", "bubble", "optimizer", "offload")
    return TrainingCandidate(
        gpu=gpu,
        question=question,
        training=measured.training,
        allocated_bytes=measured.allocated_bytes,
        room_bytes=measured.room_bytes,
        is_tight=measured.verdict == "tight",
        tokens_per_step=time.tokens,
        step_s=time.total_s,
        parts_s={name: getattr(time, f"{name}_s") for name in parts},
        tokens_per_s=time.tokens_per_s,
        mfu=time.mfu,
        usd_per_hour=gpu.price.low * measured.training.layout.ranks if gpu.price else None,
        changes=(rung.name,) if rung.name else (),
    )


def _rank(request: TrainingPlanRequest, each: TrainingCandidate) -> tuple[bool, float, float]:
    if request.goal == "memory":
        return each.is_tight, float(each.allocated_bytes), -each.tokens_per_s
    if request.goal == "cost":
        cost = each.usd_per_billion_tokens
        return each.is_tight, cost if cost is not None else 1e9 * each.num_gpus / each.tokens_per_s, -each.tokens_per_s
    return each.is_tight, -each.tokens_per_s, float(each.allocated_bytes)


def _front(ranked: list[TrainingCandidate]) -> list[TrainingCandidate]:
    """The winner, then what no other beats in speed, memory and cost, one for each kind of sharing."""
    kept: list[TrainingCandidate] = []
    seen: set[tuple[object, ...]] = set()
    for each in ranked:
        question = each.question
        cuts = (question.tensor, question.pipeline, question.context, question.expert)
        kind = (each.gpu.name, each.num_gpus, question.trainer, question.sharding, *cuts)
        if kind not in seen:
            seen.add(kind)
            kept.append(each)
    return kept


def _limits(spec: ModelSpec, request: TrainingPlanRequest, winner: TrainingCandidate | None) -> Any:
    if winner is None:
        return None
    free = next(offer.free_bytes for offer in request.offers if offer.gpu is winner.gpu)
    return find_limits(spec, winner.gpu, measure(spec, winner.training, winner.gpu, free), free)


def _notes(request: TrainingPlanRequest, winner: TrainingCandidate | None) -> Iterator[str]:
    if "precision" not in request.fixed and request.question.precision is not None:
        yield "weights, gradients and moments in FP32, products in 16 bits: --mixed-precision none keeps all in 16 bits"
    if winner is not None and winner.is_tight:
        yield "the best that there is is tight: it may or may not fit"
    if winner is not None and winner.num_gpus > _MACHINE:
        yield "between machines a network of 400 Gbit/s for every GPU is assumed"
