"""A training question that is answered by a profile of the model's own code: vision, diffusion, texts with pictures,
and what the formulas do not know.

The profile runs once, elsewhere, and is remembered (profile_cache). Here stand what it has to be asked, what it cannot
be asked, and the budget that is made of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from memplan.budget.training.device import Held, PhaseHeld
from memplan.budget.training.periodic import StepHeld
from memplan.domain.training import TrainingSpec
from memplan.domain.training_budget import TrainingBudget, TrainingRemedy
from memplan.domain.training_profile import ProfiledPhase, ProfiledStep, TrainingProfile
from memplan.domain.training_question import TrainingQuestion
from memplan.engines.training.answer import TrainingAsked, lines_of, reasons_of, settings_of
from memplan.engines.training.choose import DEFAULT_RANK, DEFAULT_TOKENS, choose_layout, choose_sharding
from memplan.engines.training.fitted import load_fitted
from memplan.engines.training.held import phase_of
from memplan.engines.training.host import host_lines
from memplan.engines.training.measure import Measured, measured_on
from memplan.engines.training.presets import PRESETS
from memplan.engines.training.working import largest
from memplan.errors import UsageError
from memplan.records import replace
from memplan.units import format_gib

# Trainers that run transformers' or diffusers' own code.
_TRAINERS = ("transformers", "trl", "axolotl")
_SHARINGS: dict[str, Literal["none", "ddp", "fsdp"]] = {"none": "none", "ddp": "ddp", "fsdp2": "fsdp"}
_ATTENTION = {"sdpa": "auto", "flash": "flash", "efficient": "efficient", "math": "math", "eager": "eager"}
_OPTIMIZERS = {"adamw-8bit": "adamw-8bit", "sgd": "sgd-momentum"}
_FORMS = {"foreach": "adamw-foreach", "fused": "adamw-fused", "for-loop": "adamw-loop"}
_FLOATS = ("float32", "bfloat16", "float16")
_CATEGORIES = {"optimizer_state": "optimizer state", "kv_cache": "activations", "unknown": "workspace"}
_BIG_WORKSPACE = (9.0, 10.0, 12.0)  # capabilities with cuBLAS' larger workspace

Find = Callable[[ProfiledStep], "TrainingProfile | None"]


def profiled_step(asked: TrainingAsked) -> ProfiledStep:
    """What has to be profiled to answer. Raises: UsageError for what a profile is not asked."""
    spec, gpu, question = asked.spec, asked.gpu, asked.question
    layout = choose_layout(question, spec)
    sharding = choose_sharding(question, layout)
    _check(question, sharding)
    is_gathered = sharding == "fsdp2" and layout.data > 1
    precision = question.precision or ("bf16" if _is_adapted_pipeline(asked) else "none")
    if precision != "none" and question.method == "full" and not is_gathered:
        raise UsageError(
            f"`--mixed-precision {precision}` is profiled under FSDP2 alone: autocast is not",
            hint="leave it out: weights are in the checkpoint's own type; or add --sharding fsdp2",
        )
    own = spec.dtype.value if spec.dtype.value in _FLOATS else "bfloat16"
    computed = {"bf16": "bfloat16", "fp16": "float16"}.get(precision)
    is_mixed = computed is not None and question.method == "full"
    preset = PRESETS[question.trainer]
    form = question.optimizer_form or preset.optimizer_form
    tokens = question.sequence_tokens or min(DEFAULT_TOKENS, spec.max_context_tokens or DEFAULT_TOKENS)
    capability = gpu.cuda_capability or 0.0
    return ProfiledStep(
        batch=question.micro_batch,
        tokens=tokens,
        resolution=question.resolution,
        images=question.images,
        dtype="float32" if is_mixed else computed or own,
        computed_in=computed if is_mixed else None,
        attention=_ATTENTION[question.attention or preset.attention],
        optimizer=_OPTIMIZERS.get(question.optimizer, _FORMS[form]),
        checkpointing=(question.checkpointing or preset.checkpointing) == "full",
        lora_rank=(question.lora_rank or DEFAULT_RANK) if question.method == "lora" else None,
        lora_targets=tuple(each for each in question.lora_targets if each != "all-linear"),
        sharing=_SHARINGS[sharding] if layout.data > 1 else "none",
        num_ranks=layout.data,
        compute_capability=(9, 0) if capability in _BIG_WORKSPACE else (8, 0),
    )


def _is_adapted_pipeline(asked: TrainingAsked) -> bool:
    """Whether adapters are trained beside a denoiser, which diffusers' scripts load in BF16 then."""
    return asked.question.method == "lora" and asked.spec.architecture.endswith("Pipeline")


