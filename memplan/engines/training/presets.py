"""What each trainer does when it is told nothing: which operators run, which types are kept, what is gathered.

A fact is what the page shows of it, with its source. What a question asks for takes the place of these.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from memplan.domain.training import Checkpointing, Float8Recipe, Loss, OptimizerForm
from memplan.domain.training_question import AskedAttention, AskedSharding, Precision, Trainer
from memplan.records import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """One trainer. `masters` says that 16 bit weights have FP32 copies beside them (None: mixed precision keeps the
    weights themselves in FP32). `shardings` are those that it can do; `sharding` is what several GPUs get.

    `float8` are the recipes of FP8 that it has, its own first.
    `cuts` are the kinds of model parallelism that it has: tensor, pipeline, expert, context. `has_selective`: it can
    keep some operators' outputs under checkpointing. `widens_quantized`: norms of models in 4 bits are kept in FP32.
    `expandable_segments`: PyTorch's allocator is told to use them. `dispatches_experts`, `gathers_again`: see
    `TrainingSpec`.
    """

    precision: Precision = "none"
    optimizer_form: OptimizerForm = "fused"
    checkpointing: Checkpointing = "none"
    has_selective: bool = False
    loss: Loss = "plain-flat"
    reentrant: bool = False
    adapter_loss: Loss | None = None
    attention: AskedAttention = "sdpa"
    kernels: Literal["transformers", "fused"] = "transformers"
    adapters_in_float: bool = True
    autocasts_adapters: bool = False
    widens_quantized: bool = False
    reduces_in_float: bool = False
    splits_outside: bool = False
    masters: bool = False
    keeps_gradients: bool = False
    sequence_parallel: bool = False
    expandable_segments: bool = False
    dispatches_experts: bool = False
    gathers_again: bool = False
    sharding: AskedSharding = "fsdp2"
    shardings: tuple[AskedSharding, ...] = ()
    float8: tuple[Float8Recipe, ...] = ()
    cuts: tuple[Literal["tensor", "pipeline", "expert", "context"], ...] = ()
    facts: tuple[tuple[str, str, str], ...] = ()


_ACCELERATE: tuple[AskedSharding, ...] = ("none", "ddp", "zero1", "zero2", "zero3", "fsdp1", "fsdp2", "hsdp")
_TORCHAO: tuple[Float8Recipe, ...] = ("tensorwise", "tensorwise-gather", "rowwise")
_LOADED = (
    "weights",
    "kept in the checkpoint's 16 bits; --mixed-precision bf16 keeps them in FP32 and multiplies in 16 bits",
    "transformers/modeling_utils.py (dtype=auto); accelerate/accelerator.py (FSDP keeps trained weights in FP32)",
)
_ADAPTERS = ("adapters", "in FP32, beside a base of 16 bits", "peft/tuners/tuners_utils.py, autocast_adapter_dtype")
_LOGITS = (
    "loss",
    "logits cast to FP32, labels shifted to them; the 16 bit logits stay until the forward pass is over",
    "transformers/loss/loss_utils.py, ForCausalLMLoss of 4.49 and later",
)


def _of_accelerate(*facts: tuple[str, str, str], **own: Any) -> Preset:
    """A trainer on top of accelerate, with what it does beside that."""
    return Preset(
        shardings=_ACCELERATE,
        float8=(*_TORCHAO, "delayed"),
        cuts=("tensor", "context"),
        facts=(_LOADED, _ADAPTERS, _LOGITS, *facts),
        **own,
    )


PRESETS: Mapping[Trainer, Preset] = {
    "transformers": _of_accelerate(
        ("optimizer", "fused AdamW where torch is 2.8 or later", "transformers/training_args.py, default_optim"),
        ("checkpointing", "off", "transformers/training_args.py, gradient_checkpointing"),
    ),
    "trl": _of_accelerate(
        (
            "4 bit weights",
            "norms in FP32 unless sharded, so that what lies between layers is FP32",
            "trl/models/utils.py 0.24, peft_module_casting_to_bf16",
        ),
        ("autocast", "on (bf16)", "trl/trainer/sft_config.py 0.24, bf16"),
        ("checkpointing", "on", "trl/trainer/sft_config.py 0.24, gradient_checkpointing"),
        checkpointing="full",
        autocasts_adapters=True,
        widens_quantized=True,
    ),
    "axolotl": _of_accelerate(
        ("checkpointing", "on", "axolotl/examples: gradient_checkpointing: true"),
        attention="flash",
        checkpointing="full",
        autocasts_adapters=True,
    ),
    "torchtitan": Preset(
        precision="bf16",
        checkpointing="selective",
        has_selective=True,
        adapters_in_float=False,
        reduces_in_float=True,
        splits_outside=True,
        sequence_parallel=True,
        expandable_segments=True,
        dispatches_experts=True,
        shardings=("none", "ddp", "fsdp2", "hsdp"),
        float8=_TORCHAO,
        cuts=("tensor", "pipeline", "expert", "context"),
        facts=(
            ("weights", "in FP32, gathered and multiplied in BF16", "torchtitan/config, mixed_precision_param"),
            ("gradients", "reduced in FP32", "torchtitan/config, mixed_precision_reduce"),
            ("checkpointing", "selective", "torchtitan/config, activation_checkpoint.mode"),
            ("optimizer", "fused AdamW", "torchtitan/config, optimizer.implementation"),
            (
                "allocator",
                "expandable segments, but for AMD's GPUs",
                "torchtitan/run_train.sh, PYTORCH_CUDA_ALLOC_CONF",
            ),
        ),
    ),
    "torchtune": Preset(
        checkpointing="full",
        loss="chunked",
        adapters_in_float=False,
        splits_outside=True,
        shardings=("none", "fsdp2", "hsdp"),
        float8=_TORCHAO,
        cuts=("tensor",),
        facts=(
            ("weights", "in BF16, states and adapters too", "recipes/configs/llama3_1/8B_full.yaml 0.6.1, dtype"),
            ("loss", "logits in 8 chunks", "recipes/configs/llama3_1/8B_full.yaml 0.6.1, CEWithChunkedOutputLoss"),
            ("checkpointing", "on", "recipes/configs/llama3_1/8B_full.yaml 0.6.1, enable_activation_checkpointing"),
            ("optimizer", "fused AdamW", "recipes/configs/llama3_1/8B_full.yaml 0.6.1, optimizer"),
        ),
    ),
    "litgpt": Preset(
        optimizer_form="foreach",
        checkpointing="full",
        adapter_loss="chunked",
        adapters_in_float=False,
        shardings=("none", "ddp", "fsdp1"),
        sharding="fsdp1",
        cuts=(),
        facts=(
            ("weights", "in BF16 (bf16-true), states and adapters too", "config_hub/finetune, precision"),
            ("loss", "for adapters the head is computed 128 tokens at a time", "litgpt/finetune/lora.py 0.5.13"),
            ("checkpointing", "on under FSDP", "litgpt/finetune/full.py 0.5.13, activation_checkpointing_policy"),
        ),
    ),
    "megatron": Preset(
        precision="bf16",
        has_selective=True,
        loss="in-place",
        reentrant=True,
        attention="flash",
        kernels="fused",
        masters=True,
        keeps_gradients=True,
        sequence_parallel=True,
        gathers_again=True,
        sharding="zero1",
        shardings=("none", "ddp", "zero1"),
        float8=("delayed",),
        cuts=("tensor", "pipeline", "expert", "context"),
        facts=(
            ("weights", "in BF16; FP32 copies in the optimizer", "megatron/core/optimizer/optimizer.py"),
            ("gradients", "in one FP32 buffer that stays", "megatron/core/distributed/param_and_grad_buffer.py"),
            ("sharding", "zero1 is its distributed optimizer", "megatron/core/optimizer/distrib_optimizer.py"),
            (
                "sequence parallelism",
                "tokens that a product gathers are not kept, but gathered again in the backward pass",
                "megatron/core/tensor_parallel/layers.py, LinearWithGradAccumulationAndAsyncCommunication",
            ),
            ("loss", "softmax and its gradient over the FP32 logits", "megatron/core/tensor_parallel/cross_entropy.py"),
        ),
    ),
    "deepspeed": Preset(
        precision="bf16",
        masters=True,
        sharding="zero2",
        shardings=("none", "ddp", "zero1", "zero2", "zero3"),
        cuts=("pipeline",),
        facts=(
            ("weights", "in BF16; FP32 copies in the optimizer", "deepspeed/runtime/zero/stage_1_and_2.py 0.18"),
            ("optimizer", "FusedAdam", "deepspeed/ops/adam/fused_adam.py 0.18"),
            _LOGITS,
        ),
    ),
}
