"""A model quantized block after block: one block's weights in memory, the calibration flowing from block to block.

Axes: B windows of a batch, N tokens of a window, H hidden features.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from memplan.errors import UsageError
from memplan.quantize.activations import Activations
from memplan.quantize.anatomy import Anatomy, inspect_block
from memplan.quantize.block import BlockRecipe, BlockResult, quantize_block
from memplan.quantize.calls import Call, Surroundings
from memplan.quantize.experts import pools
from memplan.quantize.formats import Layout, format_named
from memplan.quantize.gptq import GptqSettings
from memplan.quantize.grid import Grid
from memplan.quantize.layer_checks import check_fused, check_groups, check_keeps
from memplan.quantize.linears import held_elsewhere, is_router, linears, parameter, stays, weight_of
from memplan.quantize.passes import Passes
from memplan.quantize.ranks import ALONE, Ranks
from memplan.quantize.request import POOL_BYTES, QuantizeRequest
from memplan.quantize.skeleton import Skeleton
from memplan.quantize.torch_memory import give_back
from memplan.quantize.unsupported import UnsupportedHere
from memplan.quantize.width import Width
from memplan.quantize.workspace import Workspace
from memplan.records import replace

_MOST_ELSEWHERE = 0.5  # of a block's weights; with more, a result would be hardly smaller
_TRIAL_TOKENS = 16  # enough to see which layer reads what, and whether a scaling may be moved

Progress = Callable[[int, int, str], None]
Tell = Callable[[str], None]


class Quantization:
    """One run over one model. `tokens_BN` are the calibration windows, in batches."""

    def __init__(
        self, request: QuantizeRequest, source: Path, tokens_BN: Sequence[Tensor], *, ranks: Ranks = ALONE
    ) -> None:
        if len(tokens_BN) < ranks.size:
            raise UsageError(
                f"{len(tokens_BN)} batches are too few for {ranks.size} processes", hint="a smaller --batch-size"
            )
        self.ranks = ranks
        self.all_tokens_BN = tokens_BN
        self.skeleton = Skeleton(source, device=request.device)
        self.tokens_BN = ranks.share(tokens_BN)
        self.format = format_named(request.format)
        self.pool_bytes = POOL_BYTES
        self._anatomies: dict[object, Anatomy] = {}
        _check_layout(self.skeleton)
        self.skeleton.check_blocks()
        self._arrange(request)
        if not any(True for _ in self._rounded()):
            raise UsageError("no layer is left to round", hint="--keep fewer layers")
        if request.format == "compressed-tensors" and any(
            not isinstance(layer, nn.Linear) for layer in self._rounded()
        ):
            raise UsageError(
                "this family stores its layers as Conv1D, which no reader of compressed-tensors takes",
                hint="--format gptq",
            )

    def set_mix(self, mix: Mapping[str, Width]) -> None:
        """Give layers, by their full names, widths of their own. Raises: UsageError as for a request."""
        self._arrange(replace(self.request, mix=mix))

    def _arrange(self, request: QuantizeRequest) -> None:
        """Settle what is rounded, and how it is laid out."""
        self.request = request
        self.kept = self._kept_everywhere()
        self.layout = Layout(
            method=request.method,
            bits=request.bits,
            group_size=request.group_size,
            symmetric=request.symmetric,
            damping=request.damping,
            kept=self.kept,
            widths={name: width for module, width in request.mix.items() for name in self._stored_width(module, width)},
        )
        self.format.check(self.layout)

    def _rounded(self) -> Iterator[nn.Module]:
        """The linear layers that are rounded."""
        return (module for name, module in linears(self.skeleton.model) if name not in self._kept_names)

    def identity(self) -> dict[str, str]:
        """What must be the same for unfinished work to go on."""
        texts = hashlib.sha256()
        for batch_BN in self.all_tokens_BN:
            texts.update(batch_BN.to(torch.int64).numpy().tobytes())
        return {
            "model": self.skeleton.checkpoint.digest,
            "request": self.request.fingerprint(),
            "calibration": texts.hexdigest()[:16],
            "number of processes": str(self.ranks.size),
        }

    def run(
        self,
        workspace: Workspace,
        progress: Progress = lambda index, total, text: None,
        tell: Tell = lambda name: None,
    ) -> None:
        """Quantize every block that the workspace lacks; `tell` is told of every module that is worked on.

        Raises: CorruptFile for a checkpoint that does not hold together; BrokenNumbers for activations that are not
        finite.
        """
        self._tell = tell
        calls, trial = self._calls(workspace)
        names = self.skeleton.blocks
        for index in range(len(workspace.blocks), len(names)):
            progress(index, len(names), names[index])
            self._block(workspace, index, calls, trial)
        progress(len(names), len(names), "")

    def _calls(self, workspace: Workspace) -> tuple[list[list[Call]], tuple[Tensor, list[Call]]]:
        """The calls of every block for every batch, and small ones for trials; writes the inputs of the first block.

        Batches of one size share their calls, unless what blocks are given hangs on the tokens.
        """
        self.skeleton.load_outside_blocks()
        surroundings = Surroundings(self.skeleton)
        trial = surroundings.calls(self.all_tokens_BN[0][:1, :_TRIAL_TOKENS])
        by_size: dict[int, list[Call]] = {}
        found: list[list[Call]] = []

        def inputs() -> Iterator[Tensor]:
            for batch_BN in self.tokens_BN:
                input_BNH, calls = surroundings.calls(batch_BN)
                same = by_size.setdefault(batch_BN.shape[0], calls)
                found.append(same if all(map(Call.equals, same, calls)) else calls)
                yield input_BNH

        first = Activations(workspace.inputs_file(0), self._shapes(trial[0]), self.skeleton.dtype)
        if not self.request.method.needs_calibration:
            found = [trial[1]] * len(self.tokens_BN)
        elif workspace.blocks:
            for _ in inputs():
                pass
        else:
            first.write(inputs())
        self.skeleton.drop("")
        return found, trial

    def _shapes(self, trial: Tensor) -> list[tuple[int, ...]]:
        """The shapes of the hidden states of every batch, from that of one window of a trial."""
        tokens = self.tokens_BN[0][:1, :_TRIAL_TOKENS].shape
        place = next(place for place in range(trial.dim() - 1) if trial.shape[place : place + 2] == tokens)
        return [(*trial.shape[:place], *batch.shape, *trial.shape[place + 2 :]) for batch in self.tokens_BN]

    def _block(
        self, workspace: Workspace, index: int, calls: list[list[Call]], trial: tuple[Tensor, list[Call]]
    ) -> None:
        name = self.skeleton.blocks[index]
        shapes = self._shapes(trial[0])
        calibrates = self.request.method.needs_calibration
        inputs = Activations(workspace.inputs_file(index), shapes, self.skeleton.dtype)
        if calibrates:
            inputs.check()
        block = self.skeleton.load(name)
        anatomy = self._anatomy(block, trial[0], trial[1][index])
        batches = _Batches(inputs, [batch[index] for batch in calls], self.request.device)
        recipe = self._recipe(name)
        tails = anatomy.tails if recipe.one_by_one else ()
        with Passes(block, batches, tails, workspace.folder, self.ranks.rank) as passes:
            result = quantize_block(passes, anatomy, recipe)
            if calibrates:
                outputs = Activations(workspace.inputs_file(index + 1), shapes, self.skeleton.dtype)
                outputs.write(passes.outputs())
        self.ranks.wait()
        self._finish(workspace, index, block, result)
        self.ranks.wait()
        workspace.forget_inputs(index)
        give_back()

    def _finish(self, workspace: Workspace, index: int, block: nn.Module, result: BlockResult) -> None:
        """Write a block down, and let go of it on the way: of its weights first, then of each layer that is packed."""
        name = self.skeleton.blocks[index]
        facts = _facts(name, result)
        tensors = self._beside(name, block, result) if self.ranks.is_first else {}
        self.skeleton.drop(name)
        while result.layers:
            layer, found = result.layers.popitem()
            if self.ranks.is_first:
                stored = self._stored_module(f"{name}.{layer}")
                tensors.update({f"{stored}.{leaf}": value.cpu() for leaf, value in self.format.pack(found).items()})
        workspace.finish_block(index, tensors, facts)

    def _anatomy(self, block: nn.Module, trial_BNH: Tensor, call: Call) -> Anatomy:
        """The anatomy of a block, found once for all that are built alike."""
        kind = (type(block), tuple((name, tuple(value.shape)) for name, value in block.named_parameters()))
        if kind not in self._anatomies:
            sites, head_dim = self.request.method.scaling != "none", self.skeleton.head_dim(block)
            trial_call, input_BNH = (call.as_float(), trial_BNH.to(torch.float32)) if sites else (call, trial_BNH)
            self._anatomies[kind] = inspect_block(
                block,
                lambda trial: trial_call.run(trial, input_BNH),
                head_dim=head_dim,
                sites=sites,
            )
        return self._anatomies[kind]

    def _recipe(self, block: str) -> BlockRecipe:
        request = self.request
        grid = Grid(
            bits=request.bits,
            group_size=request.group_size,
            symmetric=request.symmetric,
            searches_range=request.searches_range and request.method.rounding != "nearest",
            scale_dtype=getattr(self.format, "scale_dtype", self.skeleton.dtype),
            activation_bits=request.method.activation_bits,
            element=request.method.element,
            rows_per_scale=request.method.rows_per_scale,
            scale_type=request.method.scale_type,
        )

        def grid_of(name: str) -> Grid:
            width = request.width(f"{block}.{name}")
            return replace(grid, bits=width.bits, group_size=width.group_size)

        return BlockRecipe(
            method=request.method,
            grid=grid,
            grid_of=grid_of if request.mix else None,
            gptq=GptqSettings(
                damping=request.damping,
                activation_order=request.activation_order,
                static_groups=request.static_groups,
                weighs_inputs=request.scale_search == "inputs",
            ),
            keeps=lambda name: f"{block}.{name}" in self._kept_names,
            ranks=self.ranks,
            tell=lambda name: self._tell(f"{block}.{name}"),
            true_sequential=request.true_sequential,
            pool_bytes=self.pool_bytes,
            min_expert_tokens=request.min_expert_tokens,
        )

    def _kept_everywhere(self) -> tuple[str, ...]:
        """The linear layers that stay in 16 bit, by their names in the checkpoint; groups must divide the others."""
        request, model = self.request, self.skeleton.model
        check_keeps(request.keeps, [name for name, _ in model.named_modules()])
        blocks = tuple(f"{name}." for name in self.skeleton.blocks)
        apart = tuple(f"{name}." for name in self._unread_experts())
        self._kept_names = {
            name
            for name, _ in linears(model)
            if not name.startswith(blocks) or name.startswith(apart) or request.kept(name) or stays(model, name)
        }
        for name, module in linears(model):
            if name not in self._kept_names:
                check_groups(request, name, weight_of(module).shape[1])
        check_fused(self._kept_names, [name for name, _ in linears(model)])
        routers = {name for name, module in model.named_modules() if name.startswith(blocks) and is_router(module)}
        kept_names = sorted(self._kept_names | routers)
        return tuple(dict.fromkeys(name for kept in kept_names for name in self._names(kept)))

    def _unread_experts(self) -> list[str]:
        """Modules of experts that no reader takes quantized one by one: those with biases (GPT-OSS)."""
        return [name for name, experts in pools(self.skeleton.model).items() if experts.biased]

    def notes(self) -> tuple[str, ...]:
        """What is worth knowing of how a model is treated."""
        names = self._unread_experts()
        said = f"{names[0]} and {len(names) - 1} more: experts with biases" if names else ""
        return (f"{said} stay in 16 bit, because vLLM and transformers read no such layers quantized",) if names else ()

    def replaced(self) -> set[str]:
        """The tensors of the checkpoint that the result has in another form."""
        rounded = [(name, module) for name, module in linears(self.skeleton.model) if name not in self._kept_names]
        found = {self.skeleton.stored(f"{name}.weight").name for name, _ in rounded}
        biased = (name for name, module in rounded if parameter(module, "bias") is not None)
        return found | {self.skeleton.stored(f"{name}.bias").name for name in biased}

    def _names(self, module: str) -> tuple[str, ...]:
        """What readers call a module: its name in the model, and in the checkpoint unless its weights are another's."""
        tied = self.skeleton.is_tied(f"{module}.weight")
        return (module,) if tied else (module, self._stored_module(module))

    def _stored_width(self, module: str, width: Width) -> tuple[str, ...]:
        """The name under which the checkpoint keeps a layer of another width; none where it is kept or the same."""
        usual = width == Width(self.request.bits, self.request.group_size)
        return () if usual or module in self._kept_names else (self._stored_module(module),)

    def _stored_module(self, name: str) -> str:
        try:
            return self.skeleton.stored_name(f"{name}.weight").removesuffix(".weight")
        except KeyError:
            return name

    def _beside(self, block: str, module: nn.Module, result: BlockResult) -> dict[str, Tensor]:
        """What is written of a finished block beside its rounded weights, by names in the checkpoint; copies."""
        tensors: dict[str, Tensor] = {}
        for name in result.layers:
            bias = parameter(module.get_submodule(name), "bias")
            if bias is not None:
                tensors[self.skeleton.stored_name(f"{block}.{name}.bias")] = bias.detach().cpu().clone()
        for name in dict.fromkeys((*result.changed, *self._taken_out(block, module))):
            if name not in result.layers:
                for leaf, value in module.get_submodule(name).named_parameters():
                    tensors[self.skeleton.stored_name(f"{block}.{name}.{leaf}")] = value.detach().cpu().clone()
        return tensors

    def _taken_out(self, block: str, module: nn.Module) -> list[str]:
        """The layers that stay as they are, but whose weights stood in one tensor with others that do not."""
        replaced = self.replaced()
        names = [name for name, _ in linears(module) if f"{block}.{name}" in self._kept_names]
        return [name for name in names if self.skeleton.stored(f"{block}.{name}.weight").name in replaced]


