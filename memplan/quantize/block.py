"""One decoder block, quantized: scalings moved where they help, then layer after layer rounded.

Axes: B windows of a batch, N tokens of a window, H hidden features, O out features, I in features.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from memplan.quantize.anatomy import Anatomy, Pool, Site, move_scaling
from memplan.quantize.awq import Scaling, awq, output_error, search_scaling
from memplan.quantize.elements import LARGEST
from memplan.quantize.experts import Expert, SplitExperts
from memplan.quantize.gptq import GptqSettings, gptq_together, rounded_at_once
from memplan.quantize.grid import Grid, Quantized, Scales, round_to_nearest
from memplan.quantize.linears import is_linear, set_weight, weight_of
from memplan.quantize.methods import Method
from memplan.quantize.passes import Passes
from memplan.quantize.pool_statistics import ExpertTokens, collect_pool
from memplan.quantize.ranks import ALONE, Ranks
from memplan.quantize.request import POOL_BYTES
from memplan.quantize.rows import evenly_spaced
from memplan.quantize.smooth import search_smoothing
from memplan.quantize.statistics import SAMPLE_TOKENS, Statistics, collect
from memplan.records import dataclass, field, replace

_ROWS = 256  # of a layer, that stand for all where only a figure for the report is wanted
_MANY = 16  # layers that read one input; only experts are more
_SEARCHED_ROWS = 8192  # of many layers together, that rank the candidates of a scaling
_FIGURES = ("error", "signal", "rounding_error", "outlier")
_NUMBER = re.compile(r"\.\d+\.")


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockRecipe:
    """What to do to every block. `keeps` says, by name in the block, which linear layers stay as they are.

    `true_sequential` measures the inputs of a layer with the layers before it already rounded. Experts are measured in
    groups whose Hessians (or samples) take `pool_bytes` at most, or one by one; an expert with fewer than
    `min_expert_tokens` (in features of its first layer where None) is shown other tokens as well.
    """

    method: Method
    grid: Grid
    gptq: GptqSettings
    keeps: Callable[[str], bool]
    true_sequential: bool = True
    pool_bytes: int = POOL_BYTES
    min_expert_tokens: int | None = None
    grid_of: Callable[[str], Grid] | None = None
    ranks: Ranks = ALONE
    tell: Callable[[str], None] = lambda name: None

    def of(self, name: str) -> BlockRecipe:
        """The recipe of one layer, and of those that are fused with it, where layers have grids of their own."""
        return replace(self, grid=self.grid_of(name)) if self.grid_of else self

    @property
    def with_hessian(self) -> bool:
        """Whether statistics must have a Hessian."""
        return self.method.rounding != "nearest" or self.method.scaling == "awq"

    @property
    def with_sample(self) -> bool:
        """Whether statistics must have some of the tokens themselves."""
        return self.method.scaling == "smooth"

    @property
    def one_by_one(self) -> bool:
        """Whether the inputs of a layer are measured when those before it are rounded."""
        return self.method.rounding == "gptq" and self.true_sequential


@dataclass(slots=True)
class BlockResult:
    """What became of a block: its layers on the grid, which of its other tensors changed, and the errors.

    `error` is a layer's mean squared output error over the calibration tokens, `signal` its mean squared output: the
    ratio says how much noise was added. `outlier` is the largest input over the mean size of one. `scaled` has the
    sites where a scaling was moved. `experts` says of every pool how many experts it has, how many of them had fewer
    tokens than wanted, and how many none. `owners` says which of several processes rounds a layer.
    """

    layers: dict[str, Quantized] = field(default_factory=dict)
    changed: list[str] = field(default_factory=list)
    error: dict[str, float] = field(default_factory=dict)
    signal: dict[str, float] = field(default_factory=dict)
    rounding_error: dict[str, float] = field(default_factory=dict)
    outlier: dict[str, float] = field(default_factory=dict)
    scaled: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    experts: dict[str, dict[str, int]] = field(default_factory=dict)
    owners: dict[str, int] = field(default_factory=dict)


@torch.no_grad()
def quantize_block(passes: Passes, anatomy: Anatomy, recipe: BlockRecipe) -> BlockResult:
    """Quantize the linear layers of a block, which afterwards holds the weights that a reader of the file computes.

    Raises: BrokenNumbers for activations that are not finite.
    """
    block, result = passes.block, BlockResult()
    worked = [subset for subset in anatomy.subsets if any(not recipe.keeps(name) for name in subset)]
    known: dict[str, Statistics] = {}
    if recipe.method.scaling != "none" or (recipe.method.needs_calibration and not recipe.one_by_one):
        known = _statistics(passes, _read_together(anatomy, worked), recipe)
    if recipe.method.scaling != "none":
        for site in anatomy.sites:
            _scale(block, site, _fed(anatomy, site, known), recipe, result)
    for pool in anatomy.pools:
        known.pop(pool.name, None)
    for index, subset in enumerate(worked):
        _quantize_pools(passes, anatomy, anatomy.subsets.index(subset), recipe, result)
        if recipe.one_by_one and (index or subset[0] not in known):
            known.pop(subset[0], None)
            known.update(_statistics(passes, [subset], recipe, measured=subset[0]))
        _round_subset(block, subset, known.pop(subset[0], None), recipe, result)
        _hand_on(block, subset, recipe, result)
    _quantize_pools(passes, anatomy, len(anatomy.subsets), recipe, result)
    unreached = [name for name in anatomy.unreached if not recipe.keeps(name)]
    if unreached and recipe.method.needs_calibration:
        result.notes.append(f"never reached by a token, rounded to nearest: {', '.join(unreached)}")
    for name in unreached:
        _round(block, [name], None, recipe.of(name), result)
    result.notes = list(dict.fromkeys(result.notes))
    return result


def _read_together(anatomy: Anatomy, worked: Sequence[Sequence[str]]) -> list[Sequence[str]]:
    """The subsets that are worked on, and the pools that some site feeds (their name, and a layer), as they run."""
    found: list[Sequence[str]] = []
    fed = {name for site in anatomy.sites for name in site.consumers}
    pools = [pool for pool in anatomy.pools if fed.intersection(pool.layers(0))]
    for index, subset in enumerate(anatomy.subsets):
        found += [(pool.name, pool.layers(0)[0]) for pool in pools if pool.after == index]
        found += [subset] if subset in worked else []
    return found + [(pool.name, pool.layers(0)[0]) for pool in pools if pool.after == len(anatomy.subsets)]


def _fed(anatomy: Anatomy, site: Site, known: dict[str, Statistics]) -> list[Statistics]:
    """The statistics, of those that are known, of what a site feeds: of experts together first."""
    fed = set(site.consumers)
    readers = [(pool.name, pool.layers(0)) for pool in anatomy.pools]
    readers += [(subset[0], subset) for subset in anatomy.subsets]
    return [known[name] for name, layers in readers if name in known and fed.intersection(layers)]


def _statistics(
    passes: Passes, subsets: Sequence[Sequence[str]], recipe: BlockRecipe, *, measured: str = ""
) -> dict[str, Statistics]:
    """The statistics of the inputs of some subsets or pools, by the first of their names."""
    if not subsets:
        return {}
    block = passes.block
    names = [subset[0] for subset in subsets]
    weights = [weight_of(block.get_submodule(subset[1 if _is_pool(block, subset) else 0])) for subset in subsets]
    with passes.once(measured) as runs:
        return collect(
            block,
            names,
            [weight_OI.shape[1] for weight_OI in weights],
            runs,
            device=weights[0].device,
            num_runs=len(passes.batches),
            with_hessian=recipe.with_hessian,
            with_sample=recipe.with_sample,
            ranks=recipe.ranks,
        )


def _is_pool(block: nn.Module, names: Sequence[str]) -> bool:
    return isinstance(block.get_submodule(names[0]), SplitExperts)


def _scale(block: nn.Module, site: Site, fed: list[Statistics], recipe: BlockRecipe, result: BlockResult) -> None:
    """Search the scaling of one site, by the first statistics of what it feeds, and move it where it helps."""
    linear = [name for name in site.consumers if is_linear(block.get_submodule(name))]
    rounded = [name for name in linear if not recipe.keeps(name)]
    # Experts that stay may stand in one tensor with others: they are not touched.
    stays = any(isinstance(block.get_submodule(name.rpartition(".")[0]), Expert) for name in set(linear) - set(rounded))
    if not fed or not rounded or stays:
        return
    weights_OI = _few_rows([weight_of(block.get_submodule(name)) for name in rounded])
    found = _search(weights_OI, fed[0], site, recipe.of(rounded[0]))
    if found.loss >= found.plain_loss:
        return
    used_I = move_scaling(block, site, site.fold(found.scale_I, lambda value, dim: value.mean(dim)))
    for statistics in fed:
        statistics.scale_inputs(used_I)
    names = dict.fromkeys(_NUMBER.sub(".*.", name) if len(site.consumers) > _MANY else name for name in site.consumers)
    result.scaled.append(f"{site.producer} -> {', '.join(names)}")
    kept = [name for name in site.consumers if name not in rounded]
    result.changed += [name for name in (site.producer, *kept) if name not in result.changed]


def _few_rows(weights_OI: list[Tensor]) -> list[Tensor]:
    """Some rows of each of many matrices, evenly spaced, so that a search looks at no more than of a few."""
    every = -(-sum(weight_OI.shape[0] for weight_OI in weights_OI) // _SEARCHED_ROWS)
    return [weight_OI[::every] for weight_OI in weights_OI] if len(weights_OI) > _MANY else weights_OI


def _search(weights_OI: list[Tensor], statistics: Statistics, site: Site, recipe: BlockRecipe) -> Scaling:
    def shared(value_I: Tensor) -> Tensor:
        """The same value for all in features that one entry of the producer feeds."""
        return site.spread(site.fold(value_I, lambda value, dim: value.mean(dim)))

    if recipe.method.scaling == "smooth":
        return search_smoothing(weights_OI, shared(statistics.largest_I), statistics.sample_NI, recipe.grid)
    assert statistics.hessian_II is not None
    return search_scaling(weights_OI, statistics.hessian_II, shared(statistics.magnitude_I), recipe.grid, shared=shared)


def _quantize_pools(passes: Passes, anatomy: Anatomy, after: int, recipe: BlockRecipe, result: BlockResult) -> None:
    """Quantize the experts that run after so many subsets of a block and have not been quantized."""
    for pool in anatomy.pools:
        if pool.after <= after and pool.name not in result.experts:
            _quantize_pool(passes, pool, recipe, result)


def _quantize_pool(passes: Passes, pool: Pool, recipe: BlockRecipe, result: BlockResult) -> None:
    """Quantize experts, some at a time: scale, round what reads tokens, then what reads that."""
    block = passes.block
    worked = [
        expert for expert in range(pool.num_experts) if any(not recipe.keeps(name) for name in pool.layers(expert))
    ]
    counts = {"experts": pool.num_experts, "with_few_tokens": 0, "without_tokens": 0, "wanted_tokens": 0}
    result.experts[pool.name] = counts
    scales, calibrates = recipe.method.scaling != "none", recipe.method.needs_calibration
    num_in = weight_of(block.get_submodule(pool.layers(0)[0])).shape[1]
    wanted = num_in if recipe.min_expert_tokens is None else recipe.min_expert_tokens
    entry, down = pool.entries[0], "down_proj"

    def measured(group: Sequence[int], of: Sequence[str]) -> tuple[dict[str, Statistics], ExpertTokens]:
        with passes.once() as runs:
            return collect_pool(
                block,
                pool,
                group,
                runs,
                num_runs=len(passes.batches),
                min_tokens=wanted,
                with_hessian=recipe.with_hessian,
                with_sample=recipe.with_sample,
                of=of,
                ranks=recipe.ranks,
            )

    for group in _groups(block, pool, worked, recipe):
        known: dict[str, Statistics] = {}
        if calibrates:
            known, tokens = measured(group, (entry, down) if scales or not recipe.one_by_one else (entry,))
            counts["wanted_tokens"] = wanted
            counts["with_few_tokens"] += sum(num < wanted for num in tokens.own.values())
            counts["without_tokens"] += sum(num == 0 for num in tokens.own.values())
        for expert in group:
            *entries, last = pool.layers(expert)
            site = pool.site_of(expert) if scales else None
            if site is not None and last in known:
                _scale(block, site, [known[last]], recipe, result)
            _round_subset(block, entries, known.pop(entries[0], None), recipe, result, turn=expert)
        _hand_on(block, [name for expert in group for name in pool.layers(expert)[:-1]], recipe, result)
        if recipe.one_by_one:
            known, _ = measured(group, (down,))
        for expert in group:
            last = pool.layers(expert)[-1]
            _round_subset(block, (last,), known.pop(last, None), recipe, result, turn=expert)
        _hand_on(block, [pool.layers(expert)[-1] for expert in group], recipe, result)


def _groups(block: nn.Module, pool: Pool, worked: Sequence[int], recipe: BlockRecipe) -> Iterator[Sequence[int]]:
    """Experts in groups whose Hessians, or samples of tokens, are not more than a recipe allows."""
    sizes = {weight_of(block.get_submodule(name)).shape[1] for name in pool.layers(0)}
    kept_rows = SAMPLE_TOKENS if recipe.with_sample else 1
    each_bytes = sum(size**2 for size in sizes) * 4 if recipe.with_hessian else sum(sizes) * kept_rows * 4
    size = max(1, recipe.pool_bytes // each_bytes)
    yield from (worked[start : start + size] for start in range(0, len(worked), size))


def _round_subset(
    block: nn.Module,
    subset: Sequence[str],
    statistics: Statistics | None,
    recipe: BlockRecipe,
    result: BlockResult,
    *,
    turn: int = 0,
) -> None:
    """Round the layers of a subset that are this process's to round; from `turn` on, processes take turns."""
    rounded = [name for name in subset if not recipe.keeps(name)]
    if not rounded:
        return
    recipe = recipe.of(rounded[0])
    # Engines fuse layers that read one tensor: scales that hang on the largest weight are found for them together.
    grid = recipe.grid.reaching(*(weight_of(block.get_submodule(name)) for name in rounded))
    recipe = replace(recipe, grid=grid)
    for number, places in enumerate(
        rounded_at_once([weight_of(block.get_submodule(name)).shape[0] for name in rounded])
    ):
        result.owners |= {rounded[place]: (turn + number) % recipe.ranks.size for place in places}
    own = [name for name in rounded if result.owners[name] == recipe.ranks.rank]
    if own:
        _round(block, own, statistics, recipe, result)


