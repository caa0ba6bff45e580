"""Small whole numbers keep their values beside the meta device, so that a model can ask for them."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from memplan.profile.recorder import Recorder  # noqa: E402
from memplan.profile.values import meta_answers, note_value  # noqa: E402


@pytest.fixture
def recorder():  # type: ignore[no-untyped-def]
    with Recorder("meta", answers=meta_answers(), note_value=note_value) as recorder:
        recorder.begin("forward")
        yield recorder


def test_a_mask_of_ones_is_known_to_be_full(recorder: Recorder) -> None:
    mask = torch.ones(2, 5, dtype=torch.long, device="meta")
    assert bool(mask.sum() == mask.numel())
    assert bool(mask.bool().all())
    mask[0, 1] = 0
    assert not bool(mask.bool().all())


def test_places_of_a_mask_are_counted(recorder: Recorder) -> None:
    mask = torch.arange(10, device="meta") < 3
    assert mask.nonzero().shape == (3, 1)
    hidden = torch.ones(10, 4, device="meta")
    assert hidden[mask].shape == (3, 4)
    assert torch.masked_select(hidden, mask[:, None]).shape == (12,)


def test_lengths_become_numbers(recorder: Recorder) -> None:
    lengths = torch.arange(4, device="meta").cumsum(0)
    assert lengths[-1].item() == 6
    assert lengths.tolist() == [0, 1, 3, 6]
    assert torch.repeat_interleave(lengths, lengths).shape == (10,)


def test_what_follows_from_weights_is_not_known(recorder: Recorder) -> None:
    scores = torch.rand(8, device="meta")
    assert (scores > 0.5).nonzero().shape == (8, 1)
    assert bool((scores > 0.5).any()) is False


def test_a_value_is_forgotten_when_the_unknown_is_written_into_it(recorder: Recorder) -> None:
    known = torch.zeros(3, dtype=torch.long, device="meta")
    known.copy_(torch.rand(3, device="meta").argsort())
    assert known.nonzero().shape == (3, 1)


def test_grouped_products_have_shapes_in_any_type(recorder: Recorder) -> None:
    ends = torch.tensor([2, 6], dtype=torch.int32).to("meta")
    made = torch._grouped_mm(torch.ones(6, 8, device="meta"), torch.ones(2, 8, 16, device="meta"), offs=ends)
    assert made.shape == (6, 16)
    assert made.dtype == torch.float32
