"""A Python fragment with transformers' TrainingArguments (TRL's SFTConfig), and how the model is loaded for it.

Only the arguments are made when it is imported; `load_model` imports what it needs when it is called.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Literal

from memplan.domain.emission import Emission, EmittedFile
from memplan.domain.training_emission import TrainingSubject
from memplan.emit.training.settings import arguments_of
from memplan.emit.training.words import GATHERED, header, held
from memplan.emit.training.zero_config import FILE_NAME as DEEPSPEED_FILE
from memplan.emit.training.zero_config import config_file
from memplan.emit.yaml_text import Entry, comment
from memplan.errors import UsageError

FILE_NAME = "training_arguments.py"
_ATTENTION = {"flash": "flash_attention_2", "eager": "eager"}

Launcher = Literal["accelerate", "deepspeed", "torchrun"]


def emit(subject: TrainingSubject) -> Emission:
    """Return training_arguments.py, with sharding in it. Raises: UsageError for what the Trainer does not have."""
    files = [arguments_file(subject, launcher="torchrun")]
    if subject.training.bucket_elements:
        files.append(config_file(subject))
    return Emission(files=tuple(files))


def arguments_file(subject: TrainingSubject, *, launcher: Launcher) -> EmittedFile:
    """The fragment. Where accelerate's or DeepSpeed's own file says how ranks share the model, it does not."""
    is_trl = subject.question.trainer == "trl"
    name, package = ("SFTConfig", "trl") if is_trl else ("TrainingArguments", "transformers")
    entries = [*arguments_of(subject, is_launched=launcher == "accelerate"), *sharing(subject, launcher)]
    if is_trl:
        entries.append(Entry(key="max_length", value=subject.training.sequence_tokens))
        entries.append(Entry(key="packing", value=True, why="every sequence is as long as it was budgeted"))
    needs_layout = any(entry.key == "parallelism_config" for entry in entries)
    lines = [
        *comment(header(subject, f"from {FILE_NAME.removesuffix('.py')} import MAX_TOKENS, arguments, load_model")),
        *(["from accelerate import ParallelismConfig"] if needs_layout else []),
        f"from {package} import {name}",
        "",
        *comment(["tokenize to this length: longer sequences take more than was budgeted"]),
        f"MAX_TOKENS = {subject.training.sequence_tokens}",
        f"MODEL = {_python(subject.model_reference)}",
        f"arguments = {name}(",
        *_calls(entries),
        ")",
        "",
        "",
        *_loading(subject),
    ]
    return EmittedFile(name=FILE_NAME, text="\n".join(lines) + "\n", media_type="text/x-python")


def sharing(subject: TrainingSubject, launcher: Launcher) -> Iterator[Entry]:
    """How ranks share the model, in the arguments themselves."""
    training, layout = subject.training, subject.training.layout
    if layout.pipeline > 1:
        raise UsageError("transformers' Trainer has no pipeline stages", hint="use --format torchtitan")
    if launcher == "accelerate":
        return
    if training.bucket_elements or launcher == "deepspeed":
        yield Entry(key="deepspeed", value=DEEPSPEED_FILE, why="the stage, its buckets and offload")
        return
    if training.sharding in ("fsdp1", "fsdp2"):
        yield Entry(key="fsdp", value=True, why=held(subject, *GATHERED))
        yield Entry(key="fsdp_config", value=_fsdp(subject))
    if layout.tensor * layout.context > 1 or layout.copies > 1:
        sizes = {
            "dp_replicate_size": layout.copies,
            "dp_shard_size": layout.shards // layout.context,
            "tp_size": layout.tensor,
        }
        if layout.context > 1:
            sizes["cp_size"] = layout.context
        call = ", ".join(f"{key}={value}" for key, value in sizes.items())
        yield Entry(key="parallelism_config", value=_Code(f"ParallelismConfig({call})"))


class _Code(str):
    """Python that is written as it is."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def _fsdp(subject: TrainingSubject) -> Mapping[str, object]:
    training = subject.training
    is_second = training.sharding == "fsdp2"
    return {
        "version": 2 if is_second else 1,
        "reshard_after_forward": True if is_second else "full_shard",
        "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "state_dict_type": "SHARDED_STATE_DICT",
        "cpu_offload": training.offload_parameters or training.offload_optimizer,
        "activation_checkpointing": training.checkpointing == "full",
    }


def _calls(entries: list[Entry]) -> Iterator[str]:
    for entry in entries:
        if entry.why:
            yield from (f"    {line}" for line in comment([entry.why]))
        yield from (f"    {line}" for line in _call(entry.key, entry.value))


def _call(key: str, value: object) -> list[str]:
    """One argument; a mapping takes a line for each of its keys."""
    if isinstance(value, Mapping):
        return [f"{key}={{", *(f"    {_python(name)}: {_python(item)}," for name, item in value.items()), "},"]
    return [f"{key}={_python(value)},"]


def _python(value: object) -> str:
    return json.dumps(value) if type(value) is str else repr(value)


def _loading(subject: TrainingSubject) -> Iterator[str]:
    training = subject.training
    names = ["AutoModelForCausalLM", *(["BitsAndBytesConfig"] if training.method == "qlora" else [])]
    yield "def load_model():"
    yield from (f"    {line}" for line in comment([f"the weights as budgeted: {held(subject, 'weights', 'adapters')}"]))
    yield "    import torch"
    if training.method != "full":
        adapting = ", prepare_model_for_kbit_training" if training.method == "qlora" else ""
        yield f"    from peft import LoraConfig, get_peft_model{adapting}"
    yield f"    from transformers import {', '.join(names)}"
    yield ""
    yield "    model = AutoModelForCausalLM.from_pretrained("
    yield "        MODEL,"
    yield from (f"        {line}," for line in _load_arguments(subject))
    yield "    )"
    yield "    model.config.use_cache = False"
    if training.method != "full":
        yield from _adapters(subject)
    yield "    return model"


def _load_arguments(subject: TrainingSubject) -> Iterator[str]:
    training = subject.training
    if subject.revision:
        yield f"revision={_python(subject.revision)}"
    yield f"dtype=torch.{subject.spec.dtype.value if training.method != 'qlora' else 'bfloat16'}"
    yield f"attn_implementation={_python(_ATTENTION.get(training.attention, 'sdpa'))}"
    if training.layout.tensor > 1:
        yield 'tp_plan="auto"'
    if training.method == "qlora":
        storage = ", bnb_4bit_quant_storage=torch.bfloat16" if training.sharding in ("fsdp1", "fsdp2") else ""
        yield (
            'quantization_config=BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4",'
            f" bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.bfloat16{storage})"
        )


def _adapters(subject: TrainingSubject) -> Iterator[str]:
    training = subject.training
    targets = training.lora_targets
    modules = '"all-linear"' if targets in ((), ("all-linear",)) else json.dumps(targets)
    if training.method == "qlora":
        is_on = training.checkpointing == "full"
        yield f"    model = prepare_model_for_kbit_training(model, use_gradient_checkpointing={is_on})"
    elif training.checkpointing == "full":
        yield "    model.enable_input_require_grads()"
    options = f"r={training.lora_rank}, lora_alpha={2 * training.lora_rank}, target_modules={modules}"
    dora = ", use_dora=True" if training.method == "dora" else ""
    yield f'    adapters = LoraConfig({options}{dora}, task_type="CAUSAL_LM")'
    yield f"    model = get_peft_model(model, adapters, autocast_adapter_dtype={training.adapters_in_float})"
