"""Mixers that keep a state of fixed size instead of keys and values: Mamba, delta nets, short convolutions.

Every function returns the tensors of one mixer under the checkpoint's names, and the state a sequence leaves in it.
What is cut over tensor-parallel ranks is cut by head or channel. Not modelled: Mamba 2 with fewer groups than ranks,
where engines hold copies of the groups (a few hundred rows of `in_proj`, and the same of the convolution's state).

Source: Mamba (arXiv 2312.00752), Mamba 2 (2405.21060), Gated DeltaNet (2412.06464), Kimi Linear (2510.26692), Lightning
Attention (2401.04658); state shapes and types as in vLLM 0.33.0, `model_executor/layers/mamba/mamba_utils.py`.
"""

from __future__ import annotations

from memplan.domain.attention import LinearState
from memplan.domain.dtypes import DType
from memplan.domain.tensors import Role, Shard, ShardKind, Tensor
from memplan.introspect import blocks
from memplan.introspect.stack import Mixer
from memplan.records import dataclass, replace

_ROLE = Role.STATE


@dataclass(frozen=True, slots=True, kw_only=True)
class Mamba1:
    """The widths of a Mamba 1 mixer, and which of its parts there are. `inner_norms` are Jamba's."""

    hidden: int
    inner: int
    state: int
    kernel: int
    step_rank: int
    bias: bool = False
    conv_bias: bool = True
    inner_norms: bool = False


