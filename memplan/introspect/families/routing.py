"""Which layers of a decoder have routed experts, and how wide the experts are that every token goes through.

Source: the configuration classes of transformers 5.23.
"""

from __future__ import annotations

from collections.abc import Callable

from memplan.errors import UnsupportedModel
from memplan.introspect.config import Config
from memplan.introspect.stack import Width, key


def after_dense(config: Config, index: int) -> bool:
    """The first `first_k_dense_replace` layers are dense; of the rest every `moe_layer_freq`-th is routed."""
    step = config.get("moe_layer_freq")
    if isinstance(step, (list, tuple)):
        flags = config.ints("moe_layer_freq")
        if index >= len(flags):
            raise UnsupportedModel(f"config key `moe_layer_freq` names {len(flags)} layers; there are more")
        return bool(flags[index])
    first = config.int("first_k_dense_replace", default=0, minimum=0)
    return index >= first and index % config.int("moe_layer_freq", default=1) == 0


def listed_or(first_dense: int) -> Callable[[Config, int], bool]:
    """`mlp_layer_types` says which layers are `sparse`; without the list, all but the first few."""

    def is_routed(config: Config, index: int) -> bool:
        if not config.has("mlp_layer_types"):
            return index >= config.int("first_k_dense_replace", "num_dense_layers", default=first_dense, minimum=0)
        kinds = config.strs("mlp_layer_types")
        if index >= len(kinds):
            raise UnsupportedModel(f"config key `mlp_layer_types` names {len(kinds)} layers; there are more")
        return kinds[index] == "sparse"

    return is_routed


def every_step(config: Config, index: int) -> bool:
    """Qwen: every `decoder_sparse_step`-th layer is routed, but for those in `mlp_only_layers`."""
    step = config.int("decoder_sparse_step", default=1)
    return index not in config.ints("mlp_only_layers", default=()) and (index + 1) % step == 0


def shared_of(number: str, *, default: int = 0, width: Width | None = None) -> Width:
    """Shared experts: `number` of them, each as wide as a routed one, stored as one MLP."""
    read = width or key("moe_intermediate_size")
    return lambda config: config.int(number, default=default, minimum=0) * read(config)
