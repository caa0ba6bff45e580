"""What memplan promises of a change is what it answers when the change is typed."""

from __future__ import annotations

import shlex
from itertools import pairwise
from typing import Any

from hypothesis import given, reject, settings
from hypothesis import strategies as st
from questions import MODELS, SMALL_MODELS

from memplan.cli.parser import load_command
from memplan.cli.questions import ask
from memplan.domain.budget import MemoryBudget
from memplan.domain.remedies import cheapest_remedy, flags_to_type
from memplan.engines.remedies import headroom_bytes
from memplan.errors import MemplanError
from memplan.pipeline import answer

FEWER = settings(max_examples=settings.default.max_examples // 3)
ESTIMATE = load_command("estimate")


def typed(line: str) -> MemoryBudget:
    """The answer to `memplan estimate LINE`."""
    values: dict[str, Any] = ESTIMATE.make_context("estimate", shlex.split(line)).params
    asked = ask({name: value for name, value in values.items() if value is not None and value not in ([], ())})
    (question,) = asked.questions()
    return answer(question)


lines = st.builds(
    lambda engine, model, gpu, context, concurrency: (
        f"{model if engine != 'llama.cpp' else SMALL_MODELS[len(model) % len(SMALL_MODELS)]}"
        f" --offline --gpu {gpu} --engine {engine} --context {context} --concurrency {concurrency}"
    ),
    st.sampled_from(("vllm", "vllm", "vllm@0.8.5", "sglang", "tensorrt-llm", "transformers", "llama.cpp")),
    st.sampled_from(MODELS),
    st.sampled_from(("l4", "rtx-4090", "a100-80g", "h100")),
    st.sampled_from((1024, 4096, 16384, 131072)),
    st.sampled_from((1, 4, 32)),
)


@FEWER
@given(lines)
def test_a_remedy_that_is_typed_returns_what_it_promised(line: str) -> None:
    try:
        budget = typed(line)
    except MemplanError:
        reject()
    for remedy in budget.remedies:
        changed = typed(f"{line} {flags_to_type(remedy.change)} --quiet")
        assert headroom_bytes(changed) - headroom_bytes(budget) == remedy.saves_bytes, remedy.change
        assert changed.verdict == remedy.verdict, remedy.change


@FEWER
@given(lines)
def test_the_cheapest_remedy_mends_the_budget(line: str) -> None:
    try:
        budget = typed(line)
    except MemplanError:
        reject()
    remedy = cheapest_remedy(budget)
    if remedy is None:
        return
    assert budget.verdict != "fits"
    changed = typed(f"{line} {flags_to_type(remedy.change)} --quiet")
    assert changed.verdict in ("fits", "tight")
    assert not (budget.verdict == changed.verdict == "tight")


@FEWER
@given(lines.filter(lambda line: "llama.cpp" not in line))
def test_longer_requests_have_room_for_fewer(line: str) -> None:
    try:
        context_map = typed(line).context_map
    except MemplanError:
        reject()
    if context_map is None:
        return
    assert list(context_map.context_tokens) == sorted(set(context_map.context_tokens))
    rooms = context_map.max_concurrency
    assert all(after <= before for before, after in pairwise(rooms))
