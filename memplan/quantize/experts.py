"""Experts that transformers holds in one tensor, taken apart into one linear layer for each matrix of each expert.

Families with experts hold them as three-dimensional parameters and say of themselves how these are laid out (gated or
not, transposed, gate and up rows interleaved). Here the same work is done by ordinary linear layers, named as
checkpoints name them (`experts.3.gate_proj`), so that all that is known of linear layers holds for experts. Whether the
work is the same is not read off: it is tried, on the family's own code.

Axes: T tokens, H hidden features, K experts of a token, E experts, F features inside an expert, N rows of some expert.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from memplan.errors import UnsupportedModel
from memplan.quantize.linears import parameter, set_weight, weight_of

_GATE_AND_UP, _UP, _DOWN = "gate_up_proj", "up_proj", "down_proj"
_FEW_FEATURES = 64  # inside an expert, that show how a family works
_SAME = 1e-4  # relative, of two sums in float32 in another order
# Rows of a product in 16 bit are a multiple of this: see `filled_up`.
_ROWS_AT_ONCE = 64
_HINT = "it cannot be quantized yet; evaluated it can be, where it fits whole"


class Expert(nn.Module):
    """The linear layers of one expert: `gate_proj` where the family has one, `up_proj`, `down_proj`."""

    def __init__(self, num_hidden: int, num_inner: int, *, gated: bool, bias: bool, like: Tensor) -> None:
        super().__init__()
        made = {"bias": bias, "device": like.device, "dtype": like.dtype}
        if gated:
            self.gate_proj = nn.Linear(num_hidden, num_inner, **made)
        self.up_proj = nn.Linear(num_hidden, num_inner, **made)
        self.down_proj = nn.Linear(num_inner, num_hidden, **made)


class SplitExperts(nn.Module):
    """Does what a family's fused experts do, with one linear layer for each matrix.

    `watch`, where it is set, is shown every call before it is worked on. With `everyone` all tokens go to every
    expert, weighted by what the router says: in trials, so that no expert is left out and the router still counts.
    """

    def __init__(self, fused: nn.Module) -> None:
        super().__init__()
        wide = fused.get_parameter(_GATE_AND_UP if _is_gated(fused) else _UP)
        down = fused.get_parameter(_DOWN)
        self.gated = _is_gated(fused)
        self.transposed = (
            wide.shape[2] == 2 * down.shape[1] if self.gated else bool(getattr(fused, "is_transposed", False))
        )
        self.interleaved = not getattr(fused, "is_concatenated", True)
        self.biased = f"{_DOWN}_bias" in dict(fused.named_parameters())
        self.num_fused = int(down.shape[0])
        num_inner, num_hidden = (down.shape[1], down.shape[2]) if self.transposed else (down.shape[2], down.shape[1])
        for number in range(self.num_fused):
            self.add_module(str(number), Expert(num_hidden, num_inner, gated=self.gated, bias=self.biased, like=down))
        for child, module in fused.named_children():
            if any(True for _ in module.parameters()):
                self.add_module(child, module)
        for leaf in list(fused._parameters):
            fused._parameters[leaf] = None
        object.__setattr__(self, "family", fused)
        self.sorted = not _is_routed(fused)
        self.watch: Callable[[SplitExperts, Tensor, list[Tensor]], None] | None = None
        self.everyone = False

    @property
    def entries(self) -> tuple[str, ...]:
        """The layers of an expert that read a token as it comes."""
        return ("gate_proj", "up_proj") if self.gated else ("up_proj",)

    def expert(self, number: int) -> nn.Module:
        """One expert."""
        return self.get_submodule(str(number))

    def inner(self, expert: nn.Module, input_NH: Tensor) -> Tensor:
        """What an expert's last layer reads (N x F)."""
        family: Any = self.family
        up_NF = expert.get_submodule("up_proj")(input_NH)
        if not self.gated:
            return family.act_fn(up_NF)
        gate_NF = expert.get_submodule("gate_proj")(input_NH)
        if getattr(family, "_apply_gate", None) is None:
            return up_NF * family.act_fn(gate_NF)
        both = torch.stack((gate_NF, up_NF), -1).flatten(-2) if self.interleaved else torch.cat((gate_NF, up_NF), -1)
        return family._apply_gate(both)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Run the experts on the tokens that go to each. Arguments are the family's own."""
        bound = inspect.signature(_own_forward(self.family)).bind(None, *args, **kwargs)
        _, hidden_TH, *routing = bound.arguments.values()
        if self.watch is not None:
            self.watch(self, hidden_TH, routing)
        if self.everyone:
            return self._run_all(hidden_TH, routing)
        output_TH = torch.zeros_like(hidden_TH)
        for number, token_N, weight_N1 in self.shares(hidden_TH, routing):
            if token_N.numel():
                part_NH = self._run(self.expert(number), filled_up(hidden_TH[token_N]))[: token_N.numel()]
                part_NH = part_NH if weight_N1 is None else part_NH * weight_N1
                output_TH.index_add_(0, token_N, part_NH.to(output_TH.dtype))
        return output_TH

    def shares(self, hidden_TH: Tensor, routing: list[Tensor]) -> Iterator[tuple[int, Tensor, Tensor | None]]:
        """For every expert its number, the rows of the input that are its tokens, and their weights.

        Families that sort tokens by expert hand every expert as many rows, of which those of other experts are zero.
        """
        if self.sorted:
            used_ET = (hidden_TH != 0).any(-1).reshape(self.num_fused, -1)
            for number in range(self.num_fused):
                yield number, used_ET[number].nonzero()[:, 0] + number * used_ET.shape[1], None
            return
        index_TK, weight_TK = routing
        for number in range(self.num_fused):
            token_N, place_N = torch.where(index_TK == number)
            yield number, token_N, weight_TK[token_N, place_N, None]

    def tokens(self, hidden_TH: Tensor) -> Tensor:
        """The rows of the input that are tokens: all, or those that some expert is handed."""
        if self.sorted:
            return (hidden_TH != 0).any(-1).nonzero()[:, 0]
        return torch.arange(hidden_TH.shape[0], device=hidden_TH.device)

    def _run(self, expert: nn.Module, input_NH: Tensor) -> Tensor:
        family: Any = self.family
        output_NH: Tensor = expert.get_submodule(_DOWN)(self.inner(expert, input_NH))
        if getattr(family, "has_post_expert_norm", False):
            output_NH = family.post_expert_norm(output_NH)
        return output_NH

    def _run_all(self, hidden_TH: Tensor, routing: list[Tensor]) -> Tensor:
        """Every token through the first expert, weighted so that each change of the router shows."""
        first = self.expert(0)
        if self.sorted:
            given_THs = hidden_TH.reshape(self.num_fused, -1, hidden_TH.shape[-1]).sum(0)
            output_TH = torch.zeros_like(hidden_TH)
            output_TH[: given_THs.shape[0]] = self._run(first, given_THs)
            return output_TH
        index_TK, weight_TK = routing
        weight_T1 = weight_TK[:, :1] + index_TK.to(torch.float32).sum(-1, keepdim=True) / self.num_fused
        return (self._run(first, hidden_TH.clone()) * weight_T1).to(hidden_TH.dtype)


