import json
import os
import time
from pathlib import Path

import pytest
from checkpoint_files import entry, safetensors_bytes, write_safetensors

from memplan.errors import CorruptFile, SourceNotFound
from memplan.introspect.bytesource import MemorySource
from memplan.introspect.inventory import SAFETENSORS_BITS, StoredTensor, stored_dtype
from memplan.introspect.safetensors import MAX_HEADER_BYTES, parse_safetensors, read_safetensors


def refused(data: bytes, *, size_bytes: int | None = None) -> str:
    with pytest.raises(CorruptFile) as caught:
        parse_safetensors(MemorySource(data, "m.safetensors", size_bytes=size_bytes))
    message = caught.value.message
    assert "`m.safetensors`" in message
    assert "at byte" in message
    assert "expected" in message
    assert "\n" not in message
    assert caught.value.exit_code == 2
    return message


def test_a_file_that_the_safetensors_package_wrote_is_read_exactly(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    save = pytest.importorskip("safetensors.torch")
    types = (torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.int8, torch.bool, torch.int64)
    tensors = {f"t{index}": torch.zeros(index + 1, 3, dtype=kind) for index, kind in enumerate(types)}
    tensors["empty"] = torch.zeros(0, 4)
    tensors["scalar"] = torch.zeros(())
    path = tmp_path / "model.safetensors"
    save.save_file(tensors, path, metadata={"format": "pt"})
    inventory = read_safetensors(path)
    assert set(inventory.tensors) == set(tensors)
    for name, tensor in tensors.items():
        assert inventory.tensors[name].shape == tuple(tensor.shape)
        assert inventory.tensors[name].size_bytes == tensor.numel() * tensor.element_size()
    assert inventory.total_bytes == sum(t.numel() * t.element_size() for t in tensors.values())
    assert inventory.metadata == {"format": "pt"}


@pytest.mark.parametrize(("dtype", "bits"), SAFETENSORS_BITS.items())
def test_every_type_of_the_format_has_its_width(dtype: str, bits: int) -> None:
    data = safetensors_bytes({"w": entry(dtype, (4, 4), 0, 2 * bits)}, bytes(2 * bits))
    tensor = parse_safetensors(MemorySource(data)).tensors["w"]
    assert tensor == StoredTensor(dtype, (4, 4), 2 * bits)
    assert stored_dtype(tensor).bits == bits


def test_a_header_of_a_thousand_tensors_takes_milliseconds(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_safetensors(path, {f"model.layers.{i}.self_attn.q_proj.weight": ("BF16", (4, 4), 32) for i in range(1000)})
    read_safetensors(path)
    start = time.perf_counter()
    inventory = read_safetensors(path)
    assert time.perf_counter() - start < 0.1
    assert inventory.total_bytes == 32_000


def test_metadata_that_is_no_text_is_left_out() -> None:
    data = safetensors_bytes({"__metadata__": {"a": "b", "c": 3}, "w": entry("U8", (2,), 0, 2)}, b"ab")
    assert parse_safetensors(MemorySource(data)).metadata == {"a": "b"}


def test_a_file_shorter_than_its_length_field_is_refused() -> None:
    assert "the file has 3 bytes" in refused(b"abc")


def test_an_empty_file_is_refused() -> None:
    assert "the file has 0 bytes" in refused(b"")


def test_a_header_length_beyond_the_file_is_refused_with_the_room_there_is() -> None:
    assert "a header length of 4096 bytes; expected at most 2" in refused(safetensors_bytes(b"{}", header_length=4096))


def test_a_header_beyond_the_formats_limit_is_refused_before_it_is_read() -> None:
    data = safetensors_bytes(b"{}", header_length=MAX_HEADER_BYTES + 1)
    assert str(MAX_HEADER_BYTES) in refused(data, size_bytes=1 << 40)


def test_a_header_length_that_cannot_hold_an_object_is_refused() -> None:
    assert "at least 2" in refused(safetensors_bytes(b"{}", header_length=1))


def test_a_gguf_file_under_the_wrong_name_is_named_as_one() -> None:
    assert "a GGUF file" in refused(b"GGUF" + bytes(60))


def test_a_name_that_comes_twice_is_refused() -> None:
    header = (
        b'{"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"w":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}'
    )
    assert "the name `w` twice" in refused(safetensors_bytes(header, b"ab"))


def test_bytes_that_overlap_are_refused_at_their_place() -> None:
    data = safetensors_bytes({"a": entry("U8", (4,), 0, 4), "b": entry("U8", (4,), 2, 6)}, bytes(6))
    assert "`b` begins at data byte 2 and overlaps" in refused(data)


def test_a_hole_between_tensors_is_refused() -> None:
    data = safetensors_bytes({"a": entry("U8", (2,), 0, 2), "b": entry("U8", (2,), 4, 6)}, bytes(6))
    assert "leaves a hole" in refused(data)


def test_a_truncated_download_is_named_as_cut_off() -> None:
    whole = safetensors_bytes({"a": entry("F32", (8,), 0, 32)}, bytes(32))
    message = refused(whole[:-5])
    assert "27 bytes of data, so the file is cut off" in message
    assert f"at byte {len(whole) - 5}:" in message


def test_bytes_after_the_last_tensor_are_refused() -> None:
    assert "expected 4" in refused(safetensors_bytes({"a": entry("U8", (4,), 0, 4)}, bytes(9)))


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (entry("F32", (3,), 0, 4), "4 bytes between its data_offsets; expected 12"),
        (entry("F4", (3,), 0, 1), "expected 1.5"),
        (entry("F99", (1,), 0, 4), "dtype 'F99'"),
        ({"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]}, "dtype ['F32']"),
        (entry("F32", (-1,), 0, 4), "shape [-1]"),
        ({"dtype": "F32", "shape": [1.0], "data_offsets": [0, 4]}, "shape [1.0]"),
        ({"dtype": "F32", "shape": [True], "data_offsets": [0, 4]}, "shape [True]"),
        ({"dtype": "F32", "shape": "ab", "data_offsets": [0, 4]}, "shape 'ab'"),
        (entry("F32", (1 << 61,), 0, 4), "shape"),
        (entry("F32", (1 << 59, 1 << 59, 1 << 59), 0, 4), "4 bytes between"),
        (entry("F32", (1,) * 40, 0, 4), "shape"),
        (entry("F32", (1,), 4, 0), "data_offsets [4, 0]"),
        ({"dtype": "F32", "shape": [1], "data_offsets": [0]}, "data_offsets [0]"),
        ({"dtype": "F32", "shape": [1], "data_offsets": [0, None]}, "data_offsets"),
        (None, "None for an entry"),
        ([1, 2], "for an entry"),
    ],
)
def test_an_entry_that_contradicts_itself_is_refused_by_name(bad: object, says: str) -> None:
    message = refused(safetensors_bytes({"w": bad}, bytes(4)))
    assert "`w`" in message
    assert says in message


@pytest.mark.parametrize(
    ("header", "says"),
    [
        (b'{"w":', "broken JSON"),
        (b"[]", "a JSON list"),
        (b"12", "a JSON int"),
        (b'{"\xff":1}', "byte 0xff, which is no UTF-8"),
        (b'{"w":NaN}', "the number NaN"),
        (b"[" * 50_000, "nested too deeply"),
        (b'{"w":' + b"9" * 5000 + b"}", "broken JSON"),
        (b"\x00\x01", "broken JSON"),
    ],
)
def test_a_header_that_is_no_json_object_is_refused(header: bytes, says: str) -> None:
    assert says in refused(safetensors_bytes(header))


def test_the_byte_of_broken_json_is_where_it_is_in_the_file() -> None:
    assert "at byte 15:" in refused(safetensors_bytes('{"ü": x}'.encode()))


def test_a_huge_header_of_nothing_but_brackets_is_refused_unparsed() -> None:
    header = b'{"w":[' + b"[]," * 6_000_000 + b"[]]}"
    start = time.perf_counter()
    assert "JSON that no list of tensors has" in refused(safetensors_bytes(header))
    assert time.perf_counter() - start < 2


def test_control_characters_of_a_name_do_not_reach_the_terminal() -> None:
    assert "\x1b" not in refused(safetensors_bytes({"\x1b[31m": entry("F32", (1,), 0, 3)}, bytes(3)))


def test_a_missing_file_a_directory_and_a_dangling_link_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "link.safetensors").symlink_to(tmp_path / "gone")
    with pytest.raises(SourceNotFound, match="no such file"):
        read_safetensors(tmp_path / "x.safetensors")
    with pytest.raises(CorruptFile, match="not a regular file"):
        read_safetensors(tmp_path)
    with pytest.raises(SourceNotFound, match="broken link"):
        read_safetensors(tmp_path / "link.safetensors")


def test_a_pipe_is_refused_without_waiting_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.safetensors")
    with pytest.raises(CorruptFile, match="not a regular file"):
        read_safetensors(tmp_path / "pipe.safetensors")


def test_the_remote_size_decides_whether_the_data_is_complete() -> None:
    header = safetensors_bytes({"a": entry("F32", (8,), 0, 32)})
    source = MemorySource(header, "m.safetensors", size_bytes=len(header) + 32)
    assert parse_safetensors(source).total_bytes == 32
    assert "cut off" in refused(header, size_bytes=len(header) + 31)


def test_headers_with_odd_but_legal_json_are_read() -> None:
    header = json.dumps({"w": entry("U8", (1,), 0, 1)}).encode() + b"   \n "
    assert parse_safetensors(MemorySource(safetensors_bytes(header, b"a"))).total_bytes == 1