def _check(question: TrainingQuestion, sharding: str) -> None:
    refused: list[tuple[bool, str, str]] = [
        (question.trainer not in _TRAINERS, f"{question.trainer}'s code", "leave --trainer out"),
        (question.method not in ("full", "lora"), f"`--train {question.method}`", "use --train lora or full"),
        (sharding not in _SHARINGS or question.sharding == "hsdp", f"`{sharding}`", "use --sharding fsdp2 or ddp"),
        (question.tensor * question.pipeline > 1 or question.expert, "--tp, --pp and --ep", "leave them out"),
        (bool(question.offloaded), "--offload", "leave it out"),
        (question.compiled, "--compile", "leave it out"),
        (question.loss not in (None, "plain"), f"`--loss {question.loss}`", "leave it out"),
        (question.checkpointing == "selective", "selective checkpointing", "use --checkpointing full"),
        (
            question.optimizer not in ("adamw", *_OPTIMIZERS),
            f"the optimizer `{question.optimizer}`",
            "use adamw, adamw-8bit or sgd",
        ),
        (question.precision == "fp8", "FP8", "leave --mixed-precision out"),
    ]
    for is_asked, what, hint in refused:
        if is_asked:
            raise UsageError(f"this model is answered by a profile of its own code, which has no {what}", hint=hint)


def answer_profiled(asked: TrainingAsked, profile: TrainingProfile, find: Find) -> TrainingBudget:
    """The budget of a profiled step. `find` looks for the profiles of changes that would make it fit."""
    spec, gpu, question = asked.spec, asked.gpu, asked.question
    training = _spec_of(question, profile.step, asked)
    measured = _measured(profile, training, asked)
    phases = tuple(phase_of(each, known.name) for each, known in zip(measured.step.phases, profile.phases, strict=True))
    peak = max(phases, key=lambda each: each.peak_bytes)
    releases = ", ".join(f"{name} {release}" for name, release in profile.versions.items())
    return TrainingBudget(
        model_name=spec.name,
        architecture=profile.architecture,
        parameters=profile.parameters,
        active_parameters=profile.parameters,
        trained_parameters=profile.trained_parameters,
        weights_source=spec.weights_source,
        gpu_name=gpu.name,
        num_gpus=training.layout.ranks,
        gpu_memory_bytes=measured.memory_bytes,
        trainer=question.trainer,
        settings=_settings(question, training, profile.step),
        lines=lines_of(
            measured, peak, lambda category: largest(peak, category), provenance="modelled", source="docs/profile.md"
        ),
        phases=phases,
        peak_phase=peak.name,
        allocated_bytes=measured.allocated_bytes,
        reserved_bytes=measured.reserved_bytes,
        outside_bytes=measured.context_bytes + measured.nccl_bytes,
        host=host_lines(training, profile.trained_parameters, profile.parameters, load_fitted().host_base_gib),
        verdict=measured.verdict,
        shortfall_bytes=measured.shortfall_bytes,
        reasons=tuple(reasons_of(measured, phases, peak)),
        remedies=_remedies(asked, measured, find) if asked.with_remedies else (),
        warnings=(
            f"from a simulated profile of {profile.architecture}'s own code ({releases}), not from formulas",
            *_beside_the_model(asked, profile),
            *profile.notes,
        ),
        facts=(),
        price=gpu.price,
    )


def changed_questions(question: TrainingQuestion) -> tuple[tuple[str, dict[str, Any], int, str], ...]:
    """Changes that are looked for: options, fields, cost, and what they are."""
    found: list[tuple[str, dict[str, Any], int, str]] = []
    checkpointed = {"checkpointing": "full"}
    is_plain = (question.checkpointing or PRESETS[question.trainer].checkpointing) != "full"
    if is_plain:
        found.append(("--checkpointing full", checkpointed, 4, "every layer's forward pass runs twice"))
    if question.micro_batch > 1:
        count = question.accumulation * question.micro_batch
        smaller = {"micro_batch": 1, "accumulation": count}
        flags = f"--micro-batch 1 --grad-accum {count}"
        found.append((flags, smaller, 3, "the same batch in smaller products"))
        if is_plain:
            found.append((f"{flags} --checkpointing full", {**smaller, **checkpointed}, 4, "together"))
    return tuple(found)


