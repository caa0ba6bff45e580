"""What no model can be, whatever its family: numbers of one config that contradict each other.

A config that transformers itself refuses, or that no attention or router could compute with, is refused by the keys
that disagree; a family's reader would otherwise take one of them and go on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import cast

from memplan.errors import UnsupportedModel
from memplan.introspect.blocks import HEADS

_KV_HEADS = ("num_key_value_heads", "multi_query_group_num")
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_PER_TOKEN = (
    *("num_experts_per_tok", "num_experts_per_token", "experts_per_token"),
    *("moe_topk", "moe_top_k", "moe_k", "top_k_experts"),
)
_LISTED = ("layer_types", "mlp_layer_types", "layers_block_type")
_DEEPEST = 4
_HINT = "mend the keys, or take the config.json as it was published"


def check_consistent(raw: Mapping[str, object]) -> None:
    """Look through a config and the configs nested in it.

    Raises: UnsupportedModel that names the keys.
    """
    for path, part in _parts(raw, "", _DEEPEST):
        _check_heads(path, part)
        _check_experts(path, part)
        _check_lists(path, part)


def _parts(raw: Mapping[str, object], path: str, depth: int) -> Iterator[tuple[str, Mapping[str, object]]]:
    yield path, raw
    for key, value in raw.items() if depth else ():
        if isinstance(value, Mapping):
            yield from _parts(cast("Mapping[str, object]", value), f"{path}{key}.", depth - 1)


def _check_heads(path: str, part: Mapping[str, object]) -> None:
    heads, stored = _first(part, HEADS), _first(part, _KV_HEADS)
    if heads and stored and heads[1] % stored[1]:
        raise UnsupportedModel(
            f"config key `{path}{stored[0]}` is {stored[1]}: `{path}{heads[0]}` {heads[1]} does not divide by it",
            hint=_HINT,
        )


def _check_experts(path: str, part: Mapping[str, object]) -> None:
    """A single expert is how some families write a dense model."""
    experts, chosen = _first(part, _EXPERTS), _first(part, _PER_TOKEN)
    if experts and chosen and 1 < experts[1] < chosen[1]:
        raise UnsupportedModel(
            f"config key `{path}{chosen[0]}` is {chosen[1]}, more than `{path}{experts[0]}` {experts[1]}", hint=_HINT
        )


def _check_lists(path: str, part: Mapping[str, object]) -> None:
    layers = _first(part, ("num_hidden_layers",))
    for key in _LISTED:
        kinds = part.get(key)
        if layers and isinstance(kinds, (list, tuple)) and len(kinds) != layers[1]:
            raise UnsupportedModel(f"config key `{path}{key}` names {len(kinds)} layers of {layers[1]}", hint=_HINT)


def _first(part: Mapping[str, object], keys: tuple[str, ...]) -> tuple[str, int] | None:
    """The first of `keys` that holds a whole number above 0. Other values are for the family's reader to refuse."""
    for key in keys:
        value = part.get(key)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return key, value
    return None
