"""Properties of the readers under input that nobody would write. The long runs are in benchmarks/fuzz."""

import json
import subprocess
import sys
from contextlib import suppress
from math import prod
from pathlib import Path

import pytest
from checkpoint_files import GgufBytes, entry, safetensors_bytes
from hypothesis import given, settings
from hypothesis import strategies as st

from memplan.errors import MemplanError
from memplan.introspect.bytesource import MemorySource
from memplan.introspect.checkpoint import parse_index
from memplan.introspect.ggml_types import GGML_TYPES
from memplan.introspect.gguf import parse_gguf
from memplan.introspect.gguf_cursor import Skipped
from memplan.introspect.gguf_spec import gguf_to_spec
from memplan.introspect.header_spec import merge_headers
from memplan.introspect.inventory import SAFETENSORS_BITS, from_json, to_json
from memplan.introspect.jsonfile import parse_json_object
from memplan.introspect.model_folder import spec_from_config
from memplan.introspect.resolve import resolve_model
from memplan.introspect.safetensors import parse_safetensors

QUICK = settings(max_examples=150)
LLAMA: dict[str, object] = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 256,
    "max_position_embeddings": 512,
    "torch_dtype": "bfloat16",
}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)
NAMES = st.lists(st.text(min_size=1, max_size=40).filter(lambda name: name != "__metadata__"), max_size=8, unique=True)
SHAPES = st.lists(st.integers(0, 6), max_size=4).map(tuple)


@st.composite
def safetensors_files(draw: st.DrawFn) -> tuple[bytes, dict[str, tuple[str, tuple[int, ...]]]]:
    """A valid file and what is in it."""
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {}
    entries: dict[str, object] = {}
    end = 0
    for name in draw(NAMES):
        dtype, shape = draw(st.sampled_from(sorted(SAFETENSORS_BITS))), draw(SHAPES)
        bits = prod(shape) * SAFETENSORS_BITS[dtype]
        if bits % 8:
            continue
        entries[name] = entry(dtype, shape, end, end + bits // 8)
        tensors[name] = dtype, shape
        end += bits // 8
    return safetensors_bytes(entries, bytes(end)), tensors


@st.composite
def gguf_files(draw: st.DrawFn) -> tuple[bytes, dict[str, object], dict[str, tuple[int, tuple[int, ...]]]]:
    """A valid file, its metadata and its tensors."""
    file = GgufBytes(version=draw(st.sampled_from([1, 2, 3])), big_endian=draw(st.booleans()))
    numbers = st.integers(0, 1 << 20)
    values = numbers | st.booleans() | st.text(max_size=20) | st.lists(st.integers(-9, 9), min_size=1, max_size=5)
    metadata: dict[str, object] = {}
    for key, value in draw(st.dictionaries(st.text(min_size=1, max_size=20), values, max_size=6)).items():
        if key.startswith(("general.", "tokenizer.")):
            continue
        file.key(key, value)
        metadata[key] = tuple(value) if isinstance(value, list) else value
    tensors: dict[str, tuple[int, tuple[int, ...]]] = {}
    for name in draw(NAMES):
        type_id = draw(st.sampled_from(sorted(GGML_TYPES)))
        kind = GGML_TYPES[type_id]
        shape = (draw(st.integers(1, 3)), draw(st.integers(1, 3)) * kind.block)
        file.tensor(name, shape, type_id, kind.size_bytes(shape))
        tensors[name] = type_id, shape
    return file.build(), metadata, tensors


@st.composite
def damaged(draw: st.DrawFn, files: st.SearchStrategy[bytes]) -> bytes:
    """A valid file with a few bytes changed, left out, repeated or cut off."""
    data = bytearray(draw(files))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(len(data) - 1, 0)))
        change = draw(st.sampled_from(["set", "number", "remove", "repeat", "cut"]))
        if change == "set" and data:
            data[at] = draw(st.integers(0, 255))
        elif change == "number":
            data[at : at + 8] = draw(st.sampled_from([0, 1, 255, 1 << 31, 1 << 40, 1 << 63, 2**64 - 1])).to_bytes(
                8, "little"
            )
        elif change == "remove":
            del data[at : at + draw(st.integers(1, 16))]
        elif change == "repeat":
            data[at:at] = data[at : at + 16]
        else:
            del data[at:]
    return bytes(data)


