"""Compare memplan's cache plan with vLLM's own planner, model by model.

    python benchmarks/vllm/kv_oracle.py CONFIGS --python VLLM_PYTHON [--source DIR] [--only NAME...] [--json]

CONFIGS is a folder of folders with a config.json each. VLLM_PYTHON is the interpreter of an environment that has vLLM
(a CPU build will do: see pretend_cuda.py); `--source` puts another release's checkout in front of it. For every model,
tensor-parallel size, cache type and prefix-caching setting vLLM lays the model out, asks its layers what they cache,
groups and sizes them; memplan is asked the same with the same cache memory. Compared are the number of blocks, the
tokens and the concurrency that vLLM prints, the block size, and the longest request that fits.

Quantization is taken out of the configs: cache types are set explicitly.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memplan.catalog.gpus import find_gpu
from memplan.catalog.rules import load_rules, parse_release
from memplan.domain.budget import KvCapacity
from memplan.domain.model import ModelSpec
from memplan.domain.serving import ParallelLayout, ServingSettings, Workload
from memplan.engines.registry import load_engine
from memplan.errors import MemplanError
from memplan.pipeline import load_model
from memplan.units import GIB

WORKER = Path(__file__).with_name("kv_oracle_worker.py")
MEMORIES_GIB = (5, 20, 60)
CONTEXTS = (4096, 32768, 131072)
BATCHED_TOKENS = 8192
MAX_NUM_SEQS = 256
GPUS = {"8.0": "a100-80g", "9.0": "h100", "10.0": "b200"}
Answer = dict[str, Any]
# Differences that are not about cache groups, and why they are there.
EXPLAINED = {
    "Alibaba-NLP/gte-Qwen2-7B-instruct": "the config makes its attention bidirectional, and vLLM then caches nothing",
    "XiaomiMiMo/MiMo-7B-Base": "the stand-in for its config class does not switch off the window as the class does",
    "microsoft/Phi-3-vision-128k-instruct": "vLLM keeps a window longer than the context: one block more per request",
    "microsoft/Phi-3.5-MoE-instruct": "vLLM keeps a window as long as the context: one block more per request",
    "meta-llama/Llama-3.2-11B-Vision-Instruct": "dropped in 0.10.2; newer releases take it for a model without images",
    "nvidia/MiniMax-M3-NVFP4": "its predictor is not among the parameters that a config tells",
    "openai/clip-vit-large-patch14": "an encoder that vLLM gives a cache which nothing fills",
    "openbmb/MiniCPM-V-4_6-AWQ": "vLLM keeps its states in 16 bits: it reads their type for Qwen3.5's names only",
}
# As above, up to a release.
EXPLAINED_UNTIL = {
    "nvidia/Nemotron-H-56B-Base-8K": ("0.20.0", "states in 16 bits where the config does not name their type"),
    "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16": ("0.13.0", "states in 16 bits whatever the config says"),
}


def is_explained(name: str, version: str) -> bool:
    """Whether a difference of this model at this release is known not to be about cache groups."""
    until = EXPLAINED_UNTIL.get(name)
    return name in EXPLAINED or (until is not None and parse_release(version) < parse_release(until[0]))


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One way to start a server."""

    tensor: int = 1
    kv_dtype: str = "auto"
    prefix_caching: bool | None = None
    block_size: int | None = None
    speculative_tokens: int = 0
    hybrid: bool = True

    def engine_arguments(self) -> dict[str, object]:
        """vLLM's spelling."""
        arguments: dict[str, object] = {
            "tensor_parallel_size": self.tensor,
            "kv_cache_dtype": self.kv_dtype,
            "max_num_batched_tokens": BATCHED_TOKENS,
            "max_num_seqs": MAX_NUM_SEQS,
        }
        if self.prefix_caching is not None:
            arguments["enable_prefix_caching"] = self.prefix_caching
        if self.block_size is not None:
            arguments["block_size"] = self.block_size
        if not self.hybrid:
            arguments["disable_hybrid_kv_cache_manager"] = True
        if self.speculative_tokens:
            arguments["speculative_config"] = {"method": "mtp", "num_speculative_tokens": self.speculative_tokens}
        return arguments

    def __str__(self) -> str:
        parts = [f"tp{self.tensor}", self.kv_dtype]
        parts += [] if self.prefix_caching is None else ["prefix" if self.prefix_caching else "no-prefix"]
        parts += [f"block{self.block_size}"] if self.block_size else []
        parts += [f"mtp{self.speculative_tokens}"] if self.speculative_tokens else []
        parts += [] if self.hybrid else ["no-hybrid"]
        return " ".join(parts)


