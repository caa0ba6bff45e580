"""Training runs that are written in every format that holds them, and where a format refuses."""

from __future__ import annotations

from typing import Any

from memplan.cli.emit_training import training_emission
from memplan.domain.emission import Emission

FULL = {"model": "llama-8b", "train": "full", "gpu": "h100x8", "seq_len": "4096"}
SETUPS: dict[str, dict[str, Any]] = {
    "fsdp2": {**FULL, "mixed_precision": "bf16", "checkpointing": "full", "micro_batch": 2, "grad_accum": 4},
    "fsdp1": {**FULL, "sharding": "fsdp1"},
    "hsdp": {"model": "llama-70b", "train": "full", "gpu": "h100x64", "seq_len": "4096", "sharding": "hsdp"},
    "tensor": {**FULL, "gpu": "h100x16", "tp": 2, "sharding": "fsdp2"},
    "context": {**FULL, "cp": 2},
    "offload": {**FULL, "gpu": "h100x2", "offload": "parameters,activations", "checkpointing": "full"},
    "zero2": {**FULL, "sharding": "zero2", "checkpointing": "full"},
    "zero3": {**FULL, "sharding": "zero3", "offload": "optimizer,parameters", "loss": "linear"},
    "ddp-lora": {**FULL, "train": "lora", "sharding": "ddp", "optimizer": "adamw-8bit"},
    "qlora": {"model": "llama-8b", "train": "qlora", "gpu": "rtx-4090", "seq_len": "1024", "checkpointing": "full"},
    "pipeline": {**FULL, "model": "llama-70b", "gpu": "h100x64", "trainer": "torchtitan", "pp": 4, "tp": 4},
    "experts": {**FULL, "model": "qwen3-30b-a3b", "gpu": "h200x8", "trainer": "torchtitan", "ep": True},
    "fp8": {**FULL, "mixed_precision": "fp8", "checkpointing": "full"},
    "fp8-delayed": {**FULL, "mixed_precision": "fp8", "fp8_recipe": "delayed", "checkpointing": "full"},
    "fp8-rowwise": {**FULL, "mixed_precision": "fp8", "fp8_recipe": "rowwise", "trainer": "torchtitan"},
}
HOLDERS = {
    "accelerate": ("fsdp2", "fsdp1", "hsdp", "tensor", "context", "offload", "zero2", "zero3", "ddp-lora", "qlora"),
    "training-arguments": ("fsdp2", "hsdp", "tensor", "context", "zero2", "ddp-lora", "qlora"),
    "torchrun": ("fsdp2", "zero2", "ddp-lora", "qlora", "pipeline"),
    "deepspeed": ("zero2", "zero3"),
    "torchtitan": ("fsdp2", "hsdp", "tensor", "context", "pipeline", "experts", "fp8-rowwise"),
}


def written(setup: str, format_name: str) -> Emission:
    """The files of one setup in one format."""
    given = {**SETUPS[setup], "format": format_name, "offline": True}
    if format_name == "torchtitan" and setup == "fsdp2":
        given["checkpointing"] = "selective"
    return training_emission(given, given if "trainer" in given else {})[1]
