"""How long `memplan estimate --train` takes, the whole process with its start: CPU seconds (user and system), by model.

    python benchmarks/speed/training_time.py [--rounds N] [--json] [MODEL ...]

Each model is asked for full training, LoRA and QLoRA, on one card and sharded over eight, with the whole answer:
changes and limits. MODEL is whatever `estimate` takes; without one, models of each kind of layers are asked for. The
shortest of the rounds counts, because other work on the machine only ever adds to it, and the slowest of a model's
questions is held against 0.3 s. `python -c pass` is timed in the same rounds. What is refused is left out.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

from start_up import once

LIMIT_S = 0.3
MODELS = (
    "llama-3.1-8b",
    "llama-3.3-70b",
    "llama-3.1-405b",
    "mixtral-8x7b",
    "qwen3-30b-a3b",
    "deepseek-v3",
    "gpt-oss-20b",
    "gemma-3-1b",
    "gemma-3-27b",
    "qwen3-next",
    "codestral-mamba",
    "nemotron-h-56b",
)
PLACES = ("--gpu a100-80g", "--gpu h100x8 --sharding fsdp --mixed-precision bf16")
QUESTIONS = tuple(f"--train {method} {place}" for method in ("full", "lora", "qlora") for place in PLACES)


def shortest(command: list[str], rounds: int) -> float:
    """CPU seconds of the quickest round; the first one, which may write bytecode, is not counted."""
    once(command)
    return min(once(command)[0] for _ in range(rounds))


def answers(command: list[str]) -> bool:
    """Whether the question is answered by formulas: not refused, and not by a profile."""
    done = subprocess.run([*command, "--fail-on", "never", "--json"], capture_output=True, text=True, check=False)
    return done.returncode == 0 and json.loads(done.stdout)["settings"].get("answered_by") != "profile"


def main() -> int:
    """Time every model and print a table or JSON; exit 1 when one takes longer than the limit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("models", nargs="*", metavar="MODEL")
    options = parser.parse_args()
    memplan = shutil.which("memplan", path=str(Path(sys.executable).parent)) or "memplan"
    rows = []
    for model in options.models or MODELS:
        asked = {each: [memplan, "estimate", model, *each.split()] for each in QUESTIONS}
        times = {each: shortest(command, options.rounds) for each, command in asked.items() if answers(command)}
        if not times:
            continue
        bare = shortest([sys.executable, "-c", "pass"], options.rounds)
        slowest = max(times, key=lambda each: times[each])
        rows.append({"model": model, "questions": times, "slowest": slowest, "cpu_s": times[slowest], "bare_s": bare})
        if not options.json:
            row = f"{Path(model).name[-45:]:45} {times[slowest]:.3f} s, {times[slowest] / bare:4.1f} x bare"
            print(f"{row}  median {sorted(times.values())[len(times) // 2]:.3f} s  slowest {slowest}", flush=True)
    over = [row["model"] for row in rows if row["cpu_s"] > LIMIT_S]
    if options.json:
        print(json.dumps({"limit_s": LIMIT_S, "rows": rows, "over": over}, indent=1))
    else:
        print(f"{len(rows)} models, {len(over)} over {LIMIT_S} s: {', '.join(map(str, over)) or 'none'}")
    return int(bool(over))


if __name__ == "__main__":
    sys.exit(main())
