"""Which figure of a unit of layers says what rounding it does to the whole model: what `--method auto` decides by.

    python benchmarks/quantize/sensitivity.py [MODEL]

Every unit (layers that read one input) of MODEL (a folder of a Llama, default `demo`) is rounded to nearest alone, at
3, 4 and 8 bits. The truth is the divergence of the model's predictions on text to validate on. Printed is how well
candidates that need no run of the rest of the model rank the units: Spearman's correlation with the truth within each
width and over all; and how far the damages of single units add up to that of all of them rounded together.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import transformers
from torch import Tensor

from memplan.introspect.resolve import weights_folder
from memplan.quantize.awq import output_error
from memplan.quantize.grid import Grid, round_to_nearest
from memplan.quantize.linears import set_weight, weight_of
from memplan.quantize.text_sets import read_set
from memplan.quantize.windows import calibration_windows, load_tokenizer

WINDOWS, TOKENS, GROUP = 16, 256, 128
UNITS = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
)
CANDIDATES = (
    "error of the layers' outputs",
    "the same over their square",
    "error of the block's output",
    "the same over its square, by token",
)


@torch.no_grad()
def main() -> int:
    """Measure, print the table."""
    folder = weights_folder(sys.argv[1] if len(sys.argv) > 1 else "demo", revision=None)
    assert folder is not None
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    calibrate, validate = (windows(folder, part) for part in ("calibrate", "validate"))
    base = model(validate).logits.log_softmax(-1)
    calls = noted(model, calibrate)
    print("| bits | " + " | ".join(CANDIDATES) + " | sum of the units' divergences over that of all together |")
    print("|---|" + "---:|" * (len(CANDIDATES) + 1))
    rows: dict[int, list[list[float]]] = {}
    for bits in (3, 4, 8):
        rows[bits] = []
        for index, layer in enumerate(model.model.layers):
            for unit in UNITS:
                figures = candidates(layer, unit, bits, *calls[index])
                kept = rounded(layer, unit, bits)
                truth = divergence(base, model(validate).logits)
                restored(layer, unit, kept)
                rows[bits].append([truth, *figures])
        for layer in model.model.layers:
            rounded(layer, [name for unit in UNITS for name in unit], bits)
        together = divergence(base, model(validate).logits)
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        line(str(bits), rows[bits], sum(row[0] for row in rows[bits]) / together)
    line("all", [row for found in rows.values() for row in found], None)
    return 0


def line(name: str, rows: list[list[float]], additive: float | None) -> None:
    """Print one line of the table."""
    truth = torch.tensor([row[0] for row in rows])
    found = [spearman(truth, torch.tensor([row[place + 1] for row in rows])) for place in range(len(CANDIDATES))]
    print(
        f"| {name} | "
        + " | ".join(f"{value:.2f}" for value in found)
        + f" | {'' if additive is None else f'{additive:.2f}'} |"
    )


def windows(folder: Path, part: str) -> Tensor:
    """Some windows of the built-in texts."""
    texts = read_set("builtin", part, seed=0, offline=True)  # type: ignore[arg-type]
    return calibration_windows(texts, load_tokenizer(folder), window_tokens=TOKENS, num_windows=WINDOWS)


def noted(model: torch.nn.Module, tokens: Tensor) -> list[tuple[tuple[object, ...], dict[str, object]]]:
    """What every block is given."""
    found: list[tuple[tuple[object, ...], dict[str, object]]] = []
    hooks = [
        layer.register_forward_pre_hook(lambda _, args, kwargs: found.append((args, kwargs)), with_kwargs=True)
        for layer in model.model.layers
    ]
    model(tokens, use_cache=False)
    for hook in hooks:
        hook.remove()
    return found


def candidates(
    layer: torch.nn.Module, unit: tuple[str, ...], bits: int, args: tuple[object, ...], kwargs: dict[str, object]
) -> list[float]:
    """The figures of CANDIDATES for one unit."""
    inputs: list[Tensor] = []
    hook = layer.get_submodule(unit[0]).register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    want = output_of(layer, args, kwargs)
    hook.remove()
    input_TI = inputs[0].flatten(0, -2)
    hessian_II = input_TI.t() @ input_TI / input_TI.shape[0]
    error = square = 0.0
    for name in unit:
        weight_OI = weight_of(layer.get_submodule(name))
        error += output_error(on_grid(weight_OI, bits) - weight_OI, hessian_II)
        square += output_error(weight_OI, hessian_II)
    kept = rounded(layer, unit, bits)
    wrong = (output_of(layer, args, kwargs) - want).square().sum(-1)
    restored(layer, unit, kept)
    return [error, error / square, float(wrong.mean()), float((wrong / want.square().sum(-1)).mean())]


def output_of(layer: torch.nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> Tensor:
    """A block's output."""
    output = layer(*args, **kwargs)
    return output[0] if isinstance(output, tuple) else output


def on_grid(weight_OI: Tensor, bits: int) -> Tensor:
    """Weights rounded to nearest."""
    size = GROUP if weight_OI.shape[1] % GROUP == 0 else 32
    return round_to_nearest(weight_OI, Grid(bits=bits, group_size=size)).dequantize()


def rounded(layer: torch.nn.Module, names: tuple[str, ...] | list[str], bits: int) -> list[Tensor]:
    """Round some layers, and return their weights as they were."""
    kept = []
    for name in names:
        module = layer.get_submodule(name)
        kept.append(weight_of(module).clone())
        set_weight(module, on_grid(kept[-1], bits))
    return kept


def restored(layer: torch.nn.Module, names: tuple[str, ...], kept: list[Tensor]) -> None:
    """Put weights back."""
    for name, weight_OI in zip(names, kept, strict=True):
        set_weight(layer.get_submodule(name), weight_OI)


def divergence(base: Tensor, logits: Tensor) -> float:
    """The mean divergence of predictions from their base's, in nats."""
    return float((base.exp() * (base - logits.log_softmax(-1))).sum(-1).mean())


def spearman(first: Tensor, second: Tensor) -> float:
    """The correlation of ranks."""
    ranks = torch.stack([each.argsort().argsort().float() for each in (first, second)])
    return float(torch.corrcoef(ranks)[0, 1])


if __name__ == "__main__":
    sys.exit(main())
