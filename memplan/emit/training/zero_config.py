"""DeepSpeed's config: the ZeRO stage with the buckets that the budget counts, offload, types, the optimizer.

JSON has no comments: the predicted peak is under `memplan`, a key that DeepSpeed leaves aside.
Source: deepspeed 0.19.8, runtime/config.py, runtime/zero/config.py and offload_config.py.
"""

from __future__ import annotations

import json
from typing import Any

from memplan.budget.training.zero import SUB_GROUP_ELEMENTS
from memplan.domain.emission import EmittedFile
from memplan.domain.training_emission import TrainingSubject
from memplan.emit.training.settings import LEARNING_RATES, mixed_precision
from memplan.emit.training.words import header
from memplan.errors import UsageError

FILE_NAME = "deepspeed.json"
_STAGES = {"none": 0, "ddp": 0, "zero1": 1, "zero2": 2, "zero3": 3}


def config_file(subject: TrainingSubject) -> EmittedFile:
    """deepspeed.json. Raises: UsageError for what DeepSpeed does not have."""
    text = json.dumps(config_of(subject), indent=2, ensure_ascii=False) + "\n"
    return EmittedFile(name=FILE_NAME, text=text, media_type="application/json")


def config_of(subject: TrainingSubject) -> dict[str, Any]:
    """DeepSpeed's config as a mapping. Raises: UsageError for a sharding that it does not have."""
    training = subject.training
    if training.sharding not in _STAGES:
        raise UsageError(
            f"DeepSpeed has no `{training.sharding}`",
            hint="use --sharding zero1, zero2 or zero3, or --format accelerate",
        )
    if training.layout.tensor > 1:
        raise UsageError("tensor parallelism is not written for DeepSpeed", hint="leave --tp out")
    precision = mixed_precision(subject)
    if precision == "fp8":
        raise UsageError("DeepSpeed has no FP8 of its own", hint="use --mixed-precision bf16")
    config: dict[str, Any] = {
        "memplan": list(header(subject, "left aside by DeepSpeed")[1:]),
        "train_micro_batch_size_per_gpu": training.micro_batch,
        "gradient_accumulation_steps": training.accumulation,
        "train_batch_size": training.micro_batch * training.accumulation * training.layout.data,
        "gradient_clipping": 1.0,
        "bf16": {"enabled": precision == "bf16"},
        "fp16": {"enabled": precision == "fp16"},
        "zero_optimization": _zero(subject),
    }
    return {**config, **_optimizer(subject)}


def _zero(subject: TrainingSubject) -> dict[str, Any]:
    training = subject.training
    stage = _STAGES[training.sharding]
    if stage == 0:
        return {"stage": 0}
    config: dict[str, Any] = {
        "stage": stage,
        "reduce_bucket_size": training.bucket_elements,
        "allgather_bucket_size": training.bucket_elements,
        "contiguous_gradients": True,
        "overlap_comm": False,
        "reduce_scatter": True,
    }
    if stage == 3:
        config |= {
            "sub_group_size": SUB_GROUP_ELEMENTS,
            "stage3_max_live_parameters": training.live_elements,
            "stage3_max_reuse_distance": training.live_elements,
            "stage3_gather_16bit_weights_on_model_save": True,
        }
    if training.offload_optimizer:
        config["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    if training.offload_parameters:
        config["offload_param"] = {"device": "cpu", "pin_memory": True}
    return config


def _optimizer(subject: TrainingSubject) -> dict[str, Any]:
    """AdamW is DeepSpeed's own (fused, or on the host where its state is); any other comes from the script."""
    training = subject.training
    if training.optimizer != "adamw":
        return {"zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False}
    rate = LEARNING_RATES[training.method]
    return {
        "optimizer": {"type": "AdamW", "params": {"lr": rate, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.0}}
    }
