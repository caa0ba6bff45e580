"""NVIDIA's hybrids and searched models: Nemotron-H, where a layer is one half only, and Nemotron-NAS (DeciLM), where
every layer has a configuration of its own.

Source: transformers 5.23, `models/nemotron_h`; vLLM 0.33.0, `model_executor/models/{nemotron_h,nemotron_h_mtp,
nemotron_nas}.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

from memplan.domain.dtypes import DType, parse_compute_dtype
from memplan.domain.model import Mlp
from memplan.domain.tensors import Role, Tensor
from memplan.errors import UnsupportedModel
from memplan.introspect import blocks, windows
from memplan.introspect.blocks import Heads, exact_div
from memplan.introspect.config import Config
from memplan.introspect.families.decoder import Decoder, Frame, correction_bias
from memplan.introspect.families.mtp import num_mtp_layers
from memplan.introspect.recurrent import Mamba2, mamba2
from memplan.introspect.stack import NO_FEED, NO_MIXER, Feed, Mixer, is_set, per_layer
from memplan.records import dataclass, replace
from memplan.units import round_up

_LETTERS = {"M": "mamba", "*": "attention", "-": "mlp", "E": "moe"}
_NAMES = {
    "mamba": "mamba",
    "linear_attention": "mamba",
    "attention": "attention",
    "full_attention": "attention",
    "mlp": "mlp",
    "moe": "moe",
}


def _kinds(config: Config) -> tuple[str, ...]:
    """The kind of every layer: a list of names, or a text with a letter for each."""
    if config.has("layers_block_type"):
        names = config.strs("layers_block_type")
        if not names or set(names) - set(_NAMES):
            raise UnsupportedModel(f"config key `layers_block_type` must list {', '.join(_LETTERS.values())}")
        return _bounded(config, [_NAMES[name] for name in names])
    return _bounded(config, _spelled(config.str("hybrid_override_pattern"), "hybrid_override_pattern"))


def _spelled(text: str, name: str) -> list[str]:
    if not text or set(text) - set(_LETTERS):
        raise UnsupportedModel(f"config key `{name}` must be a text of the letters {' '.join(_LETTERS)}")
    return [_LETTERS[letter] for letter in text]


def _bounded(config: Config, kinds: Sequence[str]) -> tuple[str, ...]:
    number = config.num_layers(default=len(kinds))
    if number != len(kinds):
        raise UnsupportedModel(f"the config describes {len(kinds)} layers, and says that there are {number}")
    return tuple(kinds)


def _half(config: Config, kind: str) -> tuple[Mixer, Feed]:
    """One layer: a mixer or an MLP, and a norm."""
    norm = blocks.norm("norm", config.int(*blocks.HIDDEN))
    if kind == "mamba":
        mixer = mamba2(_mamba(config))
        return replace(mixer, tensors=(*norm, *mixer.tensors)), NO_FEED
    if kind == "attention":
        mixer = _attention(config)
        return replace(mixer, tensors=(*norm, *mixer.tensors)), NO_FEED
    feed = _experts(config) if kind == "moe" else _mlp(config)
    return NO_MIXER, replace(feed, tensors=(*norm, *feed.tensors))


def _mamba(config: Config) -> Mamba2:
    heads = config.int("mamba_num_heads", default=128)
    bias = config.bool("use_bias", default=False)
    dtype = config.str("mamba_ssm_cache_dtype", default="float32")
    return Mamba2(
        hidden=config.int(*blocks.HIDDEN),
        inner=heads * config.int("mamba_head_dim", default=64),
        num_heads=heads,
        groups=config.int("n_groups", "mamba_n_groups", default=8),
        state=config.int("ssm_state_size", default=128),
        kernel=config.int("conv_kernel", "mamba_d_conv", default=4),
        in_bias=bias,
        out_bias=bias,
        conv_bias=config.bool("use_conv_bias", "mamba_conv_bias", default=True),
        state_dtype=parse_compute_dtype(dtype) or DType.F32,
    )


def _attention(config: Config) -> Mixer:
    heads = blocks.read_heads(config, default_kv=8, head_dim=config.int("attention_head_dim", default=128))
    style = Decoder(attention_prefix="mixer", qkv_bias="attention_bias", out_bias="attention_bias")
    return style.attention(config, heads, heads.window(config.optional_int("sliding_window")))


def _mlp(config: Config) -> Feed:
    hidden, width = config.int(*blocks.HIDDEN), config.int("intermediate_size", default=21504)
    bias = is_set(config, "mlp_bias")
    tensors = blocks.mlp(hidden, width, prefix="mixer", names=("up_proj", "down_proj"), bias=bias)
    return Feed(tensors=tensors, mlp=Mlp(intermediate=width, gated=False))


def _experts(config: Config) -> Feed:
    """Experts without a gate, in a narrower space if there is one, and shared experts in the full one."""
    hidden, number = config.int(*blocks.HIDDEN), config.int("n_routed_experts", "num_local_experts", default=8)
    inner = config.int("moe_intermediate_size", default=7688)
    shared = config.int("moe_shared_expert_intermediate_size", default=7688, minimum=0)
    if not config.int("n_shared_experts", default=1, minimum=0):
        shared = 0
    narrow = config.optional_int("moe_latent_size", minimum=1)
    names, bias = ("up_proj", "down_proj"), is_set(config, "mlp_bias")
    tensors = [
        *blocks.replicated("mixer.gate", number, hidden, Role.ROUTER),
        correction_bias("mixer.gate.e_score_correction_bias", number),
        *blocks.experts(narrow or hidden, inner, number, prefix="mixer.experts.*", names=names),
    ]
    if shared:
        tensors += blocks.mlp(
            hidden, shared, prefix="mixer.shared_experts", names=names, bias=bias, role=Role.SHARED_EXPERT
        )
    if narrow:
        tensors += blocks.replicated("mixer.fc1_latent_proj", narrow, hidden, Role.MLP, bias=bias)
        tensors += blocks.replicated("mixer.fc2_latent_proj", hidden, narrow, Role.MLP, bias=bias)
    return Feed(
        tensors=tuple(tensors),
        mlp=Mlp(
            intermediate=inner,
            gated=False,
            num_experts=number,
            experts_per_token=config.int("num_experts_per_tok", default=2),
            shared_intermediate=shared,
        ),
    )


def _mixers(config: Config) -> Sequence[Mixer]:
    return per_layer(_kinds(config), lambda kind: _half(config, kind)[0])


def _feeds(config: Config) -> Sequence[Feed]:
    return per_layer(_kinds(config), lambda kind: _half(config, kind)[1])


def _mtp(config: Config) -> tuple[Tensor, ...]:
    """Predictors of a few half layers each: the first joins its inputs, the last norms its output."""
    number = num_mtp_layers(config)
    if not number:
        return ()
    if config.has("mtp_layers_block_type"):
        kinds = [_NAMES.get(name, "") for name in config.strs("mtp_layers_block_type")]
    else:
        kinds = _spelled(config.str("mtp_hybrid_override_pattern", default="*E"), "mtp_hybrid_override_pattern")
    if not kinds or "" in kinds or len(kinds) > 64:
        raise UnsupportedModel("config key `mtp_layers_block_type` must list kinds of layers")
    hidden, tensors = config.int(*blocks.HIDDEN), list[Tensor]()
    for index in range(number * len(kinds)):
        place = index % len(kinds)
        mixer, feed = _half(config, kinds[place])
        layer = [*mixer.tensors, *feed.tensors]
        if place == 0:
            layer += blocks.norms(("enorm", "hnorm"), hidden)
            layer += blocks.column("eh_proj", hidden, 2 * hidden, hidden, Role.MTP)
        if place == len(kinds) - 1:
            layer += blocks.norm("final_layernorm", hidden)
        tensors += [replace(tensor, name=f"mtp.layers.{index}.{tensor.name}") for tensor in layer]
    return tuple(tensors)


NEMOTRON_H = Decoder(
    mixers=_mixers,
    feeds=_feeds,
    norms=(),
    frame=Frame(layers="backbone.layers.", embedding="backbone.embeddings", final_norm="backbone.norm_f", mtp=_mtp),
)


@dataclass(frozen=True, slots=True)
class _Block:
    """What a searched layer holds: key-value heads (0: no attention) and an MLP's width (0: none), or plain maps."""

    num_kv_heads: int
    window: int
    intermediate: int
    linear_attention: bool = False
    linear_mlp: bool = False


