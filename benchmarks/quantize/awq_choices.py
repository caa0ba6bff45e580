"""What each choice in our AWQ is worth: the divergence from the 16-bit model with another choice beside it as it is.

    python benchmarks/quantize/awq_choices.py [--only CHOICE,CHOICE] [--results FILE] [--models-folder FOLDER]
    python benchmarks/quantize/awq_choices.py --table

Calibrated on 64 windows of 256 tokens of the built-in text to calibrate on, and judged on the 96 windows after them,
which nothing is calibrated on: the text to validate on is not looked at, so that nothing is chosen by it. Settings are
`demo` with two seeds, in groups of 128 and 32, and at 3 bits, and `outliers` (outliers.py) with two seeds. A run is a
line of FILE; the same command goes on with those that are missing. One thread computes.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from peer_run import run_native
from peers import source_of

RESULTS = Path(__file__).resolve().parent.parent / "results" / "quantize_awq_choices.jsonl"
AS_IT_IS = "as it is"
# What is changed for a choice: a name in a module of memplan.quantize, and its other value.
CHOICES: dict[str, tuple[tuple[str, str, Any], ...]] = {
    AS_IT_IS: (),
    "512 rows of a layer rank the candidates, for 128": (("awq", "_SEARCHED_ROWS", 512),),
    "64 rows": (("awq", "_SEARCHED_ROWS", 64),),
    "exponents in steps of 1/40, for 1/20": (("awq", "_STEPS", 40),),
    "16 ranges to clip to, for 31": (("grid", "_NUM_RANGES", 16),),
    "ranges left whole": (("grid", "_NUM_RANGES", 1), ("grid", "_REFITS", 0)),
    "scales and zero points not fitted to the codes": (("grid", "_REFITS", 0),),
    "no scaling": (("awq", "_STEPS", 0),),
}
SETTINGS = (
    *(("demo", seed, 4, 128) for seed in (0, 1)),
    *(("outliers", seed, 4, 128) for seed in (0, 1)),
    ("demo", 0, 4, 32),
    ("demo", 0, 3, 128),
)
_WINDOW, _CALIBRATED, _JUDGED = 256, 64, 96


def main() -> None:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="choices, with commas between them, by the words before their first comma")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--models-folder", type=Path, help="where the model with outliers is made, and kept")
    parser.add_argument("--table", action="store_true", help="only print what is known")
    given = parser.parse_args()
    if not given.table:
        import torch

        torch.set_num_threads(1)
        with tempfile.TemporaryDirectory() as folder:
            work(given, Path(folder))
    print(table(known(given.results)))


def work(given: argparse.Namespace, folder: Path) -> None:
    """Do all runs that are not known yet."""
    finished = {(row["choice"], tuple(row["setting"])) for row in known(given.results)}
    for setting in SETTINGS:
        source = source_of(setting[0], given.models_folder or folder)
        for choice in CHOICES:
            wanted = not given.only or choice.partition(",")[0] in given.only.split(",")
            if wanted and (choice, setting) not in finished:
                row = {"choice": choice, "setting": setting, **one(source, setting, choice, folder / "output")}
                print(row, file=sys.stderr, flush=True)
                with given.results.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")


def one(source: Path, setting: tuple[str, int, int, int], choice: str, output: Path) -> dict[str, float]:
    """Quantize with a choice; how far the result is from its base, and by how much more it loses, by token."""
    import torch

    from memplan.quantize.formats.reading import layout_of
    from memplan.quantize.forward import WholeModel
    from memplan.quantize.perplexity import score
    from memplan.quantize.request import quantize_request
    from memplan.quantize.windows import Windows
    from memplan.quantize.written import written_model

    _, seed, bits, group = setting
    token_NT = tokens(source, seed)
    request = quantize_request(
        "awq", bits=bits, group_size=group, num_samples=_CALIBRATED, window_tokens=_WINDOW, seed=seed
    )
    with chosen(choice):
        run_native(request, source, token_NT[:_CALIBRATED], output)
    judged_NT = token_NT[_CALIBRATED:]
    windows = Windows(
        token_NT=judged_NT,
        first_N=(1,) * len(judged_NT),
        end_N=(_WINDOW,) * len(judged_NT),
        domain_N=("all",) * len(judged_NT),
        text_bytes={"all": 1},
    )
    found = layout_of(json.loads((output / "config.json").read_text(encoding="utf-8"))["quantization_config"])
    assert found is not None
    scores = list(score(written_model(output, *found), windows, base=WholeModel(source)))
    shutil.rmtree(output)
    divergence_S = torch.cat([each.divergence_S for each in scores if each.divergence_S is not None])
    more_S = torch.cat([each.loss_S - each.base_loss_S for each in scores if each.base_loss_S is not None])
    return {"divergence": float(divergence_S.mean()), "more_loss": float(more_S.mean())}


@cache
def tokens(source: Path, seed: int) -> Any:
    """The windows to calibrate on, and after them those to judge on (N x T)."""
    from memplan.quantize.text_sets import read_set
    from memplan.quantize.windows import calibration_windows, load_tokenizer

    texts = read_set("builtin", "calibrate", seed=seed, offline=True)
    return calibration_windows(texts, load_tokenizer(source), window_tokens=_WINDOW, num_windows=_CALIBRATED + _JUDGED)


@contextmanager
def chosen(choice: str) -> Iterator[None]:
    """AWQ with another choice."""
    changes = [(import_module(f"memplan.quantize.{module}"), name, value) for module, name, value in CHOICES[choice]]
    before = [getattr(module, name) for module, name, _ in changes]
    for module, name, value in changes:
        setattr(module, name, value)
    try:
        yield
    finally:
        for (module, name, _), value in zip(changes, before, strict=True):
            setattr(module, name, value)


def table(rows: list[dict[str, Any]]) -> str:
    """The change of the divergence and of the perplexity's rise by choice, over settings, with standard errors."""
    by_choice: dict[str, dict[tuple[Any, ...], dict[str, Any]]] = {}
    for row in rows:
        by_choice.setdefault(row["choice"], {})[tuple(row["setting"])] = row
    base = by_choice.get(AS_IT_IS, {})
    lines = ["| otherwise | divergence | perplexity | runs |", "|---|---:|---:|---:|"]
    for choice, found in by_choice.items():
        both = [setting for setting in found if setting in base]
        if choice == AS_IT_IS or len(both) < 2:
            continue
        relative = [100 * (found[each]["divergence"] / base[each]["divergence"] - 1) for each in both]
        rises = [100 * (found[each]["more_loss"] - base[each]["more_loss"]) for each in both]
        lines.append(f"| {choice} | {_figure(relative, 1)} | {_figure(rises, 2)} | {len(both)} |")
    return "\n".join(lines)


def _figure(values: list[float], digits: int) -> str:
    return f"{mean(values):+.{digits}f} ± {stdev(values) / len(values) ** 0.5:.{digits}f} %"


def known(path: Path) -> list[dict[str, Any]]:
    """The runs that are finished."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]


if __name__ == "__main__":
    main()
