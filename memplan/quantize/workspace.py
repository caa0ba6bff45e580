"""The folder of a quantization that is under way: finished blocks, the inputs of the next one, and a manifest.

Whatever is in it is whole: files get their names when they are written and synced, and the manifest is last. So a run
that is killed at any moment goes on from the last finished block, and ends in the same files as one that was not.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from memplan.errors import CorruptFile, UsageError

_MANIFEST = "manifest.json"
_SCHEMA = "memplan.quantize-work/1"
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.float8_e8m0fnu: "F8_E8M0",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


class Workspace:
    """The work folder beside an output folder. `identity` is what must be the same for work to go on."""

    def __init__(self, output: Path, identity: Mapping[str, str], *, rank: int = 0) -> None:
        self.output = output
        self.folder = output.with_name(output.name + ".partial")
        self.identity = dict(identity)
        self.rank = rank
        self.blocks: list[dict[str, Any]] = []

    def open(self, *, resume: bool, force: bool) -> None:
        """Make the folder, or go on with the one that is there.

        Raises: UsageError when an output or other work is in the way; CorruptFile for a manifest that does not read.
        """
        if self.output.exists() and not force:
            raise UsageError(f"{self.output} exists", hint="--force replaces it, once the new one is whole")
        if force and not resume and self.folder.exists():
            shutil.rmtree(self.folder)
        if not self._is_begun():
            self.folder.mkdir(parents=True, exist_ok=True)
            self._save()
            return
        if not resume:
            raise UsageError(f"unfinished work in {self.folder}", hint="--resume goes on with it, --force starts over")
        self.blocks = self._load()

    def _is_begun(self) -> bool:
        """Whether the folder holds anything: a run killed before its first manifest leaves an empty folder behind."""
        return self.folder.exists() and any(path.name != _MANIFEST + ".part" for path in self.folder.iterdir())

    def was_accepted(self, num_blocks: int) -> bool:
        """Whether the result has its place already, and a run was killed while it removed the work that led to it."""
        left = self.folder.exists() and not (self.folder / "checkpoint").exists()
        if not self.output.exists() or not left:
            return False
        # The manifest may be gone as well; nothing else begins with a block.
        return not (self.folder / _MANIFEST).exists() or len(self._load()) == num_blocks

    def clear(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder)

    def join(self) -> None:
        """Know what is finished, where another process has opened the folder."""
        if self.rank:
            self.blocks = self._load()

    def block_file(self, index: int) -> Path:
        """The file of a finished block."""
        return self.folder / f"block-{index:04d}.safetensors"

    def inputs_file(self, index: int) -> Path:
        """The file with the inputs of a block, this process's share of them."""
        rank = f"-rank{self.rank}" if self.rank else ""
        return self.folder / f"inputs-{index:04d}{rank}.bin"

    def finish_block(self, index: int, tensors: Mapping[str, Tensor], facts: dict[str, Any]) -> None:
        """Keep a block. The inputs of the next one must be there already, those of every process."""
        if not self.rank:
            write_safetensors(self.block_file(index), tensors)
        self.blocks.append(facts)
        if not self.rank:
            self._save()

    def forget_inputs(self, index: int) -> None:
        """Remove the inputs of a block that is kept."""
        self.inputs_file(index).unlink(missing_ok=True)

    def _load(self) -> list[dict[str, Any]]:
        path = self.folder / _MANIFEST
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
            blocks, identity = manifest["blocks"], manifest["identity"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CorruptFile(f"cannot read {path}: {error}", hint="start over with --force") from None
        for name, value in self.identity.items():
            if identity.get(name) != value:
                raise UsageError(
                    f"the work in {self.folder} is of another {name}",
                    hint="give the same as then to go on, or --force to start over",
                )
        return list(blocks)

    def _save(self) -> None:
        manifest = {"schema": _SCHEMA, "identity": self.identity, "blocks": self.blocks}
        write_whole(self.folder / _MANIFEST, json.dumps(manifest, indent=1).encode())


def write_safetensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file under a temporary name, sync it and rename it.

    Tensors are written one after another, the widest types first so that all are aligned; the library would hold a
    copy of all of them first.
    """
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, value in ordered:
        start, end = end, end + value.numel() * value.element_size()
        header[name] = {"dtype": _DTYPES[value.dtype], "shape": list(value.shape), "data_offsets": [start, end]}
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    waiting = path.with_name(path.name + ".part")
    with waiting.open("wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        for _, value in ordered:
            plain = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            file.write(memoryview(plain.numpy()))
        file.flush()
        os.fsync(file.fileno())
    waiting.replace(path)
    _sync(path.parent)


def write_whole(path: Path, data: bytes) -> None:
    """Write a file under a temporary name, sync it and rename it."""
    waiting = path.with_name(path.name + ".part")
    waiting.write_bytes(data)
    _sync(waiting)
    waiting.replace(path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
