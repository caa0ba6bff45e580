"""What rounding to the nearest does to the demo model: perplexity by domain at 16, 8, 4 and 3 bits, groups of 128.

python benchmarks/demo_model/rounding.py [FOLDER]      # memplan/catalog/demo when none is named
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from memplan.domain.quality import DomainQuality
from memplan.quantize.forward import WholeModel
from memplan.quantize.grid import Grid, round_to_nearest
from memplan.quantize.linears import linears, set_weight, weight_of
from memplan.quantize.perplexity import measure
from memplan.quantize.text_sets import read_set
from memplan.quantize.windows import load_tokenizer, scoring_windows

DEMO = Path(__file__).resolve().parents[2] / "memplan" / "catalog" / "demo"
GROUP = 128


def rounded(folder: Path, bits: int) -> WholeModel:
    """The model with every linear layer of its blocks on a grid."""
    model = WholeModel(folder)
    for _, layer in linears(model.model.model.layers):
        on_grid = round_to_nearest(weight_of(layer), Grid(bits=bits, group_size=GROUP, symmetric=False))
        set_weight(layer, on_grid.dequantize())
    return model


def main() -> None:
    """Print the table."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else DEMO
    torch.set_num_threads(1)
    windows = scoring_windows(read_set("builtin", "validate"), load_tokenizer(folder), window_tokens=2048)
    base = WholeModel(folder)
    columns: dict[int, tuple[DomainQuality, ...]] = {}
    for bits in (8, 4, 3):
        domains, overall = measure(rounded(folder, bits), windows, base=base)
        columns[bits] = (*domains, overall)
    print("| domain | tokens | 16 bits | 8 bits | 4 bits | 3 bits |\n|---|---|---|---|---|---|")
    for number, row in enumerate(columns[8]):
        assert row.difference is not None
        cells = [row.domain, f"{row.tokens:,}", f"{row.difference.base_perplexity:.2f}"]
        for found in columns.values():
            rise = found[number].difference
            assert rise is not None
            error = rise.perplexity_increase_standard_error
            cells.append(f"{found[number].perplexity:.2f} ({rise.perplexity_increase:+.2%} ± {error:.2%})")
        print("|", " | ".join(cells), "|")


if __name__ == "__main__":
    main()
