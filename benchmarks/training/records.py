"""Recorded training runs as questions: the model's config, the step, and the peak that the run printed.

A record is one JSON object a line (framework, model, method, sharding, sizes, `metric`, `per_gpu_gib`). What a record
leaves open is filled in with its framework's own way of working.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from memplan.domain.model import ModelSpec
from memplan.domain.training import TrainingLayout, TrainingSpec
from memplan.pipeline import load_model
from memplan.records import replace

Record = dict[str, Any]
HERE = Path(__file__).parent
BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, None: None}
# Names of records whose config goes by another name.
ALIASES = {
    "Qwen/Qwen-1_8B": "Qwen/Qwen-1_8B-Chat",
    "Qwen/Qwen-7B": "Qwen/Qwen-7B-Chat",
    "TheBloke/Mixtral-8x7B-Instruct-v0.1-GPTQ": "mistralai/Mixtral-8x7B-Instruct-v0.1",
    "mistralai/Mixtral-8x7B": "mistralai/Mixtral-8x7B-Instruct-v0.1",
    "TechxGenus/Meta-Llama-3-8B-GPTQ": "meta-llama/Meta-Llama-3-8B",
    "TheBloke/Mistral-7B-v0.1-GPTQ": "mistralai/Mistral-7B-v0.1",
    "TheBloke/Llama-2-70B-GPTQ": "meta-llama/Llama-2-70b-hf",
    "TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T": "TinyLlama/TinyLlama-1.1B-Chat-v1.0",
    "meta-llama/Llama-4-Scout-17B-16E": "meta-llama/Llama-4-Scout-17B-16E-Instruct",
    "Llama-2-7B (torchtrain llama 7B)": "meta-llama/Llama-2-7b-hf",
}
OPTIMIZERS = {
    "adamw8bit": "adamw-8bit",
    "paged": "paged-adamw",
    "paged adamw8bit": "paged-adamw-8bit",
    "paged_adamw": "paged-adamw",
    "adafactor": "adafactor",
    "muon": "muon",
    "sgd": "sgd",
}
TARGETS = {
    "DEFAULT (c_attn for qwen; q,k,v for llama family)": ("c_attn", "q_proj", "k_proj", "v_proj"),
    "c_attn,c_proj,w1,w2 + wte,lm_head trained": ("c_attn", "c_proj", "w1", "w2"),
    "q,k,v,o + mlp": ("all-linear",),
    "all attention+mlp": ("all-linear",),
    # Where queries, keys and values are one matrix, it is adapted for both.
    # Names of other models' layers, in a table where one setting is printed for all.
    "q_proj,k_proj,v_proj,o_proj": ("q_proj", "k_proj", "v_proj", "o_proj", "c_attn", "c_proj"),
    "q,v": ("q_proj", "v_proj", "query_key_value", "qkv_proj", "Wqkv", "c_attn"),
    "q,k,v,proj,mlp,head": ("all-linear", "lm_head"),
    "c_attn,c_proj,w1,w2": ("c_attn", "c_proj", "w1", "w2"),
}


@dataclass(frozen=True)
class Question:
    """A record, ready to be estimated again and again."""

    record: Record
    spec: ModelSpec
    training: TrainingSpec


def read_records(path: Path) -> list[Record]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


@lru_cache(maxsize=64)
def model(name: str, configs: Path) -> ModelSpec:
    """The model of a record. Raises: MemplanError when nobody knows its shape."""
    name = ALIASES.get(name, name)
    folder = configs / name.replace("/", "__")
    shapes = HERE / "models" / f"{re.sub('[^a-z0-9]+', '-', name.lower()).strip('-')[:40]}.json"
    where = str(folder / "config.json") if folder.is_dir() else str(shapes) if shapes.exists() else name
    return load_model(where, revision=None, offline=True, introspect="auto")


def question(record: Record, configs: Path) -> Question:
    spec = model(record["model"], configs)
    return Question(record=record, spec=spec, training=training_spec(record, spec))


def training_spec(record: Record, spec: ModelSpec) -> TrainingSpec:
    framework = record["framework"]
    fields = common(record, spec)
    if "fms-hf" in framework:
        fields |= fms(record)
    elif framework.startswith("torchtitan"):
        fields |= torchtitan(record)
    elif framework in ("ms-swift", "HF Trainer + DeepSpeed (finetune.py)"):
        fields["autocast"] = record["sharding"] in (None, "none", "ddp")  # DeepSpeed has no need of it
    elif framework == "torchtune":
        fields |= torchtune(record)
    elif "nanogpt" in framework:
        fields |= {"compute_bytes": 2, "loss": "compiled"}
    elif framework == "litgpt":
        fields |= litgpt(record)
    elif framework.startswith("Megatron") or "Megatron" in framework:
        fields |= megatron(record)
    return TrainingSpec(**fields)


def common(record: Record, spec: ModelSpec) -> dict[str, Any]:
    method = record["method"]
    weight = BYTES[record["param_dtype"]] or 2
    compute = 2 if "bf16" in str(record["master_weights"]) or weight == 2 else weight
    is_full = method == "full"
    targets = record["lora_targets"] or ""
    grad = BYTES.get(record["grad_dtype"]) or weight
    ac = record["activation_checkpointing"]
    attention = record["attention_impl"] or ""
    return {
        "method": method,
        "lora_rank": record["lora_rank"] or 8,
        "lora_targets": TARGETS.get(targets)
        or (("all-linear",) if targets.startswith("all") else tuple(t for t in re.split("[, +]+", targets) if t)),
        "weight_bytes": weight if is_full else 2,
        "compute_bytes": compute if is_full else 2,
        "grad_bytes": grad if is_full else 2,
        "state_bytes": BYTES.get(record["optimizer_state_dtype"]) or (grad if is_full else 4),
        "sharding": record["sharding"] or "none",
        "layout": common_layout(record),
        "micro_batch": record["micro_batch_size"],
        "sequence_tokens": record["seq_len"],
        "accumulation": record["grad_accum"] or 1,
        "optimizer": OPTIMIZERS.get(str(record["optimizer"]), "adamw"),
        "offload_parameters": bool(record["cpu_offload"]),
        "offload_optimizer": bool(record["cpu_offload"]),
        "master_bytes": 4 if weight == 2 and is_full and str(record["master_weights"]).startswith("fp32") else 0,
        "checkpointing": ac if ac in ("none", "selective", "full") else "none",
        "attention": "eager" if attention == "eager" else "flash",
        "loss": loss_form(record["cross_entropy"] or ""),
        "kernels": "compiled" if record["compile"] else "transformers",
        "workspace_bytes": 8519680 if "A100" in str(record["gpu"]) else 33554432,
    }


def loss_form(text: str) -> str:
    if "liger" in text or "cut" in text:
        return "linear"
    if text.startswith("chunked"):
        return "chunked"
    if "fused" in text:
        return "fused"
    return "plain"


def fms(record: Record) -> dict[str, Any]:
    quote = record["quote"]
    config = re.search(r"framework_config=(\S+)", quote)[1]
    autocast = "bf16=T" in quote
    # Logits of 16 bits stay beside their FP32 copy from transformers 4.46 on; by their bytes, only the first of the
    # three tables was measured with one of those.
    recent = "a100_80gb.csv" in record["source"]
    fields: dict[str, Any] = {
        "autocast": autocast and record["sharding"] == "none",
        "keeps_logits": recent,
        "loops_experts": True,
        "wide_state": fms_has_wide_state(record, config),
    }
    if record["sharding"] == "fsdp1" and record["param_dtype"] == "fp32":
        fields |= {"compute_bytes": 2, "reduce_bytes": 2}
    if "bigcode" in record["model"] and record["method"] != "full":
        fields |= {"lora_targets": ("c_attn", "c_proj")}  # it has no layers of the names that the record gives
    if config.startswith("accelerated"):
        fields |= {"fused_adapters": "foak" in config, "adapters_cast": False}
    return fields


def fms_has_wide_state(record: Record, config: str) -> bool:
    """TRL keeps norms of 4 bit models in FP32, but where they are sharded; so does autocast what LayerNorm makes."""
    if "bigcode" in record["model"]:
        return record["method"] == "qlora" and "bnb" in config
    return config == "baseline-peft-bnb" and record["sharding"] == "none"


def torchtitan(record: Record) -> dict[str, Any]:
    # March 2024, when it was called torchtrain. Its script set expandable segments from October 2024 on, which AMD's
    # runtime does not have; its list of what selective checkpointing keeps had no cuDNN, which it prefers on Blackwell,
    # until December 2025.
    is_first = "83c879f18" in record["source"]
    gpu = str(record["gpu"])
    return {
        "float8": recipe(record["notes"] or "", record["quote"] or ""),
        "compute_bytes": 2,
        "reduce_bytes": 4,
        "expandable_segments": not is_first and "MI3" not in gpu,
        "dispatches_experts": True,
        "saves_attention": not ("B200" in gpu and "torchao" in record["framework"]),
        "loss": "compiled" if "compiled" in str(record["cross_entropy"]) else fields_loss(record),
        # The first of its commits had one group for all that is outside of layers, and gathered logits.
        "splits_outside": not is_first,
        "loss_parallel": not is_first,
        "keeps_wide_logits": is_first and not record["compile"],
    }


def recipe(notes: str, quote: str) -> str | None:
    """The FP8 recipe in a record's own words; MXFP8 casts rows and columns as well."""
    if "float8 rowwise" in notes or "mxfp8" in quote:
        return "rowwise"
    if "float8 tensorwise" not in notes:
        return None
    gathers = any(word in notes + quote for word in ("+ float8 all-gather", "fp8 all-gather", "f8 all-gather"))
    return "tensorwise-gather" if gathers or "with float8 all-gather" in quote else "tensorwise"


