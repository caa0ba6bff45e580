"""A folder of safetensors, read tensor by tensor: nothing is in memory that was not asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from memplan.errors import CorruptFile, SourceNotFound, UnsupportedModel
from memplan.introspect.checkpoint import INDEX_NAMES, SINGLE_NAMES, parse_index, read_index, read_weights
from memplan.introspect.folder import LocalFolder

# Of a file, what stands for all of it: so many pieces, evenly spaced, of so many bytes. Smaller files are read whole.
_PIECES, _PIECE_BYTES = 1024, 4096
_CONFIG = "config.json"
_QUANTIZED = (".qweight", ".weight_packed", ".weight_scale", ".weight_scale_inv", ".absmax", ".SCB")


class Checkpoint:
    """The weights of a model on disk.

    Headers are checked by memplan's own reader before the library maps a file. Raises: SourceNotFound for a folder
    without safetensors; CorruptFile for a damaged one; UnsupportedModel for one that is quantized already.
    """

    def __init__(self, path: Path, *, may_be_quantized: bool = False) -> None:
        self.path = path
        self._open: dict[str, Any] = {}
        self._stack = ExitStack()
        folder = LocalFolder(path, str(path))
        name = next((known for known in (*INDEX_NAMES, *SINGLE_NAMES) if (path / known).is_file()), None)
        if name is None:
            raise SourceNotFound(
                f"no weights in {path}: neither {SINGLE_NAMES[0]} nor an index of shards",
                hint="safetensors are read; load a .bin checkpoint with weights_only and save it as safetensors first",
            )
        inventory = read_index(folder, name) if name in INDEX_NAMES else read_weights(folder, name)
        self.total_bytes = inventory.total_bytes
        self.shapes = {tensor: tuple(stored.shape) for tensor, stored in inventory.tensors.items()}
        self._file_of: Mapping[str, str] = dict.fromkeys(self.shapes, name)
        if name in INDEX_NAMES:
            self._file_of = parse_index((path / name).read_bytes(), name).weight_map
        packed = next((tensor for tensor in self.shapes if tensor.endswith(_QUANTIZED)), None)
        if packed is not None and not may_be_quantized:
            raise UnsupportedModel(f"{path} is quantized already: it has {packed}", hint="give the 16-bit model")

    def files(self) -> tuple[str, ...]:
        """The files that hold tensors."""
        return tuple(dict.fromkeys(self._file_of.values()))

    @cached_property
    def digest(self) -> str:
        """A hash by which another config or other weights are told, though names and sizes are the same.

        It is over pieces of every file 1/1024 of it apart, and so within every large matrix, in place of hundreds of
        gigabytes.
        """
        found = hashlib.sha256(repr(sorted(self.shapes.items())).encode())
        for name in (_CONFIG, *self.files()):
            path = self.path / name
            size = path.stat().st_size
            found.update(f"{name} {size}\n".encode())
            with path.open("rb") as file:
                for place in range(0, size, max(_PIECE_BYTES, size // _PIECES)):
                    file.seek(place)
                    found.update(file.read(_PIECE_BYTES))
        return found.hexdigest()[:16]

    def stored(self) -> Mapping[str, str]:
        """The file of every tensor, by the names that are in the files."""
        return self._file_of

    def names(self) -> list[str]:
        """The names of all tensors, in the order of the files."""
        return list(self._file_of)

    def __contains__(self, name: str) -> bool:
        return name in self._file_of

    def read(self, name: str) -> Tensor:
        """Return one tensor, copied out of its file."""
        file = self._file_of[name]
        if file not in self._open:
            from safetensors import safe_open

            self._open[file] = self._stack.enter_context(safe_open(self.path / file, framework="pt", device="cpu"))
        try:
            tensor: Tensor = self._open[file].get_tensor(name)
        except Exception as error:
            raise CorruptFile(f"cannot read {name} of {self.path / file}: {error}") from None
        return tensor

    def is_unpacked(self, name: str) -> bool:
        """Whether a tensor comes out of a quantized layer, and so as out x in whatever the family stores."""
        return False

    def close(self) -> None:
        """Let go of the files."""
        self._open.clear()
        self._stack.close()
