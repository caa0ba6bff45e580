"""How far terms may be off, and to which side that counts."""

from __future__ import annotations

from vllm_start import start

from memplan.engines.vllm.fitted import load_fitted
from memplan.engines.vllm.intervals import Intervals, intervals_of
from memplan.engines.vllm.rank import plan_rank

DYNAMIC = "unsloth/QwQ-32B-unsloth-bnb-4bit"


def widths(name: str, scheme: str | None = None) -> Intervals:
    at = start("0.8.5", "rtx-5090", name, scheme=scheme, context=8192)
    plan = plan_rank(at.spec, at.gpu, at.asked, at.settings, at.rules, load_fitted(), 0)
    return intervals_of(at.spec, at.gpu, at.asked, at.settings, at.rules.release, load_fitted(), plan)


def test_a_dynamic_checkpoint_may_keep_a_fifth_more() -> None:
    """Source: printed weights of such checkpoints, 1 to 20 % above plain ones."""
    dynamic, plain = widths(DYNAMIC), widths("Qwen/QwQ-32B", "bnb-nf4")
    assert dynamic.weights.below_bytes == plain.weights.below_bytes
    assert dynamic.weights.above_bytes > 5 * plain.weights.above_bytes


def test_what_is_left_for_the_cache_may_be_as_much_less_as_the_terms_are_more() -> None:
    found = widths(DYNAMIC)
    assert found.rest.below_bytes > found.weights.above_bytes
    assert found.weights.below_bytes < found.rest.above_bytes < found.rest.below_bytes
