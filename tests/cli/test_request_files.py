"""Files of requests: the lengths that public traces and load tests write, and what is said of a file that has none."""

from __future__ import annotations

from pathlib import Path

import pytest
from memplan_in_process import Memplan

from memplan.cli.request_files import read_columns, read_lengths
from memplan.domain.lengths import FixedLength, ObservedLengths
from memplan.errors import UsageError

AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n2024-05-10 00:00:00.1,2162,5\n2024-05-10 00:00:00.2,2399,6\n"
MOONCAKE = '{"timestamp": 0, "input_length": 6755, "output_length": 500, "hash_ids": [0, 1]}\n' * 2
BURST = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n5,ChatGPT,472,18,490,Conversation log\n"


def lengths(path: Path, side: str, column: str = "") -> tuple[int, ...]:
    found = read_lengths(f"{path}{column}", side, longest=100_000, flag=f"--{side}-tokens")  # type: ignore[arg-type]
    assert isinstance(found, ObservedLengths)
    return found.tokens


@pytest.mark.parametrize(
    ("name", "text", "prompts", "outputs"),
    [
        ("azure.csv", AZURE, (2162, 2399), (5, 6)),
        ("mooncake.jsonl", MOONCAKE, (6755, 6755), (500, 500)),
        ("burst.csv", BURST, (472,), (18,)),
        ("plain.txt", "12\n\n7\n", (7, 12), (7, 12)),
        ("tabs.tsv", "prompt_len\toutput_len\n3\t4\n", (3,), (4,)),
        ("bare.csv", "5\n6\n", (5, 6), (5, 6)),
    ],
)
def test_known_columns_are_found(
    tmp_path: Path, name: str, text: str, prompts: tuple[int, ...], outputs: tuple[int, ...]
) -> None:
    path = tmp_path / name
    path.write_text(text)
    assert lengths(path, "prompt") == prompts
    assert lengths(path, "output") == outputs


def test_another_column_is_named_after_a_colon(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text('{"Question": 7, "answer": 9}\n')
    assert lengths(path, "prompt", ":question") == (7,)
    assert read_columns(path) == {"question": [7.0], "answer": [9.0]}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("empty.jsonl", "\n", "is empty"),
        ("words.txt", "hello\n", "line 1: not a request"),
        ("other.jsonl", '{"question": 1}\n', "no column of prompt lengths"),
        ("zero.txt", "0\n", "no length above zero"),
        ("large.txt", "1e99\n", "a length out of range"),
    ],
)
def test_a_file_without_lengths_is_one_clear_line(tmp_path: Path, name: str, text: str, message: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(UsageError, match=message) as found:
        lengths(path, "prompt")
    assert found.value.hint


def test_a_missing_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read"):
        lengths(tmp_path / "none.csv", "prompt")


def test_a_number_is_no_file() -> None:
    assert read_lengths("1200", "prompt", longest=9, flag="--prompt-tokens") == FixedLength(tokens=1200)


def test_a_plan_for_a_trace_has_its_lengths(memplan_here: Memplan) -> None:
    (memplan_here.home / "trace.csv").write_text("ContextTokens,GeneratedTokens\n" + "900,50\n100,150\n" * 50)
    asked = ("--prompt-tokens", "trace.csv", "--output-tokens", "trace.csv", "--request-rate", "2", "--engine", "vllm")
    done = memplan_here("plan", "llama-8b", "--gpu", "l40sx1", *asked)
    assert done.returncode == 0
    assert "of up to 1,050 tokens, 500 (p95 900) in and 100 (p95 150) out" in done.stdout
