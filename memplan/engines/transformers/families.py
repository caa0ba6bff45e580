"""What transformers' own code of a family does that its architecture does not tell: which attention it has, in which
type it weighs experts, how many buffers its activation function holds at once.

Read off the family's modelling file by benchmarks/transformers/score.py; see catalog/engines/transformers.yaml.
"""

from __future__ import annotations

from pathlib import Path

from memplan.catalog.rules import Rules, parse_release
from memplan.catalog.tables import load_table
from memplan.domain.model import ModelSpec
from memplan.records import dataclass

_FILE = Path("engines") / "transformers.yaml"


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One family's habits.

    `eager_since` and `sdpa_since` bound the releases in which it has no SDPA attention: from the first, up to the
    second, which may be empty for "to this day". `score_bytes` is what the family's eager attention holds for each
    score in 16 bit at its peak. `mlp_copies` is how many buffers of the MLP's width are alive at once in an MLP
    without a gate, `more_hidden` counts hidden states that live longer than in Llama. `wide_routing` weighs the
    experts' outputs in FP32. `dense_experts` sends every token to every expert. `wide_rotary` rotates queries in
    FP32. `hybrid_cache` had a static cache by default in the releases that have the rule of that name.
    `caches_all_heads` copies grouped keys to every query head before it caches them. `wide_indexer` caches indexer
    keys in FP32, `narrow_state` its recurrent state in the compute type. `dynamic_only` refuses every other cache.
    `keeps_all_logits` has no way to leave the prompt's logits out, `logits_copies` counts logits that are there at
    once (where they are scaled or capped). `block_mask_bytes` is what a sparse attention's own mask takes for every
    score of every head. `always_masks` makes a mask even where none is needed. `broadcasts_keys` attends to grouped
    keys without copying them to every head. `expert_copies` is `mlp_copies` for a routed expert with a gate.
    """

    eager_since: str | None = None
    sdpa_since: str | None = None
    score_bytes: float = 10.0
    mlp_copies: float = 2.0
    more_hidden: int = 0
    wide_routing: bool = False
    dense_experts: bool = False
    wide_rotary: bool = False
    hybrid_cache: bool = False
    caches_all_heads: bool = False
    wide_indexer: bool = False
    narrow_state: bool = False
    dynamic_only: bool = False
    keeps_all_logits: bool = False
    logits_copies: int = 1
    block_mask_bytes: int = 0
    always_masks: bool = False
    broadcasts_keys: bool = False
    expert_copies: float = 4.0

    def is_eager(self, rules: Rules) -> bool:
        """Whether the family falls back to eager attention in this release."""
        if self.eager_since is None or rules.release < parse_release(self.eager_since):
            return False
        return self.sdpa_since is None or rules.release < parse_release(self.sdpa_since)


def family_of(spec: ModelSpec) -> Family:
    """Return what is known about the model's family; the ordinary habits where nothing is."""
    table = load_table(_FILE)["families"]
    return Family(**table.get(_text_type(spec), {}))


def _text_type(spec: ModelSpec) -> str:
    """The model type of the language model inside a wrapper, as far as its name tells."""
    return spec.model_type