class _Batches(Sequence[tuple[Tensor, Call]]):
    """The batches of a block's inputs with their calls, read when they are asked for."""

    def __init__(self, inputs: Activations, calls: list[Call], device: str) -> None:
        self.inputs, self.calls, self.device = inputs, calls, device

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: Any) -> Any:
        if index >= len(self):
            raise IndexError(index)
        return self.inputs.read(index).to(self.device), self.calls[index]


def _check_layout(skeleton: Skeleton) -> None:
    """Raises: UnsupportedModel when most weights are in nothing that can be rounded here."""
    for name in skeleton.blocks:
        elsewhere, part = held_elsewhere(skeleton.model.get_submodule(name))
        if part > _MOST_ELSEWHERE:
            kind = type(skeleton.model).__name__
            raise UnsupportedHere(
                f"{kind} holds {part:.0%} of {name} in a layout that is not known here: {', '.join(elsewhere[:3])}"
            )


def _facts(name: str, result: BlockResult) -> dict[str, Any]:
    """What the report says of a block."""
    return {
        "name": name,
        "layers": {
            layer: {
                "relative_error": _ratio(result.error.get(layer), result.signal.get(layer)),
                "relative_error_of_rounding": _ratio(result.rounding_error.get(layer), result.signal.get(layer)),
                "input_outlier": result.outlier.get(layer),
            }
            for layer in result.layers
        },
        "scaled": result.scaled,
        "experts": result.experts,
        "notes": result.notes,
    }


def _ratio(error: float | None, signal: float | None) -> float | None:
    return None if error is None or not signal else error / signal
