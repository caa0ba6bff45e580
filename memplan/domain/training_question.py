"""What a person asks of a training run, before a trainer's own way of working fills in the rest."""

from __future__ import annotations

from typing import Literal

from memplan.domain.training import Checkpointing, Float8Recipe, Method, OptimizerForm, OptimizerName
from memplan.records import dataclass

Trainer = Literal["transformers", "trl", "torchtitan", "torchtune", "litgpt", "megatron", "deepspeed", "axolotl"]
AskedSharding = Literal["none", "ddp", "zero1", "zero2", "zero3", "fsdp", "fsdp1", "fsdp2", "hsdp"]
Precision = Literal["bf16", "fp16", "none", "fp8"]
AskedLoss = Literal["plain", "fused", "linear", "chunked"]
AskedAttention = Literal["sdpa", "flash", "efficient", "math", "eager"]
Offloaded = Literal["optimizer", "parameters", "activations"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingQuestion:
    """A training run as it was asked for. `None` means the trainer's own default.

    `micro_batch` sequences of `sequence_tokens` go through one rank at a time; `accumulation` micro-batches make a
    step. `resolution` is the side of a picture in pixels, `images` how many are in every sequence of a model of texts
    and pictures. `num_gpus` is None where the ranks that were asked for say it. `expert` cuts routed experts whole over
    ranks, `context` every sequence.
    """

    method: Method
    trainer: Trainer = "transformers"
    sequence_tokens: int | None = None
    micro_batch: int = 1
    accumulation: int = 1
    optimizer: OptimizerName = "adamw"
    optimizer_form: OptimizerForm | None = None
    sharding: AskedSharding | None = None
    checkpointing: Checkpointing | None = None
    lora_rank: int | None = None
    lora_targets: tuple[str, ...] = ()
    precision: Precision | None = None
    float8: Float8Recipe | None = None
    loss: AskedLoss | None = None
    attention: AskedAttention | None = None
    compiled: bool = False
    offloaded: tuple[Offloaded, ...] = ()
    resolution: int | None = None
    images: int = 0
    tensor: int = 1
    pipeline: int = 1
    data: int = 1
    expert: bool = False
    context: int = 1
    num_gpus: int | None = None