SETTINGS = (
    Setting(),
    Setting(tensor=2),
    Setting(tensor=4),
    Setting(tensor=8),
    Setting(kv_dtype="fp8"),
    Setting(prefix_caching=False),
    Setting(block_size=64, tensor=2),
    Setting(speculative_tokens=1),
    Setting(speculative_tokens=3, tensor=2),
    Setting(hybrid=False, tensor=2),
    Setting(kv_dtype="fp8", tensor=2, speculative_tokens=1),
)


class Planner:
    """vLLM's planner in a process of its own, started again when it dies."""

    def __init__(self, python: str, source: Path | None, capability: str, memory_bytes: int) -> None:
        self._command = [python, str(WORKER), capability, str(memory_bytes)]
        self._environment = dict(os.environ)
        if source is not None:
            self._environment["PYTHONPATH"] = str(source)
        self._process: subprocess.Popen[str] | None = None

    def ask(self, question: dict[str, object]) -> Answer:
        """Send one question and wait for its answer."""
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                env=self._environment,
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        answer: Answer = json.loads(line) if line else {"problem": "the planner's process died"}
        return answer


def plain_configs(folder: Path, target: Path, only: list[str] | None) -> Iterator[Path]:
    """Copy the configs without their quantization and without references to code that is not there."""
    for path in sorted(folder.glob("*/config.json")):
        if only and not any(part in path.parent.name for part in only):
            continue
        config = json.loads(path.read_text(encoding="utf-8"))
        keys = {"auto_map"} if "deepseek_v4" in str(config.get("model_type")) else {"auto_map", "quantization_config"}
        (target / path.parent.name).mkdir()
        (target / path.parent.name / "config.json").write_text(json.dumps(_without(config, keys)), encoding="utf-8")
        yield target / path.parent.name


def _without(value: Any, keys: set[str]) -> Any:
    if isinstance(value, dict):
        return {key: _without(part, keys) for key, part in value.items() if key not in keys}
    return value


def memplan_answer(spec: ModelSpec, gpu: str, version: str | None, setting: Setting, run: Answer) -> KvCapacity:
    """memplan's plan of the same cache memory."""
    settings = ServingSettings(
        layout=ParallelLayout(tensor=setting.tensor),
        workload=Workload(context_tokens=run["context"]),
        kv_dtype=None if setting.kv_dtype == "auto" else setting.kv_dtype,
        kv_cache_memory_bytes=run["memory"],
        max_num_seqs=MAX_NUM_SEQS,
        max_num_batched_tokens=BATCHED_TOKENS,
        prefix_caching=setting.prefix_caching,
        block_size=setting.block_size,
        draft=spec.predictor() if setting.speculative_tokens else None,
        num_speculative_tokens=setting.speculative_tokens,
        engine_options={} if setting.hybrid else {"disable_hybrid_kv_cache_manager": True},
    )
    return load_engine("vllm").estimate(spec, find_gpu(gpu), settings, version).kv


def compare(run: Answer, ours: KvCapacity) -> dict[str, tuple[object, object]]:
    """What differs: vLLM's value and memplan's."""
    pairs = {
        "blocks": (run["blocks"], ours.blocks or 0),
        "tokens": (run["tokens"], ours.capacity_tokens or 0),
        "concurrency": (round(run["concurrency"], 2), ours.max_concurrency or 0.0),
        "block_size": (run.get("block_size"), ours.block_size),
        "longest": (run.get("longest"), ours.max_context_tokens),
    }
    return {name: pair for name, pair in pairs.items() if pair[0] is not None and not _same(name, *pair)}


def _same(name: str, theirs: Any, ours: Any) -> bool:
    if name == "concurrency":
        return bool(abs(theirs - ours) <= 0.011)
    return bool(theirs == ours or (name == "block_size" and theirs == 0))


