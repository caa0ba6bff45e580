"""Combinations that cannot be trained: each refused in one line that says why, with what would work."""

from __future__ import annotations

from collections.abc import Sequence

from memplan.budget.training.build import BY_PROFILE
from memplan.domain.gpu import GpuSpec
from memplan.domain.model import ModelSpec
from memplan.domain.training import GATHERING, Sharding, TrainingLayout
from memplan.domain.training_question import TrainingQuestion
from memplan.engines.training.presets import PRESETS
from memplan.errors import UnsupportedModel, UsageError
from memplan.units import format_count

_ZERO = ("zero1", "zero2", "zero3")
_NAMES = {"zero1": "ZeRO-1", "zero2": "ZeRO-2", "zero3": "ZeRO-3", "fsdp1": "FSDP1", "fsdp2": "FSDP2", "ddp": "DDP"}
# Forms of released weights that trainers make 16 bits wide as they load them.
WIDENED = ("fp8", "fp8-block", "mxfp4")
_FP8_CAPABILITY = 8.9
_BF16_CAPABILITY = 8.0


def check(
    question: TrainingQuestion, spec: ModelSpec, gpu: GpuSpec, layout: TrainingLayout, sharding: Sharding
) -> None:
    """Raises: UsageError for a combination that no run can have; UnsupportedModel for what is no decoder's text."""
    _text_alone(question, spec)
    _trainer(question, layout, sharding)
    _sharding(question, layout, sharding)
    _cuts(spec, layout)
    _offload(question, sharding)
    _numbers(question, spec, gpu)
    if question.float8 == "tensorwise-gather" and sharding != "fsdp2":
        raise UsageError(
            f"`--fp8-recipe tensorwise-gather` with --sharding {sharding}: nothing is gathered in 8 bits",
            hint="use --fp8-recipe tensorwise, or --sharding fsdp2",
        )


def _text_alone(question: TrainingQuestion, spec: ModelSpec) -> None:
    if question.images or question.resolution is not None:
        raise UnsupportedModel("training is not modelled with pictures: --images and --resolution", hint=BY_PROFILE)
    if not spec.is_generative:
        raise UnsupportedModel(
            f"training is not modelled for models that generate no text, such as {spec.name}", hint=BY_PROFILE
        )


def _trainer(question: TrainingQuestion, layout: TrainingLayout, sharding: Sharding) -> None:
    preset, name = PRESETS[question.trainer], question.trainer
    asked = "hsdp" if question.sharding == "hsdp" else sharding
    if asked not in preset.shardings:
        raise UsageError(
            f"{name} cannot shard with `{asked}`",
            hint=f"use --sharding {_one_of(preset.shardings)}, or another --trainer",
        )
    for kind, ranks, flag in (
        ("tensor", layout.tensor, "--tp"),
        ("pipeline", layout.pipeline, "--pp"),
        ("expert", layout.expert, "--ep"),
        ("context", layout.context, "--cp"),
    ):
        if ranks > 1 and kind not in preset.cuts:
            able = [other for other, each in PRESETS.items() if kind in each.cuts]
            raise UsageError(
                f"{name} has no {kind} parallelism: `{flag}`",
                hint=f"--trainer {_one_of(able)} has it, or leave {flag} out",
            )
    if question.checkpointing == "selective" and not preset.has_selective:
        able = [other for other, each in PRESETS.items() if each.has_selective]
        raise UsageError(
            f"{name} has no selective checkpointing",
            hint=f"use --checkpointing none or full; --trainer {_one_of(able)} has it",
        )
    if question.method != "full" and name == "megatron":
        raise UsageError(
            f"`--train {question.method}` with megatron is not known",
            hint="use --trainer transformers, torchtune or litgpt",
        )
    if question.method in ("qlora", "dora") and name == "torchtitan":
        raise UsageError(
            f"torchtitan has no `{question.method}`", hint="use --trainer transformers, torchtune or axolotl"
        )


def _sharding(question: TrainingQuestion, layout: TrainingLayout, sharding: Sharding) -> None:
    if layout.pipeline > 1 and sharding in ("zero2", "zero3"):
        raise UsageError(
            f"{_NAMES[sharding]} does not work with pipeline parallelism: each micro-batch would gather and reduce"
            " what it cuts up",
            hint=f"use --sharding zero1 with --pp {layout.pipeline}, or {sharding} without --pp",
        )
    if layout.tensor > 1 and sharding in ("ddp", "zero1", "zero2", "zero3") and "pipeline" not in _cuts_of(question):
        raise UsageError(
            f"{question.trainer} has no tensor parallelism together with {_NAMES[sharding]}",
            hint="use --sharding fsdp2, or --trainer megatron",
        )
    if sharding == "none" and layout.data > 1:
        raise UsageError(
            f"`--sharding none` on {layout.data} data-parallel GPUs: their gradients would never meet",
            hint="use --sharding ddp to replicate, fsdp2 to shard",
        )
    if layout.context > 1 and sharding != "fsdp2" and question.trainer != "megatron":
        raise UsageError(
            f"{question.trainer} cuts sequences over ranks with FSDP2 alone: `--cp {layout.context}`",
            hint="use --sharding fsdp2, or leave --cp out",
        )
    if question.method == "qlora" and sharding == "zero3":
        raise UsageError(
            "ZeRO-3 cannot cut 4 bit weights of bitsandbytes", hint="use --sharding fsdp2 or zero2, or --train lora"
        )
    if question.sharding == "hsdp" and layout.data < 4:
        raise UsageError(
            f"hsdp replicates over groups of GPUs that shard: {layout.data} data-parallel GPUs make no two groups",
            hint="use --sharding fsdp2",
        )


