"""From a training question to its answer: phases, lines, the verdict and why."""

from __future__ import annotations

import gc
from collections.abc import Callable

from memplan.domain.budget import Provenance
from memplan.domain.gpu import GpuSpec
from memplan.domain.model import ModelSpec
from memplan.domain.training import TrainingSpec
from memplan.domain.training_budget import Category, Phase, PhaseName, TrainingBudget, TrainingLine
from memplan.domain.training_question import TrainingQuestion
from memplan.engines.training.choose import choose_training, notes
from memplan.engines.training.fitted import group_of, load_fitted
from memplan.engines.training.held import checkpoint_phase, phase_of, trained_parameters
from memplan.engines.training.host import host_lines
from memplan.engines.training.limits import find_limits
from memplan.engines.training.measure import Measured, measure, run_in_full
from memplan.engines.training.presets import PRESETS
from memplan.engines.training.refusals import WIDENED
from memplan.engines.training.remedies import find_remedies
from memplan.engines.training.working import formula_of
from memplan.records import dataclass, replace
from memplan.units import MIB, format_gib

NAMES: dict[Category, str] = {
    "weights": "weights",
    "adapters": "adapters",
    "gathered_weights": "gathered weights",
    "gradients": "gradients",
    "optimizer_state": "optimizer state",
    "activations": "activations",
    "logits_and_loss": "logits and loss",
    "workspace": "workspace and temporaries",
    "communication_buffers": "communication buffers",
}
_HUGGING_FACE = ("transformers", "trl", "axolotl")
_STATES = ("weights", "adapters", "optimizer_state", "gradients")
_PHASES: dict[str, PhaseName] = {
    "load": "load",
    "forward": "forward",
    "backward": "backward",
    "optimizer": "optimizer",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingAsked:
    """A training question with what it is asked of. `free_bytes` is what is left of a shared card."""

    spec: ModelSpec
    gpu: GpuSpec
    question: TrainingQuestion
    free_bytes: int | None = None
    with_remedies: bool = True


def answer_training(asked: TrainingAsked) -> TrainingBudget:
    """Return the whole answer.

    Raises: UsageError for a combination that cannot be; UnsupportedModel for layers whose training is not modelled.
    """
    was_enabled = gc.isenabled()
    gc.disable()  # a step is some ten thousand small objects, none of them in a cycle that matters
    try:
        return _answer(asked)
    finally:
        if was_enabled:
            gc.enable()


def _answer(asked: TrainingAsked) -> TrainingBudget:
    spec, gpu, question = asked.spec, asked.gpu, asked.question
    training = choose_training(question, spec, gpu)
    measured = measure(spec, training, gpu, asked.free_bytes, in_full=True)
    phases = _phases(spec, measured, question)
    step_peak = max(phases[:4], key=lambda each: each.peak_bytes)
    trained = trained_parameters(spec, training)
    budget = TrainingBudget(
        model_name=spec.name,
        architecture=spec.architecture,
        parameters=spec.parameters,
        active_parameters=spec.active_parameters,
        trained_parameters=trained,
        weights_source=spec.weights_source,
        gpu_name=gpu.name,
        num_gpus=training.layout.ranks,
        gpu_memory_bytes=measured.memory_bytes,
        trainer=question.trainer,
        settings=settings_of(question, training),
        lines=_lines(spec, measured, step_peak, trained),
        phases=phases,
        peak_phase=step_peak.name,
        allocated_bytes=measured.allocated_bytes,
        reserved_bytes=measured.reserved_bytes,
        outside_bytes=measured.context_bytes + measured.nccl_bytes,
        host=host_lines(training, trained, spec.parameters, load_fitted().host_base_gib),
        verdict=measured.verdict,
        shortfall_bytes=measured.shortfall_bytes,
        reasons=tuple(reasons_of(measured, phases, step_peak)),
        warnings=(*notes(question, training), *_warnings(spec, training), *spec.notes),
        facts=PRESETS[question.trainer].facts,
        price=gpu.price,
    )
    if not asked.with_remedies:
        return budget
    return replace(
        budget,
        remedies=find_remedies(spec, gpu, question, measured, asked.free_bytes),
        limits=find_limits(spec, gpu, measured, asked.free_bytes),
    )


def settings_of(question: TrainingQuestion, training: TrainingSpec) -> dict[str, object]:
    """Every setting of the run, with its default filled in, under the names of the options."""
    layout = training.layout
    settings: dict[str, object] = {
        "train": training.method,
        "trainer": question.trainer,
        "seq_len": training.sequence_tokens,
        "micro_batch": training.micro_batch,
        "grad_accum": training.accumulation,
        "optimizer": training.optimizer,
        "optimizer_form": training.optimizer_form,
        "sharding": question.sharding if question.sharding == "hsdp" else training.sharding,
        "checkpointing": training.checkpointing,
        "mixed_precision": question.precision or PRESETS[question.trainer].precision,
        "fp8_recipe": training.float8,
        "loss": training.loss,
        "attention": training.attention,
        "compile": training.kernels == "compiled",
        "offload": [
            name for name in ("optimizer", "parameters", "activations") if getattr(training, f"offload_{name}")
        ],
        "tp": layout.tensor,
        "pp": layout.pipeline,
        "dp": layout.data,
        "ep": layout.expert,
        "cp": layout.context,
        "sequence_parallel": layout.sequence_parallel,
        "weight_bytes": training.weight_bytes,
        "gradient_bytes": training.grad_bytes,
        "state_bytes": training.state_bytes,
        "master_bytes": training.master_bytes,
        "tokens_per_step": training.micro_batch * training.sequence_tokens * training.accumulation * layout.data,
    }
    if training.method != "full":
        settings |= {"lora_rank": training.lora_rank, "lora_targets": list(training.lora_targets)}
    return settings


def _phases(spec: ModelSpec, measured: Measured, question: TrainingQuestion) -> tuple[Phase, ...]:
    training = measured.training
    note = f"{training.micro_batch} sequence{'s' if training.micro_batch != 1 else ''} at once"
    if question.trainer in _HUGGING_FACE:
        note += "; transformers evaluates 8 unless it is told otherwise"
    steps = [phase_of(each, _PHASES[each.name]) for each in measured.step.phases]
    evaluation = phase_of(
        run_in_full(spec, training).evaluation,
        "evaluation",
        note=note,
    )
    return (*steps, evaluation, checkpoint_phase(spec, training, steps[0]))


def _lines(spec: ModelSpec, measured: Measured, peak: Phase, trained: int) -> tuple[TrainingLine, ...]:
    def formula(category: Category) -> str:
        return formula_of(category, spec, measured.training, peak, trained)

    return lines_of(measured, peak, formula, provenance="derived", source="docs/training.md")


def lines_of(
    measured: Measured, peak: Phase, formula: Callable[[Category], str], *, provenance: Provenance, source: str
) -> tuple[TrainingLine, ...]:
    """The peak by category, then what torch keeps beside it, and what lies outside of torch.

    States are exact to the byte; the error of recorded runs is spread over everything else.
    """
    sums = peak.category_bytes()
    moving = sum(size for category, size in sums.items() if category not in _STATES) or 1
    below = measured.allocated_bytes - measured.low_bytes
    above = measured.high_bytes - measured.allocated_bytes
    lines = []
    for category in NAMES:
        size = sums.get(category, 0)
        if not size:
            continue
        part = 0.0 if category in _STATES else size / moving
        lines.append(
            TrainingLine(
                name=NAMES[category],
                category=category,
                size_bytes=size,
                low_bytes=max(0, size - round(below * part)),
                high_bytes=size + round(above * part),
                provenance=provenance,
                formula=formula(category),
                source=source,
            )
        )
    return (*lines, *beside(measured))


def beside(measured: Measured) -> list[TrainingLine]:
    """What is not allocated by torch's own count: unused parts of segments, the context, NCCL."""
    spare = measured.reserved_bytes - measured.allocated_bytes
    width = round(load_fitted().outside_width_mib * MIB)
    rows: list[tuple[str, Category, int, int, str, str]] = [
        ("unused in torch's segments", "unused_segments", spare, spare, "reserved - allocated", "docs/profile.md"),
        (
            "CUDA context",
            "outside_torch",
            measured.context_bytes,
            width,
            "context and kernels",
            "transformers_fitted.yaml",
        ),
        ("NCCL", "outside_torch", measured.nccl_bytes, width, "buffers of every group of ranks", "vllm_fitted.yaml"),
    ]
    return [
        TrainingLine(
            name=name,
            category=category,
            size_bytes=size,
            low_bytes=max(0, size - half),
            high_bytes=size + half,
            provenance="modelled",
            formula=formula,
            source=source,
        )
        for name, category, size, half, formula, source in rows
        if size
    ]


def reasons_of(measured: Measured, phases: tuple[Phase, ...], peak: Phase) -> list[str]:
    """Why a verdict is what it is."""
    room = measured.room_bytes
    said = []
    if measured.verdict != "fits":
        over = [each.name for each in phases[:4] if each.peak_bytes > room]
        if over:
            said.append(f"phases that go over the {format_gib(room)} that torch can have: {', '.join(over)}")
        elif measured.reserved_bytes > room:
            said.append(
                f"{format_gib(peak.peak_bytes)} are allocated, but torch would keep"
                f" {format_gib(measured.reserved_bytes)}: it has to empty its cache, or runs out by fragments"
            )
        else:
            said.append(f"what is left is less than the error of this estimate ({_error(measured)})")
    for each in phases[4:]:
        if each.peak_bytes > max(peak.peak_bytes, room):
            said.append(f"{each.name} takes {format_gib(each.peak_bytes)}, more than the step")
    return said


def _error(measured: Measured) -> str:
    low, high = load_fitted().intervals[group_of(measured.training)]
    return f"{low * 100:+.0f} .. {high * 100:+.0f} % on recorded runs"


def _warnings(spec: ModelSpec, training: TrainingSpec) -> list[str]:
    said = []
    longest = spec.max_context_tokens
    if longest and training.sequence_tokens > longest:
        said.append(f"sequences of {training.sequence_tokens:,} tokens are longer than the {longest:,} of {spec.name}")
    if spec.quantization in WIDENED and training.method != "qlora":
        said.append(f"its {spec.quantization} weights are taken as made 16 bits wide while they are loaded")
    if spec.towers:
        said.append("vision and audio towers are left out: `memplan profile --phase training` runs them")
    if training.optimizer.startswith("paged"):
        said.append(
            "paged states lie in managed memory: on the GPU as far as there is room, which torch does not count"
        )
    return said
