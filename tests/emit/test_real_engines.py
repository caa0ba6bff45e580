"""What is written, before the real engines: a few setups, where an engine is at hand.

MEMPLAN_VLLM_PYTHON, MEMPLAN_SGLANG_PYTHON and MEMPLAN_TRANSFORMERS_PYTHON name interpreters that have them (a CPU build
of vLLM is started as well), MEMPLAN_LLAMA_SERVER a program, MEMPLAN_OLLAMA a command that reads a Modelfile. All setups
are checked by benchmarks/engines/check_all.py.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "engines" / "check_all.py"
OPTIONS = {
    "MEMPLAN_VLLM_PYTHON": ("--parts", "engines,serving", "--vllm"),
    "MEMPLAN_SGLANG_PYTHON": ("--parts", "engines", "--sglang"),
    "MEMPLAN_TRANSFORMERS_PYTHON": ("--parts", "engines", "--transformers"),
    "MEMPLAN_LLAMA_SERVER": ("--parts", "engines", "--llama-server"),
    "MEMPLAN_OLLAMA": ("--parts", "engines", "--ollama"),
}
NOWHERE = str(SCRIPT.with_name("no-such-program"))


NOTHING = (
    "--parts",
    "engines",
    "--vllm",
    sys.executable,
    "--sglang",
    sys.executable,
    "--llama-server",
    NOWHERE,
    "--ollama",
    NOWHERE,
)


def check_all(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT), "--quick", *arguments], capture_output=True, text=True)


@pytest.mark.parametrize("variable", sorted(OPTIONS))
def test_a_real_engine_takes_what_is_written(variable: str) -> None:
    where = os.environ.get(variable)
    if not where:
        pytest.skip(f"{variable} is not set: no such engine at hand")
    done = check_all(*OPTIONS[variable], where)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^\| .* \| [1-9]\d* \| 0 \| \d+ \| (?!keys,)", done.stdout, re.MULTILINE)


def test_what_has_no_reader_here_is_checked_by_the_tables_of_its_arguments() -> None:
    done = check_all(*NOTHING)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("skipped: ") == 6
    assert len(re.findall(r"^\| `(?:tensorrt-llm|tgi)` \| .* \| 1\d \| 0 \|", done.stdout, re.MULTILINE)) == 3


@pytest.mark.parametrize(
    ("key", "value", "complaint"),
    [
        ("max_num_seqs", "8", "max_num_seqs: not known"),
        ("kv_cache_config", "{free_gpu_memory_fraction: 90}", "out of range"),
        ("max_batch_size", "true", "is not a whole"),
        ("attn_backend", "flash", "is none of VANILLA"),
        ("kv_cache_config", "{tokens_per_block: 32}", "not before 1.1.0"),
    ],
)
def test_the_tables_find_what_their_reader_would(key: str, value: str, complaint: str, tmp_path: Path) -> None:
    (tmp_path / "trtllm.yaml").write_text(f"backend: pytorch\n{key}: {value}\n")
    code = "import sys; from key_tables import wrong_keys; print(wrong_keys('tensorrt-llm', '1.0.0', sys.argv[1]))"
    command = [sys.executable, "-c", code, str(tmp_path / "trtllm.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=SCRIPT.parent, check=True)
    assert complaint in done.stdout
