import struct
import time
from pathlib import Path

import pytest
from checkpoint_files import ARRAY, I32, STRING, GgufBytes

from memplan.errors import CorruptFile, MemplanError, SourceNotFound, UnsupportedModel
from memplan.introspect.bytesource import MemorySource
from memplan.introspect.ggml_types import FILE_TYPES, GGML_TYPES
from memplan.introspect.gguf import Gguf, parse_gguf, read_gguf
from memplan.introspect.gguf_cursor import Skipped


def parsed(data: bytes) -> Gguf:
    return parse_gguf(MemorySource(data, "m.gguf"))


def refused(data: bytes) -> str:
    with pytest.raises(CorruptFile) as caught:
        parsed(data)
    assert "`m.gguf`" in caught.value.message
    assert "at byte" in caught.value.message
    assert "\n" not in caught.value.message
    return caught.value.message


@pytest.mark.parametrize("big_endian", [False, True])
@pytest.mark.parametrize("version", [1, 2, 3])
def test_every_version_and_byte_order_is_read(version: int, big_endian: bool) -> None:
    file = GgufBytes(version=version, big_endian=big_endian)
    file.key("general.architecture", "llama").key("llama.block_count", 2).key("llama.list", [1, 2, 3])
    file.key("llama.flag", True).key("llama.eps", 0.5).key("tokenizer.ggml.tokens", ["a", "bc", ""])
    file.tensor("blk.0.attn_q.weight", (64, 32), 2, 64 * 18).tensor("output_norm.weight", (32,), 0, 128)
    gguf = parsed(file.build())
    assert gguf.version == version
    assert gguf.metadata["general.architecture"] == "llama"
    assert gguf.metadata["llama.list"] == (1, 2, 3)
    assert gguf.metadata["llama.flag"] is True
    assert gguf.metadata["llama.eps"] == 0.5
    assert gguf.metadata["tokenizer.ggml.tokens"] == Skipped("texts", 3)
    assert gguf.tensors["blk.0.attn_q.weight"].shape == (64, 32)
    assert gguf.tensor_bytes == 64 * 18 + 128


