"""Texts of any size and any bytes as lines and figures, in bounded memory, without secrets."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memplan.doctor.causes import find_causes
from memplan.doctor.facts import gather
from memplan.doctor.lines import LINE_BYTES, CuedLines, as_utf8
from memplan.doctor.recognise import form_of
from memplan.doctor.scan import scan
from memplan.doctor.secrets import redact, shown
from memplan.doctor.sightings import parse_size
from memplan.errors import UsageError
from memplan.units import GIB, KIB, MIB

OOM = (
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23.64 "
    "GiB of "
    "which 1.00 GiB is free. Of the allocated memory 21.00 GiB is allocated by PyTorch, and 0.20 GiB is reserved "
    "by PyTorch "
    "but unallocated."
)


def cut(data: bytes, sizes: list[int]) -> Iterator[bytes]:
    position = 0
    for size in sizes:
        yield data[position : position + size]
        position += size
    yield data[position:]


@given(st.lists(st.binary(max_size=40), max_size=30), st.lists(st.integers(1, 50), max_size=20))
def test_lines_are_the_same_however_the_stream_is_cut(lines: list[bytes], sizes: list[int]) -> None:
    data = b"\n".join(line.replace(b"\r", b"") + b" cue" for line in lines)
    whole, parts = CuedLines(iter([data]), [b"cue"]), CuedLines(cut(data, sizes), [b"cue"])
    assert list(parts) == list(whole)
    assert (parts.num_lines, parts.num_bytes) == (whole.num_lines, whole.num_bytes)
    assert whole.num_lines == len(list(data.split(b"\n"))) - (data == b"" or data.endswith(b"\n"))


@given(st.lists(st.sampled_from(["a memory b", "nothing", "", "cue", "x" * 100]), max_size=60))
def test_every_line_with_a_cue_is_handed_on_with_its_number(lines: list[str]) -> None:
    found = list(CuedLines(iter(["\n".join([*lines, ""]).encode()]), [b"memory", b"cue"]))
    assert found == [(number, line) for number, line in enumerate(lines, start=1) if "memory" in line or "cue" in line]


@given(st.binary(max_size=3000))
@settings(max_examples=150)
def test_no_bytes_break_the_reader(data: bytes) -> None:
    find_causes(gather(scan(iter([data]))))


@given(st.text(max_size=300))
@settings(max_examples=100)
def test_no_text_around_a_message_hides_it(noise: str) -> None:
    text = f"{noise.replace(OOM, '')}\n{OOM}\n"
    assert "oom" in scan(iter([text.encode("utf-8", "replace")])).seen


def test_a_line_that_never_ends_is_cut_and_memory_stays_small() -> None:
    def endless() -> Iterator[bytes]:
        yield b"CUDA out of memory "
        for _ in range(40):
            yield b"x" * (1 << 20)
        yield b"\n" + OOM.encode()

    tracemalloc.start()
    found = scan(endless())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found.seen.first("oom") is not None
    assert peak < 16 << 20


def test_a_long_log_takes_no_more_memory_than_a_short_one() -> None:
    def log(blocks: int) -> Iterator[bytes]:
        for _ in range(blocks):
            yield b'INFO: "POST /v1/completions HTTP/1.1" 200 OK\n' * 2000 + OOM.encode() + b"\n"

    peaks = []
    for blocks in (40, 160):
        tracemalloc.start()
        scan(log(blocks))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.3 * peaks[0] + (1 << 20)


def test_escape_codes_carriage_returns_and_utf_16_are_read_through() -> None:
    colored = "\x1b[31m" + OOM.replace("CUDA", "\x1b[1mCUDA\x1b[0m") + "\x1b[0m"
    assert scan(iter([colored.encode()])).seen.first("oom") is not None
    assert scan(iter([b"12% |###  |\r99% |#### |\r" + OOM.encode()])).seen.first("oom") is not None
    assert scan(iter([b"\xff\xfe" + OOM.encode("utf-16-le")])).seen.first("oom") is not None
    assert b"".join(as_utf8(iter([b"\xfe\xff" + "ä".encode("utf-16-be")]))) == "ä".encode()


def test_a_quoted_line_has_no_control_characters_and_no_more_than_its_limit() -> None:
    line = shown("\x1b[31mred\x07" + "y" * LINE_BYTES)
    assert len(line) <= 240
    assert line.isprintable()


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("HF_TOKEN=hf_abcdefghijklmnop", "hf_abcdefghijklmnop"),
        ("vllm serve m --api-key sk-abcdef1234567890", "sk-abcdef1234567890"),
        ("api_key='supersecret' OOM", "supersecret"),
        ("Authorization: Bearer abcdefghijk", "abcdefghijk"),
        ("https://user:pass1234@host/x", "pass1234"),
        ("OPENAI_API_KEY: abcd1234", "abcd1234"),
        ("{'hf_token': 'abcd-efgh'}", "abcd-efgh"),
        ("password=hunter22", "hunter22"),
        ("AWS_SECRET_ACCESS_KEY=abcdefgh12345", "abcdefgh12345"),
        ("AKIAABCDEFGHIJKLMNOP", "AKIAABCDEFGHIJKLMNOP"),
        ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.abcdef", "eyJzdWIiOiIxIn0"),
        ("ghp_abcdefghijklmnopqrst", "ghp_abcdefghijklmnopqrst"),
    ],
)
def test_secrets_are_taken_out(text: str, secret: str) -> None:
    assert secret not in redact(text)


@pytest.mark.parametrize(
    "text",
    [
        "the maximum number of tokens that can be stored in KV cache (23648)",
        "max_num_batched_tokens=8192, max_tokens: 4096",
        "GPU KV cache size: 150,745 tokens",
        "tokenizer='meta-llama/Llama-3.1-8B'",
        "api_key=None",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redact(text) == text


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("2.00 MiB", 2 * MIB),
        ("0 bytes", 0),
        ("7.9 GB", round(7.9 * GIB)),
        ("755.50 KiB", 773632),
        ("512KiB", 512 * KIB),
    ],
)
def test_sizes_are_read_as_programs_print_them(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "head", [b"PK\x03\x04abc", b"\x1f\x8b\x08\x00", b"BZh91AY", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd"]
)
def test_what_is_packed_is_never_unpacked(head: bytes) -> None:
    with pytest.raises(UsageError, match="packed with"):
        form_of(head + b"\x00" * 100)


@pytest.mark.parametrize("head", [b"\x7fELF\x02\x01", b"GGUF\x03\x00\x00\x00", b"\x00" * 200])
def test_what_is_no_text_is_refused(head: bytes) -> None:
    with pytest.raises(UsageError):
        form_of(head, is_whole=True)


@pytest.mark.parametrize(
    ("name", "text", "form"),
    [
        ("a.yaml", "model: x\nmax-model-len: 8192\n", "serving config"),
        ("run.sh", "vllm serve Qwen/Qwen2.5-7B-Instruct --max-model-len 8192\n", "serving config"),
        ("", "vllm serve x\nINFO 10-10 loading\nCUDA out of memory\n", "text"),
        ("ds.json", '{"zero_optimization": {"stage": 3}}', "training config"),
        ("train.py", "args = TrainingArguments(output_dir='x')\n", "training config"),
        ("server.log", "model: x\nmax-model-len: 8192\n", "text"),
        ("m", "# HELP vllm:a b\n# TYPE vllm:a gauge\nvllm:a 1.0\n", "metrics"),
        ("x.pickle", "\u0080\u0004", "text"),
    ],
)
def test_a_file_is_known_by_what_it_holds(name: str, text: str, form: str) -> None:
    assert form_of(text.encode(), name=name, is_whole=True) == form