def fields_loss(record: Record) -> str:
    if "chunked CE" in str(record["cross_entropy"]):
        return "linear"
    return "compiled" if record["cross_entropy"] is None and record["compile"] else "plain-flat"


def torchtune(record: Record) -> dict[str, Any]:
    notes = record["notes"] or ""
    return {
        "optimizer_in_backward": "optimizer_in_bwd" in notes,
        "offload_activations": "offload" in notes,
        "optimizer_form": "fused",
        "state_bytes": BYTES.get(record["optimizer_state_dtype"]) or 2,
        "adapters_in_float": False,
    }


def litgpt(record: Record) -> dict[str, Any]:
    return {"adapters_in_float": False, "kernels": "transformers"}


def megatron(record: Record) -> dict[str, Any]:
    virtual = re.search(r"VPP=(\d+)", record["notes"] or "")
    layout = common_layout(record)
    fields: dict[str, Any] = {
        "kernels": "fused",
        "keeps_gradients": True,
        "gathers_again": True,
        "loss": "in-place",
        "hidden_dropout": record["framework"].startswith("Megatron-LM"),
        "optimizer_form": "fused",
        "layout": replace(layout, virtual_stages=int(virtual[1]) if virtual else 1),
    }
    if record["method"] == "full" and record["param_dtype"] == "bf16":
        fields |= {"weight_bytes": 2, "compute_bytes": 2, "grad_bytes": 4, "state_bytes": 4, "master_bytes": 4}
    return fields


def common_layout(record: Record) -> TrainingLayout:
    tensor, pipeline, context = record["tp"] or 1, record["pp"] or 1, record["cp"] or 1
    return TrainingLayout(
        data=max(record["num_gpus"] // (tensor * pipeline * context), 1),
        tensor=tensor,
        pipeline=pipeline,
        context=context,
        expert=record["ep"] or 1,
        sequence_parallel=bool(record["sequence_parallel"]),
    )
