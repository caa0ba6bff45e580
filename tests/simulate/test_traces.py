"""Recorded requests as traffic: at their own times or a rate, conversations turn by turn, lengths that are missing."""

from __future__ import annotations

import pytest

from memplan.domain.lengths import FixedLength
from memplan.errors import UsageError
from memplan.simulate.arrivals import AtOnce, ClosedLoop, OpenLoop
from memplan.simulate.traces import Replay, TracedRequest, replayed
from memplan.simulate.traffic import TrafficSpec

OWN = Replay(context_tokens=4096)


def row(arrival_s: float | None, prompt: int | None, output: int | None, session: int | None = None) -> TracedRequest:
    return TracedRequest(arrival_s=arrival_s, prompt_tokens=prompt, output_tokens=output, session=session)


def test_requests_come_at_their_own_times_from_the_first_on() -> None:
    traffic = replayed([row(107.0, 5, 1), row(100.0, 6, 2)], Replay(context_tokens=4096, speed=2.0))
    assert list(traffic.arrivals) == [0.0, 3.5]
    assert list(traffic.prompt_tokens) == [6, 5]
    assert traffic.follows is None


def test_turns_that_were_recorded_at_one_moment_follow_one_another() -> None:
    traffic = replayed([row(1.0, 10, 5, 3), row(1.0, 20, 5, 3), row(9.0, 30, 5, 3)], OWN)
    assert traffic.follows is not None
    assert list(traffic.follows) == [-1, 0, -1]
    assert traffic.stream_of is not None
    assert list(traffic.stream_of) == [3, 3, 3]


def test_a_session_whose_prompts_do_not_grow_shares_nothing() -> None:
    assert replayed([row(1.0, 100, 5, 3), row(2.0, 20, 5, 3)], OWN).stream_of is None


def test_a_rate_counts_requests_of_which_only_first_turns_arrive_on_their_own() -> None:
    rows = [row(None, tokens, 5, session) for session in range(2000) for tokens in (10, 40)]
    traffic = replayed(rows, Replay(context_tokens=4096, arrivals=OpenLoop(rate_per_s=4.0)))
    assert traffic.follows is not None
    starts = [time for time, before in zip(traffic.arrivals, traffic.follows, strict=True) if before < 0]
    assert len(starts) == 2000
    assert 4000 / starts[-1] == pytest.approx(4.0, rel=0.1)


def test_a_closed_loop_starts_a_conversation_when_another_has_ended() -> None:
    rows = [row(None, tokens, 5, session) for session in range(3) for tokens in (10, 40)]
    traffic = replayed(rows, Replay(context_tokens=4096, arrivals=ClosedLoop(users=2)))
    assert traffic.follows is not None
    assert list(traffic.follows) == [-1, 0, -1, 2, 1, 4]


def test_blocks_that_are_named_become_pieces_of_512_tokens() -> None:
    named = TracedRequest(arrival_s=0.0, prompt_tokens=700, output_tokens=5, prefix_ids=(46, 47, 48))
    traffic = replayed([named, row(1.0, 9, 9)], OWN)
    assert traffic.prefixes == (((46, 512), (47, 188)),)
    assert traffic.prefix_of is not None
    assert list(traffic.prefix_of) == [0, -1]


def test_lengths_that_a_trace_lacks_are_drawn_or_asked_for() -> None:
    missing = TrafficSpec(
        num_requests=1,
        arrivals=AtOnce(),
        prompt=FixedLength(tokens=77),
        output=FixedLength(tokens=8),
        context_tokens=4096,
    )
    assert list(replayed([row(0.0, 5, 3), row(1.0, None, 3)], OWN, missing).prompt_tokens) == [5, 77]
    with pytest.raises(UsageError, match="how long answers are"):
        replayed([row(0.0, 5, None)], OWN)


def test_a_trace_without_times_needs_a_rate() -> None:
    with pytest.raises(UsageError, match="no times of arrival"):
        replayed([row(None, 5, 3)], OWN)


def test_an_answer_is_cut_where_the_context_ends() -> None:
    assert list(replayed([row(0.0, 4000, 500)], OWN).output_tokens) == [96]
