"""Fit the constants of the SGLang model that no source states, and the widths of its intervals.

    python benchmarks/sglang/fit.py RECORDS.jsonl --configs DIR [--write]

Medians over what start-ups printed: observed.jsonl beside this script for contexts, communication and workspaces, the
records for graphs, weights and pools. A width is the 90th percentile of the errors that are left, over the rows whose
weights are those of the model that the record names (rows that are off by more than a tenth were another checkpoint or
held other memory: they stay misses, and do not widen what is said of the others). With --write the YAML is replaced.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parent))

from score import Question, answer, question_of
from serving_records import Record, TooLittle, number

from memplan.catalog.gpus import find_gpu
from memplan.catalog.rules import load_rules, parse_release
from memplan.domain.budget import MemoryBudget
from memplan.engines.sglang.defaults import capture_sizes
from memplan.errors import MemplanError
from memplan.units import GIB

_HERE = Path(__file__).resolve().parent
_TARGET = _HERE.parents[1] / "memplan" / "catalog" / "engines" / "sglang_fitted.yaml"
_LARGE = (8.0, 9.0, 10.0, 10.3)
_GROSS = 0.1
_MIB_PER_GIB = 1024

Answered = tuple[Record, Question, MemoryBudget]


def observed(what: str) -> list[dict[str, object]]:
    """The observations of one kind."""
    rows = [json.loads(line) for line in (_HERE / "observed.jsonl").read_text().splitlines()]
    return [{**row, "spec": find_gpu(row["gpu"])} for row in rows if row["what"] == what]


def middle_mib(rows: list[float]) -> float:
    """The median of sizes in GiB, in MiB to two digits."""
    return float(f"{median(rows) * _MIB_PER_GIB:.2g}") if rows else 0.0


def contexts() -> dict[str, float]:
    """CUDA contexts of small and large cards, what newer releases add, and AMD's."""
    rows = observed("context_gib")
    nvidia = [row for row in rows if row["spec"].vendor == "nvidia"]  # type: ignore[attr-defined]
    large = [row for row in nvidia if row["spec"].cuda_capability in _LARGE]  # type: ignore[attr-defined]
    small = [row for row in nvidia if row not in large]
    old, new = ([row for row in large if _is_new(row) is flag] for flag in (False, True))
    return {
        "context_mib": middle_mib([float(row["value"]) for row in small]),  # type: ignore[arg-type]
        "context_large_mib": middle_mib([float(row["value"]) for row in old]),  # type: ignore[arg-type]
        "context_growth_mib": middle_mib([median(_values(new)) - median(_values(old))]),
        "context_amd_mib": middle_mib(_values([row for row in rows if row not in nvidia])),
    }


def communication() -> dict[str, float]:
    """Communication of ranks without a switch, per peer behind one, and per peer of AMD's."""
    alone, switched, amd = [], [], []
    for row in observed("communication_gib"):
        gpu, peers = row["spec"], int(row["ranks"]) - 1  # type: ignore[call-overload]
        value = float(row["value"])  # type: ignore[arg-type]
        if gpu.vendor != "nvidia":  # type: ignore[attr-defined]
            amd.append(value / peers)
        elif gpu.cuda_capability in _LARGE and "nvl" in (gpu.interconnect or "").lower():  # type: ignore[attr-defined]
            switched.append(value / peers)
        else:
            alone.append(value)
    return {
        "communication_mib": middle_mib(alone),
        "communication_mib_per_peer": middle_mib(switched),
        "communication_amd_mib_per_peer": middle_mib(amd),
    }


