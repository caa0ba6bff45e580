"""What scripts and other tools rely on: registries that import, options that stay, a quiet stdout, light imports."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from memplan.cli.commands import COMMANDS
from memplan.cli.parser import load_command
from memplan.emit.registry import FORMATS, load_emitter
from memplan.engines.registry import ENGINES, load_engine

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "transformers", "numpy", "accelerate", "datasets", "huggingface_hub", "rich", "yaml")
_LOAD = ("--rate", "2", "--prompt-len", "300", "--output-len", "50", "--requests", "40", "--html")


def test_every_engine_of_the_table_is_there() -> None:
    for name in ENGINES:
        assert load_engine(name).name == name


def test_every_format_of_the_table_is_there() -> None:
    for name, found in FORMATS.items():
        assert callable(load_emitter(found)), name


def test_every_command_of_the_table_is_there() -> None:
    for name, (target, text) in COMMANDS.items():
        module, attribute = target.split(":")
        assert callable(getattr(importlib.import_module(module), attribute))
        assert text.endswith(".")
        assert load_command(name).name == name


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_the_options_of_a_command_are_the_recorded_ones(command: str) -> None:
    """A removed or renamed option breaks scripts: change the record only on purpose, and say so in CHANGELOG.md."""
    recorded = json.loads((Path(__file__).parent / "options.json").read_text())
    found = sorted(
        flag for parameter in load_command(command).params for flag in parameter.opts + parameter.secondary_opts
    )
    assert found == recorded[command]


def run_python(code: str, *, home: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HOME": str(home), "XDG_CACHE_HOME": str(home), "XDG_STATE_HOME": str(home)}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)


@pytest.mark.parametrize(
    "arguments",
    [
        ["estimate", "llama-70b", "--gpu", "a100-80g"],
        ["estimate", "deepseek-v3", "--gpu", "h200x8", "--json", "--quant", "none,awq-int4-g128"],
        ["estimate", "qwen2-vl-7b", "--gpu", "l4", "--markdown"],
        ["estimate", "qwen3-8b"],
        ["estimate", "llama-70b", "--train", "full", "--gpu", "h100x8"],
        ["emit-config", "llama-70b", "--gpu", "a100-80g"],
        ["emit-config", "llama-8b", "--gpu", "l40s", "--format", "kubernetes"],
        ["plan", "llama-8b", "--gpu", "l4", "--context", "8192"],
        ["simulate", "llama-8b", "--gpu", "l4", "--context", "8192", *_LOAD],
        ["doctor", str(Path(__file__).resolve().parents[1] / "doctor" / "refused.log"), "--gpu", "h100"],
        ["models"],
        ["gpus"],
    ],
)
def test_planning_imports_nothing_heavy_and_opens_no_socket(arguments: list[str], tmp_path: Path) -> None:
    code = (
        "import sys, json\n"
        "def hook(event, args):\n"
        "    if event.startswith('socket.'): raise RuntimeError('a socket was opened')\n"
        "sys.addaudithook(hook)\n"
        "from memplan.cli.app import main\n"
        f"try: main({arguments!r})\n"
        "except SystemExit as done: code = done.code\n"
        "print(json.dumps([code, sorted(sys.modules)]), file=sys.stderr)\n"
    )
    run_python(code, home=tmp_path)  # parses the YAML that it needs once
    done = run_python(code, home=tmp_path)
    exit_code, modules = json.loads(done.stderr.splitlines()[-1])
    assert exit_code in (0, 1), done.stderr
    assert [name for name in HEAVY if name in modules] == []


def test_a_chatty_library_never_reaches_stdout(tmp_path: Path) -> None:
    code = (
        "import os, subprocess, sys\n"
        "import memplan.report.json_report as report\n"
        "quiet = report.estimate_json\n"
        "def chatty(budgets):\n"
        "    print('loading weights ...')\n"
        "    os.write(1, b'from C\\n')\n"
        "    subprocess.run(['echo', 'from a child'])\n"
        "    return quiet(budgets)\n"
        "report.estimate_json = chatty\n"
        "from memplan.cli.app import main\n"
        "main(['estimate', 'qwen3-8b', '--gpu', 'l4', '--json'])\n"
    )
    done = run_python(code, home=tmp_path)
    assert json.loads(done.stdout)["schema"] == "memplan.estimate/1"
    for text in ("loading weights ...", "from C", "from a child"):
        assert text in done.stderr


def test_a_bug_exits_seventy_and_asks_for_a_report(tmp_path: Path) -> None:
    code = (
        "import memplan.report.json_report as report\n"
        "def broken(budgets): raise ZeroDivisionError('oops')\n"
        "report.estimate_json = broken\n"
        "from memplan.cli.app import main\n"
        "main(['estimate', 'qwen3-8b', '--gpu', 'l4', '--json'])\n"
    )
    done = run_python(code, home=tmp_path)
    assert done.returncode == 70
    assert done.stdout == ""
    assert "memplan has a bug: ZeroDivisionError: oops" in done.stderr


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    line = f"{sys.executable} -m memplan gpus | head -1"
    environment = {**os.environ, "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run(["bash", "-o", "pipefail", "-c", line], capture_output=True, text=True, env=environment)
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) == 1


def test_nothing_is_unpickled_and_no_unit_is_called_gb() -> None:
    snapshots = {"memviz.py", "plain_pickle.py"}  # PyTorch's: written, and read by a reader that imports nothing
    for path in (ROOT / "memplan").rglob("*.py"):
        text = path.read_text()
        assert "import pickle" not in text or path.name in snapshots, path
        assert "pickle.load" not in text, path
        assert "pickle.Unpickler" not in text or path.name == "plain_pickle.py", path
        assert "_gb =" not in text, path
        assert "_gb:" not in text, path
