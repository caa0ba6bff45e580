"""Traffic that is made: rates, bursts, conversations; the same seed gives the same requests."""

from __future__ import annotations

from itertools import pairwise
from statistics import mean, pstdev

import pytest

from memplan.domain.lengths import FixedLength, UniformLengths, parse_lengths
from memplan.domain.simulation import Traffic
from memplan.errors import UsageError
from memplan.records import replace
from memplan.simulate.arrivals import AtOnce, ClosedLoop, OpenLoop
from memplan.simulate.traffic import Sessions, TrafficSpec, make_traffic

SPEC = TrafficSpec(
    num_requests=20_000,
    arrivals=OpenLoop(rate_per_s=8.0),
    prompt=parse_lengths("mean:300,p95:1000", longest=4000),
    output=UniformLengths(low=10, high=200),
    context_tokens=4096,
)


def gaps(traffic: Traffic) -> list[float]:
    return [after - before for before, after in pairwise(traffic.arrivals)]


def test_the_same_seed_makes_the_same_traffic_and_another_makes_another() -> None:
    assert make_traffic(SPEC) == make_traffic(SPEC)
    assert make_traffic(SPEC).arrivals != make_traffic(replace(SPEC, seed=1)).arrivals


def test_other_answers_leave_arrivals_and_prompts_as_they_are() -> None:
    longer = make_traffic(replace(SPEC, output=FixedLength(tokens=300)))
    assert longer.arrivals == make_traffic(SPEC).arrivals
    assert longer.prompt_tokens == make_traffic(SPEC).prompt_tokens


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0])
def test_requests_come_at_the_rate_with_the_burstiness_that_was_asked_for(burstiness: float) -> None:
    traffic = make_traffic(replace(SPEC, arrivals=OpenLoop(rate_per_s=8.0, burstiness=burstiness)))
    assert traffic.num_requests / traffic.arrivals[-1] == pytest.approx(8.0, rel=0.05)
    assert (pstdev(gaps(traffic)) / mean(gaps(traffic))) ** 2 == pytest.approx(1 / burstiness, rel=0.1)


def test_bursts_are_followed_by_silence_and_keep_the_mean_rate() -> None:
    traffic = make_traffic(replace(SPEC, arrivals=OpenLoop(rate_per_s=8.0, on_s=10, off_s=30)))
    assert all(time % 40 <= 10 for time in traffic.arrivals)
    assert traffic.num_requests / traffic.arrivals[-1] == pytest.approx(8.0, rel=0.05)


def test_lengths_follow_their_distribution_within_the_context() -> None:
    traffic = make_traffic(SPEC)
    assert mean(traffic.prompt_tokens) == pytest.approx(300, rel=0.05)
    assert sum(tokens > 1000 for tokens in traffic.prompt_tokens) / 20_000 == pytest.approx(0.05, abs=0.01)
    assert all(
        prompt + output <= 4096 for prompt, output in zip(traffic.prompt_tokens, traffic.output_tokens, strict=True)
    )


def test_users_of_a_closed_loop_have_one_request_each_at_a_time() -> None:
    traffic = make_traffic(replace(SPEC, num_requests=100, arrivals=ClosedLoop(users=8)))
    assert traffic.follows is not None
    assert list(traffic.follows[:8]) == [-1] * 8
    assert list(traffic.follows[8:]) == list(range(92))


def test_a_system_prompt_is_a_prefix_that_all_have() -> None:
    traffic = make_traffic(replace(SPEC, shared_prefix_tokens=256))
    assert traffic.prefixes == (((0, 256),),)
    assert min(traffic.prompt_tokens) > 256


def test_each_turn_of_a_conversation_follows_the_last_and_reaches_past_its_answer() -> None:
    asked = replace(SPEC, sessions=Sessions(turns=UniformLengths(low=1, high=6), think_s=5.0), num_requests=4000)
    traffic = make_traffic(asked)
    assert traffic.follows is not None
    assert traffic.stream_of is not None
    turns = [place for place in range(4000) if traffic.follows[place] >= 0]
    assert len(turns) > 1500
    for place in turns:
        before = traffic.follows[place]
        assert traffic.stream_of[place] == traffic.stream_of[before]
        assert traffic.prompt_tokens[place] > traffic.prompt_tokens[before] + traffic.output_tokens[before]
        assert traffic.prompt_tokens[place] < 4096
    assert mean(traffic.arrivals[place] for place in turns) == pytest.approx(5.0, rel=0.1)


def test_conversations_of_a_closed_loop_start_when_the_user_s_last_one_has_ended() -> None:
    asked = replace(SPEC, sessions=Sessions(turns=FixedLength(tokens=3)), num_requests=30)
    traffic = make_traffic(replace(asked, arrivals=ClosedLoop(users=2), prompt=FixedLength(tokens=50)))
    assert traffic.follows is not None
    assert list(traffic.follows[:9]) == [-1, 0, 1, -1, 3, 4, 2, 6, 7]


@pytest.mark.parametrize(
    "arrivals", [OpenLoop(rate_per_s=0), OpenLoop(rate_per_s=1, burstiness=0), ClosedLoop(users=0)]
)
def test_rates_and_users_must_be_above_zero(arrivals: OpenLoop | ClosedLoop) -> None:
    with pytest.raises(UsageError):
        make_traffic(replace(SPEC, arrivals=arrivals))


def test_a_batch_is_there_at_once() -> None:
    assert set(make_traffic(replace(SPEC, arrivals=AtOnce(), num_requests=9)).arrivals) == {0.0}
