"""Every `memplan ...` command that README.md and docs/ show is run, offline, and ends in the exit code shown.

A ```console block of a page runs from its first line to its last in a folder of the page's own. The exit code of a
command is what `$ echo $?` says below it; without that line it is 1 where the output shown says DOES NOT FIT, else 0.
Commands in ```sh blocks show no output: they must answer (0 or 1, or the `exit N` that the comment behind them names),
or miss what only their reader has.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
from render_docs import run, steps

ROOT = Path(__file__).resolve().parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
# What a reader has and a test has not: a model file, a hub model, a GPU of this machine.
NOT_AT_HAND = {"model.Q4_K_M.gguf": (3,), "org/model": (3, 5)}
FAILS = ("DOES NOT FIT", "OUT OF MEMORY")
# What needs torch is run where it is installed.
TORCH_COMMANDS = ("memplan profile", "memplan evaluate", "memplan quantize demo")
HAS_TORCH = importlib.util.find_spec("torch") is not None
CONFIG = "model: qwen3-32b\ntensor-parallel-size: 2\nmax-model-len: 32768\n"


def blocks(page: Path, kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def commands(page: Path) -> Iterator[tuple[str, list[str], int | None]]:
    """The commands of a page's console blocks: line, output shown, and the exit code that is documented."""
    for block in blocks(page, "console"):
        listed = list(steps(block))
        for index, (command, shown) in enumerate(listed):
            if command == "echo $?":
                continue
            code: int | None = 1 if any(word in line for line in shown for word in FAILS) else 0
            if index + 1 < len(listed) and listed[index + 1][0] == "echo $?":
                code = int(listed[index + 1][1][0])
            elif not [line for line in shown if line.strip() and not line.startswith("<!--")]:
                code = None
            yield command, shown, code


def can_run(command: str) -> bool:
    """Whether what a command needs is installed here."""
    return HAS_TORCH or not command.startswith(TORCH_COMMANDS)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "console")], ids=lambda path: path.name)
def test_commands_with_output_end_in_the_code_shown(page: Path, tmp_path: Path) -> None:
    for command, shown, code in commands(page):
        if command.startswith("cat "):
            (tmp_path / command.split()[1]).write_text("".join(f"{line}\n" for line in shown))
            continue
        assert command.startswith("memplan "), command
        if not can_run(command):
            continue
        found, output = run(command, tmp_path)
        assert found in ((0, 1) if code is None else (code,)), f"{command}: exit code {found}\n" + "\n".join(output)
        assert not any("Traceback" in line for line in output), command


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "sh")], ids=lambda path: path.name)
def test_commands_without_output_are_answered(page: Path, tmp_path: Path) -> None:
    (tmp_path / "serve.yaml").write_text(CONFIG)
    lines = [line for block in blocks(page, "sh") for line in block.splitlines() if line.startswith("memplan ")]
    for line in lines:
        for command in re.split(r"\s{2,}(?=memplan )", line):
            if not can_run(command):
                continue
            allowed = next((codes for name, codes in NOT_AT_HAND.items() if name in command), (0, 1))
            if said := re.search(r"#.*\bexit (\d+)", command):
                allowed = (int(said[1]),)
            code, output = run(command, tmp_path)
            assert code in allowed, f"{command}: exit code {code}\n" + "\n".join(output)


@pytest.mark.parametrize("engine", ["sglang", "tensorrt_llm", "llama_cpp", "transformers", "vllm"])
def test_the_options_of_an_engines_page_are_read_by_the_engine(engine: str) -> None:
    name = {"tensorrt_llm": "tensorrt-llm", "llama_cpp": "llama.cpp"}.get(engine, engine)
    page = (ROOT / "docs" / "engines" / f"{name}.md").read_text(encoding="utf-8")
    modelled = page.partition("## Not modelled")[0]
    code = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "memplan" / "engines" / engine).glob("*.py"))
    options = set(re.findall(r"`(?:--set )?([a-z]+_[a-z_0-9]+)(?:=[\w.]*)?`", modelled))
    assert options
    assert sorted(option for option in options if option not in code) == []


def test_the_pages_show_many_commands() -> None:
    assert sum(1 for page in PAGES if page.name == "estimate.md" for _ in commands(page)) >= 20
