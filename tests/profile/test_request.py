"""What is asked of a profile is read and checked before anything runs."""

from __future__ import annotations

import pytest

from memplan.errors import UsageError
from memplan.profile.request import INFERENCE, TRAINING, ProfileRequest, check_request, parse_phases


def test_phases_come_in_the_order_they_run_in() -> None:
    assert parse_phases("decode, prefill") == ("prefill", "decode")
    assert parse_phases("training") == TRAINING
    assert parse_phases("inference,forward") == (*INFERENCE, "forward")


def test_an_unknown_phase_names_one_that_is_near() -> None:
    with pytest.raises(UsageError, match="decoding") as caught:
        parse_phases("decoding")
    assert "decode" in str(caught.value.hint)


@pytest.mark.parametrize(
    "differs",
    [{"batch": 0}, {"output_tokens": 0}, {"lora_rank": 0}, {"phases": ()}, {"phases": TRAINING, "attention": "paged"}],
)
def test_what_cannot_be_run_is_refused(differs: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        check_request(ProfileRequest(model="demo", **differs))  # type: ignore[arg-type]


def test_a_request_trains_only_where_something_follows_from_gradients() -> None:
    assert ProfileRequest(model="demo", phases=TRAINING).trains
    assert not ProfileRequest(model="demo", phases=("load", "forward")).trains