def _remedies(asked: TrainingAsked, measured: Measured, find: Find) -> tuple[TrainingRemedy, ...]:
    found = []
    for flags, fields, cost, note in changed_questions(asked.question):
        question = replace(asked.question, **fields)
        other = replace(asked, question=question)
        profile = find(profiled_step(other))
        if profile is None:
            continue
        made = _measured(profile, _spec_of(question, profile.step, other), other)
        saves = measured.allocated_bytes - made.allocated_bytes
        if saves > 0:
            found.append(
                TrainingRemedy(
                    change=flags,
                    saves_bytes=saves,
                    verdict=made.verdict,
                    phase=made.step.peak.name,  # type: ignore[arg-type]
                    time_percent=33 if "full" in flags else None,
                    note=note,
                    cost=cost,
                )
            )
    return tuple(sorted(found, key=lambda each: (each.cost, -each.saves_bytes)))


def _spec_of(question: TrainingQuestion, step: ProfiledStep, asked: TrainingAsked) -> TrainingSpec:
    """The settings of a step in the words of the formulas' own answers."""
    width = 4 if step.dtype == "float32" else 2
    layout = choose_layout(question, asked.spec)
    return TrainingSpec(
        method=question.method,
        lora_rank=step.lora_rank or 0,
        lora_targets=step.lora_targets or ("all-linear",),
        weight_bytes=width,
        compute_bytes=2 if step.computed_in else width,
        grad_bytes=width,
        state_bytes=4 if step.lora_rank else width,
        optimizer=question.optimizer,
        optimizer_form=question.optimizer_form or PRESETS[question.trainer].optimizer_form,
        sharding=choose_sharding(question, layout),
        layout=layout,
        micro_batch=step.batch,
        sequence_tokens=step.tokens,
        accumulation=question.accumulation,
        checkpointing="full" if step.checkpointing else "none",
        loss="plain-flat",
    )


def _settings(question: TrainingQuestion, training: TrainingSpec, step: ProfiledStep) -> dict[str, object]:
    shown = settings_of(question, training)
    shown |= {"attention": question.attention or PRESETS[question.trainer].attention, "dtype": step.dtype}
    return {**shown, "resolution": step.resolution, "images": step.images, "answered_by": "profile"}


def _measured(profile: TrainingProfile, training: TrainingSpec, asked: TrainingAsked) -> Measured:
    """The step on this GPU, with the gradients of earlier micro-batches where several make a step."""
    waiting = 0
    if training.accumulation > 1:
        waiting = sum(each.size_bytes for each in profile.phases[3].held if each.category == "gradients")
    phases = tuple(_phase(each, waiting) for each in profile.phases)
    reserved = max(each.reserved_bytes for each in profile.phases)
    grown = max(each.peak_bytes for each in phases) - max(each.peak_bytes for each in profile.phases)
    step = StepHeld(phases=phases, find_reserved=lambda: reserved + grown)
    return measured_on(training, step, asked.gpu, asked.free_bytes, reserved_bytes=reserved + grown)


def _phase(phase: ProfiledPhase, waiting: int) -> PhaseHeld:
    held: Held = {}
    for each in phase.held:
        key = (_CATEGORIES.get(each.category, each.category), each.name)
        held[key] = held.get(key, 0) + each.size_bytes
    has = sum(size for (category, _), size in held.items() if category == "gradients")
    more = max(waiting - has, 0) if phase.name in ("forward", "backward") else 0
    if more:
        held["gradients", "of earlier micro-batches"] = more
    return PhaseHeld(name=phase.name, peak_bytes=phase.peak_bytes + more, after_bytes=phase.after_bytes, held=held)


def _beside_the_model(asked: TrainingAsked, profile: TrainingProfile) -> list[str]:
    """What a pipeline has beside what is trained."""
    others = asked.spec.parameters - profile.parameters
    if asked.spec.parameters == 0 or others < 0.02 * asked.spec.parameters:
        return []
    return [f"other parts of {asked.spec.name} are left out: in 16 bits they take {format_gib(2 * others)} on the GPU"]
