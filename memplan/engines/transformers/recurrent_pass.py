"""The moments of a recurrent mixer as transformers computes it in plain PyTorch: a prefill in chunks, in FP32.

With the `mamba-ssm`, `causal-conv1d` or `flash-linear-attention` kernels installed, the large intermediates stay on
the chip; the option `kernels` says so.

Formula (docs/engines/transformers.md, "Recurrent mixers"), in FP32 elements per row:

    gated delta net    5 x heads x key + 5 x heads x value + 3 x heads x 64
    KDA                3 x heads x 64 x key + 10 x heads x value
    Mamba 2            max(4 n s + 5 n p, 3 n s + 7 n p) + 3 n c + n p s / c    n heads of p, state s, chunks of c
    Mamba 1            3 x inner x state, and 2 x inner

Source: models/qwen3_next/modeling_qwen3_next.py (torch_chunk_gated_delta_rule), models/mamba2/modeling_mamba2.py
(torch_forward), models/mamba/modeling_mamba.py (slow_forward), models/kimi_linear.
Checked by: benchmarks/transformers/score.py.
"""

from __future__ import annotations

from memplan.engines.transformers.layer_shape import LayerShape, Mixer
from memplan.engines.transformers.step import Moment, Step

_WIDE = 4
_STATE_COPIES = 3
_DELTA_CHUNK = 64
_MAMBA_CHUNK = 256
_MAMBA_CHUNKS = {"nemotron_h": 128}


def recurrent_moments(shape: LayerShape, hidden: int, step: Step, model_type: str) -> list[Moment]:
    """Return the moments of a layer's recurrent mixer; none for a layer without."""
    mixer = shape.mixer
    if mixer is None:
        return []
    plain, wide = _widths(mixer, hidden, step, model_type)
    size = round(step.rows * (plain * step.element_bytes + wide * _WIDE))
    if mixer.state.kind == "gated_delta_net" and step.tokens > 1:
        size += _STATE_COPIES * _WIDE * step.sequences * mixer.state.state_elements
    working = f"{step.rows:,} tokens x ({wide:,.0f} x 4 B + {plain:,} x {step.element_bytes} B)"
    return [Moment(size, f"{mixer.state.kind} mixer", working)]


def _widths(mixer: Mixer, hidden: int, step: Step, model_type: str) -> tuple[int, float]:
    """Elements per token in the compute type, and in FP32."""
    plain, inner, kind = 3 * hidden + mixer.projected, mixer.inner, mixer.state.kind
    if step.tokens == 1:
        copies = 2 * _STATE_COPIES if kind == "mamba1" else _STATE_COPIES
        return plain, 2.0 * inner + copies * mixer.state.state_elements
    if step.kernels:
        return plain, 2.0 * inner
    if kind == "gated_delta_net":
        return plain, _delta_net(mixer)
    if kind == "mamba2":
        return plain, _mamba2(mixer, _MAMBA_CHUNKS.get(model_type, _MAMBA_CHUNK))
    if kind == "mamba1":
        return plain + 3 * inner, 3.0 * mixer.state.state_elements + 2 * inner
    if kind == "rg_lru":
        return 11 * inner + 2 * hidden, 0.0
    if kind in ("rwkv", "short_conv"):
        return 7 * hidden, 0.0
    return plain, 4.0 * inner


def _delta_net(mixer: Mixer) -> float:
    """Keys and values of every value head, and the products inside chunks of 64."""
    keys = mixer.state.state_elements // max(1, mixer.inner // mixer.heads)
    if mixer.per_key:
        return 3.0 * keys * _DELTA_CHUNK + 10 * mixer.inner
    return 5.0 * (keys + mixer.inner) + 3 * mixer.heads * _DELTA_CHUNK


def _mamba2(mixer: Mixer, chunk: int) -> float:
    """Decays between all positions of a chunk, and the states that enter and leave it."""
    heads, inner = mixer.state.shard_units, mixer.inner
    width = mixer.state.state_elements // max(1, inner)
    pairs = heads * width
    return max(4.0 * pairs + 5 * inner, 3.0 * pairs + 7 * inner) + 3 * heads * chunk + inner * width / chunk
