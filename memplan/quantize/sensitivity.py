"""How much each unit of layers suffers at each width, measured once: a block's output with that unit alone rounded.

The damage of a unit is the squared error of its block's output over the output's own square, on average over tokens.
Rounding to nearest stands for every method: they all lower it by about the same factor. Of the figures that were tried
on the demo model, this one follows the divergence of the whole model's predictions best; the error of a layer's own
output does not follow it at all (benchmarks/quantize/sensitivity.py, docs/quantize.md).

Axes: B windows of a batch, N tokens of a window, H hidden features, O out features, I in features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from memplan.quantize.anatomy import inspect_block
from memplan.quantize.calls import Call, Surroundings
from memplan.quantize.grid import Grid, round_to_nearest
from memplan.quantize.linears import set_weight, weight_of
from memplan.quantize.mix import WINDOWS_AT_ONCE, Unit
from memplan.quantize.skeleton import Skeleton
from memplan.quantize.width import Width
from memplan.records import dataclass

Progress = Callable[[int, int, str], None]


@torch.no_grad()
def measure_units(
    skeleton: Skeleton,
    token_BN: Tensor,
    widths: Sequence[Width],
    *,
    kept: Callable[[str], bool],
    progress: Progress = lambda index, total, text: None,
) -> tuple[Unit, ...]:
    """Return the units of a model with the damage of every width, over some windows, one block in memory at a time.

    Blocks are run in float32, two windows at once: eight bits do less harm than rounding in 16 bit does.
    """
    before, skeleton.dtype = skeleton.dtype, torch.float32
    try:
        skeleton.load_outside_blocks()
        surroundings = Surroundings(skeleton)
        found = [surroundings.calls(part_BN) for part_BN in token_BN.split(WINDOWS_AT_ONCE)]
        hidden, calls = [hidden_BNH for hidden_BNH, _ in found], [each for _, each in found]
        skeleton.drop("")
        units: list[Unit] = []
        for index, name in enumerate(skeleton.blocks):
            progress(index, len(skeleton.blocks), name)
            block = skeleton.load(name)
            here = [each[index] for each in calls]
            outputs = [call.run(block, part_BNH) for call, part_BNH in zip(here, hidden, strict=True)]
            units += _units(name, block, _Batches(here, hidden, outputs), widths, kept)
            hidden = outputs
            skeleton.drop(name)
        return tuple(units)
    finally:
        skeleton.dtype = before


@dataclass(frozen=True, slots=True)
class _Batches:
    """What a block is given, and what it makes of it while nothing is rounded."""

    calls: list[Call]
    inputs: list[Tensor]
    outputs: list[Tensor]

    def damage(self, block: nn.Module) -> float:
        """The squared error of the block's output over its own square, on average over tokens."""
        total, tokens = 0.0, 0
        for call, input_BNH, output_BNH in zip(self.calls, self.inputs, self.outputs, strict=True):
            error_BNH = call.run(block, input_BNH) - output_BNH
            part_BN = error_BNH.square().sum(-1) / output_BNH.square().sum(-1).clamp_(min=1e-12)
            total, tokens = total + float(part_BN.sum()), tokens + part_BN.numel()
        return total / tokens


def _units(
    name: str, block: nn.Module, batches: _Batches, widths: Sequence[Width], kept: Callable[[str], bool]
) -> list[Unit]:
    call, input_BNH = batches.calls[0], batches.inputs[0]
    anatomy = inspect_block(block, lambda trial: call.run(trial, input_BNH), head_dim=0, sites=False)
    experts = [[layer for expert in range(pool.num_experts) for layer in pool.layers(expert)] for pool in anatomy.pools]
    found = []
    for layers in [*anatomy.subsets, *experts, *((layer,) for layer in anatomy.unreached)]:
        rounded = [layer for layer in layers if not kept(f"{name}.{layer}")]
        if not rounded:
            continue
        weights_OI = [weight_of(block.get_submodule(layer)) for layer in rounded]
        shapes = tuple((weight_OI.shape[0], weight_OI.shape[1]) for weight_OI in weights_OI)
        damage = {
            width: _damage(block, rounded, width, batches)
            for width in widths
            if all(width.divides(num_in) for _, num_in in shapes)
        }
        found.append(Unit(modules=tuple(f"{name}.{layer}" for layer in rounded), shapes=shapes, damage=damage))
    return found


def _damage(block: nn.Module, layers: Sequence[str], width: Width, batches: _Batches) -> float:
    if width.is_plain:
        return 0.0
    grid = Grid(bits=width.bits, group_size=width.group_size, symmetric=True)
    modules = [block.get_submodule(layer) for layer in layers]
    before = [weight_of(module).clone() for module in modules]
    for module, weight_OI in zip(modules, before, strict=True):
        set_weight(module, round_to_nearest(weight_OI, grid).dequantize())
    damage = batches.damage(block)
    for module, weight_OI in zip(modules, before, strict=True):
        set_weight(module, weight_OI)
    return damage
