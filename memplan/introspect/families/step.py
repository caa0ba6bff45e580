"""Step 3, 3.5 and 3.7: experts in most layers, and queries that differ from other families'.

Source: transformers 5.23, `models/step3p7` and its checkpoint names; vLLM 0.33.0, `models/step3_text.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

from memplan.domain.attention import FullAttention
from memplan.domain.tensors import Role
from memplan.introspect import blocks, windows
from memplan.introspect.blocks import Heads
from memplan.introspect.config import Config
from memplan.introspect.families.decoder import Decoder, Routed
from memplan.introspect.families.routing import listed_or
from memplan.introspect.stack import Mixer, key, per_layer
from memplan.introspect.windows import FULL, SLIDING
from memplan.records import replace


# Step 3.5 and 3.7: more query heads in windowed layers, and a gate for every head.
def _step_kinds(config: Config, num_layers: int) -> Sequence[str]:
    """The list may go on with the kinds of the predictors."""
    return windows.layer_types(config, num_layers)


def _step_heads(config: Config, *, is_windowed: bool) -> Heads:
    num_heads = config.int("num_attention_heads")
    if is_windowed:
        number = config.optional_int("num_sliding_attention_heads", minimum=1)
        if number is None and config.has("attention_other_setting"):
            number = config.sub("attention_other_setting").int("num_attention_heads", default=num_heads)
        num_heads = number or num_heads
    kv = config.int("num_attention_groups", "num_key_value_heads", default=8)
    width = config.int("head_dim", default=128)
    return Heads(
        hidden=config.int(*blocks.HIDDEN), num_heads=num_heads, num_kv_heads=kv, key_width=width, value_width=width
    )


def _step_mixers(config: Config) -> Sequence[Mixer]:
    style = Decoder(qkv_bias="attention_bias", out_bias="attention_bias", qk_norm=True)

    def mixer(kind: str) -> Mixer:
        if kind not in (FULL, SLIDING):
            raise windows.unknown_kind(kind, (FULL, SLIDING))
        heads = _step_heads(config, is_windowed=kind == SLIDING)
        window = config.optional_int("sliding_window") if kind == SLIDING else None
        made = style.attention(config, heads, heads.window(window))
        gate = blocks.column("self_attn.g_proj", heads.num_heads, heads.hidden, heads.num_heads, Role.ATTENTION)
        return replace(made, tensors=(*made.tensors, *gate))

    return per_layer(_step_kinds(config, config.num_layers()), mixer)


def _step_routed(config: Config, index: int) -> bool:
    """Layers listed as `sparse`, or in a comma-separated text; without either, all but the first three."""
    if not config.has("moe_layers_enum"):
        return listed_or(3)(config, index)
    listed = config.str("moe_layers_enum").split(",")
    return str(index) in {number.strip() for number in listed}


_STEP_ROUTED = Routed(
    num_experts=("moe_num_experts", "n_routed_experts", "num_experts", "num_local_experts"),
    experts_per_token=("moe_top_k", "num_experts_per_tok"),
    intermediate=key("moe_intermediate_size"),
    prefix="moe",
    router="moe.gate",
    correction="moe.router_bias",
    is_routed=_step_routed,
    shared=key("share_expert_dim", "share_expert_dims"),
    shared_prefix="share_expert",
)


STEP3P5 = Decoder(mixers=_step_mixers, routed=_STEP_ROUTED)


def _step3_mixers(config: Config) -> Sequence[Mixer]:
    """Step 3: one key-value head, and queries that are expanded from a shared projection."""
    hidden, num_heads = config.int(*blocks.HIDDEN), config.int("num_attention_heads")
    width = config.int("head_dim", default=256)
    shared = config.int("share_q_dim", default=width)
    role = Role.ATTENTION
    tensors = (
        *blocks.replicated("self_attn.q_proj", shared, hidden, role),
        *(t for name in "kv" for t in blocks.replicated(f"self_attn.{name}_proj", width, hidden, role)),
        *blocks.norm("self_attn.inter_norm", shared),
        *blocks.column("self_attn.wq", num_heads * width, shared, num_heads, role),
        *blocks.row("self_attn.o_proj", hidden, num_heads * width, num_heads, role),
    )
    mixer = Mixer(
        tensors=tensors,
        caches=(FullAttention(1, width, width),),
        query_width=num_heads * width,
        num_heads=num_heads,
    )
    return (mixer,) * config.num_layers()


STEP3 = Decoder(
    mixers=_step3_mixers,
    routed=replace(
        _STEP_ROUTED,
        correction="",
        is_routed=lambda config, index: _step_routed(config, index) if config.has("moe_layers_enum") else index >= 1,
    ),
)
