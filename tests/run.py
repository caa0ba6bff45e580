"""One command for a fresh machine: make a virtual environment, install memplan for development, run every check.

    python3 tests/run.py            all checks
    python3 tests/run.py --fast     without the checks that need torch (smaller install)

The environment is `.venv` in the repository and is used again; remove it to start afresh.
"""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = ROOT / ".venv"
BIN = ENVIRONMENT / ("Scripts" if sys.platform == "win32" else "bin")
WORKERS = min(4, os.cpu_count() or 1)  # several tests time themselves against each other: not one for every thread
TORCH = "torch==2.13.0"  # pinned first: any range would pull the newest CUDA build

CHECKS = (
    ("ruff check", [BIN / "ruff", "check", "."]),
    ("ruff format", [BIN / "ruff", "format", "--check", "."]),
    ("mypy", [BIN / "mypy"]),
    ("import-linter", [BIN / "lint-imports"]),
    ("pytest", [BIN / "python", "-m", "pytest", "--numprocesses", str(WORKERS), "--dist", "worksteal"]),
)


def main() -> int:
    """Install what is missing, run every check, and return 0 when all pass."""
    fast = "--fast" in sys.argv[1:]
    if not (BIN / "python").exists():
        venv.create(ENVIRONMENT, with_pip=True)
    pip = [BIN / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    if not fast:
        run("install torch", [*pip, TORCH])
    run("install memplan", [*pip, "--editable", ".[dev]" if fast else ".[dev,quantize]"])
    failed = [name for name, command in CHECKS if run(name, command, must_pass=False)]
    print(f"\nfailed: {', '.join(failed)}" if failed else "\nall checks passed")
    return 1 if failed else 0


def run(name: str, command: list[object], *, must_pass: bool = True) -> int:
    """Run one step in the repository and return its exit code; a step that must pass ends everything when it fails."""
    print(f"== {name}", flush=True)
    code = subprocess.run([str(part) for part in command], cwd=ROOT, check=False).returncode
    if code and must_pass:
        sys.exit(code)
    return code


if __name__ == "__main__":
    sys.exit(main())
