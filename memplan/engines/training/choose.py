"""From a training question to a TrainingSpec: the trainer's own way of working where nothing else was asked for."""

from __future__ import annotations

from typing import Any

from memplan.budget.training.zero import SUB_GROUP_ELEMENTS
from memplan.domain.gpu import GpuSpec
from memplan.domain.model import ModelSpec
from memplan.domain.training import GATHERING, Float8Recipe, Loss, Sharding, TrainingLayout, TrainingSpec
from memplan.domain.training_question import TrainingQuestion
from memplan.engines.training.presets import PRESETS, Preset
from memplan.engines.training.refusals import check
from memplan.errors import UsageError
from memplan.records import replace
from memplan.units import ceil_div

DEFAULT_TOKENS = 2048
DEFAULT_RANK = 16
_NODE = 8
_ACCELERATE = ("transformers", "trl", "axolotl")  # accelerate 1.15, AORecipeKwargs: enable_fsdp_float8_all_gather
_ZERO = ("zero1", "zero2", "zero3")
_HALF, _FLOAT = 2, 4
_CHUNK_TOKENS = 128  # litgpt, lm_head_chunk_size
_CHUNKS = 8  # torchtune
_BUCKET_ELEMENTS = 5 * 10**8  # deepspeed/runtime/zero/config.py 0.18: reduce_bucket_size
_LIVE_ELEMENTS = 10**9  # and stage3_max_live_parameters
_WORKSPACE_BYTES, _NEW_WORKSPACE_BYTES = 8519680, 33554432  # cuBLAS, before and from Hopper on