def filled_up(input_NH: Tensor) -> Tensor:
    """Tokens of an expert with rows of zeros below them, so that few sizes are multiplied in 16 bit on the CPU.

    There oneDNN compiles a program for every number of rows, which takes longer than the product of a small expert
    does, and holds 0.3 MiB, half of it for good (torch 2.13). A router sends an expert another number of tokens in
    every batch: without this memory grew with every block. The rows of a product do not hang on one another.
    """
    if input_NH.device.type != "cpu" or input_NH.dtype.itemsize > 2:
        return input_NH
    return nn.functional.pad(input_NH, (0, 0, 0, -input_NH.shape[0] % _ROWS_AT_ONCE))


def split_experts(model: nn.Module) -> None:
    """Put `SplitExperts` in the place of every module of a model that holds experts in one tensor."""
    for name, module in list(model.named_modules()):
        if _is_fused(module):
            model.set_submodule(name, SplitExperts(module))


def pools(block: nn.Module) -> dict[str, SplitExperts]:
    """The experts of a block, by name."""
    return {name: module for name, module in block.named_modules() if isinstance(module, SplitExperts)}


@torch.no_grad()
def check_experts(name: str, experts: SplitExperts) -> None:
    """Have the family's own code and ours run two experts on random tokens.

    Raises: UnsupportedModel when they do not come to the same.
    """
    few = min(2, experts.num_fused)
    mine = copy.copy(experts)
    mine._modules = {
        child: copy.deepcopy(module).float() for child, module in experts._modules.items() if not child.isdigit()
    }
    for number in range(few):
        mine.add_module(str(number), _part_of(experts, experts.expert(number)))
    mine.num_fused, mine.watch, mine.everyone = few, None, False
    fused = _fused_again(mine)
    object.__setattr__(mine, "family", fused)
    num_hidden = weight_of(experts.expert(0).get_submodule(_DOWN)).shape[0]
    generator = torch.Generator().manual_seed(0)
    hidden_TH = torch.randn((2 * few, num_hidden), generator=generator).to(next(mine.parameters()).device)
    index_TK = torch.arange(2 * few, device=hidden_TH.device)[:, None] % few
    weight_TK = torch.linspace(0.5, 1.5, 2 * few, device=hidden_TH.device)[:, None]
    try:
        wanted_TH = _own_forward(fused)(fused, hidden_TH, *(() if experts.sorted else (index_TK, weight_TK)))
        same = _is_same(wanted_TH, mine(hidden_TH, *(() if experts.sorted else (index_TK, weight_TK))))
    except (RuntimeError, TypeError, AttributeError, IndexError, ValueError) as error:
        raise _unknown(name, experts.family, str(error).splitlines()[0]) from None
    if not same:
        raise _unknown(name, experts.family, "the layers taken apart do not come to what its own code does")
    if experts.sorted:
        return
    # Some families have experts without weights, numbered after the others.
    try:
        wanted_TH = _own_forward(fused)(fused, hidden_TH, torch.full_like(index_TK, few), weight_TK)
    except (RuntimeError, TypeError, AttributeError, IndexError, ValueError):
        return
    if bool(wanted_TH.any()):
        raise _unknown(name, experts.family, "it has experts without weights")


