"""What must hold whatever arrives: no block is held twice or lost, tokens are conserved, nobody waits forever."""

from __future__ import annotations

from array import array
from collections import Counter
from math import ceil

import pytest
from hypothesis import given
from hypothesis import settings as trials
from traffics import settings, traffics

from memplan.domain.simulation import OUTCOMES, CacheGroup, EqualSteps, SimulationSettings, Traffic
from memplan.errors import UsageError
from memplan.simulate.blocks import NULL, Block
from memplan.simulate.chains import Chains
from memplan.simulate.paged import PagedCache
from memplan.simulate.run import simulate
from memplan.simulate.scheduler import Scheduler
from memplan.simulate.served import Served

_MANY = trials(max_examples=150)


@_MANY
@given(settings(), traffics(closed=False))
def test_no_block_is_held_twice_and_none_is_lost(settings: SimulationSettings, traffic: Traffic) -> None:
    if settings.allocation == "contiguous":
        return
    cache = PagedCache(settings, Chains(traffic))
    scheduler = Scheduler(settings, cache)
    for index in range(traffic.num_requests):
        if traffic.prompt_tokens[index] < settings.context_tokens:
            output = min(traffic.output_tokens[index], settings.context_tokens - traffic.prompt_tokens[index])
            scheduler.add(Served(index, traffic.prompt_tokens[index], output))
    while scheduler.is_busy():
        scheduler.step()
        holders: Counter[Block] = Counter()
        for request in scheduler.running:
            for table in request.tables:
                kept = [block for block in table if block is not NULL]
                assert len(set(kept)) == len(kept)
                holders.update(kept)
        assert all(block.holders == times for block, times in holders.items())
        assert len(holders) + cache.pool.free == settings.num_blocks
    assert cache.pool.free == settings.num_blocks


@_MANY
@given(settings(), traffics())
def test_tokens_are_conserved_and_nobody_waits_forever(settings: SimulationSettings, traffic: Traffic) -> None:
    result = simulate(settings, traffic, stepwise=True)
    counts = result.counts
    assert counts.unfinished == 0
    assert counts.finished + counts.rejected == traffic.num_requests
    ended = [index for index, outcome in enumerate(result.outcomes) if OUTCOMES[outcome] == "finished"]
    prompts = sum(traffic.prompt_tokens[index] for index in ended)
    if not settings.prefill_replicas:
        assert counts.computed_prompt_tokens - counts.recomputed_tokens + sum(result.cached_tokens) == prompts or (
            counts.preemptions > 0  # a prompt that gave way half read was computed in parts
        )
        assert counts.computed_prompt_tokens + counts.cached_tokens >= prompts
    assert counts.output_tokens == sum(
        min(traffic.output_tokens[index], settings.context_tokens - traffic.prompt_tokens[index]) for index in ended
    )
    for index in ended:
        assert result.arrived_s[index] <= result.scheduled_s[index] <= result.first_token_s[index]
        assert result.first_token_s[index] <= result.finished_s[index]
    assert counts.most_blocks <= settings.num_blocks
    parts = result.waste
    sums = parts.tokens + parts.internal + parts.reserved + parts.external + parts.cached + parts.free
    assert sums == pytest.approx(1.0)
    assert min(parts.tokens, parts.internal, parts.reserved, parts.external, parts.cached, parts.free) >= 0


@_MANY
@given(settings(), traffics(closed=False))
def test_requests_are_taken_in_in_the_order_in_which_they_arrive(
    settings: SimulationSettings, traffic: Traffic
) -> None:
    result = simulate(settings, traffic, stepwise=True)
    if settings.replicas > 1 or settings.prefill_replicas:
        return
    order = sorted(range(traffic.num_requests), key=lambda index: (traffic.arrivals[index], index))
    times = [result.scheduled_s[index] for index in order if result.scheduled_s[index] >= 0]
    assert times == sorted(times)


@_MANY
@given(settings(), traffics())
def test_the_same_question_has_the_same_answer(settings: SimulationSettings, traffic: Traffic) -> None:
    assert simulate(settings, traffic) == simulate(settings, traffic)


def one_at_a_time(count: int, prompt: int, output: int) -> Traffic:
    return Traffic(
        arrivals=array("d", [0.0] * count),
        prompt_tokens=array("q", [prompt] * count),
        output_tokens=array("q", [output] * count),
        unit="steps",
    )


def test_a_static_batch_ends_together_and_only_then_lets_others_in() -> None:
    traffic = Traffic(
        arrivals=array("d", [0.0] * 3),
        prompt_tokens=array("q", [4, 4, 4]),
        output_tokens=array("q", [2, 9, 3]),
        unit="steps",
    )
    room = {"num_blocks": 100, "context_tokens": 100, "max_num_seqs": 2}
    static = SimulationSettings(batching="static", allocation="contiguous", **room)
    static_result = simulate(static, traffic)
    assert static_result.finished_s.tolist() == [9.0, 9.0, 12.0]
    assert static_result.scheduled_s.tolist() == [0.0, 0.0, 9.0]
    continuous = simulate(SimulationSettings(**room), traffic)
    assert continuous.finished_s.tolist() == [2.0, 9.0, 5.0]


