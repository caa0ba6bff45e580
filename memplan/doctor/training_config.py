"""A training setup as trainers write it down, under memplan's names, and what in it runs out of memory first.

Read are Trainer's arguments (TrainingArguments, SFTConfig and its kin) in a script or in YAML, DeepSpeed's JSON,
accelerate's and FSDP's YAML, and Axolotl's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from memplan.domain.diagnosis import Diagnosis, Mend

_OPTIMIZERS = (
    ("paged_adamw_8bit", "paged-adamw-8bit"),
    ("paged_adamw_32bit", "adamw"),
    ("8bit", "adamw-8bit"),
    ("adafactor", "adafactor"),
    ("lion", "lion"),
    ("muon", "muon"),
    ("sgd", "sgd"),
    ("adam", "adamw"),
)
_SHARDING = {
    "FULL_SHARD": "fsdp", "1": "fsdp", "SHARD_GRAD_OP": "zero2", "2": "zero2", "NO_SHARD": "ddp", "3": "ddp",
    "HYBRID_SHARD": "hsdp", "4": "hsdp",
}  # fmt: skip
_LONG = 4096


def training_options(pairs: Mapping[str, Any]) -> dict[str, Any]:
    """Return memplan's options for a flat mapping of a trainer's own names; what is not known is left out."""
    found: dict[str, Any] = {}
    for name, target in (
        ("per_device_train_batch_size", "micro_batch"),
        ("train_micro_batch_size_per_gpu", "micro_batch"),
        ("micro_batch_size", "micro_batch"),
        ("gradient_accumulation_steps", "grad_accum"),
        ("lora_r", "lora_rank"),
        ("r", "lora_rank"),
    ):
        value = pairs.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            found[target] = value
    for name in ("max_seq_length", "max_length", "sequence_len", "cutoff_len", "model_max_length"):
        if isinstance(pairs.get(name), int):
            found["seq_len"] = str(pairs[name])
    for name in ("base_model", "model_name_or_path", "pretrained_model_name_or_path", "model_name", "model"):
        if isinstance(pairs.get(name), str):
            found["model"] = pairs[name]
            break
    found |= _precision(pairs)
    optimizer = str(pairs.get("optim") or pairs.get("optimizer") or pairs.get("optimizer.type") or "").lower()
    if optimizer:
        known = next((name for part, name in _OPTIMIZERS if part in optimizer), None)
        found |= {"optimizer": known} if known else {}
    if pairs.get("gradient_checkpointing") not in (None, False, "false"):
        found["checkpointing"] = "full"
    if pairs.get("use_liger_kernel") is True or pairs.get("use_liger") is True:
        found["loss"] = "linear"
    found["train"] = _method(pairs)
    return found | _sharding(pairs)


def _precision(pairs: Mapping[str, Any]) -> dict[str, Any]:
    for name, kind in (("bf16", "bf16"), ("bf16.enabled", "bf16"), ("fp16", "fp16"), ("fp16.enabled", "fp16")):
        if pairs.get(name) in (True, "true", "auto"):
            return {"mixed_precision": kind}
    told = str(pairs.get("mixed_precision", "")).lower()
    return {"mixed_precision": told} if told in ("bf16", "fp16", "fp8") else {}


def _method(pairs: Mapping[str, Any]) -> str:
    adapter = str(pairs.get("adapter") or pairs.get("finetuning_type") or "").lower()
    has_adapter = "lora" in adapter or "r" in pairs or "lora_r" in pairs or "lora_alpha" in pairs
    if adapter == "qlora" or (has_adapter and pairs.get("load_in_4bit") is True):
        return "qlora"
    return "lora" if has_adapter else "full"


def _sharding(pairs: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    stage = pairs.get("zero_optimization.stage", pairs.get("deepspeed_config.zero_stage"))
    if isinstance(stage, int) and 0 <= stage <= 3:
        found["sharding"] = f"zero{stage}" if stage else "ddp"
    strategy = str(pairs.get("fsdp_config.fsdp_sharding_strategy") or pairs.get("fsdp_sharding_strategy") or "").upper()
    if strategy in _SHARDING:
        found["sharding"] = _SHARDING[strategy]
    elif "fsdp" in str(pairs.get("fsdp") or pairs.get("distributed_type") or "").lower() or pairs.get("fsdp"):
        found.setdefault("sharding", "fsdp2" if str(pairs.get("fsdp_config.fsdp_version")) == "2" else "fsdp")
    offloaded = []
    if _is_on(pairs, "zero_optimization.offload_optimizer.device", "deepspeed_config.offload_optimizer_device"):
        offloaded.append("optimizer")
    if _is_on(pairs, "zero_optimization.offload_param.device", "deepspeed_config.offload_param_device"):
        offloaded.append("parameters")
    if pairs.get("fsdp_config.fsdp_offload_params") is True:
        offloaded = ["optimizer", "parameters"]
    if offloaded:
        found["offload"] = ",".join(offloaded)
    return found


def _is_on(pairs: Mapping[str, Any], *names: str) -> bool:
    return any(str(pairs.get(name, "none")).lower() in ("cpu", "nvme") for name in names)


def rules(pairs: Mapping[str, Any], options: Mapping[str, Any]) -> Iterator[Diagnosis]:
    """Yield what a setup is known to run out of memory with, whatever the model: the likeliest first."""
    full = options.get("train") == "full"
    batch = options.get("micro_batch", 8 if "per_device_train_batch_size" not in pairs else 1)
    if "mixed_precision" not in options and any(name in pairs for name in ("output_dir", "optim", "learning_rate")):
        yield _warning(
            "full_precision",
            "neither bf16 nor fp16 is on: weights, activations and gradients are in 32 bit",
            "bf16=True",
        )
    if options.get("checkpointing") is None and (batch > 1 or int(options.get("seq_len", 0)) >= _LONG):
        yield _warning(
            "activations_oom",
            f"activations of {batch} sequences a GPU are all kept: gradient checkpointing is off",
            "gradient_checkpointing=True",
        )
    evaluates = str(pairs.get("eval_strategy") or pairs.get("evaluation_strategy") or "no") not in ("no", "None")
    if evaluates and not pairs.get("eval_accumulation_steps") and pairs.get("prediction_loss_only") is not True:
        yield _warning(
            "evaluation_oom",
            "evaluation keeps the logits of all batches on the GPU until it is over",
            "eval_accumulation_steps=1, or prediction_loss_only=True",
        )
    if evaluates and "per_device_eval_batch_size" not in pairs and batch < 8:
        yield _warning(
            "evaluation_oom_batch",
            f"evaluation takes 8 sequences at once, its default, and training {batch}",
            f"per_device_eval_batch_size={batch}",
        )
    if full and options.get("optimizer", "adamw") == "adamw" and options.get("sharding") in (None, "ddp"):
        yield _warning(
            "optimizer_oom",
            "full fine-tuning with AdamW holds 12 to 16 bytes for every parameter on each GPU: nothing is sharded",
            'optim="adamw_bnb_8bit", LoRA, or FSDP or ZeRO-3',
        )
    if options.get("offload"):
        yield Diagnosis(
            cause="host_oom",
            severity="note",
            sentence=f"offloaded to host memory: {options['offload']}, up to 12 bytes for every parameter of a rank",
        )


def _warning(cause: str, sentence: str, change: str) -> Diagnosis:
    mends = (Mend(change=change, risk="low", basis="rule"),)
    return Diagnosis(cause=cause, severity="warning", sentence=sentence, mends=mends)
