"""Measured step times: CSV and JSON lines, and what is said of a line that does not read."""

from __future__ import annotations

from pathlib import Path

import pytest

from memplan.cli.step_times import read_step_times
from memplan.errors import UsageError

CSV = "phase,batch,context,tokens,seconds\ndecode,1,1000,,0.02\ndecode,64,1000,,0.03\nprefill,,,4096,0.2\n"
LINES = (
    '{"phase": "decode", "batch": 1, "context": 1000, "seconds": 0.02}\n'
    '{"phase": "decode", "batch": 64, "context": 1000, "seconds": 0.03}\n'
    '{"phase": "prefill", "tokens": 4096, "seconds": 0.2}\n'
)


@pytest.mark.parametrize("text", [CSV, LINES])
def test_both_layouts_say_the_same(tmp_path: Path, text: str) -> None:
    path = tmp_path / "steps"
    path.write_text(text)
    found = read_step_times(path)
    assert found.decode_points == ((1.0, 1000.0, 0.02), (64.0, 1000.0, 0.03))
    assert found.prefill_points == ((4096.0, 0.2),)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (CSV + "idle,,,1,0.1\n", "line 5: the phase is decode or prefill"),
        (CSV + "decode,many,5,,0.1\n", "line 5: batch is no number"),
        (CSV + "decode,1,5,,-1\n", "line 5: seconds is no number"),
        (LINES + "{broken\n", "line 4: not a step"),
        ("phase,batch\n", "needs a decode step and a prefill step"),
        ("", "needs a decode step and a prefill step"),
    ],
)
def test_a_line_that_does_not_read_is_named(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "steps"
    path.write_text(text)
    with pytest.raises(UsageError, match=said.replace("(", r"\(")):
        read_step_times(path)