def test_a_file_that_the_gguf_package_wrote_is_read_exactly(tmp_path: Path) -> None:
    numpy = pytest.importorskip("numpy")
    package = pytest.importorskip("gguf")
    path = tmp_path / "model.gguf"
    writer = package.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_head_count_kv([8])
    writer.add_token_list([f"token {index}" for index in range(1000)])
    writer.add_token_scores([0.0] * 1000)
    writer.add_tensor("output_norm.weight", numpy.zeros((64,), dtype=numpy.float32))
    quantized = package.quants.quantize(numpy.zeros((4, 64), dtype=numpy.float32), package.GGMLQuantizationType.Q8_0)
    writer.add_tensor("output.weight", quantized, raw_dtype=package.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    gguf = read_gguf(path)
    theirs = {tensor.name: tensor for tensor in package.GGUFReader(path).tensors}
    assert set(gguf.tensors) == set(theirs)
    for name, tensor in gguf.tensors.items():
        assert tensor.size_bytes == theirs[name].n_bytes
        assert tensor.shape == tuple(int(axis) for axis in reversed(theirs[name].shape))
    assert gguf.metadata["tokenizer.ggml.tokens"] == Skipped("texts", 1000)
    assert gguf.metadata["tokenizer.ggml.scores"] == Skipped("numbers", 1000)
    assert gguf.metadata["llama.attention.head_count_kv"] == (8,)


def test_block_sizes_agree_with_the_gguf_package() -> None:
    package = pytest.importorskip("gguf")
    for kind, (block, block_bytes) in package.GGML_QUANT_SIZES.items():
        if kind.name == "Q8_1":
            continue  # the package still has the block of an older ggml; the type is never stored in a file
        ours = GGML_TYPES[int(kind)]
        assert (ours.name, ours.block, ours.block_bytes) == (kind.name.lower(), block, block_bytes)


def test_file_types_agree_with_the_gguf_package() -> None:
    package = pytest.importorskip("gguf")
    for kind in package.LlamaFileType:
        if kind.name not in ("GUESSED", "ALL_F32", "MOSTLY_MXFP4_MOE"):
            assert FILE_TYPES[int(kind)] == kind.name.removeprefix("MOSTLY_").lower()


@pytest.mark.parametrize(("type_id", "kind"), GGML_TYPES.items())
def test_every_tensor_type_takes_its_bytes(type_id: int, kind: object) -> None:
    columns = 256
    ggml = GGML_TYPES[type_id]
    size_bytes = 3 * (columns // ggml.block * ggml.block_bytes + ggml.row_bytes) + ggml.tensor_bytes
    data = GgufBytes().tensor("w", (3, columns), type_id, size_bytes).build()
    assert parsed(data).tensors["w"].size_bytes == size_bytes


def test_a_vocabulary_of_half_a_million_words_is_stepped_over_quickly() -> None:
    data = GgufBytes().key("tokenizer.ggml.merges", ["aa bb"] * 500_000).build()
    start = time.perf_counter()
    assert parsed(data).metadata["tokenizer.ggml.merges"] == Skipped("texts", 500_000)
    assert time.perf_counter() - start < 1


def test_texts_across_the_edge_of_a_window_are_stepped_over() -> None:
    words = ["x" * 1000] * 3000
    gguf = parsed(GgufBytes().key("tokenizer.ggml.tokens", words).key("a.b", 7).build())
    assert gguf.metadata == {"tokenizer.ggml.tokens": Skipped("texts", 3000), "a.b": 7}


def test_long_texts_are_counted_and_short_ones_kept() -> None:
    gguf = parsed(GgufBytes().key("tokenizer.chat_template", "x" * 100_000).key("a.b", "y").build())
    assert gguf.metadata["tokenizer.chat_template"] == Skipped("text", 100_000)
    assert gguf.metadata["a.b"] == "y"


def test_nested_arrays_are_stepped_over_to_a_depth() -> None:
    file = GgufBytes().key("a.b", [[1, 2], [3]]).key("c.d", 5)
    assert parsed(file.build()).metadata == {"a.b": Skipped("arrays", 2), "c.d": 5}
    deep = b"".join(struct.pack("<IQ", ARRAY, 1) for _ in range(50)) + struct.pack("<IQI", I32, 1, 0)
    assert "deep" in refused(GgufBytes().key("a.b", struct.pack("<I", ARRAY) + deep).build())


def test_a_source_without_a_known_size_is_read(tmp_path: Path) -> None:
    data = GgufBytes().key("a.b", 1).tensor("w", (32,), 0, 128).build()
    source = MemorySource(data, "m.gguf")
    source.size_bytes = None
    assert parse_gguf(source).tensor_bytes == 128


@pytest.mark.parametrize("length", [*range(24), 40, 60, 90])
def test_a_file_cut_anywhere_in_its_header_is_refused(length: int) -> None:
    data = GgufBytes().key("general.architecture", "llama").tensor("w", (32,), 0, 128).build()
    assert "expected" in refused(data[:length])


def test_a_file_cut_in_its_data_is_named_as_cut_off() -> None:
    data = GgufBytes().tensor("w", (1024,), 0, 4096).build()
    message = refused(data[:-100])
    assert "so it is cut off" in message
    assert "`w`" in message


def test_the_marks_of_other_formats_are_shown() -> None:
    assert "50 4b 03 04" in refused(b"PK\x03\x04" + bytes(100))


def test_a_newer_version_asks_for_an_update_and_a_silly_one_is_damage() -> None:
    with pytest.raises(UnsupportedModel, match="unknown GGUF version: 4"):
        parsed(GgufBytes(version=4).build())
    assert "version 123456" in refused(b"GGUF" + struct.pack("<I", 123456) + bytes(50))


def test_a_newer_tensor_type_asks_for_an_update_and_a_silly_one_is_damage() -> None:
    with pytest.raises(UnsupportedModel, match="unknown GGUF tensor type: 90"):
        parsed(GgufBytes().tensor("w", (32,), 90, 0).build())
    assert "tensor type 5000" in refused(GgufBytes().tensor("w", (32,), 5000, 0).build())


@pytest.mark.parametrize(
    ("file", "says"),
    [
        (GgufBytes().key("a", 1).key("a", 2), "the key `a` twice"),
        (GgufBytes().tensor("w", (8,), 0, 32).tensor("w", (8,), 0, 32), "the tensor `w` twice"),
        (GgufBytes().tensor("w", (1,) * 9, 0, 4), "9 axes"),
        (GgufBytes().tensor("w", (33,), 2, 18), "rows of 33 elements"),
        (GgufBytes().tensor("w", (1 << 40, 1 << 40), 0, 0), "shape"),
        (GgufBytes().tensor("w", (8,), 0, 32, offset=7), "data offset 7"),
        (GgufBytes().tensor("v", (64,), 0, 256).tensor("w", (8,), 0, 32, offset=32), "`w` begins inside `v`"),
        (GgufBytes().tensor("w", (8,), 0, 32, offset=1 << 40), "cut off"),
        (GgufBytes().key("general.alignment", 24), "general.alignment 24"),
        (GgufBytes().key("general.alignment", 0), "general.alignment 0"),
        (GgufBytes().key("general.alignment", "x"), "general.alignment x"),
        (GgufBytes().key("a.b", struct.pack("<I", 77)), "value type 77"),
        (GgufBytes().key("a.b", struct.pack("<IQ", STRING, 1 << 62)), "the file ends"),
        (GgufBytes().key("a.b", struct.pack("<IIQ", ARRAY, I32, 1 << 61)), "the file ends"),
        (GgufBytes().key("a.b", struct.pack("<IIQ", ARRAY, STRING, 1 << 61)), "an array of 2305843009213693952 items"),
        (GgufBytes().key("a.b", struct.pack("<IIQ", ARRAY, STRING, 1) + struct.pack("<Q", 1 << 63)), "file ends"),
        (GgufBytes().key("a" * 70_000, 1), "70000 bytes of a key"),
    ],
)
def test_a_file_that_contradicts_itself_is_refused(file: GgufBytes, says: str) -> None:
    data = file.build() if file.data_bytes < 1 << 30 else _without_data(file)
    assert says in refused(data)


def _without_data(file: GgufBytes) -> bytes:
    file.data_bytes = 0
    return file.build()


def test_counts_beyond_the_limits_are_refused_at_once() -> None:
    start = time.perf_counter()
    assert "tensors and" in refused(GgufBytes().build(num_tensors=1 << 62))
    assert "tensors and" in refused(GgufBytes().build(num_keys=1 << 62))
    assert time.perf_counter() - start < 1


def test_a_key_that_is_no_text_is_refused() -> None:
    file = GgufBytes()
    file.keys.append(file.text(b"\xff\xfe") + file.value(1))
    assert "no UTF-8" in refused(file.build())


def write_split(directory: Path, *, count: int = 3, skip: int | None = None, tensors: int | None = None) -> Path:
    for number in range(1, count + 1):
        file = GgufBytes().key("general.architecture", "llama").key("split.no", number - 1).key("split.count", count)
        file.key("split.tensors.count", count if tensors is None else tensors).tensor(f"t{number}", (32,), 0, 128)
        if number != skip:
            (directory / f"m-{number:05}-of-{count:05}.gguf").write_bytes(file.build())
    return directory / f"m-00001-of-{count:05}.gguf"


def test_all_files_of_a_split_model_are_read_whichever_is_named(tmp_path: Path) -> None:
    first = write_split(tmp_path)
    for path in (first, tmp_path / "m-00003-of-00003.gguf"):
        gguf = read_gguf(path)
        assert list(gguf.tensors) == ["t1", "t2", "t3"]
        assert len(gguf.files) == 3
        assert gguf.tensor_bytes == 3 * 128


def test_a_missing_part_of_a_split_model_is_named(tmp_path: Path) -> None:
    path = write_split(tmp_path, skip=2)
    with pytest.raises(SourceNotFound, match=r"m-00002-of-00003\.gguf"):
        read_gguf(path)


def test_a_split_model_that_lost_a_tensor_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CorruptFile, match="3 tensors; expected 9"):
        read_gguf(write_split(tmp_path, tensors=9))


def test_a_part_under_another_name_says_how_to_name_it(tmp_path: Path) -> None:
    path = write_split(tmp_path).rename(tmp_path / "renamed.gguf")
    with pytest.raises(CorruptFile) as caught:
        read_gguf(path)
    assert "-of-00003.gguf" in str(caught.value.hint)


def test_a_part_that_says_it_is_another_is_refused(tmp_path: Path) -> None:
    path = write_split(tmp_path, count=2)
    (tmp_path / "m-00002-of-00002.gguf").write_bytes(path.read_bytes())
    with pytest.raises(MemplanError, match="another part"):
        read_gguf(path)
