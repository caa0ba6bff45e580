"""torchtitan's job config as TOML: parallelism, training, checkpointing of activations, compile, optimizer.

Releases up to 0.2.2 read it; from 0.3 on a run is configured in Python.
Source: torchtitan 0.2.2, config/job_config.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from memplan.domain.emission import Emission, EmittedFile
from memplan.domain.training_emission import TrainingSubject
from memplan.emit.training.words import batch_words, header, held
from memplan.emit.yaml_text import Entry, comment, scalar
from memplan.engines.training.flavors import find_flavor
from memplan.errors import UsageError

FILE_NAME = "torchtitan.toml"
_OPTIMIZERS = {"adamw": "AdamW"}

Table = tuple[str, list[Entry]]


def emit(subject: TrainingSubject) -> Emission:
    """Return torchtitan.toml. Raises: UsageError for a model or a setting that torchtitan does not have."""
    lines = [
        *comment(header(subject, f"torchtitan 0.2.2: torchrun ... -m torchtitan.train --job.config_file {FILE_NAME}"))
    ]
    for name, entries in _tables(subject):
        lines += ["", f"[{name}]"]
        for entry in entries:
            lines += comment([entry.why]) if entry.why else []
            lines.append(f"{entry.key} = {_value(entry.value)}")
    notes = ["torchtitan 0.2.2 reads it; from 0.3 on a run is configured in Python"]
    file = EmittedFile(name=FILE_NAME, text="\n".join(lines) + "\n", media_type="application/toml")
    return Emission(files=(file,), notes=tuple(notes))


def _tables(subject: TrainingSubject) -> Iterator[Table]:
    training = subject.training
    known = find_flavor(subject.spec)
    if known is None:
        raise UsageError(f"torchtitan 0.2.2 has no flavor of {subject.spec.name}", hint="use --trainer transformers")
    name, flavor = known
    if training.method != "full":
        raise UsageError("torchtitan 0.2.2 has no adapters", hint="use --format accelerate")
    if training.loss not in ("plain", "plain-flat", "compiled"):
        raise UsageError(f"torchtitan 0.2.2 has no {training.loss} loss", hint="leave --loss out, or give --compile")
    is_fp8 = subject.question.precision == "fp8"
    model = [Entry(key="name", value=name), Entry(key="flavor", value=flavor)]
    if is_fp8:
        model.append(Entry(key="converters", value=["quantize.linear.float8"], why="FP8 products"))
    yield "model", model
    yield "training", list(_training(subject))
    yield "parallelism", list(_parallelism(subject))
    yield "activation_checkpoint", list(_checkpointing(subject))
    yield "optimizer", list(_optimizer(subject))
    if is_fp8:
        yield "quantize.linear.float8", list(_float8(subject))
    is_compiled = training.kernels == "compiled"
    yield "compile", [Entry(key="enable", value=is_compiled), Entry(key="components", value=["model", "loss"])]


def _training(subject: TrainingSubject) -> Iterator[Entry]:
    training, layout = subject.training, subject.training.layout
    # A pipeline's micro-batches are cut out of one local batch; accumulation is what is left to the global one.
    local = training.micro_batch * (training.accumulation if layout.pipeline > 1 else 1)
    why = f"{held(subject, 'activations', 'logits_and_loss')}: {batch_words(subject)}"
    yield Entry(key="local_batch_size", value=local, why=why)
    yield Entry(key="global_batch_size", value=training.micro_batch * training.accumulation * layout.data)
    yield Entry(key="seq_len", value=training.sequence_tokens)
    is_mixed = training.weight_bytes == 4
    yield Entry(key="dtype", value="float32" if is_mixed else "bfloat16", why=held(subject, "weights", "gradients"))
    yield Entry(key="mixed_precision_param", value="bfloat16" if training.compute_bytes == 2 else "float32")
    yield Entry(key="mixed_precision_reduce", value="float32")
    yield Entry(key="enable_cpu_offload", value=training.offload_parameters or training.offload_optimizer)
    if training.offload_activations:
        raise UsageError("torchtitan 0.2.2 does not offload activations", hint="leave it out of --offload")


def _parallelism(subject: TrainingSubject) -> Iterator[Entry]:
    training, layout = subject.training, subject.training.layout
    shards = layout.shards // layout.context if training.sharding == "fsdp2" else 1
    why = f"{layout.data // shards} copies of the model, each over {shards} data-parallel ranks"
    yield Entry(key="data_parallel_replicate_degree", value=layout.data // shards, why=why)
    yield Entry(key="data_parallel_shard_degree", value=shards)
    yield Entry(key="fsdp_reshard_after_forward", value="default" if layout.pipeline == 1 else "always")
    yield Entry(key="tensor_parallel_degree", value=layout.tensor)
    yield Entry(key="disable_loss_parallel", value=not training.loss_parallel)
    yield Entry(key="pipeline_parallel_degree", value=layout.pipeline)
    if layout.pipeline > 1:
        yield Entry(key="pipeline_parallel_schedule", value="1F1B")
        yield Entry(key="pipeline_parallel_microbatch_size", value=training.micro_batch)
    yield Entry(key="context_parallel_degree", value=layout.context)
    yield Entry(key="expert_parallel_degree", value=layout.expert)


def _checkpointing(subject: TrainingSubject) -> Iterator[Entry]:
    mode = subject.training.checkpointing
    yield Entry(key="mode", value=mode, why=held(subject, "activations"))
    if mode == "selective":
        yield Entry(
            key="selective_ac_option", value="op", why="cheap operators are computed again; 2 is every other layer"
        )


def _float8(subject: TrainingSubject) -> Iterator[Entry]:
    """A recipe's name excludes the gather in 8 bits."""
    recipe = subject.training.float8
    if recipe == "tensorwise-gather":
        yield Entry(key="enable_fsdp_float8_all_gather", value=True, why="weights are cast before they are gathered")
        yield Entry(key="precompute_float8_dynamic_scale_for_fsdp", value=True)
    else:
        yield Entry(key="recipe_name", value=recipe)
    yield Entry(key="filter_fqns", value=["output"], why="the head stays in 16 bits, as it was budgeted")


def _optimizer(subject: TrainingSubject) -> Iterator[Entry]:
    training = subject.training
    if training.optimizer not in _OPTIMIZERS:
        raise UsageError(f"torchtitan 0.2.2 has no `{training.optimizer}`", hint="use --optimizer adamw")
    yield Entry(key="name", value=_OPTIMIZERS[training.optimizer], why=held(subject, "optimizer_state"))
    yield Entry(key="implementation", value=training.optimizer_form)
    yield Entry(key="early_step_in_backward", value=training.optimizer_in_backward)


def _value(value: object) -> str:
    if isinstance(value, list):
        return f"[{', '.join(_value(item) for item in value)}]"
    return json.dumps(value) if isinstance(value, str) else scalar(value)
