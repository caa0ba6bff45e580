"""Windows: every token scored once, nothing lost, nothing too short passed off as a measurement."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from hypothesis import given, settings  # noqa: E402 - after the skip
from hypothesis import strategies as st  # noqa: E402

from memplan.errors import SourceNotFound, UsageError  # noqa: E402
from memplan.introspect.resolve import weights_folder  # noqa: E402
from memplan.quantize.documents import Document  # noqa: E402
from memplan.quantize.text_sets import TextSet, read_set  # noqa: E402
from memplan.quantize.windows import (  # noqa: E402
    calibration_windows,
    check_enough,
    load_tokenizer,
    scoring_windows,
    tokens_of,
)


class OneTokenPerByte:
    """A tokenizer of bytes, for texts whose tokens can be counted by eye."""

    bos_token_id = None
    eos_token_id = 0
    chat_template = None

    def __call__(self, text: str, **_: object) -> dict[str, list[int]]:
        return {"input_ids": list(text.encode())}


def made(*documents: str, domain: str = "general") -> TextSet:
    return TextSet(
        name="made", part="validate", documents=tuple(Document(text=text, domain=domain) for text in documents)
    )


@settings(max_examples=60)
@given(length=st.integers(1001, 4000), window=st.integers(2, 700), step=st.integers(1, 700))
def test_with_a_stride_every_token_but_the_first_is_scored_exactly_once(length: int, window: int, step: int) -> None:
    step = min(step, window - 1)
    windows = scoring_windows(made("x" * length), OneTokenPerByte(), window_tokens=window, stride_tokens=step)
    scored: list[int] = []
    for number, (first, end) in enumerate(zip(windows.first_N, windows.end_N, strict=True)):
        scored += range(number * step + first, number * step + end)
        assert number == 0 or first >= min(window - step, end - 1)
    assert scored == list(range(1, length + 1))  # the end token makes the stream one longer


@settings(max_examples=30)
@given(length=st.integers(1500, 4000), window=st.integers(4, 700))
def test_without_a_stride_every_token_but_the_first_of_each_window_is_scored(length: int, window: int) -> None:
    windows = scoring_windows(made("x" * length), OneTokenPerByte(), window_tokens=window)
    assert all(first == 1 for first in windows.first_N)
    total = length + 1
    assert windows.num_scored == total - -(-total // window)


def test_windows_keep_domains_apart_and_pad_only_behind_the_end() -> None:
    both = TextSet(
        name="made",
        part="validate",
        documents=(Document(text="a" * 1500, domain="a"), Document(text="b" * 1100, domain="b")),
    )
    windows = scoring_windows(both, OneTokenPerByte(), window_tokens=512)
    assert windows.domain_N == ("a", "a", "a", "b", "b", "b")
    assert windows.text_bytes == {"a": 1500, "b": 1100}
    for row, end, domain in zip(windows.token_NT, windows.end_N, windows.domain_N, strict=True):
        assert set(row[:end].tolist()) <= {0, ord(domain)}
        assert not row[end:].any()


def test_too_little_text_a_stride_with_gaps_and_a_window_of_one_token_are_refused() -> None:
    with pytest.raises(UsageError, match="500 tokens of general text to judge on, under 1,000"):
        scoring_windows(made("x" * 500), OneTokenPerByte(), window_tokens=2048)
    with pytest.raises(UsageError, match="leaves gaps"):
        scoring_windows(made("x" * 5000), OneTokenPerByte(), window_tokens=100, stride_tokens=101)
    with pytest.raises(UsageError, match="scores nothing"):
        scoring_windows(made("x" * 5000), OneTokenPerByte(), window_tokens=1)


def test_calibration_windows_are_full_and_end_tokens_stand_between_documents() -> None:
    token_NT = calibration_windows(made("a" * 30, "b" * 30), OneTokenPerByte(), window_tokens=20)
    assert token_NT.shape == (3, 20)
    assert token_NT.flatten().tolist() == [0, *b"a" * 30, 0, *b"b" * 28]
    assert calibration_windows(made("a" * 300), OneTokenPerByte(), window_tokens=20, num_windows=4).shape == (4, 20)
    with pytest.raises(UsageError, match="11 tokens to calibrate on, less than one window of 20"):
        calibration_windows(made("a" * 10), OneTokenPerByte(), window_tokens=20)


def test_calibration_text_must_have_a_token_for_every_input_of_the_widest_layer() -> None:
    token_NT = torch.zeros(10, 100, dtype=torch.int64)
    with pytest.raises(UsageError, match="1,000 tokens are too few to calibrate a layer of 1,001 inputs"):
        check_enough(token_NT, widest_inputs=1001)
    assert "thin" in str(check_enough(token_NT, widest_inputs=200))
    assert check_enough(token_NT, widest_inputs=125) is None


def test_the_demo_tokenizer_gives_a_text_back_and_writes_conversations_by_its_template() -> None:
    folder = weights_folder("demo")
    assert folder is not None
    tokenizer = load_tokenizer(folder)
    for document in read_set("builtin", "validate").documents:
        assert tokenizer.decode(tokens_of(document, tokenizer)) == document.text
    chat = Document(messages=(("user", "How deep is the well?"), ("assistant", "Nobody knows.")))
    assert tokenizer.decode(tokens_of(chat, tokenizer)) == "User: How deep is the well?\n\nAssistant: Nobody knows.\n\n"


def test_a_folder_without_a_tokenizer_is_said_to_have_none(tmp_path: object) -> None:
    from pathlib import Path

    with pytest.raises(SourceNotFound, match="no tokenizer in"):
        load_tokenizer(Path(str(tmp_path)))
