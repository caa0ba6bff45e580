"""What operators compute and move, where it can be counted by hand."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers", minversion="5.0")

from memplan.profile import generation  # noqa: E402
from memplan.profile.execute import record  # noqa: E402
from memplan.profile.recorder import Recorder  # noqa: E402
from memplan.profile.request import TRAINING, ProfileRequest  # noqa: E402
from memplan.profile.run import profile_model  # noqa: E402
from memplan.profile.work import WorkCounter  # noqa: E402

PARAMETERS = 8_030_261_248
EMBEDDING = 128256 * 4096


def _work(program) -> tuple[int, int]:  # type: ignore[no-untyped-def]
    counter = WorkCounter()
    with Recorder("meta", work=counter) as recorder:
        recorder.begin("forward")
        program()
    total = counter.by_phase()[0].total
    assert total is not None
    return total.flops, total.moved_bytes


def test_a_product_reads_both_matrices_and_writes_one() -> None:
    left, right = torch.empty(8, 16, device="meta"), torch.empty(16, 32, device="meta")
    assert _work(lambda: left @ right) == (2 * 8 * 16 * 32, 4 * (8 * 16 + 16 * 32 + 8 * 32))


def test_a_view_moves_nothing_and_a_table_only_its_rows() -> None:
    table = torch.empty(1000, 64, device="meta")
    places = torch.empty(10, dtype=torch.long, device="meta")
    assert _work(lambda: table.view(64, 1000).t()) == (0, 0)
    assert _work(lambda: torch.nn.functional.embedding(places, table)) == (0, 2 * 10 * 64 * 4 + 10 * 8)


def test_few_rows_read_few_experts() -> None:
    rows, experts = torch.empty(2, 16, device="meta"), torch.empty(8, 16, 32, dtype=torch.float32, device="meta")
    ends = torch.empty(8, dtype=torch.int32, device="meta")
    program = lambda: torch._grouped_mm(rows.bfloat16(), experts.bfloat16(), offs=ends)  # noqa: E731
    casts = 6 * (rows.numel() + experts.numel())
    assert _work(program) == (2 * 2 * 16 * 32, casts + 2 * (2 * 16 + 2 * 16 * 32 + 2 * 32))


def test_a_prompt_is_bound_by_products_and_a_step_by_the_weights_it_reads() -> None:
    timeline, _ = profile_model(ProfileRequest(model="llama-8b", prompt_tokens=2048, output_tokens=9, offline=True))
    prefill, decode = (
        next(each.work for each in timeline.phases if each.phase == name) for name in ("prefill", "decode")
    )
    assert prefill is not None
    assert decode is not None
    attention = 32 * 2048 * 2048 * 32 * 2 * 128
    assert prefill.flops == pytest.approx(2 * (PARAMETERS - 2 * EMBEDDING) * 2048 + attention, rel=0.01)
    read_once = 2 * (PARAMETERS - EMBEDDING)
    cache = 2 * 32 * 8 * 128 * 2052 * 2
    assert decode.moved_bytes == pytest.approx(8 * (read_once + 3 * cache), rel=0.01)
    assert prefill.intensity_flops_per_byte > 100 > 5 > decode.intensity_flops_per_byte


def test_a_backward_pass_computes_twice_what_its_forward_pass_does() -> None:
    recorded = record(ProfileRequest(model="llama-8b", phases=TRAINING, prompt_tokens=256, offline=True))
    forward, backward = recorded.work[1], recorded.work[2]
    assert forward.total is not None
    assert backward.total is not None
    assert backward.total.flops == pytest.approx(2 * forward.total.flops, rel=0.01)
    assert backward.by_module["model.layers.*.mlp"].flops == pytest.approx(
        2 * forward.by_module["model.layers.*.mlp"].flops, rel=0.01
    )


def test_steps_that_are_written_work_as_if_they_had_been_run(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ProfileRequest(model="demo", prompt_tokens=100, output_tokens=90)
    written = record(asked).work
    monkeypatch.setattr(generation, "_FIRST_STEPS", 1000)
    assert record(asked).work == written
