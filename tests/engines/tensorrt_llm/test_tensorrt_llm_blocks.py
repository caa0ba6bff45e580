"""TensorRT-LLM's blocks: the capacities that logs printed, from the sizes that they printed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memplan.engines.tensorrt_llm.blocks import BlockPools, WindowPool
from memplan.units import GIB, KIB


def blocks(token_bytes: float, size: int = 32, *, engine: bool = False, windows: tuple[int, ...] = ()) -> BlockPools:
    wide = windows or (1 << 20,)
    return BlockPools(
        pools=tuple(WindowPool(window_tokens=window, token_bytes=token_bytes / len(wide)) for window in sorted(wide)),
        tokens_per_block=size,
        rounds_up=engine,
        state_bytes=0,
    )


@pytest.mark.parametrize(
    ("free_gib", "fraction", "token_bytes", "capacity"),
    [(70.48, 0.9, 262_144, 4060), (1.42, 0.9, 262_144, 82), (21.89, 0.9, 524_288, 631), (63.62, 0.99, 229_376, 4607)],
)
def test_the_engine_flow_fills_its_part_of_free_memory(
    free_gib: float, fraction: float, token_bytes: int, capacity: int
) -> None:
    kept = blocks(token_bytes, 64, engine=True)
    low, high = (kept.blocks((free_gib + sign * 0.005) * GIB * fraction) for sign in (-1, 1))
    assert low <= capacity <= high


@pytest.mark.parametrize(
    ("model", "total", "peak", "temporary", "fraction", "token_bytes", "capacity"),
    [
        ("Llama-3.1-8B FP8", 79.18, 11.08, 0.32, 0.8, 65_536, 896_736),
        ("TinyLlama", 47.37, 5.13, 1.38, 0.9, 22_528, 1_871_136),
        ("gpt-oss-120b", 119.70, 113.65, 0.56, 0.9, 73_728, 86_720),
    ],
)
def test_the_pytorch_flow_takes_its_part_of_what_profiling_left(
    model: str, total: float, peak: float, temporary: float, fraction: float, token_bytes: int, capacity: int
) -> None:
    left = total - peak + temporary
    low, high = (blocks(token_bytes).blocks((left + sign * 0.015) * fraction * GIB) * 32 for sign in (-1, 1))
    assert low <= capacity <= high + 32


def test_the_engine_flow_rounds_up_and_the_pytorch_flow_down() -> None:
    assert blocks(KIB, 32, engine=True).blocks(32 * KIB * 10.5) == 11
    assert blocks(KIB, 32).blocks(32 * KIB * 10.5) == 10


def test_windows_share_memory_by_their_length() -> None:
    kept = blocks(2 * KIB, 32, windows=(128, 1152))
    assert kept.widest.window_tokens == 1152
    assert kept.blocks(GIB) == int(GIB * 0.9 / (KIB * 32))
    assert kept.used_bytes(kept.blocks(GIB)) == pytest.approx(GIB, rel=1e-3)


def test_a_window_keeps_its_last_tokens_only() -> None:
    kept = blocks(2 * KIB, 32, windows=(128, 1152))
    assert kept.request_blocks(64) >= kept.request_blocks(32)
    assert kept.request_blocks(1152) == kept.request_blocks(100_000) == 36


@given(st.integers(0, 1 << 40), st.integers(0, 1 << 35), st.booleans())
def test_more_memory_never_makes_fewer_blocks(size: int, more: int, engine: bool) -> None:
    kept = blocks(64 * KIB, engine=engine)
    assert kept.blocks(size + more) >= kept.blocks(size)
    assert kept.used_bytes(kept.blocks(size)) <= size + 64 * KIB * 32


@given(st.integers(1, 200_000))
def test_a_longer_request_never_claims_fewer_blocks(tokens: int) -> None:
    kept = blocks(64 * KIB, windows=(4096, 131_072))
    assert kept.request_blocks(tokens + 1) >= kept.request_blocks(tokens)