def choose_training(question: TrainingQuestion, spec: ModelSpec, gpu: GpuSpec) -> TrainingSpec:
    """Return the step that a question asks for.

    Raises: UsageError for a combination that cannot be; UnsupportedModel for what a profile answers.
    """
    preset = PRESETS[question.trainer]
    layout = choose_layout(question, spec)
    sharding = choose_sharding(question, layout)
    if question.sharding == "hsdp":
        layout = replace(layout, shard=min(_NODE, layout.data) if layout.data > _NODE else layout.data // 2)
    check(question, spec, gpu, layout, sharding)
    tokens = question.sequence_tokens or min(DEFAULT_TOKENS, spec.max_context_tokens or DEFAULT_TOKENS)
    return TrainingSpec(
        **_widths(question, preset, sharding),
        method=question.method,
        lora_rank=question.lora_rank or DEFAULT_RANK,
        lora_targets=question.lora_targets or ("all-linear",),
        optimizer=question.optimizer,
        optimizer_form=question.optimizer_form or preset.optimizer_form,
        sharding=sharding,
        layout=layout,
        micro_batch=question.micro_batch,
        sequence_tokens=tokens,
        accumulation=question.accumulation,
        checkpointing=question.checkpointing or preset.checkpointing,
        attention=question.attention or preset.attention,
        **_loss(question, preset, tokens),
        wide_state=preset.widens_quantized and question.method == "qlora" and sharding not in GATHERING,
        dispatches_experts=preset.dispatches_experts,
        gathers_again=preset.gathers_again,
        kernels="compiled" if question.compiled else preset.kernels,
        float8=choose_float8(question, sharding),
        reentrant=preset.reentrant,
        splits_outside=preset.splits_outside,
        keeps_gradients=preset.keeps_gradients,
        offload_parameters="parameters" in question.offloaded,
        offload_optimizer="optimizer" in question.offloaded or "parameters" in question.offloaded,
        offload_activations="activations" in question.offloaded,
        bucket_elements=_BUCKET_ELEMENTS if sharding in _ZERO and question.trainer != "megatron" else 0,
        expandable_segments=preset.expandable_segments and gpu.cuda_capability is not None,
        sub_group_elements=_sub_group(question, spec, layout) if sharding == "zero3" else 0,
        live_elements=min(_LIVE_ELEMENTS, spec.parameters) if sharding == "zero3" else 0,
        workspace_bytes=_NEW_WORKSPACE_BYTES if (gpu.cuda_capability or 0.0) >= 9.0 else _WORKSPACE_BYTES,
    )


def choose_layout(question: TrainingQuestion, spec: ModelSpec) -> TrainingLayout:
    """Spread the ranks over the GPUs: what is left beside the model's cuts is data parallel.

    Raises: UsageError when the ranks do not multiply to the number of GPUs.
    """
    cuts = question.tensor * question.pipeline * question.context
    asked = cuts * question.data
    count = question.num_gpus or asked
    if count % asked:
        raise UsageError(
            f"{count} GPUs do not hold {asked} ranks evenly",
            hint="leave --tp, --pp, --cp and --dp out, or make them multiply to the number of GPUs",
        )
    data = count // cuts
    experts = max((layer.mlp.num_experts for layer in spec.layers if layer.mlp), default=0)
    expert = 1
    if question.expert:
        if not experts:
            raise UsageError(f"`--ep` without experts: {spec.name} has dense layers", hint="leave --ep out")
        expert = max(ranks for ranks in range(1, data + 1) if data % ranks == 0 and experts % ranks == 0)
    return TrainingLayout(
        data=data,
        tensor=question.tensor,
        pipeline=question.pipeline,
        expert=expert,
        context=question.context,
        sequence_parallel=PRESETS[question.trainer].sequence_parallel and question.tensor > 1,
    )


def choose_sharding(question: TrainingQuestion, layout: TrainingLayout) -> Sharding:
    """Which sharding is meant: `fsdp` is the trainer's own kind, and several GPUs shard where nothing was said."""
    preset, asked = PRESETS[question.trainer], question.sharding
    if asked is None:
        asked = preset.sharding if layout.data * layout.context > 1 else "none"
    if asked == "fsdp":
        asked = "fsdp1" if "fsdp2" not in preset.shardings and "fsdp1" in preset.shardings else "fsdp2"
    return "fsdp2" if asked == "hsdp" else asked


def _sub_group(question: TrainingQuestion, spec: ModelSpec, layout: TrainingLayout) -> int:
    """Of how many elements FP32 gradients are made at a time, where that is less than a rank's part."""
    part = spec.parameters / (layout.shards * layout.tensor * layout.pipeline)
    return SUB_GROUP_ELEMENTS if question.method == "full" and part > SUB_GROUP_ELEMENTS else 0


def choose_float8(question: TrainingQuestion, sharding: Sharding) -> Float8Recipe | None:
    """The recipe of FP8 products; accelerate has weights cast before FSDP2 gathers them."""
    if question.precision != "fp8":
        return None
    own = PRESETS[question.trainer].float8[0]
    if own == "tensorwise" and sharding == "fsdp2" and question.trainer in _ACCELERATE:
        own = "tensorwise-gather"
    return question.float8 or own


def notes(question: TrainingQuestion, training: TrainingSpec) -> list[str]:
    """What was decided for the user, and has to be said."""
    said = []
    if question.sharding is None and training.layout.data > 1:
        names = {"fsdp2": "FSDP2", "fsdp1": "FSDP1", "zero1": "its distributed optimizer (ZeRO-1)", "zero2": "ZeRO-2"}
        how = names.get(training.sharding, training.sharding)
        count = training.layout.data
        said.append(f"{count} data-parallel GPUs and no --sharding: {how} is assumed, as {question.trainer} has it")
    if training.layout.sequence_parallel:
        said.append(
            "sequence parallelism goes with tensor parallelism here: what lies between layers is cut over ranks too"
        )
    if question.sharding == "hsdp":
        shards = training.layout.shards
        said.append(f"HSDP: sharded over {shards} GPUs, replicated over {training.layout.data // shards}")
    if question.precision == "fp8":
        said.append(
            f"FP8 by the recipe {training.float8}: products of the layers, not the head, norms or routed experts"
        )
        if training.float8 != "delayed" and training.kernels != "compiled":
            said.append("without --compile every cast to FP8 goes through FP32: 9 B an element while it runs, and slow")
    if training.method == "dora":
        said.append("DoRA makes every adapted weight whole again in the adapters' type, to take its norm")
    return said


def _widths(question: TrainingQuestion, preset: Preset, sharding: Sharding) -> dict[str, Any]:
    """Bytes of an element of everything that is kept, by method and precision."""
    precision = question.precision or ("bf16" if sharding in _ZERO else preset.precision)
    is_mixed = precision != "none"
    if question.method != "full":
        in_float = preset.adapters_in_float
        return {
            "adapters_in_float": in_float,
            "adapters_cast": not (preset.autocasts_adapters or (question.precision or "none") != "none"),
            "state_bytes": _FLOAT if in_float else _HALF,
        }
    if not is_mixed:
        return {}
    if preset.masters or sharding in _ZERO:
        grad = _FLOAT if preset.keeps_gradients else _HALF
        return {"grad_bytes": grad, "state_bytes": _FLOAT, "master_bytes": _FLOAT}
    is_gathered = sharding in GATHERING
    return {
        "weight_bytes": _FLOAT,
        "grad_bytes": _FLOAT,
        "state_bytes": _FLOAT,
        "autocast": not is_gathered,
        "reduce_bytes": (_FLOAT if preset.reduces_in_float else _HALF) if is_gathered else None,
    }


def _loss(question: TrainingQuestion, preset: Preset, tokens: int) -> dict[str, Any]:
    """The form of the loss; the chunks of the trainer that computes it by parts."""
    own = preset.adapter_loss if question.method != "full" and preset.adapter_loss else preset.loss
    loss: Loss = question.loss or own
    if question.loss is None and question.compiled and own in ("plain", "plain-flat"):
        loss = "compiled"
    rows = tokens * question.micro_batch
    chunks = max(ceil_div(rows, _CHUNK_TOKENS), 1) if question.trainer == "litgpt" else _CHUNKS
    return {"loss": loss, "loss_chunks": chunks}
