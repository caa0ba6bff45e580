"""Recurrent layers in the training budget beside transformers' own code, with stand-ins for the kernels that it calls.

The kernels (mamba-ssm, causal-conv1d, flash-linear-attention) run on GPUs alone. Here each is a function that makes the
allocations which its source makes, in its order, and keeps what it saves; everything around it is transformers' code
on meta tensors under the simulated profile. That shows that the budget puts the kernel in the right place and what is
around it is right; what a kernel takes inside follows its source on both sides.

    python benchmarks/training/against_scans.py [--json] [--only NAME] [--alive]

Exits with 1 when the median over phases is above 1.5 % or any phase is further apart than 5 %.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import against_profile
import torch
from against_profile import NARROW, Point, compare, put_beside, training_of

from memplan.domain.training import TrainingSpec
from memplan.records import replace

CHUNK = 64
MODULES = ("mamba", "mamba2", "nemotron_h", "granitemoehybrid", "qwen3_next", "qwen3_5", "qwen3_5_moe")
POINTS = (
    Point("qwen3-next", 4, optimizer="fused", config={**NARROW, "use_cache": False}),
    Point("qwen3-next", 4, checkpointing=True, batch=2, optimizer="fused", config=NARROW),
    Point("qwen3.5-0.8b", 8, lora=8, targets=("down_proj",), checkpointing=True, batch=2),
    Point("codestral-mamba", 4, optimizer="fused"),
    Point("codestral-mamba", 4, batch=2, checkpointing=True, optimizer="fused", config=NARROW),
    Point("granite-4.0-h-tiny", 8, optimizer="fused", config={"use_cache": False}),
    Point("granite-4.0-h-tiny", 8, checkpointing=True, batch=2, optimizer="fused", config=NARROW),
    Point("mamba-2.8b", 6, optimizer="fused"),
    Point("mamba-2.8b", 6, batch=2, checkpointing=True, optimizer="fused", config=NARROW),
)


class Convolution(torch.autograd.Function):
    """causal-conv1d: keeps its input, makes as much as that."""

    @staticmethod
    def forward(ctx: Any, x: Any, weight: Any) -> Any:
        ctx.save_for_backward(x, weight)
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        x, weight = ctx.saved_tensors
        return torch.empty_like(x), torch.zeros(weight.shape, dtype=weight.dtype, device=weight.device)


class DeltaRule(torch.autograd.Function):
    """flash-linear-attention's gated delta rule over chunks of 64."""

    @staticmethod
    def forward(ctx: Any, q: Any, k: Any, v: Any, g: Any, beta: Any) -> Any:
        q, k, v, g, beta = (each.contiguous() for each in (q, k, v, g, beta))
        q, q_sums = torch.empty_like(q), q.new_empty(q.shape[:-1], dtype=torch.float32)
        k, k_sums = torch.empty_like(k), k.new_empty(k.shape[:-1], dtype=torch.float32)
        g = torch.empty_like(g)
        batch, tokens, heads, _ = v.shape
        wide = v.new_empty((batch, tokens, heads, CHUNK), dtype=torch.float32)
        triangle = v.new_empty((batch, tokens, heads, CHUNK))
        del wide
        inside = chunked(q, v)
        made = torch.empty_like(v)
        del inside
        ctx.save_for_backward(q, q_sums, k, k_sums, v, g, beta, triangle)
        return made

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        q, _, k, _, v, g, beta, _ = ctx.saved_tensors
        inside = chunked(q, v)
        states = inside[2]
        local, back, through = torch.empty_like(v), torch.empty_like(states), torch.empty_like(v)
        per_value = (*v.shape[:3], q.shape[-1])
        first, second, third = (q.new_empty(per_value) for _ in range(3))
        del inside, states, local, back, first, second, third
        return torch.empty_like(q), torch.empty_like(k), through, torch.empty_like(g), torch.empty_like(beta)


