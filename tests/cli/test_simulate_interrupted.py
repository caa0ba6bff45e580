"""A long simulation on a terminal: how far it is, and that Ctrl-C ends it with 130 and no half an answer."""

from __future__ import annotations

from pathlib import Path

from memplan_interrupted import interrupted

LONG = ("--rate", "20", "--requests", "300k", "--prompt-len", "300..400", "--output-len", "100..200", "--offline")


def test_ctrl_c_ends_a_simulation_that_shows_how_far_it_is(tmp_path: Path) -> None:
    answer = tmp_path / "answer.json"
    command = ("simulate", "llama-8b", "--gpu", "h100", "--context", "4K", *LONG, "--json", "--output", str(answer))
    code, said = interrupted(*command, home=tmp_path, once=b"as asked")
    assert code == 130
    assert b"%" in said
    assert b"interrupted" in said
    assert not answer.exists()
