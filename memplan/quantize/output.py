"""The finished checkpoint: shards, index, config, tokenizer and report, written aside and renamed when it is whole."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from memplan.introspect.checkpoint import INDEX_NAMES, SINGLE_NAMES
from memplan.quantize.pipeline import Quantization
from memplan.quantize.workspace import Workspace, write_safetensors, write_whole

_MAX_SHARD_BYTES = 5 * 10**9
# Weights in other formats, indexes of shards that are written anew, and what a download leaves behind.
_NOT_COPIED = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx", ".lock", ".md")


def write_checkpoint(work: Quantization, workspace: Workspace) -> Path:
    """Write the checkpoint aside and return its folder."""
    staging = workspace.folder / "checkpoint"
    if staging.exists():
        shutil.rmtree(staging)
    staging.mkdir()
    _write_shards(staging, _tensors(work, workspace))
    copy_others(work.skeleton.checkpoint.path, staging)
    _write_config(work, staging)
    return staging


def accept(workspace: Workspace, staging: Path, place: Path) -> None:
    """Give a written checkpoint its place, and remove the work that led to it."""
    if place.exists():
        replaced = workspace.folder / "replaced"
        shutil.rmtree(replaced, ignore_errors=True)  # of a run that was killed at this very place
        os.replace(place, replaced)
    os.replace(staging, place)
    shutil.rmtree(workspace.folder)


def _tensors(work: Quantization, workspace: Workspace) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the result: of finished blocks first, then what was left alone."""
    from safetensors import safe_open

    written: set[str] = set()
    for index in range(len(work.skeleton.blocks)):
        with safe_open(workspace.block_file(index), framework="pt") as block:
            for name in block.keys():  # noqa: SIM118
                written.add(name)
                yield name, block.get_tensor(name)
    replaced = work.replaced()
    checkpoint = work.skeleton.checkpoint
    for name in checkpoint.names():
        if name not in written and name not in replaced:
            yield name, checkpoint.read(name)


def _write_shards(folder: Path, tensors: Iterator[tuple[str, Tensor]]) -> None:
    shards: list[list[str]] = []
    waiting: dict[str, Tensor] = {}
    size_bytes = total_bytes = 0
    for name, value in tensors:
        value_bytes = value.numel() * value.element_size()
        if waiting and size_bytes + value_bytes > _MAX_SHARD_BYTES:
            shards.append(list(waiting))
            write_safetensors(folder / f"shard-{len(shards)}", waiting)
            waiting, size_bytes = {}, 0
        waiting[name] = value
        size_bytes += value_bytes
        total_bytes += value_bytes
    shards.append(list(waiting))
    if len(shards) == 1:
        write_safetensors(folder / SINGLE_NAMES[0], waiting)
        return
    write_safetensors(folder / f"shard-{len(shards)}", waiting)
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        (folder / f"shard-{number}").rename(folder / file)
        weight_map.update(dict.fromkeys(names, file))
    index = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
    write_whole(folder / INDEX_NAMES[0], json.dumps(index, indent=1).encode())


def copy_others(source: Path, folder: Path) -> None:
    """Copy the tokenizer, the generation config and whatever else belongs to the model and is not there yet."""
    for path in sorted(source.iterdir()):
        known = path.name == "config.json" or path.name.endswith(".safetensors.index.json")
        known = known or path.suffix in _NOT_COPIED or path.name.startswith(".") or (folder / path.name).exists()
        if path.is_file() and not known:
            shutil.copyfile(path, folder / path.name)


def _write_config(work: Quantization, folder: Path) -> None:
    config = json.loads((work.skeleton.checkpoint.path / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = work.format.quantization_config(work.layout)
    write_whole(folder / "config.json", (json.dumps(config, indent=2) + "\n").encode())