def mamba1(shape: Mamba1, *, prefix: str = "mixer") -> Mixer:
    """A selective state space mixer with one state per channel."""
    inner, cut = shape.inner, Shard(ShardKind.SPLIT, shape.inner)
    tensors = [
        *blocks.column(f"{prefix}.in_proj", 2 * inner, shape.hidden, inner, _ROLE, bias=shape.bias),
        *blocks.conv1d(f"{prefix}.conv1d", inner, shape.kernel, inner, bias=shape.conv_bias),
        *blocks.row(f"{prefix}.x_proj", shape.step_rank + 2 * shape.state, inner, inner, _ROLE),
        *blocks.column(f"{prefix}.dt_proj", inner, shape.step_rank, inner, _ROLE, bias=True),
        Tensor(name=f"{prefix}.A_log", shape=(inner, shape.state), role=_ROLE, shard=cut, dtype=DType.F32),
        blocks.vector(f"{prefix}.D", inner, _ROLE, units=inner),
        *blocks.row(f"{prefix}.out_proj", shape.hidden, inner, inner, _ROLE, bias=shape.bias),
    ]
    if shape.inner_norms:
        tensors += blocks.norm(f"{prefix}.dt_layernorm", shape.step_rank)
        tensors += blocks.norms((f"{prefix}.b_layernorm", f"{prefix}.c_layernorm"), shape.state)
    state = LinearState(
        kind="mamba1",
        conv_elements=inner * (shape.kernel - 1),
        state_elements=inner * shape.state,
        shard_units=inner,
        conv_kernel=shape.kernel,
    )
    return Mixer(tensors=tuple(tensors), caches=(state,), kind="mamba1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Mamba2:
    """The widths of a Mamba 2 mixer, and which of its parts there are."""

    hidden: int
    inner: int
    num_heads: int
    groups: int
    state: int
    kernel: int
    in_bias: bool = False
    out_bias: bool = False
    conv_bias: bool = True
    norm: bool = True
    state_dtype: DType | None = None

    @property
    def conv_width(self) -> int:
        return self.inner + 2 * self.groups * self.state


def mamba2(shape: Mamba2, *, prefix: str = "mixer") -> Mixer:
    """A state space mixer with one decay per head."""
    heads, conv = shape.num_heads, shape.conv_width
    in_width = shape.inner + conv + heads
    tensors = [
        *blocks.column(f"{prefix}.in_proj", in_width, shape.hidden, heads, _ROLE, bias=shape.in_bias),
        *blocks.conv1d(f"{prefix}.conv1d", conv, shape.kernel, heads, bias=shape.conv_bias),
        blocks.vector(f"{prefix}.A_log", heads, _ROLE, units=heads, dtype=DType.F32),
        blocks.vector(f"{prefix}.D", heads, _ROLE, units=heads),
        blocks.vector(f"{prefix}.dt_bias", heads, _ROLE, units=heads),
        *((blocks.vector(f"{prefix}.norm.weight", shape.inner, units=heads),) if shape.norm else ()),
        *blocks.row(f"{prefix}.out_proj", shape.hidden, shape.inner, heads, _ROLE, bias=shape.out_bias),
    ]
    state = LinearState(
        kind="mamba2",
        conv_elements=conv * (shape.kernel - 1),
        state_elements=shape.inner * shape.state,
        shard_units=heads,
        state_dtype=shape.state_dtype,
        conv_kernel=shape.kernel,
    )
    return Mixer(tensors=tuple(tensors), caches=(state,), kind="mamba2")


@dataclass(frozen=True, slots=True, kw_only=True)
class DeltaNet:
    """The widths of a gated delta net: its keys, its values, and the heads of each."""

    hidden: int
    num_key_heads: int
    num_value_heads: int
    key_head_width: int
    value_head_width: int
    kernel: int
    state_dtype: DType | None = None

    @property
    def key_width(self) -> int:
        return self.num_key_heads * self.key_head_width

    @property
    def value_width(self) -> int:
        return self.num_value_heads * self.value_head_width

    @property
    def conv_width(self) -> int:
        return 2 * self.key_width + self.value_width

    @property
    def units(self) -> int:
        """How many pieces tensor parallelism can cut it into."""
        return min(self.num_key_heads, self.num_value_heads)

    def cache(self) -> LinearState:
        """One matrix per value head, and the convolution's last inputs."""
        return LinearState(
            kind="gated_delta_net",
            conv_elements=self.conv_width * (self.kernel - 1),
            state_elements=self.num_value_heads * self.value_head_width * self.key_head_width,
            shard_units=self.units,
            state_dtype=self.state_dtype,
            conv_kernel=self.kernel,
        )


def delta_net(shape: DeltaNet, inputs: tuple[tuple[str, int], ...], *, prefix: str = "linear_attn") -> Mixer:
    """A gated delta net whose input projections have these names and widths; checkpoints fuse them differently."""
    units, heads = shape.units, shape.num_value_heads
    tensors = (
        *(
            tensor
            for name, width in inputs
            for tensor in blocks.column(f"{prefix}.{name}", width, shape.hidden, units, _ROLE)
        ),
        *blocks.conv1d(f"{prefix}.conv1d", shape.conv_width, shape.kernel, units),
        blocks.vector(f"{prefix}.dt_bias", heads, _ROLE, units=units),
        blocks.vector(f"{prefix}.A_log", heads, _ROLE, units=units, dtype=DType.F32),
        *blocks.norm(f"{prefix}.norm", shape.value_head_width),
        *blocks.row(f"{prefix}.out_proj", shape.hidden, shape.value_width, units, _ROLE),
    )
    return Mixer(tensors=tensors, caches=(shape.cache(),), kind="gated_delta_net")


@dataclass(frozen=True, slots=True, kw_only=True)
class KimiDelta:
    """The widths of a Kimi delta attention. A full-rank gate is one map instead of two through a bottleneck.

    `stored_heads` is how many decays the checkpoint holds, where it pads them.
    """

    hidden: int
    num_heads: int
    head_width: int
    kernel: int
    full_rank_gate: bool = False
    full_rank_decay: bool = False
    stored_heads: int = 0

    @property
    def width(self) -> int:
        return self.num_heads * self.head_width


def kimi_delta(shape: KimiDelta, *, prefix: str = "self_attn") -> Mixer:
    """A delta net with one decay per channel; its state, convolutions, decays and norm are kept in FP32."""
    width, heads, hidden = shape.width, shape.num_heads, shape.hidden
    convs = (t for name in "qkv" for t in blocks.conv1d(f"{prefix}.{name}_conv1d", width, shape.kernel, heads))
    tensors = (
        *(t for name in "qkv" for t in blocks.column(f"{prefix}.{name}_proj", width, hidden, heads, _ROLE)),
        *(replace(tensor, dtype=DType.F32) for tensor in convs),
        blocks.vector(f"{prefix}.A_log", shape.stored_heads or heads, _ROLE, units=heads, dtype=DType.F32),
        blocks.vector(f"{prefix}.dt_bias", width, _ROLE, units=heads, dtype=DType.F32),
        *_bottleneck(f"{prefix}.f", shape, full_rank=shape.full_rank_decay),
        *blocks.column(f"{prefix}.b_proj", heads, hidden, heads, _ROLE),
        *_bottleneck(f"{prefix}.g", shape, full_rank=shape.full_rank_gate),
        blocks.vector(f"{prefix}.o_norm.weight", shape.head_width, dtype=DType.F32),
        *blocks.row(f"{prefix}.o_proj", hidden, width, heads, _ROLE),
    )
    state = LinearState(
        kind="linear_attention",
        conv_elements=3 * width * (shape.kernel - 1),
        state_elements=heads * shape.head_width**2,
        shard_units=heads,
        state_dtype=DType.F32,
        conv_kernel=shape.kernel,
    )
    return Mixer(tensors=tensors, caches=(state,), kind="linear_attention")


def _bottleneck(name: str, shape: KimiDelta, *, full_rank: bool) -> tuple[Tensor, ...]:
    if full_rank:
        return blocks.column(f"{name}_proj", shape.width, shape.hidden, shape.num_heads, _ROLE)
    return (
        *blocks.replicated(f"{name}_a_proj", shape.head_width, shape.hidden, _ROLE),
        *blocks.column(f"{name}_b_proj", shape.width, shape.head_width, shape.num_heads, _ROLE),
    )


def short_conv(hidden: int, kernel: int, *, prefix: str = "conv", bias: bool = False) -> Mixer:
    """A gated convolution over a few tokens (LFM2)."""
    tensors = (
        *blocks.conv1d(f"{prefix}.conv", hidden, kernel, hidden, bias=bias),
        *blocks.column(f"{prefix}.in_proj", 3 * hidden, hidden, hidden, _ROLE, bias=bias),
        *blocks.row(f"{prefix}.out_proj", hidden, hidden, hidden, _ROLE, bias=bias),
    )
    state = LinearState(
        kind="short_conv",
        conv_elements=hidden * (kernel - 1),
        state_elements=0,
        shard_units=hidden,
        conv_kernel=kernel,
    )
    return Mixer(tensors=tensors, caches=(state,), kind="short_conv")


def lightning_state(num_heads: int, head_width: int) -> LinearState:
    """The state of a lightning attention: one matrix per head."""
    return LinearState(
        kind="linear_attention", conv_elements=0, state_elements=num_heads * head_width**2, shard_units=num_heads
    )
