"""Settings of a run under the names of transformers' TrainingArguments, which scripts, accelerate and DeepSpeed share.

Source: transformers 5.23, training_args.py and trainer_optimizer.py; liger_kernel/transformers/monkey_patch.py (of
`liger_kernel_config` it takes what the model's own patch has).
"""

from __future__ import annotations

from collections.abc import Iterator

from memplan.domain.training_emission import TrainingSubject
from memplan.emit.training.words import batch_words, held
from memplan.emit.yaml_text import Entry
from memplan.errors import UsageError

# Memory does not depend on it; a script and DeepSpeed have to agree on it.
LEARNING_RATES = {"full": 1e-5, "lora": 2e-4, "dora": 2e-4, "qlora": 2e-4}
_OPTIMIZERS = {
    "adamw-8bit": "adamw_bnb_8bit",
    "paged-adamw-8bit": "paged_adamw_8bit",
    "paged-adamw": "paged_adamw_32bit",
    "adafactor": "adafactor",
    "sgd": "sgd",
    "lion": "lion_32bit",
}
_LIGER = ("rope", "rms_norm", "layer_norm", "swiglu", "geglu")


def arguments_of(subject: TrainingSubject, *, is_launched: bool = False) -> Iterator[Entry]:
    """Every argument that decides memory, with its reason. `is_launched`: accelerate's file stands beside it.

    Raises: UsageError for what the Trainer does not have.
    """
    training = subject.training
    yield Entry(key="output_dir", value="out")
    yield Entry(
        key="per_device_train_batch_size",
        value=training.micro_batch,
        why=f"{held(subject, 'activations', 'logits_and_loss')}: {batch_words(subject)}",
    )
    yield Entry(key="gradient_accumulation_steps", value=training.accumulation)
    yield Entry(
        key="per_device_eval_batch_size", value=training.micro_batch, why="8 by itself: an evaluation would peak"
    )
    yield from _precision(subject, is_launched=is_launched)
    yield from checkpointing(subject)
    state = held(subject, "optimizer_state")
    yield Entry(key="optim", value=optimizer_name(subject), why=state or "its state is not on the GPU at the peak")
    yield Entry(key="learning_rate", value=LEARNING_RATES[training.method], why="no memory depends on it: set your own")
    if training.kernels == "compiled":
        yield Entry(key="torch_compile", value=True)
    yield from _loss(subject)


def optimizer_name(subject: TrainingSubject) -> str:
    """The Trainer's name of an optimizer and its form. Raises: UsageError for one that it does not have."""
    name, form = subject.training.optimizer, subject.training.optimizer_form
    if name == "adamw" and form != "for-loop":
        return "adamw_torch_fused" if form == "fused" else "adamw_torch"
    if name not in _OPTIMIZERS:
        what = f"{name}, {form}" if name == "adamw" else name
        raise UsageError(f"transformers' Trainer has no optimizer `{what}`", hint="use --optimizer adamw or adamw-8bit")
    return _OPTIMIZERS[name]


def _precision(subject: TrainingSubject, *, is_launched: bool) -> Iterator[Entry]:
    precision = mixed_precision(subject)
    if precision == "fp8" and is_launched:
        yield Entry(key="bf16", value=False, why="accelerate's file asks for FP8, which bf16=True would undo")
        return
    if precision == "fp8":
        raise UsageError("TrainingArguments has no FP8", hint="use --format accelerate, or --format torchtitan")
    if precision == "none":
        yield Entry(key="bf16", value=False, why="all is kept and computed in the type that the weights are loaded in")
    else:
        yield Entry(key=precision, value=True, why=f"{held(subject, 'weights', 'adapters', 'gradients')}")


def mixed_precision(subject: TrainingSubject) -> str:
    """bf16, fp16, fp8 or none, as it was budgeted."""
    precision = str(subject.budget.settings["mixed_precision"])
    is_zero = subject.training.bucket_elements > 0
    return "bf16" if precision == "none" and is_zero else precision


def checkpointing(subject: TrainingSubject) -> Iterator[Entry]:
    """Checkpointing of activations as the Trainer switches it on. Raises: UsageError for selective checkpointing."""
    training = subject.training
    if training.checkpointing == "selective":
        raise UsageError(
            "transformers' Trainer has no selective checkpointing",
            hint="use --checkpointing none or full, or --format torchtitan",
        )
    if training.offload_activations and not by_fsdp(subject):
        raise UsageError(
            "transformers' Trainer does not offload activations without FSDP",
            hint="leave `activations` out of --offload, or use --sharding fsdp2",
        )
    is_on = training.checkpointing == "full" and not by_fsdp(subject)
    why = f"layers are computed again in the backward pass: {held(subject, 'activations')}" if is_on else ""
    if training.checkpointing == "full" and by_fsdp(subject):
        why = "FSDP checkpoints activations itself (activation_checkpointing)"
    why = f"{why}; transformers 5.23 calls it activation_checkpointing and takes both names" if is_on else why
    yield Entry(key="gradient_checkpointing", value=is_on, why=why)
    if is_on:
        yield Entry(key="gradient_checkpointing_kwargs", value={"use_reentrant": False})


def by_fsdp(subject: TrainingSubject) -> bool:
    """Whether FSDP shards, and so checkpoints activations itself."""
    return subject.training.sharding in ("fsdp1", "fsdp2")


def _loss(subject: TrainingSubject) -> Iterator[Entry]:
    loss = subject.training.loss
    if loss in ("plain", "plain-flat", "compiled"):
        return
    if loss not in ("linear", "fused"):
        raise UsageError(f"transformers' Trainer has no {loss} loss", hint="use --loss linear, Liger's")
    why = f"{held(subject, 'logits_and_loss')}: head and loss in one kernel" if loss == "linear" else "one kernel"
    yield Entry(
        key="use_liger_kernel", value=True, why=f"{why}; Liger's other kernels were not counted on: they save more"
    )
    chosen = {"cross_entropy": loss == "fused", "fused_linear_cross_entropy": loss == "linear"}
    yield Entry(key="liger_kernel_config", value={**chosen, **dict.fromkeys(_LIGER, False)})