def _cuts(spec: ModelSpec, layout: TrainingLayout) -> None:
    heads = {layer.num_heads for layer in spec.layers if layer.num_heads}
    if any(each % layout.tensor for each in heads):
        able = [ranks for ranks in (1, 2, 4, 8, 16) if all(each % ranks == 0 for each in heads)]
        raise UsageError(
            f"--tp {layout.tensor} does not divide {spec.name}'s {min(heads)} attention heads",
            hint=f"use --tp {_one_of([str(each) for each in able])}",
        )
    if layout.pipeline > spec.num_layers:
        raise UsageError(
            f"--pp {layout.pipeline} is more than {spec.name}'s {spec.num_layers} layers", hint="use fewer stages"
        )
    size = -(-spec.num_layers // layout.pipeline)
    if size * (layout.pipeline - 1) >= spec.num_layers:
        raise UsageError(
            f"--pp {layout.pipeline} leaves a stage without layers: {spec.name} has {spec.num_layers}",
            hint=f"use --pp {-(-spec.num_layers // size)}",
        )


def _offload(question: TrainingQuestion, sharding: Sharding) -> None:
    if "parameters" in question.offloaded and sharding not in GATHERING:
        raise UsageError(
            f"`--offload parameters` with --sharding {sharding}: weights that are not gathered cannot stay on the host",
            hint="use --sharding fsdp2 or zero3 (one GPU is enough)",
        )
    if "optimizer" not in question.offloaded or "parameters" in question.offloaded:
        return
    if sharding in ("fsdp1", "fsdp2"):
        raise UsageError(
            f"`--offload optimizer` with {_NAMES[sharding]}, which keeps all of its shards on the host or none",
            hint="use --offload optimizer,parameters, or --sharding zero2",
        )
    if sharding not in _ZERO:
        raise UsageError(
            f"`--offload optimizer` with --sharding {sharding}: nothing there steps on the host",
            hint="use --sharding zero2 (one GPU is enough), or --optimizer paged-adamw-8bit",
        )


def _numbers(question: TrainingQuestion, spec: ModelSpec, gpu: GpuSpec) -> None:
    capability = gpu.cuda_capability if gpu.vendor == "nvidia" else None
    if question.precision == "fp8" and question.method != "full":
        raise UsageError(
            "`--mixed-precision fp8` trains all weights; adapters beside frozen ones are computed in 16 bits",
            hint="use --train full, or --mixed-precision bf16",
        )
    _float8(question)
    if question.precision == "fp8" and capability is not None and capability < _FP8_CAPABILITY:
        raise UsageError(f"{gpu.name} has no FP8 tensor cores", hint="use --mixed-precision bf16, or an H100 or newer")
    if question.precision == "bf16" and capability is not None and capability < _BF16_CAPABILITY:
        raise UsageError(f"{gpu.name} has no BF16 tensor cores", hint="use --mixed-precision fp16")
    if question.method != "qlora" and spec.quantization and spec.quantization not in WIDENED:
        raise UsageError(
            f"{spec.name} is stored in {spec.quantization}: weights of that form cannot be trained",
            hint="use --train qlora, or name the model it was made from",
        )
    if question.method == "full" and (question.lora_rank or question.lora_targets):
        raise UsageError("`--train full` has no adapters: --lora-rank and --lora-targets", hint="use --train lora")
    if question.sequence_tokens and question.sequence_tokens % question.context:
        raise UsageError(
            f"--cp {question.context} does not divide sequences of {question.sequence_tokens} tokens",
            hint="use a --seq-len that it divides",
        )
    longest = spec.max_context_tokens
    if longest and question.sequence_tokens and question.sequence_tokens > 4 * longest:
        raise UsageError(
            f"--seq-len {format_count(question.sequence_tokens)} is far beyond {spec.name}'s {format_count(longest)}",
            hint=f"use --seq-len {longest} or less",
        )


def _float8(question: TrainingQuestion) -> None:
    name, asked, known = question.trainer, question.float8, PRESETS[question.trainer].float8
    if asked is not None and question.precision != "fp8":
        raise UsageError("--fp8-recipe without FP8", hint="add --mixed-precision fp8")
    if question.precision == "fp8" and not known:
        able = [other for other, each in PRESETS.items() if each.float8]
        raise UsageError(f"{name} has no FP8 of its own", hint=f"use --trainer {_one_of(able)}")
    if asked is not None and asked not in known:
        raise UsageError(f"{name} has no FP8 recipe `{asked}`", hint=f"use --fp8-recipe {_one_of(known)}")


def _cuts_of(question: TrainingQuestion) -> tuple[str, ...]:
    return PRESETS[question.trainer].cuts


def _one_of(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"