def _nas_block(config: Config, raw: object, index: int) -> _Block:
    block = Config(raw, path=f"block_configs[{index}]")
    attention, ffn = block.sub("attention"), block.sub("ffn")
    linear_attention = attention.bool("replace_with_linear", default=False)
    linear_mlp = ffn.bool("replace_with_linear", default=False)
    kv, width = 0, 0
    if not linear_attention and not attention.bool("no_op", default=False):
        num_heads = config.int("num_attention_heads")
        kv = exact_div(num_heads, attention.int("n_heads_in_group"), "number of heads", "heads in a group")
    if not linear_mlp and not ffn.bool("no_op", default=False):
        width = ffn.optional_int("intermediate_size", minimum=1) or _multiplied(config, ffn)
    window = attention.optional_int("window_length") or 0
    return _Block(kv, window, width, linear_attention, linear_mlp)


def _multiplied(config: Config, ffn: Config) -> int:
    """Two thirds of the hidden size times the multiplier, rounded up to 256."""
    width = int(2 * ffn.float("ffn_mult") * config.int(*blocks.HIDDEN) / 3)
    if width < 1:
        raise UnsupportedModel(f"config key `{ffn.path}.ffn_mult` must be positive")
    return round_up(width, 256)


def _nas_blocks(config: Config) -> Sequence[_Block]:
    raw = config.list("block_configs")
    if len(raw) != config.num_layers():
        raise UnsupportedModel(f"config key `block_configs` has {len(raw)} layers of {config.num_layers()}")
    return [_nas_block(config, block, index) for index, block in enumerate(raw)]


