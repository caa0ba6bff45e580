"""One decoder block, quantized: scalings moved where they help, then layer after layer rounded.

Axes: B windows of a batch, N tokens of a window, H hidden features, O out features, I in features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from memplan.quantize.anatomy import Anatomy, Site, move_scaling
from memplan.quantize.awq import Scaling, awq, output_error, search_scaling
from memplan.quantize.calls import Call
from memplan.quantize.elements import LARGEST
from memplan.quantize.gptq import GptqSettings, gptq
from memplan.quantize.grid import Grid, Quantized, round_to_nearest
from memplan.quantize.linears import set_weight, weight_of
from memplan.quantize.methods import Method
from memplan.quantize.smooth import search_smoothing
from memplan.quantize.statistics import Statistics, collect
from memplan.records import dataclass, field, replace

Batches = Sequence[tuple[Tensor, Call]]
_ROWS = 256  # of a layer, that stand for all where only a figure for the report is wanted


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockRecipe:
    """What to do to every block. `keeps` says, by name in the block, which linear layers stay as they are.

    `true_sequential` measures the inputs of a layer with the layers before it already rounded.
    """

    method: Method
    grid: Grid
    gptq: GptqSettings
    keeps: Callable[[str], bool]
    true_sequential: bool = True


@dataclass(slots=True)
class BlockResult:
    """What became of a block: its layers on the grid, which of its other tensors changed, and the errors.

    `error` is a layer's mean squared output error over the calibration tokens, `signal` its mean squared output: the
    ratio says how much noise was added. `scaled` has the sites where a scaling was moved.
    """

    layers: dict[str, Quantized] = field(default_factory=dict)
    changed: list[str] = field(default_factory=list)
    error: dict[str, float] = field(default_factory=dict)
    signal: dict[str, float] = field(default_factory=dict)
    rounding_error: dict[str, float] = field(default_factory=dict)
    scaled: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@torch.no_grad()
def quantize_block(block: nn.Module, anatomy: Anatomy, batches: Batches, recipe: BlockRecipe) -> BlockResult:
    """Quantize the linear layers of a block, which afterwards holds the weights that a reader of the file computes.

    Raises: BrokenNumbers for activations that are not finite.
    """
    result = BlockResult()
    worked = [subset for subset in anatomy.subsets if any(not recipe.keeps(name) for name in subset)]
    one_by_one = recipe.method.rounding == "gptq" and recipe.true_sequential
    known: dict[str, Statistics] = {}
    if recipe.method.scaling != "none" or (recipe.method.needs_calibration and not one_by_one):
        known = _statistics(block, worked, batches, recipe)
    if recipe.method.scaling != "none":
        for site in anatomy.sites:
            _scale(block, site, anatomy, known, recipe, result)
    for index, subset in enumerate(worked):
        if one_by_one and (index or subset[0] not in known):
            known.pop(subset[0], None)
            known.update(_statistics(block, [subset], batches, recipe))
        _round_subset(block, subset, known.pop(subset[0], None), recipe, result)
    if anatomy.unreached and recipe.method.needs_calibration:
        result.notes.append(f"never reached by a token, rounded to nearest: {', '.join(anatomy.unreached)}")
    for name in anatomy.unreached:
        if not recipe.keeps(name):
            _round(block, name, None, recipe, result)
    return result


def run_block(block: nn.Module, batches: Batches) -> Iterator[Tensor]:
    """Yield the output of a block (B x N x H) for every batch."""
    for input_BNH, call in batches:
        with torch.no_grad():
            yield call.run(block, input_BNH)


def _statistics(
    block: nn.Module, subsets: Sequence[Sequence[str]], batches: Batches, recipe: BlockRecipe
) -> dict[str, Statistics]:
    """The statistics of the inputs of some subsets, by their first layer."""
    names = [subset[0] for subset in subsets]
    sizes = [weight_of(block.get_submodule(name)).shape[1] for name in names]
    device = weight_of(block.get_submodule(names[0])).device
    runs = (_run(block, input_BNH, call) for input_BNH, call in batches)
    with_hessian = recipe.method.rounding != "nearest" or recipe.method.scaling == "awq"
    return collect(block, names, sizes, runs, device=device, num_runs=len(batches), with_hessian=with_hessian)


def _run(block: nn.Module, input_BNH: Tensor, call: Call) -> Callable[[], Tensor]:
    return lambda: call.run(block, input_BNH)


def _scale(
    block: nn.Module,
    site: Site,
    anatomy: Anatomy,
    known: dict[str, Statistics],
    recipe: BlockRecipe,
    result: BlockResult,
) -> None:
    """Search the scaling of one site, and move it where it lowers the error."""
    first = next(subset[0] for subset in anatomy.subsets if site.consumers[0] in subset)
    rounded = [name for name in site.consumers if not recipe.keeps(name)]
    if first not in known or not rounded:
        return
    statistics = known[first]
    weights_OI = [weight_of(block.get_submodule(name)) for name in rounded]
    found = _search(weights_OI, statistics, site, recipe)
    if found.loss >= found.plain_loss:
        return
    used_I = move_scaling(block, site, site.fold(found.scale_I, lambda value, dim: value.mean(dim)))
    statistics.scale_inputs(used_I)
    result.scaled.append(f"{site.producer} -> {', '.join(site.consumers)}")
    kept = [name for name in site.consumers if recipe.keeps(name)]
    result.changed += [name for name in (site.producer, *kept) if name not in result.changed]


def _search(weights_OI: list[Tensor], statistics: Statistics, site: Site, recipe: BlockRecipe) -> Scaling:
    def shared(value_I: Tensor) -> Tensor:
        """The same value for all in features that one entry of the producer feeds."""
        return site.spread(site.fold(value_I, lambda value, dim: value.mean(dim)))

    if recipe.method.scaling == "smooth":
        return search_smoothing(weights_OI, shared(statistics.largest_I), statistics.sample_NI, recipe.grid)
    assert statistics.hessian_II is not None
    return search_scaling(weights_OI, statistics.hessian_II, shared(statistics.magnitude_I), recipe.grid, shared=shared)


def _round_subset(
    block: nn.Module, subset: Sequence[str], statistics: Statistics | None, recipe: BlockRecipe, result: BlockResult
) -> None:
    rounded = [name for name in subset if not recipe.keeps(name)]
    # Engines fuse layers that read one tensor: scales that hang on the largest weight are found for them together.
    grid = recipe.grid.reaching(*(weight_of(block.get_submodule(name)) for name in rounded))
    recipe = replace(recipe, grid=grid)
    for name in rounded:
        _round(block, name, statistics, recipe, result, is_last=name == rounded[-1])


def _round(
    block: nn.Module,
    name: str,
    statistics: Statistics | None,
    recipe: BlockRecipe,
    result: BlockResult,
    *,
    is_last: bool = True,
) -> None:
    """Round one layer, put the rounded weights into the block, and note what it cost.

    The statistics of a subset are used up by the last of its layers.
    """
    module = block.get_submodule(name)
    weight_OI = weight_of(module)
    if statistics is None or statistics.hessian_II is None:
        found = round_to_nearest(weight_OI, recipe.grid)
    else:
        result.signal[name], result.rounding_error[name] = _plain_errors(weight_OI, statistics.hessian_II, recipe.grid)
        if recipe.method.rounding == "gptq":
            found = gptq(weight_OI, statistics.take_hessian(keep=not is_last), recipe.grid, recipe.gptq)
        else:
            found = awq(weight_OI, statistics.hessian_II, recipe.grid)
        result.error[name] = found.loss
    if found.fallback:
        result.notes.append(f"{name}: rounded to nearest, because {found.fallback}")
    if recipe.method.activations == "tensor":
        found = replace(found, input_scale=_input_scale(statistics, recipe.grid))
    set_weight(module, found.dequantize())
    result.layers[name] = found


def _input_scale(statistics: Statistics | None, grid: Grid) -> float:
    """The scale under which the largest input seen is the largest float, as it is stored; 1 where none was seen."""
    largest = float(statistics.largest_I.max()) if statistics is not None else 0.0
    return float(torch.tensor(largest / LARGEST[grid.element]).to(grid.scale_dtype)) or 1.0


def _plain_errors(weight_OI: Tensor, hessian_II: Tensor, grid: Grid) -> tuple[float, float]:
    """The mean squared output of a layer, and what rounding to nearest adds to it, from some of its rows."""
    rows_RI = weight_OI[:: max(1, -(-weight_OI.shape[0] // _ROWS))].to(torch.float32)
    rounded_RI = round_to_nearest(rows_RI, replace(grid, searches_range=False)).dequantize()
    part = weight_OI.shape[0] / rows_RI.shape[0]
    return part * output_error(rows_RI, hessian_II), part * output_error(rounded_RI - rows_RI, hessian_II)
