"""Real estimates, recorded as `memplan estimate --json` wrote them, and read back into budgets.

Reports are compared with snapshots; on recorded estimates these change with a report alone, not with every constant
that is fitted anew. `python tests/report/recorded_estimates.py` records them again.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from memplan.domain.budget import ContextMap, KvCapacity, KvWaste, Line, MemoryBudget, Remedy
from memplan.domain.gpu import Price

FOLDER = Path(__file__).parent / "recorded"
CASES: dict[str, tuple[str, ...]] = {
    "llama-70b-one-a100": ("llama-3.3-70b", "--gpu", "a100-80g"),
    "llama-70b-two-h100-sglang": ("llama-3.3-70b", "--gpu", "h100x2", "--engine", "sglang@0.5.9", "--context", "16K"),
    "deepseek-v3-eight-h200": ("deepseek-v3", "--gpu", "h200x8", "--engine", "vllm@0.20.2"),
    "gpt-oss-20b-rtx-4090": (
        *("gpt-oss-20b", "--gpu", "rtx-4090", "--engine", "vllm@0.20.2", "--context", "8K"),
        *("--concurrency", "16", "--mean-length", "2K"),
    ),
    "llama-8b-l4-tensorrt-llm": ("llama-3.1-8b", "--gpu", "l4", "--engine", "tensorrt-llm", "--context", "8K"),
}
_OURS = frozenset(
    (
        *("schema", "model", "gpu", "engine", "settings", "per_gpu", "host", "lines", "kv_cache", "verdict"),
        *("shortfall_bytes", "reasons", "remedies", "warnings", "cheapest_remedy", "context_map", "kv_waste"),
    )
)


def names() -> list[str]:
    """The recorded estimates by name."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def read_object(name: str) -> dict[str, Any]:
    """A recorded estimate as it was written."""
    content: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return content


def read_budget(name: str) -> MemoryBudget:
    """A recorded estimate as the budget that it was written from."""
    return budget_of(read_object(name))


def budget_of(content: dict[str, Any]) -> MemoryBudget:
    """The budget that an object under `memplan.estimate/1` was written from: nothing of it is lost in JSON."""
    model, gpu, engine = content["model"], content["gpu"], content["engine"]
    price = gpu.get("price_usd_per_hour")
    found = content.get("context_map")
    waste = content.get("kv_waste")
    return MemoryBudget(
        model_name=model["name"],
        architecture=model["architecture"],
        parameters=model["parameters"],
        active_parameters=model["active_parameters"],
        weights_source=model["weights_source"],
        weights_scheme=model.get("weights_scheme", ""),
        gpu_name=gpu["name"],
        num_gpus=gpu["count"],
        gpu_memory_bytes=gpu["memory_bytes"],
        price=Price(**price) if price else None,
        engine_name=engine["name"],
        engine_version=engine["version"],
        settings=content["settings"],
        lines=tuple(
            Line(**{("size_bytes" if name == "bytes" else name): value for name, value in each.items()})
            for each in content["lines"]
        ),
        kv=KvCapacity(**content["kv_cache"]),
        host_bytes=content["host"]["memory_bytes"],
        verdict=content["verdict"],
        shortfall_bytes=content["shortfall_bytes"],
        reasons=tuple(content["reasons"]),
        remedies=tuple(Remedy(**each) for each in content["remedies"]),
        warnings=tuple(content["warnings"]),
        context_map=ContextMap(**{name: tuple(values) for name, values in found.items()}) if found else None,
        kv_waste=KvWaste(**waste) if waste else None,
        extra={name: value for name, value in content.items() if name not in _OURS},
    )


def record() -> None:
    """Run memplan on every case and keep what it writes."""
    import subprocess
    import sys

    for name, arguments in CASES.items():
        command = [sys.executable, "-m", "memplan", "estimate", *arguments, "--offline", "--json"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode not in (0, 1):
            sys.exit(done.stderr)
        (FOLDER / f"{name}.json").write_text(done.stdout, encoding="utf-8")
        print(f"wrote {name}")


if __name__ == "__main__":
    record()