def workspaces() -> dict[str, float]:
    """Attention workspaces by kind of card."""
    kinds: dict[str, list[float]] = {"workspace_mib": [], "workspace_hopper_mib": []}
    kinds |= {"workspace_blackwell_mib": [], "workspace_amd_mib": []}
    for row in observed("workspace_gib"):
        gpu = row["spec"]
        name = "workspace_amd_mib" if gpu.vendor != "nvidia" else "workspace_mib"  # type: ignore[attr-defined]
        if gpu.cuda_capability == 9.0:  # type: ignore[attr-defined]
            name = "workspace_hopper_mib"
        elif gpu.cuda_capability in (10.0, 10.3):  # type: ignore[attr-defined]
            name = "workspace_blackwell_mib"
        kinds[name].append(float(row["value"]))  # type: ignore[arg-type]
    return {name: middle_mib(values) for name, values in kinds.items()}


def first_kernels(answers: list[Answered]) -> dict[str, float]:
    """What weights miss on releases before 0.4.4, with one rank and with several."""
    alone, several = [], []
    for record, question, budget in answers:
        real = number(record, "weights_gib")
        if not real or not budget.engine_version or parse_release(budget.engine_version) >= (0, 4, 4):
            continue
        lines = [line for line in budget.lines if line.group == "weights" and "first kernels" not in line.name]
        missing = real - sum(line.size_bytes for line in lines) / GIB
        if abs(missing) < _GROSS * real:
            (alone if question.settings.layout.num_ranks == 1 else several).append(missing)
    return {"first_kernels_mib": middle_mib(alone), "first_kernels_ranks_mib": middle_mib(several)}


def graphs(answers: list[Answered]) -> dict[str, float]:
    """Decode graphs: a line through their sizes over captured layers; per captured batch before 0.4.4."""
    points, old = [], []
    for record, question, budget in answers:
        real, batch = number(record, "cuda_graph_gib"), budget.settings["cuda_graph_max_bs"]
        if not real or real <= 0 or not batch:
            continue
        rules = load_rules("sglang", budget.engine_version)
        sizes = capture_sizes(int(batch), rules, speculative=False)  # type: ignore[call-overload]
        if rules.release < (0, 4, 4):
            old.append(real / sizes)
        else:
            points.append((sizes * question.spec.num_layers, real * _MIB_PER_GIB))
    base, slope = _line(points)
    prefill = [
        (int(row["layers"]) * int(row["sizes"]), float(row["value"]) * _MIB_PER_GIB)  # type: ignore[call-overload,arg-type]
        for row in observed("prefill_graph_gib")
    ]
    slope_prefill = 0.4  # two points do not give a slope: a little above a decode graph's piece
    base_prefill = median([size - slope_prefill * pieces for pieces, size in prefill])
    return {
        "graph_base_mib": round(base),
        "graph_piece_mib": round(slope, 3),
        "graph_old_size_mib": middle_mib(old),
        "prefill_graph_base_mib": float(f"{base_prefill:.2g}"),
        "prefill_graph_piece_mib": slope_prefill,
    }


def _line(points: list[tuple[int, float]]) -> tuple[float, float]:
    """A line through points that few outliers do not move: the median slope over all pairs, then the median offset."""
    slopes = [(b[1] - a[1]) / (b[0] - a[0]) for i, a in enumerate(points) for b in points[i + 1 :] if a[0] != b[0]]
    slope = median(slopes)
    return max(0.0, median([size - slope * pieces for pieces, size in points])), slope


