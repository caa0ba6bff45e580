"""How long a search for a plan takes: CPU seconds of one core, after the model is read and the tables are parsed.

    python benchmarks/speed/plan_time.py [--rounds N] [--json]

One GPU type under every engine has to stay under 0.5 s, the whole market under 3 s. The shortest of the rounds counts,
because other work on the machine only ever adds to it.
"""

from __future__ import annotations

import argparse
import json
import time

from memplan.cli.plan_request import plan_request
from memplan.domain.model import ModelSpec
from memplan.pipeline import load_model
from memplan.plan.search import search

ONE_GPU_S, MARKET_S = 0.5, 3.0
CASES: dict[str, tuple[str, dict[str, object], float]] = {
    "llama-70b on h100": ("llama-70b", {"gpu": "h100", "context": "16k", "concurrency": "64"}, ONE_GPU_S),
    "llama-8b on l4": ("llama-8b", {"gpu": "l4", "context": "8K", "concurrency": "8"}, ONE_GPU_S),
    "deepseek-v3 on h200": ("deepseek-v3", {"gpu": "h200", "context": "32K", "concurrency": "16"}, ONE_GPU_S),
    "qwen3-32b on rtx-4090, latency": (
        "qwen3-32b",
        {"gpu": "rtx-4090", "context": "8K", "goal": "latency"},
        ONE_GPU_S,
    ),
    "llama-70b on h100, drafts and pools": (
        "llama-70b",
        {"gpu": "h100", "context": "8K", "goal": "latency", "concurrency": "8", "max_ttft": "1s", "max_tpot": "50ms"},
        ONE_GPU_S,
    ),
    "llama-8b on l40s, lengths spread": (
        "llama-8b",
        {
            "gpu": "l40s",
            "context": "16K",
            "prompt_tokens": "mean:1200,p95:4000",
            "output_tokens": "mean:250,p95:800",
            "request_rate": 10.0,
        },
        ONE_GPU_S,
    ),
    "llama-70b, market": ("llama-70b", {"context": "16k", "concurrency": "64"}, MARKET_S),
    "llama-8b, market, throughput": ("llama-8b", {"context": "8K", "goal": "throughput", "budget": "10/h"}, MARKET_S),
    "llama-70b, market, latency": ("llama-70b", {"context": "8K", "goal": "latency", "budget": "20/h"}, MARKET_S),
    "mixtral-8x7b, market": ("mixtral-8x7b", {"context": "8K", "concurrency": "16"}, MARKET_S),
}


def timed(spec: ModelSpec, options: dict[str, object], rounds: int) -> tuple[float, int, int]:
    """The shortest CPU time of a search in seconds, its candidates and the budgets that it computed."""
    best, considered, estimated = float("inf"), 0, 0
    for _ in range(rounds):
        start = time.process_time()
        answer = search(spec, plan_request(options, spec))
        best = min(best, time.process_time() - start)
        considered, estimated = answer.considered, answer.estimated
    return best, considered, estimated


def main() -> int:
    """Time every case and print a table or JSON; exit 1 when a limit is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = []
    for name, (model, given, limit) in CASES.items():
        spec = load_model(model, revision=None, offline=True, introspect="auto")
        seconds, considered, estimated = timed(spec, given, options.rounds)
        rows.append(
            {"case": name, "seconds": seconds, "limit_s": limit, "candidates": considered, "budgets": estimated}
        )
    if options.json:
        print(json.dumps(rows, indent=2))
    else:
        print("| search | CPU s | limit | candidates | budgets |\n|---|---:|---:|---:|---:|")
        for row in rows:
            counted = f"{row['candidates']:,} | {row['budgets']:,}"
            print(f"| {row['case']} | {row['seconds']:.2f} | {row['limit_s']:g} | {counted} |")
    return int(any(row["seconds"] > row["limit_s"] for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