def examine(
    folder: Path, planner: Planner, gpu: str, version: str | None, settings: tuple[Setting, ...]
) -> list[Answer]:
    """All rows of one model."""
    rows: list[Answer] = []
    try:
        spec = load_model(str(folder / "config.json"), revision=None, offline=True, introspect="auto")
    except MemplanError as error:
        return [{"model": folder.name, "setting": "", "ours_problem": error.message}]
    contexts = sorted({min(context, spec.max_context_tokens) for context in CONTEXTS})
    for setting in settings:
        row: Answer = {"model": folder.name, "setting": str(setting)}
        memories = [gib * GIB for gib in MEMORIES_GIB]
        answer = planner.ask(
            {
                "config": str(folder),
                "engine": setting.engine_arguments(),
                "contexts": contexts if setting.tensor == 1 else contexts[-1:],
                "memories": memories,
                "limit": spec.max_context_tokens,
            }
        )
        if "problem" in answer:
            rows.append({**row, "problem": answer["problem"]})
            if setting == settings[0] and "kv-cache format" not in answer["problem"]:
                return rows
            continue
        for run in answer["runs"]:
            row = {
                "model": folder.name,
                "setting": str(setting),
                "context": run["context"],
                "memory": run["memory"] // GIB,
            }
            try:
                ours = memplan_answer(spec, gpu, version, setting, run)
            except MemplanError as error:
                rows.append({**row, "ours_problem": error.message})
                continue
            rows.append({**row, "differs": compare(run, ours), "theirs": {**answer, "runs": [run]}})
    return rows


def summary(rows: list[Answer]) -> Answer:
    """Counts over all rows, by quantity."""
    compared = [row for row in rows if "differs" in row]
    wrong = Counter(name for row in compared for name in row["differs"])
    models = {row["model"] for row in rows}
    return {
        "models": len(models),
        "models_compared": len({row["model"] for row in compared}),
        "models_exact": len({row["model"] for row in compared} - {row["model"] for row in compared if row["differs"]}),
        "explained": {
            name: reason
            for name, reason in EXPLAINED.items()
            if name.replace("/", "__") in {row["model"] for row in rows}
        },
        "plans_compared": len(compared),
        "plans_exact": sum(not row["differs"] for row in compared),
        "differ": dict(wrong),
        "vllm_refused": sum("problem" in row for row in rows),
        "memplan_refused": sum("ours_problem" in row for row in rows),
    }


def print_table(rows: list[Answer]) -> None:
    """One line for each plan that differs, and one for each that could not be made."""
    for row in rows:
        head = f"{row['model'][:46]:46} {row['setting']:18}"
        if "differs" not in row:
            print(
                f"{head} {'memplan' if 'ours_problem' in row else 'vllm'}: {row.get('problem') or row['ours_problem']}"
            )
        elif row["differs"]:
            parts = " ".join(f"{name} {theirs}/{ours}" for name, (theirs, ours) in row["differs"].items())
            print(f"{head} {row['context']:>7} {row['memory']:>3}GiB  {parts}")


def has_vllm(python: str) -> bool:
    """Whether that interpreter exists and finds a vLLM."""
    look = "import importlib.util, sys; sys.exit(importlib.util.find_spec('vllm') is None)"
    try:
        return subprocess.run([python, "-c", look], check=False, stderr=subprocess.DEVNULL).returncode == 0
    except OSError:
        return False


def main() -> int:
    """Compare all configs of a folder and print what differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("configs", type=Path)
    parser.add_argument("--python", required=True, help="the interpreter of an environment with vLLM")
    parser.add_argument("--source", type=Path, help="a checkout of vLLM to put in front of the installed one")
    parser.add_argument("--version", help="the release that memplan is asked for (default: its newest)")
    parser.add_argument("--capability", choices=sorted(GPUS), default="9.0")
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--first", type=int, default=len(SETTINGS), help="how many of the settings to try")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if not has_vllm(options.python):
        print(f"skipped: no vLLM in {options.python}", file=sys.stderr)
        return 0
    gpu = GPUS[options.capability]
    planner = Planner(options.python, options.source, options.capability, find_gpu(gpu).memory_bytes)
    rows: list[Answer] = []
    with tempfile.TemporaryDirectory() as scratch:
        for folder in plain_configs(options.configs, Path(scratch), options.only):
            rows += examine(folder, planner, gpu, options.version, SETTINGS[: options.first])
            print(f"{len(rows):6} plans, last {folder.name}", file=sys.stderr)
    if options.json:
        version = options.version or load_rules("vllm", None).version
        print(json.dumps({"version": version, "gpu": gpu, "summary": summary(rows), "rows": rows}))
        return 0
    print_table(rows)
    print(json.dumps(summary(rows), indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
