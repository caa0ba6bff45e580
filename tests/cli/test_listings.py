"""`memplan gpus` and `memplan models` as a person runs them: exit codes, streams, tables and JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

SCHEMAS = Path(__file__).resolve().parents[2] / "docs" / "schemas"


def memplan(*arguments: str, path: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PATH": path} if path is not None else None
    return subprocess.run(
        [sys.executable, "-m", "memplan", *arguments], capture_output=True, text=True, env=environment, check=False
    )


def check_schema(text: str, name: str) -> dict[str, list[dict[str, object]]]:
    content = json.loads(text)
    jsonschema.validate(content, json.loads((SCHEMAS / f"{name}.json").read_text()))
    return content


def test_gpus_are_listed_whole_off_a_terminal() -> None:
    done = memplan("gpus")
    assert done.returncode == 0
    assert done.stderr == ""
    assert "…" not in done.stdout
    assert "\x1b" not in done.stdout
    assert len(done.stdout.splitlines()) > 150


def test_the_json_of_gpus_follows_its_schema() -> None:
    content = check_schema(memplan("gpus", "--json").stdout, "memplan.gpus")
    assert {"a100-80g", "mi300x", "m4-max", "tpu-v5e"} <= {gpu["name"] for gpu in content["gpus"]}


def test_one_gpu_is_shown_with_its_source_and_a_bare_name_says_what_it_was_taken_as() -> None:
    done = memplan("gpus", "--show", "a100")
    assert done.returncode == 0
    assert "NVIDIA A100-SXM4-80GB" in done.stdout
    assert "source" in done.stdout
    assert "a100: taken as a100-80g" in done.stderr


def test_a_slice_is_shown_as_json() -> None:
    content = check_schema(memplan("gpus", "--show", "a100-80g:3g.40gb", "--json").stdout, "memplan.gpus")
    assert content["gpus"][0]["name"] == "a100-80g:3g.40gb"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("gpus", "--show", "a100-80"), 2, "did you mean a100-80g"),
        (("gpus", "no-such-gpu"), 2, "no GPU matches: `no-such-gpu`"),
        (("gpus", "hopper", "--local"), 2, "exclude each other"),
        (("models", "--show", "lama-3.1-8b"), 3, "llama-3.1-8b"),
        (("models", "no-such-model"), 2, "no model matches"),
        (("models", "qwen", "--show", "qwen3-8b"), 2, "exclude each other"),
    ],
)
def test_what_cannot_be_answered_ends_in_one_line_and_a_hint(
    arguments: tuple[str, ...], code: int, message: str
) -> None:
    done = memplan(*arguments)
    assert done.returncode == code
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_local_gpus_come_from_the_driver(tmp_path: Path) -> None:
    script = tmp_path / "nvidia-smi"
    script.write_text(f"#!{sys.executable}\nprint('NVIDIA H100 80GB HBM3, 81559, 80991, 478')\n")
    script.chmod(0o755)
    content = check_schema(memplan("gpus", "--local", "--json", path=str(tmp_path)).stdout, "memplan.local-gpus")
    assert content["gpus"][0]["memory_bytes"] == 81081 << 20
    assert "79.18 GiB" in memplan("gpus", "--local", path=str(tmp_path)).stdout


def test_without_a_driver_the_listing_exits_five(tmp_path: Path) -> None:
    done = memplan("gpus", "--local", path=str(tmp_path))
    assert done.returncode == 5
    assert "no GPU found" in done.stderr