@QUICK
@given(safetensors_files())
def test_a_valid_safetensors_file_is_read_as_it_was_written(
    written: tuple[bytes, dict[str, tuple[str, tuple[int, ...]]]],
) -> None:
    data, tensors = written
    inventory = parse_safetensors(MemorySource(data))
    assert {name: (each.dtype, each.shape) for name, each in inventory.tensors.items()} == tensors
    assert from_json(json.loads(json.dumps(to_json(inventory)))) == inventory


@QUICK
@given(gguf_files())
def test_a_valid_gguf_file_is_read_as_it_was_written(
    written: tuple[bytes, dict[str, object], dict[str, tuple[int, tuple[int, ...]]]],
) -> None:
    data, metadata, tensors = written
    gguf = parse_gguf(MemorySource(data))
    assert gguf.metadata == metadata
    assert {name: each.shape for name, each in gguf.tensors.items()} == {
        name: shape for name, (_, shape) in tensors.items()
    }
    assert gguf.tensor_bytes == sum(GGML_TYPES[type_id].size_bytes(shape) for type_id, shape in tensors.values())


@QUICK
@given(st.binary(max_size=300) | damaged(safetensors_files().map(lambda written: written[0])))
def test_damaged_safetensors_end_in_our_errors_alone(data: bytes) -> None:
    with suppress(MemplanError):
        inventory = parse_safetensors(MemorySource(data))
        merge_headers(spec_from_config(LLAMA, "m"), inventory)


@QUICK
@given(
    st.binary(max_size=300).map(lambda data: b"GGUF\x03\x00\x00\x00" + data)
    | damaged(gguf_files().map(lambda written: written[0]))
)
def test_damaged_gguf_files_end_in_our_errors_alone(data: bytes) -> None:
    with suppress(MemplanError):
        gguf_to_spec(parse_gguf(MemorySource(data)), "m")


@QUICK
@given(st.dictionaries(st.sampled_from(["weight_map", "metadata", "x"]), JSON, max_size=3) | JSON)
def test_an_index_of_anything_ends_in_our_errors_alone(value: object) -> None:
    with suppress(MemplanError):
        index = parse_index(json.dumps(value).encode(), "index.json")
        assert all("/" not in shard and ".." not in shard[:2] for shard in index.shards)


@QUICK
@given(st.dictionaries(st.sampled_from(sorted(LLAMA)), JSON, min_size=1, max_size=3))
def test_a_config_with_any_values_ends_in_our_errors_alone(changes: dict[str, object]) -> None:
    with suppress(MemplanError):
        text = json.dumps({**LLAMA, **changes}).encode()
        spec_from_config(parse_json_object(text, "config.json"), "m")


@QUICK
@given(st.binary(max_size=200))
def test_text_that_may_be_no_json_ends_in_our_errors_alone(data: bytes) -> None:
    with suppress(MemplanError):
        assert isinstance(parse_json_object(data, "x.json"), dict)


@settings(QUICK, max_examples=40)
@given(
    name=st.text(max_size=60)
    | st.sampled_from(["..", "/", "~", "~nobody-knows/x", "a" * 5000, "con", "org/name:", ":x", "\ud800"])
)
def test_any_name_ends_in_our_errors_alone(name: str, tmp_path: Path) -> None:
    with suppress(MemplanError):
        resolve_model(name, offline=True)


@pytest.mark.parametrize("target", ["safetensors", "index", "gguf", "config", "headers"])
def test_the_fuzzer_itself_runs(target: str, tmp_path: Path) -> None:
    script = Path(__file__).parents[2] / "benchmarks" / "fuzz" / "fuzz_readers.py"
    asked = [sys.executable, str(script), target, "--plain", "--runs", "300"]
    done = subprocess.run(asked, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-500:]
    assert json.loads(done.stdout)["inputs"] == 300


def test_a_skipped_value_survives_the_cache() -> None:
    from memplan.introspect import gguf_json

    file = GgufBytes().key("tokenizer.ggml.tokens", ["a"] * 5).key("a.b", [1, 2]).tensor("w", (2, 32), 8, 68)
    gguf = parse_gguf(MemorySource(file.build()))
    assert gguf.metadata["tokenizer.ggml.tokens"] == Skipped("texts", 5)
    assert gguf_json.from_json(json.loads(json.dumps(gguf_json.to_json(gguf)))) == gguf
    assert gguf_json.from_json({"tensors": 5}) is None