def test_a_contiguous_cache_reserves_what_a_paged_one_hands_out_as_it_is_filled() -> None:
    traffic = one_at_a_time(64, 100, 100)
    room = {"num_blocks": 128, "context_tokens": 1024, "max_num_seqs": 64}
    longest = simulate(SimulationSettings(allocation="contiguous", **room), traffic)
    exact = simulate(SimulationSettings(allocation="contiguous", reserve="exact", **room), traffic)
    paged = simulate(SimulationSettings(**room), traffic)
    assert longest.counts.most_running == 2
    assert exact.counts.most_running == 10
    assert longest.waste.internal > 0.75
    assert exact.waste.internal < 0.01
    assert exact.waste.reserved > 0.2
    assert paged.duration_s < exact.duration_s < longest.duration_s
    assert paged.waste.internal < 0.1


def test_what_is_swapped_out_comes_back_without_being_computed_again() -> None:
    traffic = one_at_a_time(6, 40, 60)
    room = {"num_blocks": 20, "context_tokens": 200, "prefix_caching": False}
    swapped = simulate(SimulationSettings(preemption="swap", host_blocks=1000, **room), traffic)
    recomputed = simulate(SimulationSettings(**room), traffic)
    assert swapped.counts.swaps == swapped.counts.preemptions > 0
    assert swapped.counts.recomputed_tokens == 0
    assert swapped.counts.computed_prompt_tokens == 6 * 40
    assert recomputed.counts.recomputed_tokens > 0
    assert swapped.counts.finished == recomputed.counts.finished == 6


def test_prefill_and_decode_apart_hand_the_prompt_over_once() -> None:
    traffic = one_at_a_time(5, 40, 10)
    result = simulate(
        SimulationSettings(num_blocks=100, prefill_replicas=1, replicas=2, transfer_s=0.1, max_num_batched_tokens=40),
        traffic,
    )
    assert result.counts.finished == 5
    assert result.counts.computed_prompt_tokens == 5 * 40
    assert result.first_token_s.tolist() == [1.0, 2.0, 3.0, 4.0, 5.0]
    # 40 tokens at 0.1 steps each, the first step that begins after that, nine tokens
    assert result.finished_s[0] == 1 + 4 + 9
    assert {0, 1} == set(result.replica_of)


def test_a_prompt_goes_to_the_replica_that_has_read_its_beginning() -> None:
    count = 12
    traffic = Traffic(
        arrivals=array("d", [index * 100.0 for index in range(count)]),
        prompt_tokens=array("q", [90] * count),
        output_tokens=array("q", [4] * count),
        unit="steps",
        prefixes=(((1, 80),), ((2, 80),), ((3, 80),)),
        prefix_of=array("q", [index % 3 for index in range(count)]),
    )
    room = {"num_blocks": 50, "replicas": 2}
    aware = simulate(SimulationSettings(routing="kv-aware", **room), traffic)
    turns = simulate(SimulationSettings(routing="round-robin", **room), traffic)
    assert aware.counts.cached_tokens == 9 * 80
    assert turns.counts.cached_tokens == 6 * 80


def test_a_prefix_that_ends_inside_a_block_is_copied_where_that_is_asked_for() -> None:
    traffic = Traffic(
        arrivals=array("d", [0.0, 50.0, 100.0]),
        prompt_tokens=array("q", [60, 60, 30]),
        output_tokens=array("q", [5, 5, 5]),
        unit="steps",
        prefixes=(((1, 41),),),
        prefix_of=array("q", [0, 0, 0]),
    )
    whole = simulate(SimulationSettings(num_blocks=50), traffic)
    partial = simulate(SimulationSettings(num_blocks=50, partial_reuse=True), traffic)
    assert whole.cached_tokens.tolist() == [0, 32, 16]
    assert partial.cached_tokens.tolist() == [0, 41, 29]
    assert partial.counts.copied_blocks == 2
    assert partial.counts.computed_prompt_tokens == whole.counts.computed_prompt_tokens - 9 - 13


def test_a_window_keeps_its_own_blocks_alone() -> None:
    traffic = one_at_a_time(1, 10, 200)
    room = {"num_blocks": 100, "prefix_caching": False, "max_num_batched_tokens": 16}
    full = simulate(SimulationSettings(**room), traffic)
    window = simulate(SimulationSettings(groups=(CacheGroup(window_tokens=32),), **room), traffic)
    assert full.counts.most_blocks == ceil(209 / 16)
    assert window.counts.most_blocks == 3


def test_a_request_that_never_has_room_is_turned_away_at_once() -> None:
    traffic = one_at_a_time(3, 200, 100)
    result = simulate(SimulationSettings(num_blocks=10), traffic)
    assert result.counts.rejected == 3
    assert result.duration_s == 0


def test_a_full_queue_turns_requests_away() -> None:
    result = simulate(SimulationSettings(num_blocks=100, max_num_seqs=1, max_queue=2), one_at_a_time(5, 10, 10))
    assert result.counts.rejected == 3
    assert result.counts.finished == 2


@pytest.mark.parametrize(
    "wrong", [{"num_blocks": 0}, {"max_num_seqs": 0}, {"groups": ()}, {"steps": EqualSteps(), "replicas": 0}]
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        simulate(SimulationSettings(**{"num_blocks": 10, **wrong}), one_at_a_time(1, 5, 5))  # type: ignore[arg-type]
