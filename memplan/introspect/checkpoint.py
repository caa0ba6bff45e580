"""Checkpoint files as they lie in a folder: one `.safetensors`, or shards that an index names.

An index is an untrusted list of file names: a shard is a plain name beside the index, and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from memplan.errors import CorruptFile, SourceNotFound
from memplan.introspect.bytesource import show
from memplan.introspect.folder import Folder
from memplan.introspect.inventory import Inventory, StoredTensor
from memplan.introspect.jsonfile import MAX_JSON_BYTES, parse_json_object
from memplan.introspect.safetensors import parse_safetensors
from memplan.records import dataclass

INDEX_NAMES = ("model.safetensors.index.json", "diffusion_pytorch_model.safetensors.index.json")
SINGLE_NAMES = ("model.safetensors", "diffusion_pytorch_model.safetensors")
_MAX_SHARDS = 10_000
_MAX_NAMED = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardIndex:
    """An index: which shard holds which tensor, and the total that its writer claims."""

    name: str
    weight_map: Mapping[str, str]
    claimed_bytes: int | None

    @property
    def shards(self) -> tuple[str, ...]:
        return tuple(sorted(set(self.weight_map.values())))


def parse_index(text: bytes, name: str) -> ShardIndex:
    """Return an index whose shard names are plain.

    Raises: CorruptFile for broken JSON, a shard that is a path or no weights file, an index that lists nothing.
    """
    raw = parse_json_object(text, name, limit_bytes=MAX_JSON_BYTES)
    weight_map = raw.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CorruptFile(f"damaged index: `{name}`: no `weight_map` of tensor names to shards")
    wrong = next((shard for shard in weight_map.values() if not isinstance(shard, str)), None)
    if wrong is not None or None in weight_map.values():
        raise CorruptFile(f"damaged index: `{name}`: a shard must be a file name, not {show(repr(wrong))}")
    shards = set(cast("Mapping[str, str]", weight_map).values())
    if len(shards) > _MAX_SHARDS:
        raise CorruptFile(f"damaged index: `{name}`: {len(shards)} shards; expected at most {_MAX_SHARDS}")
    for shard in sorted(shards):
        _check_shard_name(shard, name)
    return ShardIndex(name=name, weight_map=weight_map, claimed_bytes=_claimed_bytes(raw.get("metadata")))


def join_shards(index: ShardIndex, shards: Mapping[str, Inventory]) -> Inventory:
    """Return the union of an index's shards.

    Raises: CorruptFile when a tensor is not in the shard that the index names, or is in two.
    """
    tensors: dict[str, StoredTensor] = {}
    files: list[str] = []
    metadata: dict[str, str] = {}
    for shard in index.shards:
        inventory = shards[shard]
        for name, tensor in inventory.tensors.items():
            if index.weight_map.get(name, shard) == shard:
                tensors[name] = tensor
        files.extend(inventory.files)
        metadata.update(inventory.metadata)
    missing = [name for name in index.weight_map if name not in tensors]
    if missing:
        shard = index.weight_map[missing[0]]
        raise CorruptFile(
            f"damaged checkpoint: `{index.name}`: tensor `{show(missing[0])}` is not in its shard `{shard}`"
            + (f", nor are {len(missing) - 1} more in theirs" if len(missing) > 1 else ""),
            hint="the index and the shards are of different checkpoints: download both again",
        )
    inventory = Inventory(tensors=tensors, files=tuple(files), metadata=metadata)
    return _with_notes(inventory, index)


def read_index(folder: Folder, name: str) -> Inventory:
    """Return the headers of every shard that an index of a folder names.

    Raises: SourceNotFound when shards are not there; CorruptFile when one is damaged or a path trick.
    """
    index = parse_index(folder.read(name, limit_bytes=MAX_JSON_BYTES), f"{folder.label}/{name}")
    missing = missing_shards(folder, index)
    if missing:
        named = ", ".join(missing[:_MAX_NAMED]) + (", ..." if len(missing) > _MAX_NAMED else "")
        raise SourceNotFound(
            f"missing shards of `{index.name}`: {len(missing)} of {len(index.shards)}: {named}",
            hint="finish the download, or name the config.json to plan without the weights",
        )
    folder.check_shards(index.shards)
    inventories = folder.each(lambda shard: read_weights(folder, shard), index.shards)
    return join_shards(index, dict(zip(index.shards, inventories, strict=True)))


def read_weights(folder: Folder, name: str) -> Inventory:
    """Return the header of one weights file of a folder."""
    with folder.open(name) as source:
        return parse_safetensors(source)


def missing_shards(folder: Folder, index: ShardIndex) -> list[str]:
    """The shards of an index that are not beside it."""
    return [shard for shard in index.shards if shard not in folder.names]


def _check_shard_name(shard: str, name: str) -> None:
    """Refuse what is no plain file name: a path is a trick, another index is a cycle."""
    is_plain = 0 < len(shard) <= 255 and shard.isprintable() and shard[0] != "." and not set(shard) & set("/\\:")
    if not is_plain:
        raise CorruptFile(
            f"damaged index: `{name}`: shard `{show(shard)}` is no plain file name",
            hint="shards must lie beside the index; do not trust this file",
        )
    if not shard.endswith((".safetensors", ".bin", ".pt", ".pth")):
        raise CorruptFile(f"damaged index: `{name}`: shard `{show(shard)}` is no weights file")


def _claimed_bytes(metadata: object) -> int | None:
    claimed = metadata.get("total_size") if isinstance(metadata, dict) else None
    if isinstance(claimed, (int, float)) and not isinstance(claimed, bool) and 0 <= claimed < 1 << 60:
        return int(claimed)
    return None


def _with_notes(inventory: Inventory, index: ShardIndex) -> Inventory:
    total = inventory.total_bytes
    if index.claimed_bytes in (None, total):
        return inventory
    note = f"the index claims {index.claimed_bytes} bytes, its shards' headers hold {total}: the headers are used"
    return Inventory(
        tensors=inventory.tensors, files=inventory.files, metadata=inventory.metadata, notes=(*inventory.notes, note)
    )
