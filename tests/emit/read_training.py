"""Reads folders of written training configs with the real libraries, and prints what they made of them as JSON.

Started by test_training_formats.py in a process of its own: accelerate and transformers keep state in the environment.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import runpy
import shlex
import sys
from pathlib import Path
from typing import Any

PLAIN = (str, int, float, bool, type(None), list, dict)


def read_accelerate(path: Path) -> dict[str, Any]:
    """What `accelerate launch` sets, and the plugins that are made of it."""
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils import FullyShardedDataParallelPlugin, ParallelismConfig
    from accelerate.utils.launch import prepare_multi_gpu_env

    config = load_config_from_file(str(path))
    parser = launch_command_parser()
    known = vars(parser.parse_args(["train.py"]))
    args, *_ = _validate_launch_command(parser.parse_args(["--config_file", str(path), "train.py"]))
    sections = {**config.fsdp_config, **config.parallelism_config, **config.deepspeed_config}
    made: dict[str, Any] = {
        "unknown": sorted(key for key in sections if key not in known),
        "processes": args.num_processes,
        "machines": args.num_machines,
        "type": str(config.distributed_type.value),
        "precision": args.mixed_precision,
        "deepspeed_file": args.deepspeed_config_file,
        "zero3_init": args.zero3_init_flag,
    }
    if args.use_fsdp:
        environment = dict(os.environ)
        os.environ.update(prepare_multi_gpu_env(args))
        os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = os.environ["FSDP_SYNC_MODULE_STATES"] = "false"  # asks for a GPU
        plugin = FullyShardedDataParallelPlugin()
        made |= {
            "version": plugin.fsdp_version,
            "reshard": str(plugin.reshard_after_forward if plugin.fsdp_version == 2 else plugin.sharding_strategy.name),
            "offload": str(plugin.cpu_offload),
            "checkpointing": plugin.activation_checkpointing,
        }
        if args.use_parallelism_config:
            layout = ParallelismConfig()
            made["layout"] = [layout.dp_replicate_size, layout.dp_shard_size, layout.tp_size]
        os.environ.clear()
        os.environ.update(environment)
    return made


def read_arguments(path: Path) -> dict[str, Any]:
    """What the fragment's TrainingArguments say."""
    os.chdir(path.parent)
    names = runpy.run_path(str(path))
    arguments = names["arguments"]
    fields = {each.name: getattr(arguments, each.name) for each in dataclasses.fields(arguments)}
    said = {name: value for name, value in fields.items() if isinstance(value, PLAIN)}
    layout = arguments.parallelism_config
    if layout is not None:
        said["layout"] = [layout.dp_replicate_size, layout.dp_shard_size, layout.tp_size]
    return {
        **said,
        "tokens": names["MAX_TOKENS"],
        "loads": callable(names["load_model"]),
        "optim": str(arguments.optim),
    }


def read_torchrun(path: Path) -> dict[str, Any]:
    """What torchrun's own parser makes of the script, and TrainingArguments of what follows."""
    from torch.distributed.run import parse_args
    from transformers import HfArgumentParser, TrainingArguments

    os.chdir(path.parent)
    command = path.read_text().split("exec torchrun ")[1].replace("\\\n", " ")
    words = shlex.split(re.sub(r"\$\{MASTER_ADDR[^}]*\}", "10.0.0.1", command))
    args = parse_args(words)
    made = {
        "nodes": args.nnodes,
        "processes": args.nproc_per_node,
        "script": args.training_script,
        "module": args.module,
    }
    if not args.module:
        (arguments,) = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses(args.training_script_args)
        made |= {
            "micro_batch": arguments.per_device_train_batch_size,
            "optim": str(arguments.optim),
            "fsdp": bool(arguments.fsdp),
            "checkpointing": arguments.gradient_checkpointing,
        }
    return made


def main() -> None:
    from transformers import training_args

    training_args.is_torch_bf16_gpu_available = lambda: True  # the machine of a test has no GPU
    made: dict[str, dict[str, Any]] = {}
    for folder in [Path(name).resolve() for name in sys.argv[1:]]:
        made[folder.name] = {}
        for name, read in (
            ("accelerate.yaml", read_accelerate),
            ("training_arguments.py", read_arguments),
            ("train.sh", read_torchrun),
        ):
            if (folder / name).exists():
                made[folder.name][name] = read(folder / name)
    print(json.dumps(made, default=str))


if __name__ == "__main__":
    main()