def widths(answers: list[Answered], fitted: dict[str, float]) -> dict[str, float]:
    """Half-widths of the 90 % intervals."""
    plain, eight, int4, pools = [], [], [], []
    floor_gib = 30 / _MIB_PER_GIB
    for record, question, budget in answers:
        real = number(record, "weights_gib")
        if real:
            off = budget.group_bytes("weights") / GIB / real - 1
            if abs(off) > _GROSS:
                continue
            share = max(0.0, (abs(off) * real - floor_gib) / (real * (1 + off)))
            kind = question.spec.quantization
            (int4 if "int4" in (kind or "") else eight if kind else plain).append(share)
            tokens = number(record, "kv_tokens")
            if tokens and budget.kv.capacity_tokens and record.get("mem_fraction_static") is not None:
                weights_part = abs(off) * real * GIB / max(1, int(str(budget.extra["kv_available_bytes"])))
                pools.append(max(0.0, abs(budget.kv.capacity_tokens / tokens - 1) - weights_part))
    before = [abs(float(row["value"]) * _MIB_PER_GIB - fitted["context_mib"]) for row in observed("context_gib")]  # type: ignore[arg-type]
    return {
        "weights": _up(_p90(plain), 0.003),
        "weights_quantized": _up(_p90(eight), 0.01),
        "weights_int4": _up(_p90(int4), 0.01),
        "weights_mib": 30,
        "before_load_mib": float(f"{_p90(before):.2g}"),
        "before_load_ranks_mib": 600,
        "pool": _up(_p90(pools), 0.002),
        "cuda_graph": 0.6,
        "cuda_graph_mib": 100,
        "activation": 0.5,
    }


def _p90(values: list[float]) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(0.9 * len(ordered)))] if ordered else 0.0


def _up(value: float, least: float) -> float:
    return max(least, round(value * 1.02, 4))


def _values(rows: list[dict[str, object]]) -> list[float]:
    return [float(row["value"]) for row in rows]  # type: ignore[arg-type]


def _is_new(row: dict[str, object]) -> bool:
    return parse_release(str(row["version"])) >= (0, 5, 0)


def yaml_of(sizes: dict[str, float], intervals: dict[str, float]) -> str:
    """The catalogue's file, with what every constant is."""
    lines = [
        "# Constants of the SGLang model that no source states: fitted on start-ups by benchmarks/sglang/fit.py.",
        "# Sizes in MiB. Intervals are half-widths at 90 %: shares of the term, or MiB where the name says so.",
        "fitted_by: benchmarks/sglang/fit.py",
    ]
    lines += [f"{f'{name}: {value:g}':36} # {_NOTES[name]}" for name, value in sizes.items()]
    lines.append("intervals:")
    lines += [f"  {name}: {value:g}" for name, value in intervals.items()]
    return "\n".join(lines) + "\n"


_NOTES = {
    "context_mib": "CUDA context and modules of one process on a consumer or inference card",
    "context_large_mib": "the same on A100, Hopper and data-centre Blackwell, before 0.5.0",
    "context_growth_mib": "what releases from 0.5.0 on load more before the weights",
    "context_amd_mib": "the same on AMD",
    "communication_mib": "NCCL and all-reduce buffers of ranks over PCIe",
    "communication_mib_per_peer": "the same for every further rank behind an NVSwitch",
    "communication_amd_mib_per_peer": "the same for every further AMD rank",
    "first_kernels_mib": "modules that the first kernels load while weights are read, one rank, before 0.4.4",
    "first_kernels_ranks_mib": "the same with several ranks, which have run kernels before",
    "workspace_mib": "buffers of the attention kernels",
    "workspace_hopper_mib": "the same on Hopper",
    "workspace_blackwell_mib": "the same on data-centre Blackwell",
    "workspace_amd_mib": "the same on AMD",
    "graph_base_mib": "decode graphs from 0.4.4 on, whatever their number",
    "graph_piece_mib": "one layer at one captured batch",
    "graph_old_size_mib": "one captured batch before 0.4.4",
    "prefill_graph_base_mib": "prefill graphs: the activations that the largest keeps",
    "prefill_graph_piece_mib": "one layer at one captured step",
}


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
            question = question_of(record, arguments.configs)
            answers.append((record, question, answer(question)))
        except (TooLittle, MemplanError):
            continue
    sizes = {**contexts(), **communication(), **first_kernels(answers), **workspaces(), **graphs(answers)}
    text = yaml_of(sizes, widths(answers, sizes))
    print(text)
    if arguments.write:
        _TARGET.write_text(text)


if __name__ == "__main__":
    main()
