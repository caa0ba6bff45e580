"""The arithmetic of SGLang's pools: the capacities that logs printed, from the memory that they printed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memplan.engines.sglang.pool_sizes import Pools
from memplan.units import GIB, KIB, MIB

# model and ranks: before loading, after loading, fraction, bytes per token and rank, page, capacity
PRINTED = {
    "Qwen3-14B on four 24 GB cards": (23.08, 16.00, 0.8, 40 * 2 * 256 * 2, 1, 298_447),
    "Qwen2.5-7B on A100 40 GB": (38.97, 24.59, 0.88, 28 * 4 * 256 * 2, 1, 372_945),
    "Llama-3.1-8B on a 24 GB card": (22.39, 7.37, 0.879, 32 * 8 * 256 * 2, 1, 38_141),
    "Qwen3-8B on B200": (177.57, 162.29, 0.854, 36 * 8 * 256 * 2, 64, 992_896),
    "Kimi-K2.5 on eight MI355X": (283.55, 209.97, 0.826, 61 * 576 * 2, 1, 2_454_421),
}


def pools(full_bytes: float, **more: object) -> Pools:
    return Pools(full_bytes=full_bytes, stored_full_bytes=full_bytes, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", PRINTED)
def test_printed_memory_gives_the_printed_capacity(name: str) -> None:
    before, after, fraction, token_bytes, page, capacity = PRINTED[name]
    rounding = 0.005 * (2 - fraction)
    low, high = (
        pools(token_bytes, page_size=page).tokens(round((after - before * (1 - fraction) + sign * rounding) * GIB))
        for sign in (-1, 1)
    )
    assert low <= capacity <= high
    assert high - low < 0.01 * capacity


def test_a_window_pool_takes_its_ratio_of_every_token() -> None:
    # gemma-4-26B-A4B on two cards, 9.47 GiB: 5 full layers of 1 x 512 + 512, 25 window layers of 4 x 256 + 256.
    full, window = 5 * 1024 * 2, 25 * 4 * 512 * 2
    tokens = {ratio: pools(full, window_bytes=window, window_ratio=ratio).tokens(9 * GIB) for ratio in (0.0625, 0.5)}
    assert tokens[0.0625] == 9 * GIB // (full + 0.0625 * window)
    assert tokens[0.5] == 9 * GIB // (full + 0.5 * window)


def test_states_take_their_ratio_of_the_budget_and_tokens_the_rest() -> None:
    # Qwen3.5-9B on two cards printed 9.49 GiB, 186 slots in 4.48 GiB, and 327,310 tokens in 5.00 GiB.
    state = 24 * (16 * 128 * 128 * 4 + 3 * (2 * 8 * 128 + 16 * 128) * 2)
    kept = pools(8 * 2 * 512 * 2, state_bytes=state, state_ratio=0.9)
    assert kept.slots(9.49 * GIB) in (185, 186, 187)
    assert kept.tokens(round(9.49 * GIB)) == pytest.approx(327_310, rel=0.005)


def test_a_page_is_never_cut() -> None:
    assert pools(100, page_size=64).tokens(100 * 129) == 128


def test_max_total_tokens_caps_the_capacity() -> None:
    assert pools(KIB, max_tokens=10_240).tokens(GIB) == 10_240


def test_no_memory_gives_no_tokens() -> None:
    assert pools(KIB).tokens(-5 * MIB) == 0
    assert pools(KIB, state_bytes=GIB, state_ratio=0.9).slots(MIB) == 0


@given(
    budget=st.integers(0, 200 * GIB),
    more=st.integers(0, 50 * GIB),
    window=st.integers(0, 200 * KIB),
    ratio=st.floats(0.02, 1.0),
    state=st.integers(0, 100 * MIB),
    page=st.sampled_from([1, 16, 64]),
)
def test_more_memory_never_holds_fewer_tokens_and_the_pools_stay_inside_it(
    budget: int, more: int, window: int, ratio: float, state: int, page: int
) -> None:
    kept = pools(64 * KIB, window_bytes=window, window_ratio=ratio, state_bytes=state, state_ratio=0.9, page_size=page)
    tokens = kept.tokens(budget)
    assert kept.tokens(budget + more) >= tokens - 2 * (state // (64 * KIB) + page)
    slack = page * (64 * KIB + window) + state
    assert not tokens or sum(kept.used(tokens, budget).values()) <= budget + slack


@given(context=st.integers(1, 200_000), users=st.integers(1, 64), ratio=st.floats(0.05, 1.0))
def test_more_context_or_more_users_never_need_fewer_tokens(context: int, users: int, ratio: float) -> None:
    kept = pools(KIB, window_bytes=4 * KIB, window_ratio=ratio, window_tokens=1024)
    needed = kept.needed_bytes(context, users, 2048)
    assert kept.needed_bytes(context + 1, users, 2048) >= needed
    assert kept.needed_bytes(context, users + 1, 2048) >= needed