def _hand_on(block: nn.Module, names: Sequence[str], recipe: BlockRecipe, result: BlockResult) -> None:
    """Hand the layers that each process has rounded to the others."""
    if recipe.ranks.size == 1:
        return
    for name in (name for name in names if name in result.owners):
        module, own = block.get_submodule(name), result.layers.get(name)
        tensors = [] if own is None else [own.code_OI, own.scales.scale_OG, own.scales.zero_OG]
        facts: dict[str, Any] = {"device": weight_of(module).device}
        if own is not None:
            facts |= {"grid": own.grid, "loss": own.loss, "fallback": own.fallback, "input_scale": own.input_scale}
            facts |= {field: getattr(result, field).get(name) for field in _FIGURES}
        (code_OI, scale_OG, zero_OG), facts = recipe.ranks.hand_on(result.owners[name], tensors, facts)
        if own is not None:
            continue
        kept = {key: facts[key] for key in ("grid", "loss", "fallback", "input_scale")}
        found = Quantized(code_OI=code_OI, scales=Scales(scale_OG, zero_OG), **kept)
        set_weight(module, found.dequantize())
        result.layers[name] = found
        for field_name in _FIGURES:
            if facts[field_name] is not None:
                getattr(result, field_name)[name] = facts[field_name]
        if found.fallback:
            result.notes.append(_fell_back(name, found))


