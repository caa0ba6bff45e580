"""Traces of requests: every layout is told by itself, an error names its line, hostile files end in one sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memplan.cli.trace_files import Trace, read_trace
from memplan.errors import UsageError

AZURE = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:50.9951690,396,109\n"
)
AZURE_2024 = "TIMESTAMP,ContextTokens,GeneratedTokens\n2024-05-10 00:00:00.009930+00:00,2162,5\n"
BURST = (
    "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    "5,ChatGPT,472,18,490,Conversation log\n45,ChatGPT,1087,0,1087,Conversation log\n118,GPT-4,417,276,693,API log\n"
)
MOONCAKE = (
    '{"timestamp": 27482, "input_length": 700, "output_length": 52, "hash_ids": [46, 47]}\n'
    '{"timestamp": 30535, "input_length": 600, "output_length": 26, "hash_ids": [46, 99]}\n'
)
USAGE = (
    '{"created": 1700000000, "usage": {"prompt_tokens": 12, "completion_tokens": 7}}\n'
    '{"created": 1700000003, "response": {"status_code": 200, "body": {"usage": {"prompt_tokens": 5,'
    ' "completion_tokens": 9}}}}\n'
)
DIALOGUE = {
    "id": "a",
    "conversations": [
        {"from": "human", "value": "x" * 40},
        {"from": "gpt", "value": "y" * 80},
        {"from": "human", "value": "z" * 20},
        {"from": "gpt", "value": "w" * 4},
    ],
}
COUNTED = {"messages": [{"role": "user", "content": "", "tokens": 31}, {"role": "assistant", "tokens": 8}]}
OLD_LOG = (
    "INFO 11-16 18:15:46 async_llm_engine.py:371] Received request cmpl-1: prompt: 'a, params: b max_tokens=9', "
    "sampling params: SamplingParams(n=1, max_tokens=16), prompt token ids: [1, 2, 3].\n"
    "INFO 11-16 18:15:47 llm_engine.py:624] Avg prompt throughput: 0.0 tokens/s\n"
    "INFO 11-16 18:15:49 logger.py:39] Received request cmpl-2: prompt: 'abcdefgh', params: SamplingParams(n=1, "
    "max_tokens=64), prompt_token_ids: None, lora_request: None.\n"
    "INFO 11-16 18:15:52 logger.py:60] Generated response cmpl-2: output: 'ok', output_token_ids: [7, 8, 9, 10], "
    "finish_reason: stop\n"
)
NEW_LOG = (
    "(APIServer pid=7) DEBUG 12-31 23:59:59 [request_logger.py:57] Request chatcmpl-1 details: prompt: 'hi', "
    "prompt_token_ids: [1, 2, 3, 4, 5], prompt_embeds shape: None.\n"
    "(APIServer pid=7) INFO 12-31 23:59:59 [request_logger.py:65] Received request chatcmpl-1: params: "
    "SamplingParams(max_tokens=100), lora_request: None.\n"
    "(APIServer pid=7) DEBUG 01-01 00:00:01 [request_logger.py:57] Request chatcmpl-2 details: prompt: None, "
    "prompt_token_ids: [1, 2], prompt_embeds shape: None.\n"
    "(APIServer pid=7) INFO 01-01 00:00:01 [request_logger.py:65] Received request chatcmpl-2: params: "
    "SamplingParams(max_tokens=30), lora_request: None.\n"
    "(APIServer pid=7) INFO 01-01 00:00:03 [request_logger.py:108] Generated response chatcmpl-1 (streaming "
    "complete): output: 'twelve bytes', finish_reason: stop\n"
)


def read(tmp_path: Path, name: str, text: str) -> Trace:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return read_trace(path)


def lengths(trace: Trace) -> list[tuple[int | None, int | None]]:
    return [(request.prompt_tokens, request.output_tokens) for request in trace.requests]


@pytest.mark.parametrize(
    ("name", "text", "layout", "expected", "gap_s"),
    [
        ("azure.csv", AZURE, "Azure's columns", [(374, 44), (396, 109)], 4.314579),
        ("azure.txt", AZURE, "Azure's columns", [(374, 44), (396, 109)], 4.314579),
        ("azure24.csv", AZURE_2024, "Azure's columns", [(2162, 5)], None),
        ("burst.csv", BURST, "BurstGPT's columns", [(472, 18), (417, 276)], 113.0),
        ("mooncake.jsonl", MOONCAKE, "Mooncake's columns", [(700, 52), (600, 26)], 3.053),
        ("access.jsonl", USAGE, "an endpoint's log with usage", [(12, 7), (5, 9)], 3.0),
        ("vllm.log", OLD_LOG, "vLLM's log", [(3, 16), (2, 4)], 3.0),
        ("vllm-new.log", NEW_LOG, "vLLM's log", [(5, 3), (2, 30)], 2.0),
    ],
)
def test_a_layout_is_told_by_what_the_file_holds(
    tmp_path: Path, name: str, text: str, layout: str, expected: list[tuple[int, int]], gap_s: float | None
) -> None:
    trace = read(tmp_path, name, text)
    assert trace.layout == layout
    assert lengths(trace) == expected
    assert trace.has_times
    if gap_s is not None:
        first, second = (request.arrival_s or 0.0 for request in trace.requests)
        assert second - first == pytest.approx(gap_s, abs=1e-5)


def test_what_the_blocks_of_mooncake_name_is_kept(tmp_path: Path) -> None:
    assert [request.prefix_ids for request in read(tmp_path, "m.jsonl", MOONCAKE).requests] == [(46, 47), (46, 99)]


@pytest.mark.parametrize("as_array", [False, True])
def test_every_answer_of_a_conversation_is_a_request_with_all_before_it_as_its_prompt(
    tmp_path: Path, as_array: bool
) -> None:
    text = json.dumps([DIALOGUE, COUNTED], indent=1) if as_array else f"{json.dumps(DIALOGUE)}\n{json.dumps(COUNTED)}\n"
    trace = read(tmp_path, "sharegpt.json", text)
    assert lengths(trace) == [(10, 20), (35, 1), (31, 8)]
    assert [request.session for request in trace.requests] == [0, 0, 1]
    assert any("4 lengths are estimated from text" in note for note in trace.notes)
    assert not trace.has_times


def test_an_array_that_is_larger_than_a_read_is_read_object_by_object(tmp_path: Path) -> None:
    """On one line, which is longer than a line of a table may be."""
    turns = [{**turn, "value": turn["value"] * 40} for turn in DIALOGUE["conversations"]]  # type: ignore[dict-item]
    many = [{"id": str(number), "conversations": turns} for number in range(3100)]
    text = json.dumps(many)
    assert len(text) > 16 << 20
    trace = read(tmp_path, "sharegpt.json", text)
    assert len(trace.requests) == 6200
    assert {request.session for request in trace.requests} == set(range(3100))


def test_what_was_left_out_and_assumed_is_said(tmp_path: Path) -> None:
    assert any("1 requests without a prompt or an answer" in note for note in read(tmp_path, "b.csv", BURST).notes)
    assert any("1 answers are taken to be as long" in note for note in read(tmp_path, "v.log", OLD_LOG).notes)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.csv", AZURE + "2023-11-16 18:15:51,many,3\n", "line 4: contexttokens is no number of tokens: `many`"),
        ("a.csv", AZURE + "yesterday,10,3\n", "line 4: timestamp is no time: `yesterday`"),
        ("a.csv", AZURE + "2023-11-16 18:15:51,-5,3\n", "line 4: contexttokens is no number"),
        ("a.csv", AZURE + "2023-11-16 18:15:51,1e12,3\n", "line 4: contexttokens is no number"),
        ("b.csv", "name,age\nx,3\n", "line 2: no column of prompt or output lengths among `name`, `age`"),
        ("c.jsonl", MOONCAKE + "{not json}\n", "line 3: not JSON: `{not json}`"),
        ("c.jsonl", MOONCAKE + "[1]\n", "line 3: not a request"),
        ("c.jsonl", '{"a": ' * 100_000, "line 1: not JSON"),
        ("c.json", '[{"prompt_tokens": 5, "output_tokens": 5}, {"x":', "line 1: not JSON"),
        ("d.jsonl", "\n\n", "is empty"),
        ("e.log", "INFO 11-16 18:15:46 api.py:1] started\n", "holds no request; vLLM logs them"),
        ("f.bin", "\0\0\0\0", "binary data"),
        ("g.csv", BURST.splitlines()[0] + "\n45,GPT-4,10,0,10,API log\n", "holds no request: all 1 have no tokens"),
    ],
)
def test_an_error_names_the_line_and_what_is_wrong(tmp_path: Path, name: str, text: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        read(tmp_path, name, text)
    assert said in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.hint


def test_a_line_without_an_end_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "huge.jsonl"
    path.write_text('{"prompt": "' + "x" * (17 << 20))
    with pytest.raises(UsageError, match="longer than 16 MiB"):
        read_trace(path)


def test_only_as_many_requests_are_read_as_are_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"
    path.write_text('{"prompt_tokens": 5, "output_tokens": 5}\n' * 50 + "broken\n")
    assert len(read_trace(path, most=10).requests) == 10


@settings(max_examples=60)
@given(content=st.binary(max_size=400), name=st.sampled_from(["t.csv", "t.jsonl", "t.log", "t.json"]))
def test_whatever_a_file_holds_it_ends_in_requests_or_one_clear_error(
    tmp_path: Path, content: bytes, name: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    try:
        found = len(read_trace(path).requests)
        said = str(path)
    except UsageError as error:
        found, said = 0, error.message
    assert found or str(path) in said
