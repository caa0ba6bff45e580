"""PYTORCH_CUDA_ALLOC_CONF, as PyTorch's own parser takes it."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memplan.budget.caching_allocator.settings import AllocatorSettings, parse_settings
from memplan.errors import UsageError

MIB = 1 << 20


def test_an_empty_text_is_the_defaults() -> None:
    assert parse_settings("") == AllocatorSettings()
    assert AllocatorSettings().describe() == ""


def test_everything_that_changes_a_size_is_read() -> None:
    text = (
        "expandable_segments:True, max_split_size_mb: 128, max_non_split_rounding_mb:64,"
        "roundup_power2_divisions:8,garbage_collection_threshold:0.8,per_process_memory_fraction:0.5"
    )
    assert parse_settings(text) == AllocatorSettings(
        expandable_segments=True,
        max_split_bytes=128 * MIB,
        non_split_rounding_bytes=64 * MIB,
        roundup_divisions=(8,) * 16,
        gc_threshold=0.8,
        memory_fraction=0.5,
    )


def test_divisions_by_size_hold_from_the_first_named_size_down_and_from_the_last_one_up() -> None:
    # 1 to 32 MiB as the first, 64 MiB named, 128 MiB between two named ones, 256 MiB named, the rest by `>`.
    assert parse_settings("roundup_power2_divisions:[64:8,256:4,>:2]").roundup_divisions == (
        *(8,) * 7,
        0,
        4,
        *(2,) * 7,
    )


def test_what_only_concerns_the_host_is_taken_and_changes_nothing() -> None:
    assert parse_settings("pinned_use_background_threads:True,backend:native,") == AllocatorSettings()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("expandable_segment:True", "unknown allocator setting"),
        ("expandable_segments", "without a value"),
        ("expandable_segments:true", "not True or False"),
        ("max_split_size_mb:19", "too small"),
        ("large_segment_size_mb:64,max_split_size_mb:63", "too small"),
        ("large_segment_size_mb:10", "too small"),
        ("max_split_size_mb:1.5", "not a whole number"),
        ("max_split_size_mb:-1", "not a whole number"),
        ("max_split_size_mb:99999999999999999999", "not a whole number"),
        ("garbage_collection_threshold:1", "not a share"),
        ("garbage_collection_threshold:0", "not a share"),
        ("garbage_collection_threshold:nan", "not a share"),
        ("per_process_memory_fraction:1.1", "not a share"),
        ("roundup_power2_divisions:3", "not a power of two"),
        ("roundup_power2_divisions:[100:8]", "not a power of two"),
        ("roundup_power2_divisions:[64]", "not SIZE:DIVISIONS"),
        ("backend:cudaMallocAsync", "another allocator"),
    ],
)
def test_what_pytorch_refuses_is_refused_in_one_line(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        parse_settings(text)
    assert caught.value.hint
    assert "\n" not in caught.value.message


SETTINGS = st.builds(
    AllocatorSettings,
    expandable_segments=st.booleans(),
    max_split_bytes=st.none() | st.integers(20, 4096).map(lambda number: number * MIB),
    non_split_rounding_bytes=st.integers(20, 4096).map(lambda number: number * MIB),
    roundup_divisions=st.just(()) | st.lists(st.sampled_from([1, 2, 4, 8]), min_size=16, max_size=16).map(tuple),
    gc_threshold=st.sampled_from([0.0, 0.5, 0.8]),
    memory_fraction=st.sampled_from([None, 0.25, 1.0]),
)


@given(SETTINGS)
def test_settings_written_and_read_again_are_the_same(settings: AllocatorSettings) -> None:
    assert parse_settings(settings.describe()) == settings


@given(st.text(alphabet="expandable_segments:True,max_split_size_mb[]0123456789 >.", max_size=60))
def test_whatever_is_typed_is_settings_or_an_error_of_ours(text: str) -> None:
    with suppress(UsageError):
        assert isinstance(parse_settings(text), AllocatorSettings)