def _nas_mixer(config: Config, block: _Block) -> Mixer:
    hidden = config.int(*blocks.HIDDEN)
    norm = blocks.norm("input_layernorm", hidden)
    if block.linear_attention:
        return Mixer(tensors=(*blocks.replicated("self_attn.linear_attn", hidden, hidden, Role.ATTENTION), *norm))
    if not block.num_kv_heads:
        return NO_MIXER
    num_heads = config.int("num_attention_heads")
    width = config.optional_int("head_dim", minimum=1) or exact_div(hidden, num_heads, "hidden size", "heads")
    heads = Heads(
        hidden=hidden, num_heads=num_heads, num_kv_heads=block.num_kv_heads, key_width=width, value_width=width
    )
    style = Decoder(qkv_bias="attention_bias", out_bias="attention_bias")
    made = style.attention(config, heads, heads.window(block.window))
    return replace(made, tensors=(*made.tensors, *norm))


def _nas_feed(config: Config, block: _Block) -> Feed:
    hidden = config.int(*blocks.HIDDEN)
    norm = blocks.norm("post_attention_layernorm", hidden)
    if block.linear_mlp:
        return Feed(tensors=(*blocks.replicated("mlp.linear_mlp", hidden, hidden, Role.MLP), *norm))
    if not block.intermediate:
        return NO_FEED
    tensors = blocks.mlp(hidden, block.intermediate, bias=is_set(config, "mlp_bias"))
    return Feed(tensors=(*tensors, *norm), mlp=Mlp(intermediate=block.intermediate))


NEMOTRON_NAS = Decoder(
    mixers=lambda config: per_layer(_nas_blocks(config), lambda block: _nas_mixer(config, block)),
    feeds=lambda config: per_layer(_nas_blocks(config), lambda block: _nas_feed(config, block)),
    norms=(),
)


def _deci_mixers(config: Config) -> Sequence[Mixer]:
    """DeciLM 7B: only the number of key-value heads differs."""
    numbers = config.ints("num_key_value_heads_per_layer")
    if len(numbers) != config.num_layers() or min(numbers, default=0) < 1:
        raise UnsupportedModel("config key `num_key_value_heads_per_layer` must have a number for every layer")
    base = blocks.read_heads(config, default_kv=1)

    def mixer(number: int) -> Mixer:
        heads = replace(base, num_kv_heads=number)
        return Decoder().attention(config, heads, heads.full())

    return per_layer(numbers, mixer)


DECI = Decoder(mixers=_deci_mixers, window=windows.full)
