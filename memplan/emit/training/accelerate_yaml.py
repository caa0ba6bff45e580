"""accelerate's config file: FSDP2, HSDP and FSDP1 with their keys, DeepSpeed as a plugin, DDP, one process.

It says how ranks share the model; the batch, checkpointing without FSDP and the optimizer are arguments of the script,
which go beside it as training_arguments.py.
Source: accelerate 1.15, commands/config/cluster.py and config_args.py, utils/launch.py, utils/dataclasses.py.
"""

from __future__ import annotations

from collections.abc import Iterator

from memplan.domain.emission import Emission, EmittedFile
from memplan.domain.training_emission import TrainingSubject
from memplan.emit.training.arguments_python import arguments_file
from memplan.emit.training.settings import mixed_precision
from memplan.emit.training.words import GATHERED, header, held
from memplan.emit.training.zero_config import FILE_NAME as DEEPSPEED_FILE
from memplan.emit.training.zero_config import config_file
from memplan.emit.yaml_text import Entry, yaml_text
from memplan.errors import UsageError

FILE_NAME = "accelerate.yaml"
_PORT = 29500


def emit(subject: TrainingSubject) -> Emission:
    """Return accelerate.yaml and what belongs to it. Raises: UsageError for what accelerate does not have."""
    entries = [*_machines(subject), *_kind(subject)]
    text = yaml_text(header(subject, f"accelerate launch --config_file {FILE_NAME} train.py"), entries)
    files = [EmittedFile(name=FILE_NAME, text=text, media_type="application/yaml")]
    if subject.training.bucket_elements:
        files.append(config_file(subject))
    files.append(arguments_file(subject, launcher="accelerate"))
    notes = ["batch, optimizer and loss are arguments of the script"]
    if subject.num_machines > 1:
        notes.append(f"every one of {subject.num_machines} machines starts with its own --machine_rank")
    return Emission(files=tuple(files), notes=tuple(notes))


def _machines(subject: TrainingSubject) -> Iterator[Entry]:
    budget = subject.budget
    yield Entry(key="compute_environment", value="LOCAL_MACHINE")
    why = f"{budget.num_gpus} x {budget.gpu_name}, one process each"
    yield Entry(key="num_processes", value=budget.num_gpus, why=why)
    yield Entry(key="num_machines", value=subject.num_machines)
    yield Entry(key="machine_rank", value=0)
    if subject.num_machines > 1:
        yield Entry(key="main_process_ip", value="10.0.0.1", why="the first machine's address: write your own")
        yield Entry(key="main_process_port", value=_PORT)
        yield Entry(key="rdzv_backend", value="static")
        yield Entry(key="same_network", value=True)
    yield Entry(key="use_cpu", value=False)
    yield Entry(key="debug", value=False)
    precision = mixed_precision(subject)
    why = held(subject, "weights", "adapters", "gradients")
    yield Entry(key="mixed_precision", value="no" if precision == "none" else precision, why=why)
    if precision == "fp8":
        yield from _float8(subject)


def _float8(subject: TrainingSubject) -> Iterator[Entry]:
    recipe = subject.training.float8
    if recipe == "rowwise":
        raise UsageError(
            "accelerate's file has no rowwise scaling, which a script gives as AORecipeKwargs",
            hint="use --fp8-recipe tensorwise, or --format torchtitan",
        )
    if recipe == "delayed":
        config: dict[str, object] = {
            "backend": "TE",
            "fp8_format": "HYBRID",
            "amax_history_len": 1024,
            "amax_compute_algo": "most_recent",
        }
        yield Entry(key="fp8_config", value=config, why="Transformer Engine: scales from the steps before")
        return
    config = {"backend": "AO", "enable_fsdp_float8_all_gather": recipe == "tensorwise-gather", "pad_inner_dim": True}
    yield Entry(key="fp8_config", value=config, why="torchao: every product casts by its own largest values")


def _kind(subject: TrainingSubject) -> Iterator[Entry]:
    sharding = subject.training.sharding
    if subject.training.layout.pipeline > 1:
        raise UsageError("accelerate has no pipeline stages for training", hint="use --format torchtitan")
    if sharding in ("fsdp1", "fsdp2"):
        yield from _fsdp(subject)
    elif subject.training.bucket_elements:
        yield from _deepspeed(subject)
    elif subject.training.layout.tensor > 1:
        raise UsageError("accelerate joins tensor parallelism to FSDP2 alone", hint="add --sharding fsdp2")
    else:
        yield Entry(key="distributed_type", value="MULTI_GPU" if sharding == "ddp" else "NO")


def _fsdp(subject: TrainingSubject) -> Iterator[Entry]:
    training = subject.training
    yield Entry(key="distributed_type", value="FSDP")
    is_second = training.sharding == "fsdp2"
    config: dict[str, object] = {
        "fsdp_version": 2 if is_second else 1,
        "fsdp_reshard_after_forward": True if is_second else "FULL_SHARD",
        "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "fsdp_state_dict_type": "SHARDED_STATE_DICT",
        "fsdp_cpu_ram_efficient_loading": training.method != "qlora",
        "fsdp_offload_params": training.offload_parameters or training.offload_optimizer,
        "fsdp_activation_checkpointing": training.checkpointing == "full",
    }
    if training.offload_activations:
        config["fsdp_activation_checkpointing_offload"] = True
    if not is_second:
        config |= {
            "fsdp_use_orig_params": True,
            "fsdp_backward_prefetch": "BACKWARD_PRE",
            "fsdp_forward_prefetch": False,
            "fsdp_sync_module_states": True,
        }
    why = (
        f"each layer is gathered before it runs and cut up behind it: {held(subject, *GATHERED) or 'nothing gathered'}"
    )
    yield Entry(key="fsdp_config", value=config, why=why)
    layout = training.layout
    if layout.tensor * layout.context > 1 or layout.copies > 1:
        why = f"{layout.shards} ranks share one copy of the model, of which there are {layout.copies}"
        sizes = {
            "parallelism_config_dp_replicate_size": layout.copies,
            "parallelism_config_dp_shard_size": layout.shards // layout.context,
            "parallelism_config_tp_size": layout.tensor,
            "parallelism_config_cp_size": layout.context,
        }
        yield Entry(key="parallelism_config", value=sizes, why=why)


def _deepspeed(subject: TrainingSubject) -> Iterator[Entry]:
    yield Entry(key="distributed_type", value="DEEPSPEED")
    config: dict[str, object] = {
        "deepspeed_config_file": DEEPSPEED_FILE,
        "zero3_init_flag": subject.training.sharding == "zero3",
    }
    if subject.num_machines > 1:
        config["deepspeed_multinode_launcher"] = "standard"
    yield Entry(key="deepspeed_config", value=config, why="stage, buckets and offload are in DeepSpeed's own file")