def _is_same(wanted_TH: Tensor, got_TH: Tensor) -> bool:
    return float((wanted_TH - got_TH).abs().max()) <= _SAME * float(wanted_TH.abs().max())


def _part_of(experts: SplitExperts, expert: nn.Module) -> Expert:
    """An expert in float32, of the first of its inner features alone."""
    weight_HF = weight_of(expert.get_submodule(_DOWN))[:, :_FEW_FEATURES].float()
    part = Expert(*weight_HF.shape, gated=experts.gated, bias=experts.biased, like=weight_HF)
    set_weight(part.down_proj, weight_HF)
    for name in experts.entries:
        set_weight(part.get_submodule(name), weight_of(expert.get_submodule(name))[:_FEW_FEATURES])
    for name in (*experts.entries, _DOWN) if experts.biased else ():
        bias_O = parameter(part.get_submodule(name), "bias")
        whole_O = parameter(expert.get_submodule(name), "bias")
        assert bias_O is not None
        assert whole_O is not None
        bias_O.copy_(whole_O[: bias_O.numel()])
    return part


def _fused_again(experts: SplitExperts) -> nn.Module:
    """A family's own module with the weights of experts that were taken apart."""
    fused = copy.copy(experts.family)
    fused._parameters = dict.fromkeys(fused._parameters)
    fused._modules = {
        name: copy.deepcopy(module).float() for name, module in fused._modules.items() if module is not None
    }
    fused.num_experts = experts.num_fused
    each = [experts.expert(number) for number in range(experts.num_fused)]
    wide = [_joined(experts, expert, experts.entries, "weight") for expert in each]
    down = [_joined(experts, expert, (_DOWN,), "weight") for expert in each]
    name, turned = _GATE_AND_UP if experts.gated else _UP, experts.transposed
    fused._parameters[name] = nn.Parameter(torch.stack([value.t() if turned else value for value in wide]))
    fused._parameters[_DOWN] = nn.Parameter(torch.stack([value.t() if turned else value for value in down]))
    if experts.biased:
        wide = [_joined(experts, expert, experts.entries, "bias") for expert in each]
        down = [_joined(experts, expert, (_DOWN,), "bias") for expert in each]
        fused._parameters[f"{name}_bias"] = nn.Parameter(torch.stack(wide))
        fused._parameters[f"{_DOWN}_bias"] = nn.Parameter(torch.stack(down))
    return fused


def _joined(experts: SplitExperts, expert: nn.Module, names: Sequence[str], leaf: str) -> Tensor:
    """Layers of an expert as the family holds them: below one another, or row by row in turn."""
    parts = [getattr(expert.get_submodule(name), leaf).detach() for name in names]
    return torch.stack(parts, 1).flatten(0, 1) if experts.interleaved and len(parts) > 1 else torch.cat(parts)


def _is_fused(module: nn.Module) -> bool:
    """Whether a module holds experts in one tensor, in one of the layouts that families say of themselves."""
    held = {name: value.dim() for name, value in module.named_parameters(recurse=False)}
    wide = _GATE_AND_UP if _is_gated(module) else _UP
    biases = {f"{wide}_bias": 2, f"{_DOWN}_bias": 2}
    return held in ({wide: 3, _DOWN: 3}, {wide: 3, _DOWN: 3, **biases})


def _is_gated(module: nn.Module) -> bool:
    return _GATE_AND_UP in module._parameters


def _is_routed(module: nn.Module) -> bool:
    """Whether a family's experts are handed the router's choice, and not tokens that are sorted by it already."""
    return len(inspect.signature(_own_forward(module)).parameters) > 2


def _own_forward(module: nn.Module) -> Callable[..., Any]:
    """The forward that a family wrote, without the choice of kernels around it."""
    forward: Callable[..., Any] = inspect.unwrap(type(module).forward)
    return forward


def _unknown(name: str, family: nn.Module, reason: str) -> UnsupportedModel:
    return UnsupportedModel(
        f"{name}: {type(family).__name__} works in a way that is not known here: {reason}", hint=_HINT
    )
