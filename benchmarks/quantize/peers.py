"""Our quantization beside other libraries': quality, time and memory, on the same texts, in one run.

    python benchmarks/quantize/peers.py --python NAME=PATH [--python ...] [--models demo,outliers,large] [--seeds 0,1,2]
        [--methods gptq,awq,awq+gptq,int8] [--bits 4,3] [--group-size 128,32] [--libraries native,gptqmodel,...]
        [--repeats 1] [--warm] [--no-quality] [--num-samples 64] [--window 256] [--results FILE]
        [--models-folder FOLDER]
    python benchmarks/quantize/peers.py --table

Every library wants an environment of its own with memplan in it: `--python gptqmodel=/path/to/bin/python`, the same for
`autoawq` and `llmcompressor`. Each run is a process (peer_run.py) on one thread that is handed the same windows.
Libraries take turns, so that what else the machine does meets all of them. A finished run is a line of FILE; the same
command goes on with those that are missing. `outliers` is the demo model with planted outlier channels (outliers.py),
`large` one of 100 million random weights, for times. Quality is the loss on the built-in text to validate on less that
of the 16-bit model, token by token; kept are its sums over runs of 128 tokens, so that libraries can be compared in
pairs.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

METHODS = {
    "gptq": ("native", "gptqmodel", "llmcompressor"),
    "awq": ("native", "llmcompressor", "autoawq"),
    "awq+gptq": ("native", "llmcompressor"),
    "int8": ("native", "llmcompressor"),
}
RESULTS = Path(__file__).resolve().parent.parent / "results" / "quantize_peers.jsonl"
# What tells one run from another.
KEY = ("model", "method", "weights_only", "bits", "group_size", "library", "seed", "num_samples", "window_tokens")
KEY += ("warms_up", "repeat")
_RUN_TOKENS = 128
_LARGE = {"vocabulary": 32000, "hidden": 768, "intermediate": 2304, "layers": 9, "experts": 0}


def cases(given: Namespace) -> Iterator[dict[str, Any]]:
    """All runs that are asked for, the first seed of every setting before the second."""
    libraries = given.libraries.split(",")
    grids = [(int(bits), int(group)) for group in given.group_size.split(",") for bits in given.bits.split(",")]
    for repeat in range(given.repeats):
        for seed in map(int, given.seeds.split(",")):
            for model in given.models.split(","):
                for method in given.methods.split(","):
                    settings = [(8, 0, False), (8, 0, True)] if method == "int8" else [(*grid, False) for grid in grids]
                    for bits, group, weights_only in settings:
                        for library in METHODS[method]:
                            absent = bits != 4 if library == "autoawq" else weights_only and library != "native"
                            if library in libraries and not absent:
                                values = (model, method, weights_only, bits, group, library, seed)
                                values += (given.num_samples, given.window, given.warm, repeat)
                                yield dict(zip(KEY, values, strict=True))


def run(python: str, asked: dict[str, Any], folder: str) -> dict[str, Any]:
    """One process, in a folder that may be littered (llm-compressor logs there); what it said last where it fails."""
    command = [python, str(Path(__file__).with_name("peer_run.py")), json.dumps(asked)]
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=folder, env={**os.environ, **threads}
    )
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or ["no word"])[-1][:200]}
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def quality(output: Path, source: Path) -> dict[str, Any]:
    """How much more loss there is than in the 16-bit model, over runs of tokens, and the divergence from it."""
    import torch

    from memplan.quantize.evaluation import DEFAULT_WINDOW_TOKENS
    from memplan.quantize.formats.reading import layout_of
    from memplan.quantize.forward import WholeModel
    from memplan.quantize.perplexity import score
    from memplan.quantize.text_sets import read_set
    from memplan.quantize.windows import load_tokenizer, scoring_windows
    from memplan.quantize.written import written_model

    torch.set_num_threads(1)
    texts = read_set("builtin", "validate", offline=True)
    windows = scoring_windows(texts, load_tokenizer(source), window_tokens=DEFAULT_WINDOW_TOKENS)
    config = json.loads((output / "config.json").read_text(encoding="utf-8"))["quantization_config"]
    found = layout_of(config)
    assert found is not None, config
    scores = list(score(written_model(output, *found), windows, base=WholeModel(source)))
    rises = [each.loss_S - each.base_loss_S for each in scores if each.base_loss_S is not None]
    runs = [float(part.sum()) for rise_S in rises for part in rise_S.split(_RUN_TOKENS)]
    divergence = sum(float(each.divergence_S.sum()) for each in scores if each.divergence_S is not None)
    tokens = sum(len(rise_S) for rise_S in rises)
    return {
        "tokens": tokens,
        "divergence": round(divergence / tokens, 6),
        "more_loss": [round(value, 3) for value in runs],
    }


def source_of(model: str, folder: Path) -> Path:
    """The folder of a model, which is made where it is not there yet."""
    from memplan.introspect.resolve import weights_folder

    demo = weights_folder("demo")
    assert demo is not None
    if model == "demo":
        return demo.absolute()
    made = folder / model
    if not made.exists():
        if model == "outliers":
            from outliers import plant

            plant(demo, made)
        else:
            from memory import make_model

            make_model(made, Namespace(**_LARGE))
            for name in ("tokenizer.json", "tokenizer_config.json"):
                shutil.copyfile(demo / name, made / name)
    return made.absolute()


def known(path: Path) -> list[dict[str, Any]]:
    """The runs that are finished."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]


def main() -> None:
    """Do what is missing, then print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", action="append", default=[], metavar="NAME=PATH")
    parser.add_argument("--models", default="demo,outliers")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--libraries", default="native,gptqmodel,llmcompressor,autoawq")
    parser.add_argument("--bits", default="4,3")
    parser.add_argument("--group-size", default="128,32")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--num-samples", type=int, default=64)
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--warm", action="store_true", help="a first quantization in the same process is not measured")
    parser.add_argument("--no-quality", action="store_true")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--models-folder", type=Path, help="where models are made, and kept")
    parser.add_argument("--table", action="store_true", help="only print what is known")
    given = parser.parse_args()
    if not given.table:
        with tempfile.TemporaryDirectory() as folder:
            work(given, folder)
    from peer_tables import tables

    print(tables(known(given.results)))


def work(given: Namespace, folder: str) -> None:
    """Do all runs that are not known yet."""
    pythons = {"native": sys.executable, **dict(each.split("=", 1) for each in given.python)}
    pythons = {name: os.path.abspath(shutil.which(path) or path) for name, path in pythons.items()}
    finished = {tuple(row[name] for name in KEY) for row in known(given.results) if "error" not in row}
    for case in cases(given):
        if tuple(case[name] for name in KEY) in finished or case["library"] not in pythons:
            continue
        source = source_of(case["model"], given.models_folder or Path(folder))
        output = Path(folder) / "output"
        shutil.rmtree(output, ignore_errors=True)
        row = case | run(pythons[case["library"]], case | {"source": str(source), "output": str(output)}, folder)
        if "error" not in row and not given.no_quality:
            row |= quality(output, source)
        print({key: value for key, value in row.items() if key != "more_loss"}, file=sys.stderr, flush=True)
        with given.results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
