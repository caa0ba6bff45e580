"""Fit the constants of the TensorRT-LLM model that no source states, and the widths of its intervals.

    python benchmarks/tensorrt_llm/fit.py RECORDS.jsonl --configs DIR [--write]

Medians over what start-ups printed. What is outside torch is printed by some logs; for others that name a GPU it
follows from the cache. Graphs and communication are the driver's and NCCL's, not the engine's: their constants are
those fitted for SGLang, which has many more records. With --write the YAML is replaced.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parent))

from score import Question, held_gib, question_of, real_gib, refuse
from serving_records import Record, TooLittle, number

from memplan.domain.budget import MemoryBudget
from memplan.engines.sglang.fitted import load_fitted as load_sglang
from memplan.engines.tensorrt_llm.engine import TENSORRT_LLM
from memplan.engines.tensorrt_llm.fitted import load_fitted
from memplan.errors import MemplanError
from memplan.units import GIB

_TARGET = Path(__file__).resolve().parents[2] / "memplan" / "catalog" / "engines" / "tensorrt_llm_fitted.yaml"
_MIB_PER_GIB = 1024
_NOTES = {
    "outside_mib": "context, libraries and buffers outside torch of one PyTorch process, graphs and cache aside",
    "outside_engine_mib": "the same in the engine flow, whose engine holds its own buffers",
    "communication_mib": "NCCL and all-reduce buffers of ranks over PCIe",
    "communication_mib_per_peer": "the same for every further rank behind an NVSwitch",
    "loaded_mib": "buffers of modules in torch beside weights, rotary tables and the attention workspace",
    "graph_piece_mib": "one layer at one captured batch",
    "graph_base_mib": "graphs, whatever their number",
}

Answered = tuple[Record, Question, MemoryBudget]


def middle_mib(sizes_gib: list[float]) -> float:
    """The median of sizes in GiB, in MiB to two digits."""
    return float(f"{median(sizes_gib) * _MIB_PER_GIB:.2g}")


def outside_gib(answers: list[Answered]) -> list[float]:
    """What lies outside torch of one PyTorch process: printed, or what the cache leaves for it."""
    found = []
    for record, question, budget in answers:
        alone = question.source == "gpu" and question.settings.layout.num_ranks == 1
        if not alone or budget.settings["backend"] != "pytorch":
            continue
        graphs = budget.group_bytes("cuda_graph") / GIB
        printed = real_gib(record)["outside"]
        tokens = number(record, "kv_tokens")
        if printed is not None:
            found.append(printed - graphs)
        elif tokens and record.get("gpu"):
            cache = tokens * budget.kv.bytes_per_token / GIB / float(str(budget.settings["free_gpu_memory_fraction"]))
            held = held_gib(budget)
            found.append(question.gpu.memory_bytes / GIB - cache - held["weights"] - held["activation"] - graphs)
    return found


def loaded_gib(answers: list[Answered]) -> list[float]:
    """What torch holds after loading beside what the model names."""
    found = []
    for record, _, budget in answers:
        real = real_gib(record)["weights"]
        if real is None or budget.settings["backend"] != "pytorch":
            continue
        buffers = sum(line.size_bytes for line in budget.lines if line.name.endswith("buffers of modules"))
        found.append(real - held_gib(budget)["weights"] + buffers / GIB)
    return found


def widths(answers: list[Answered], outside: list[float], loaded: list[float]) -> dict[str, float]:
    """Half-widths of the 90 % intervals.

    There are few records: a width is the largest residual, with a tenth on top, and never less than what a change of
    driver or of a release's buffers makes; what no record shows (several ranks, graphs) has the width fitted for
    SGLang.
    """
    steps = []
    for record, _, budget in answers:
        real = real_gib(record)["activation"]
        if real is not None:
            steps.append(real / held_gib(budget)["activation"] - 1)
    sglang = load_sglang().intervals
    return {
        "weights": 0.01,
        "weights_int4": sglang.weights_int4,
        "weights_mib": _up(max(abs(size - median(loaded)) for size in loaded) * _MIB_PER_GIB, 60),
        "outside_mib": _up(max(abs(size - median(outside)) for size in outside) * _MIB_PER_GIB, 250),
        "outside_ranks_mib": sglang.before_load_ranks_mib,
        "activation": _up(max(abs(step) for step in steps), 0.2),
        "activation_mib": 50,
        "cuda_graph": sglang.cuda_graph,
    }


def _up(value: float, least: float) -> float:
    return float(f"{max(least, 1.1 * value):.2g}")


def yaml_of(sizes: dict[str, float], intervals: dict[str, float]) -> str:
    """The catalogue's file, with what every constant is."""
    lines = [
        "# Constants of the TensorRT-LLM model that no source states: fitted by benchmarks/tensorrt_llm/fit.py.",
        "# Sizes in MiB. Intervals are half-widths at 90 %: shares of the term, or MiB where the name says so.",
        "fitted_by: benchmarks/tensorrt_llm/fit.py",
    ]
    lines += [f"{f'{name}: {value:g}':36} # {_NOTES[name]}" for name, value in sizes.items()]
    lines.append("intervals:")
    lines += [f"  {name}: {value:g}" for name, value in intervals.items()]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("records", type=Path)
    parser.add_argument("--configs", type=Path, required=True)
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    answers: list[Answered] = []
    for line in arguments.records.read_text().splitlines():
        record = json.loads(line)
        try:
            refuse(record)
            question = question_of(record, arguments.configs)
            budget = TENSORRT_LLM.estimate(question.spec, question.gpu, question.settings, question.version)
        except (TooLittle, MemplanError):
            continue
        answers.append((record, question, budget))
    outside, loaded = outside_gib(answers), loaded_gib(answers)
    sglang = load_sglang()
    sizes = {
        "outside_mib": middle_mib(outside),
        "outside_engine_mib": load_fitted().outside_engine_mib,
        "communication_mib": sglang.communication_mib,
        "communication_mib_per_peer": sglang.communication_mib_per_peer,
        "loaded_mib": middle_mib(loaded),
        "graph_piece_mib": sglang.graph_piece_mib,
        "graph_base_mib": sglang.graph_base_mib,
    }
    text = yaml_of(sizes, widths(answers, outside, loaded))
    print(text)
    print("outside torch, GiB:", [round(size, 2) for size in outside], "loaded, GiB:", [round(s, 3) for s in loaded])
    if arguments.write:
        _TARGET.write_text(text)


if __name__ == "__main__":
    main()
