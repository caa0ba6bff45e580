"""A line that is read without the parser means what the parser would make of it."""

from __future__ import annotations

import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memplan.cli.commands import COMMANDS, import_command
from memplan.cli.options import Command, Option, flags_of
from memplan.cli.parser import parser_of
from memplan.cli.plain_line import read_plain_line
from memplan.records import replace

NAMES = sorted(name for name in COMMANDS if isinstance(import_command(name), Command))
SEEN: list[Any] = []
PARSERS = {name: parser_of(name, replace(import_command(name), work=SEEN.append)) for name in NAMES}
USUAL = {int: "8", float: "0.5", Path: "x.yaml"}
ODD = st.sampled_from(("8", "0.5", "8K", "h100", "a=b", "-1", "--tp", "--", "-", "", "1_0", "nan", "é", "x.yaml"))


@st.composite
def words_of(draw: st.DrawFn, options: tuple[Option, ...]) -> list[str]:
    """A part of a command line, plain or not."""
    option = draw(st.sampled_from(options))
    spelt, opposite = flags_of(option)
    flag = draw(st.sampled_from([*spelt, *([opposite] if opposite else [])]))
    usual = [flag] if option.kind is bool else [flag, USUAL.get(option.kind, "h100")]
    value = draw(ODD)
    odd = ([flag], [flag, value], [f"{flag}={value}"], [value], [flag[:-1]], [f"{flag}{value}"], ["-h"])
    return draw(st.one_of(st.just(usual), st.just(usual), st.sampled_from(odd)))


def parsed(name: str, words: list[str]) -> dict[str, Any] | None:
    """What the parser makes of a line, in its order; None where it refuses it."""
    SEEN.clear()
    with suppress(Exception):
        PARSERS[name].main(list(words), standalone_mode=False)
    return SEEN[0] if SEEN else None


@given(st.data())
def test_a_plain_line_means_what_the_parser_makes_of_it(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(NAMES))
    command = import_command(name)
    words = [each for part in data.draw(st.lists(words_of(command.options), max_size=5)) for each in part]
    found = read_plain_line(command, words)
    if found is not None:
        assert repr(found) == repr(parsed(name, words))  # as texts: the order counts, and nan is not itself


@pytest.mark.parametrize(
    "line",
    [
        "llama-70b --gpu a100-80g --tp 2 --json",
        "llama-70b --gpu=a100-80g --no-chunked-prefill --gpu-memory-utilization 0.8",
        "model.gguf -ngl 99 --context 8192 -q --set a=1 --set b=2 --output out.json",
        "",
    ],
)
def test_usual_lines_of_an_estimate_need_no_parser(line: str) -> None:
    found = read_plain_line(import_command("estimate"), line.split())
    assert found is not None
    assert found == parsed("estimate", line.split())


@pytest.mark.parametrize("line", ["--help", "m --tp two", "m n", "m --tp 1 --tp 2", "m --gpuu l4", "m --tp", "-- m"])
def test_what_is_not_plain_is_left_to_the_parser(line: str) -> None:
    assert read_plain_line(import_command("estimate"), line.split()) is None


def test_an_estimate_does_not_import_the_parser() -> None:
    code = (
        "import sys\n"
        "from memplan.cli.app import main\n"
        "try: main(['estimate', 'qwen3-8b', '--gpu', 'l4', '--quiet'])\n"
        "except SystemExit: print('typer' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"