def _round(
    block: nn.Module, names: Sequence[str], statistics: Statistics | None, recipe: BlockRecipe, result: BlockResult
) -> None:
    """Round layers that read one input, put the rounded weights into the block, and note what it cost.

    The statistics are used up.
    """
    modules = {name: block.get_submodule(name) for name in names}
    for name, found in zip(names, _rounded(modules, statistics, recipe, result), strict=True):
        if found.fallback:
            result.notes.append(_fell_back(name, found))
        if recipe.method.activations == "tensor":
            found = replace(found, input_scale=_input_scale(statistics, recipe.grid))
        set_weight(modules[name], found.dequantize())
        result.layers[name] = found


def _rounded(
    modules: Mapping[str, nn.Module], statistics: Statistics | None, recipe: BlockRecipe, result: BlockResult
) -> Iterator[Quantized]:
    """Yield the layers on their grid, and note what their outputs lost."""
    if statistics is not None and statistics.num_tokens:
        outlier = float(statistics.largest_I.max() / statistics.magnitude_I.mean().clamp(min=1e-30))
        result.outlier |= dict.fromkeys(modules, outlier)
    if statistics is None or statistics.hessian_II is None or not statistics.num_tokens:
        for name, module in modules.items():
            recipe.tell(name)
            yield round_to_nearest(weight_of(module), recipe.grid)
        return
    hessian_II = statistics.hessian_II
    for name, module in modules.items():
        errors = _plain_errors(weight_of(module), hessian_II, recipe.grid)
        result.signal[name], result.rounding_error[name] = errors
    together: Iterator[Quantized] | None = None
    if recipe.method.rounding == "gptq":
        statistics.hessian_II = None
        weights_OI = [weight_of(module) for module in modules.values()]
        together = iter(gptq_together(weights_OI, hessian_II, recipe.grid, recipe.gptq))
    for name, module in modules.items():
        recipe.tell(name)
        found = next(together) if together else awq(weight_of(module), hessian_II, recipe.grid)
        result.error[name] = found.loss
        yield found


def _fell_back(name: str, found: Quantized) -> str:
    return f"{name}: rounded to nearest, because {found.fallback}"


def _input_scale(statistics: Statistics | None, grid: Grid) -> float:
    """The scale under which the largest input seen is the largest float, as it is stored; 1 where none was seen."""
    largest = float(statistics.largest_I.max()) if statistics is not None else 0.0
    return float(torch.tensor(largest / LARGEST[grid.element]).to(grid.scale_dtype)) or 1.0


def _plain_errors(weight_OI: Tensor, hessian_II: Tensor, grid: Grid) -> tuple[float, float]:
    """The mean squared output of a layer, and what rounding to nearest adds to it, from some of its rows."""
    rows_RI = weight_OI[evenly_spaced(len(weight_OI), _ROWS)].to(torch.float32)
    rounded_RI = round_to_nearest(rows_RI, replace(grid, searches_range=False)).dequantize()
    part = weight_OI.shape[0] / rows_RI.shape[0]
    return part * output_error(rows_RI, hessian_II), part * output_error(rounded_RI - rows_RI, hessian_II)
