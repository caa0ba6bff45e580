"""Compare the memory of passes under transformers with what transformers' own code does, operation by operation.

    python benchmarks/transformers/score.py [--configs DIR] [--only WORD ...] [--fit] [--json]

Each model is built on the meta device from its catalogue config, cut to its first eight layers; a prefill and the
tokens after it run in every way of `cases.CASES`, and the bytes that are alive at the fullest moment are compared with
those that the budget predicts for the same call: caches, what a pass keeps, one layer's moment, logits and sampling.
Weights are left out. Without `--configs` the models are those below, one for each kind of layer; with it, one of every
`model_type` in that folder (DIR/NAME/config.json). `--fit` prints the half-widths of 90 % intervals.

Errors are signed, (predicted - measured) / measured. What a GPU's kernels hold inside themselves is not measured.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import statistics
import sys
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
warnings.simplefilter("ignore")

import torch  # noqa: E402
import transformers  # noqa: E402
from cases import CASES, Case, build, measure, predict, shortened  # noqa: E402

from memplan.catalog.models import find_model  # noqa: E402
from memplan.domain.model import ModelSpec  # noqa: E402
from memplan.errors import MemplanError  # noqa: E402
from memplan.introspect.model_folder import spec_from_config  # noqa: E402

MODELS = (
    "llama-3.1-8b",
    "llama-2-7b",
    "qwen2.5-7b",
    "qwen3-8b",
    "qwen3-30b-a3b",
    "qwen3-next-80b-a3b",
    "qwen3.5-27b",
    "mistral-7b",
    "mixtral-8x7b",
    "gemma-2-9b",
    "gemma-3-27b",
    "gemma-4-31b",
    "gpt-oss-20b",
    "phi-2",
    "phi-3-mini",
    "phi-4",
    "falcon-7b",
    "gpt2",
    "starcoder2-7b",
    "olmo-2-13b",
    "command-r",
    "granite-3.1-8b",
    "stablelm-3b-4e1t",
    "deepseek-v2-lite",
    "deepseek-v3",
    "deepseek-v3.2",
    "glm-4.5-air",
    "minimax-m2",
    "llama-4-scout",
    "falcon-mamba-7b",
    "nemotron-nano-9b-v2",
)
Row = dict[str, object]


def main() -> int:
    """Measure, compare and print."""
    arguments = _arguments()
    logging.disable(logging.WARNING)
    rows: list[Row] = []
    refused: list[Row] = []
    for name, raw in _models(arguments.configs):
        if arguments.only and not any(word in name for word in arguments.only):
            continue
        for row in _rows(name, raw):
            (refused if "reason" in row else rows).append(row)
            if not arguments.json and "reason" not in row:
                print(_line(row), flush=True)
    summary = {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "models": len({str(row["model"]) for row in rows}),
        "passes": 2 * len(rows),
        **{phase: _summary([float(str(row[f"{phase}_error"])) for row in rows]) for phase in ("prefill", "decode")},
    }
    if arguments.json:
        print(json.dumps({"summary": summary, "rows": rows, "not_compared": refused}, indent=1))
        return 0
    for phase in ("prefill", "decode"):
        print(phase, summary[phase])
    print(f"{summary['models']} models, {summary['passes']} passes; {len(refused)} not compared")
    if arguments.fit:
        print("activation:", _half_width(rows))
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configs", type=Path, help="a folder of NAME/config.json")
    parser.add_argument("--only", nargs="*", default=[], help="only models with one of these words in their name")
    parser.add_argument("--fit", action="store_true")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def _models(configs: Path | None) -> Iterator[tuple[str, Mapping[str, object]]]:
    if configs is None:
        for name in MODELS:
            known = find_model(name)
            if known is None:
                print(f"not in the catalogue: {name}", file=sys.stderr)
            else:
                yield known.name, shortened(known.config)
        return
    seen: set[object] = set()
    for path in sorted(configs.glob("*/config.json")):
        raw = json.loads(path.read_text("utf-8"))
        if raw.get("model_type") not in seen:
            seen.add(raw.get("model_type"))
            yield path.parent.name, shortened(raw)


def _rows(name: str, raw: Mapping[str, object]) -> Iterator[Row]:
    try:
        spec = spec_from_config(raw, name)
        config = transformers.AutoConfig.for_model(**copy.deepcopy(dict(raw)))
    except Exception as error:  # ours, or transformers' own checks of a config
        yield {"model": name, "case": "", "reason": f"{type(error).__name__}: {error}"[:200]}
        return
    if not spec.is_generative or getattr(config, "is_encoder_decoder", False):
        yield {"model": name, "case": "", "reason": "no decoder by itself"}
        return
    for case in CASES:
        try:
            yield _row(name, raw, spec, case)
        except MemplanError as error:
            yield {"model": name, "case": case.label, "reason": str(error)}
        except Exception as error:  # the model's own code cannot run this case on meta tensors
            yield {"model": name, "case": case.label, "reason": f"{type(error).__name__}: {error}"[:200]}


def _row(name: str, raw: Mapping[str, object], spec: ModelSpec, case: Case) -> Row:
    prefill, decode = predict(spec, case)
    real = measure(build(raw, case), case)
    return {
        "model": name,
        "model_type": spec.model_type,
        "case": case.label,
        "prefill_bytes": real.prefill_bytes,
        "prefill_error": round(prefill.total_bytes / real.prefill_bytes - 1, 5),
        "prefill_cache_bytes": prefill.cache_bytes,
        "prefill_moment": prefill.moment.name,
        "prefill_at": real.prefill_at,
        "decode_bytes": real.decode_bytes,
        "decode_error": round(decode.total_bytes / real.decode_bytes - 1, 5),
        "decode_cache_bytes": decode.cache_bytes,
        "decode_moment": decode.moment.name,
        "decode_at": real.decode_at,
    }


def _summary(errors: list[float]) -> dict[str, float]:
    sizes = sorted(abs(error) for error in errors)
    if not sizes:
        return {}
    ninety = sizes[min(len(sizes) - 1, int(0.9 * len(sizes)))]
    return {
        "median": round(statistics.median(sizes), 4),
        "ninety": round(ninety, 4),
        "worst": round(sizes[-1], 4),
        "within_5_percent": round(sum(size <= 0.05 for size in sizes) / len(sizes), 3),
    }


def _half_width(rows: list[Row]) -> float:
    """The share of what is not cache that 90 % of the prefills are within: the width that the budget uses."""
    shares = []
    for row in rows:
        real, cache = int(str(row["prefill_bytes"])), int(str(row["prefill_cache_bytes"]))
        off = abs(float(str(row["prefill_error"]))) * real
        shares.append(off / max(1, real - cache))
    shares.sort()
    return round(shares[min(len(shares) - 1, int(0.9 * len(shares)))], 4)


def _line(row: Row) -> str:
    return (
        f"{str(row['model'])[:36]:36} {row['case']:34}"
        f" prefill {int(str(row['prefill_bytes'])) / 2**20:9.1f} MiB {float(str(row['prefill_error'])):+7.2%}"
        f"   decode {int(str(row['decode_bytes'])) / 2**20:9.1f} MiB {float(str(row['decode_error'])):+7.2%}"
    )


if __name__ == "__main__":
    sys.exit(main())
