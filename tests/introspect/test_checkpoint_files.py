import json
from pathlib import Path

import pytest
from checkpoint_files import write_safetensors

from memplan.errors import CorruptFile, SourceNotFound
from memplan.introspect.checkpoint import parse_index, read_index
from memplan.introspect.folder import LocalFolder
from memplan.introspect.inventory import Inventory

FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def write_index(directory: Path, weight_map: object, **metadata: object) -> Path:
    path = directory / "model.safetensors.index.json"
    path.write_text(json.dumps({"metadata": metadata, "weight_map": weight_map}))
    return path


def read_local_index(path: Path) -> Inventory:
    return read_index(LocalFolder(path.parent), path.name)


def write_two_shards(directory: Path) -> Path:
    write_safetensors(directory / FIRST, {"a": ("F32", (2,), 8)})
    write_safetensors(directory / SECOND, {"b": ("BF16", (2, 2), 8)})
    return write_index(directory, {"a": FIRST, "b": SECOND}, total_size=16)


def test_the_shards_of_an_index_are_read_as_one_checkpoint(tmp_path: Path) -> None:
    inventory = read_local_index(write_two_shards(tmp_path))
    assert set(inventory.tensors) == {"a", "b"}
    assert inventory.total_bytes == 16
    assert len(inventory.files) == 2
    assert inventory.notes == ()


def test_an_index_that_claims_another_total_is_overruled_by_the_headers(tmp_path: Path) -> None:
    write_two_shards(tmp_path)
    inventory = read_local_index(write_index(tmp_path, {"a": FIRST, "b": SECOND}, total_size=99))
    assert inventory.total_bytes == 16
    assert "claims 99 bytes" in inventory.notes[0]


def test_missing_shards_are_named(tmp_path: Path) -> None:
    path = write_two_shards(tmp_path)
    (tmp_path / SECOND).unlink()
    with pytest.raises(SourceNotFound) as caught:
        read_local_index(path)
    assert SECOND in caught.value.message
    assert "1 of 2" in caught.value.message
    assert "config.json" in str(caught.value.hint)


def test_a_tensor_that_is_not_in_its_shard_is_named(tmp_path: Path) -> None:
    write_two_shards(tmp_path)
    path = write_index(tmp_path, {"a": FIRST, "b": FIRST, "c": SECOND})
    with pytest.raises(CorruptFile, match=r"tensor `b` is not in its shard .* nor are 1 more"):
        read_local_index(path)


@pytest.mark.parametrize(
    "shard",
    [
        "../model.safetensors",
        "/etc/passwd",
        "sub/model.safetensors",
        "..\\model.safetensors",
        "C:model.safetensors",
        ".hidden.safetensors",
        "",
        "x" * 300 + ".safetensors",
        "a\x00b.safetensors",
        "a\nb.safetensors",
    ],
)
def test_a_shard_that_is_a_path_is_refused(tmp_path: Path, shard: str) -> None:
    with pytest.raises(CorruptFile, match="no plain file name"):
        read_local_index(write_index(tmp_path, {"a": shard}))


def test_an_index_that_names_itself_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CorruptFile, match="is no weights file"):
        read_local_index(write_index(tmp_path, {"a": "model.safetensors.index.json"}))


@pytest.mark.parametrize("weight_map", [None, {}, [], "x", {"a": 1}, {"a": None}, {"a": ["b"]}, {"a": {}}])
def test_a_weight_map_of_nonsense_is_refused(tmp_path: Path, weight_map: object) -> None:
    with pytest.raises(CorruptFile, match="damaged index"):
        read_local_index(write_index(tmp_path, weight_map))


@pytest.mark.parametrize("claimed", ["many", None, -1, True, 1e300, float("nan"), [1]])
def test_a_nonsensical_total_is_ignored(claimed: object) -> None:
    text = json.dumps({"metadata": {"total_size": claimed}, "weight_map": {"a": "b.safetensors"}}).encode()
    assert parse_index(text, "i").claimed_bytes is None


def test_a_float_total_is_taken_as_the_whole_number_it_is() -> None:
    text = json.dumps({"metadata": {"total_size": 32.0}, "weight_map": {"a": "b.safetensors"}}).encode()
    assert parse_index(text, "i").claimed_bytes == 32


def test_a_link_out_of_the_directory_is_refused(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    write_safetensors(tmp_path / "elsewhere.safetensors", {"a": ("F32", (2,), 8)})
    (home / "model.safetensors").symlink_to(tmp_path / "elsewhere.safetensors")
    with pytest.raises(CorruptFile, match="leads out of its directory"):
        read_local_index(write_index(home, {"a": "model.safetensors"}))


def test_links_into_the_blobs_of_a_hugging_face_cache_are_followed(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--org--name" / "snapshots" / "abc"
    blobs = tmp_path / "models--org--name" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    write_safetensors(blobs / "123", {"a": ("F32", (2,), 8)})
    (snapshot / "model.safetensors").symlink_to("../../blobs/123")
    assert read_local_index(write_index(snapshot, {"a": "model.safetensors"})).total_bytes == 8


def test_links_in_a_circle_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").symlink_to(tmp_path / "b.safetensors")
    (tmp_path / "b.safetensors").symlink_to(tmp_path / "a.safetensors")
    with pytest.raises((CorruptFile, SourceNotFound)):
        read_local_index(write_index(tmp_path, {"w": "a.safetensors"}))