def chunked(q: Any, v: Any) -> tuple[Any, Any, Any, Any]:
    """Keys and values of the chunked form, a state for each chunk, and the values without what is known."""
    batch, tokens, heads, width = v.shape
    keys = q.new_empty((batch, tokens, heads, q.shape[-1]))
    states = v.new_empty((batch, -(-tokens // CHUNK), heads, q.shape[-1], width))
    return keys, torch.empty_like(v), states, torch.empty_like(v)


class StateSpaces(torch.autograd.Function):
    """mamba-ssm's whole second half of a Mamba-2 layer."""

    @staticmethod
    def forward(ctx: Any, projected: Any, sizes: Any, out: Any, *small: Any) -> Any:
        made = scanned(projected, sizes)
        batch, tokens, _ = projected.shape
        kept = projected.new_empty((batch, tokens, sizes["inner"]))
        sums = projected.new_empty((batch * tokens * sizes["groups"],), dtype=torch.float32)
        convolved = made[0]  # held by name to the end
        del made
        normal = torch.empty_like(kept)
        ctx.sizes = sizes
        ctx.save_for_backward(projected, kept, sums, out, *small)
        done = torch.nn.functional.linear(normal, out)
        del convolved
        return done

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        projected, kept, _, out, *small = ctx.saved_tensors
        made = scanned(projected, ctx.sizes)
        inner = torch.empty_like(kept), torch.empty_like(kept)
        back = projected.new_empty(made[3].shape, dtype=torch.float32), torch.empty_like(made[3])
        squares, convolved, steps = torch.empty_like(made[5]), torch.empty_like(made[0]), torch.empty_like(made[1])
        first = torch.empty_like(projected)
        weight = torch.empty_like(out)
        del made, inner, back, squares, convolved, steps
        return first, None, weight, *(torch.empty_like(each) for each in small)


def scanned(projected: Any, sizes: dict[str, int]) -> tuple[Any, ...]:
    """What is convolved, steps and decays, states of chunks twice, products of both sides within chunks."""
    batch, tokens, _ = projected.shape
    chunks = -(-tokens // sizes["chunk"])
    convolved = projected.new_empty((batch, tokens, sizes["convolved"]))
    steps = [projected.new_empty((batch, sizes["heads"], tokens), dtype=torch.float32) for _ in range(2)]
    states = projected.new_empty((batch, chunks, sizes["inner"], sizes["state"]), dtype=torch.float32)
    passed = projected.new_empty(states.shape)
    square = (batch, chunks, sizes["groups"], sizes["chunk"], sizes["chunk"])
    return convolved, *steps, states, passed, projected.new_empty(square, dtype=torch.float32)


class SelectiveScan(torch.autograd.Function):
    """mamba-ssm's whole second half of a Mamba layer, at its checkpoint level 1."""

    @staticmethod
    def forward(ctx: Any, projected: Any, out: Any, narrow: Any, step: Any, *small: Any) -> Any:
        batch, twice, tokens = projected.shape
        convolved, delta, scanned = (projected.new_empty((batch, twice // 2, tokens)) for _ in range(3))
        both = projected.new_empty((batch * tokens, narrow.shape[0]))
        state = (narrow.shape[0] - step.shape[1]) // 2
        sides = [projected.new_empty((batch, 1, state, tokens)) for _ in range(2)]
        states = projected.new_empty((batch, twice // 2, -(-tokens // 2048), 2 * state), dtype=torch.float32)
        gated = projected.new_empty((batch, tokens, twice // 2))
        del convolved, delta
        ctx.save_for_backward(projected, out, narrow, step, both, *sides, states, scanned, *small)
        ctx.count = len(small)
        return torch.nn.functional.linear(gated, out)

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        projected, out, narrow, step, _, _, _, _, scanned, *small = ctx.saved_tensors
        again = [torch.empty_like(scanned) for _ in range(6)]
        first = torch.empty_like(projected)
        del again
        return first, *(torch.empty_like(each) for each in (out, narrow, step, *small))


def convolved(x: Any, weight: Any, bias: Any = None, **_: Any) -> Any:
    return Convolution.apply(x, weight)


def delta_rule(query: Any, key: Any, value: Any, *, g: Any, beta: Any, **_: Any) -> tuple[Any, None]:
    return DeltaRule.apply(query, key, value, g, beta), None


def uncached(point: Point) -> TrainingSpec:
    """A Trainer's step, which fills no cache."""
    return replace(training_of(point), caches_keys=False)


def state_spaces(
    projected: Any,
    weight: Any,
    bias: Any,
    dt_bias: Any,
    A: Any,  # noqa: N803
    D: Any,  # noqa: N803
    chunk_size: int,
    **given: Any,
) -> Any:
    out, heads = given["outproj_weight"], D.shape[0]
    inner = heads * given["headdim"]
    sizes = {
        "inner": inner,
        "heads": heads,
        "groups": given["ngroups"],
        "state": (weight.shape[0] - inner) // (2 * given["ngroups"]),
        "convolved": weight.shape[0],
        "chunk": chunk_size,
    }
    small = [each for each in (weight, bias, dt_bias, A, D, given["rmsnorm_weight"]) if each is not None]
    return StateSpaces.apply(projected, sizes, out, *small)


def selective_scan(
    projected: Any, weight: Any, bias: Any, narrow: Any, step: Any, out: Any, out_bias: Any, A: Any,  # noqa: N803
    B: Any, C: Any, D: Any, **given: Any,  # noqa: N803
) -> Any:  # fmt: skip
    small = [each for each in (weight, bias, A, D, given["delta_bias"]) if each is not None]
    return SelectiveScan.apply(projected, out, narrow, step, *small)


STAND_INS = {
    "causal_conv1d_fn": convolved,
    "torch_chunk_gated_delta_rule": delta_rule,
    "chunk_gated_delta_rule": delta_rule,
    "mamba2_split_conv1d_scan_combined": state_spaces,
    "mamba_split_conv1d_scan_combined": state_spaces,
    "mamba_inner_fn": selective_scan,
}


@contextlib.contextmanager
def replaced() -> Iterator[None]:
    """transformers with the stand-ins."""
    with contextlib.ExitStack() as stack:
        for name in MODULES:
            module = importlib.import_module(f"transformers.models.{name}.modeling_{name}")
            for function, stand_in in STAND_INS.items():
                if hasattr(module, function):
                    stack.enter_context(patch.object(module, function, stand_in))
        yield


if __name__ == "__main__":
    with replaced(), patch.object(against_profile, "training_of", uncached):
        put_beside(POINTS, compare, __doc__.splitlines()[0])
