"""One rank of several without the others: FSDP2's own code on meta tensors, DDP's buckets, split tensors."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers", minversion="5.0")
if not torch.distributed.is_available():
    pytest.skip("no torch.distributed", allow_module_level=True)

from memplan.budget.caching_allocator.settings import AllocatorSettings  # noqa: E402
from memplan.domain.dtypes import DType  # noqa: E402
from memplan.domain.timeline import MemoryTimeline, Phase, PhaseMemory  # noqa: E402
from memplan.errors import UnsupportedModel  # noqa: E402
from memplan.profile.events import EventLog  # noqa: E402
from memplan.profile.execute import record  # noqa: E402
from memplan.profile.fake_ranks import among_fake_ranks  # noqa: E402
from memplan.profile.replay import replay  # noqa: E402
from memplan.profile.request import TRAINING, ProfileRequest  # noqa: E402
from memplan.profile.run import profile_model  # noqa: E402
from memplan.profile.subject import load_subject  # noqa: E402

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "profile"))
_LAYERS = 6


def request(**options: Any) -> ProfileRequest:
    asked = {"model": "demo", "phases": TRAINING, "prompt_tokens": 64, "offline": True, "dtype": DType.F32}
    return ProfileRequest(**{**asked, **options})


def phase_of(timeline: MemoryTimeline, phase: Phase) -> PhaseMemory:
    return next(each for each in timeline.phases if each.phase == phase)


def parameters(**options: Any) -> dict[str, Any]:
    return dict(load_subject(request(**options), runs_as="cuda").model.named_parameters())


def levels(log: EventLog, phase: Phase, chosen: str) -> list[int]:
    """What allocations of an operator hold, after each event of a phase."""
    numbers = {number for number, label in enumerate(log.labels) if label.operator == chosen}
    level, found = 0, []
    for mark, start, stop in log.spans():
        for event in log.order[start:stop]:
            number = event - 1 if event > 0 else ~event
            if log.label_of[number] in numbers:
                level += log.sizes[number] if event > 0 else -log.sizes[number]
            if mark.phase == phase:
                found.append(level)
    return found


def layer_and_rest_bytes(element_bytes: int) -> tuple[int, int]:
    """The weights of one layer, and of what is around the layers."""
    named = parameters()
    layer = sum(each.numel() for name, each in named.items() if ".layers.0." in name)
    rest = sum(each.numel() for name, each in named.items() if ".layers." not in name)
    return layer * element_bytes, rest * element_bytes


def test_a_rank_holds_the_first_rows_of_every_weight_rounded_up() -> None:
    shards = sum(-(-each.shape[0] // 3) * each[0].numel() for each in parameters().values())
    log = record(request(sharing="fsdp", num_ranks=3)).log
    weights = sum(size for number, size in enumerate(log.sizes) if log.category(number) == "weights")
    buffers = 64 * 4 + 64 * 4  # the rotary frequencies
    assert weights == pytest.approx(shards * 4, abs=buffers)


@pytest.mark.parametrize(("reshard", "most_layers"), [(True, 1), (False, _LAYERS)])
def test_so_many_layers_are_gathered_at_once(reshard: bool, most_layers: int) -> None:
    log = record(request(sharing="fsdp", num_ranks=4, reshard=reshard)).log
    layer, rest = layer_and_rest_bytes(4)
    assert max(levels(log, "forward", "FSDP gathered weights")) == most_layers * layer + rest
    # One that is used and the one before it, whose flat copy is kept until the next is copied out.
    assert max(levels(log, "forward", "FSDP all-gather")) <= max(2 * layer, layer + rest)


def test_the_backward_pass_gathers_the_next_layer_while_it_uses_one() -> None:
    log = record(request(sharing="fsdp", num_ranks=4)).log
    layer, rest = layer_and_rest_bytes(4)
    gathered = levels(log, "backward", "FSDP gathered weights")
    assert max(gathered) == layer + rest
    assert max(levels(log, "backward", "FSDP all-gather")) == layer
    assert gathered[-1] == 0


def test_gradients_are_reduced_from_one_full_copy_into_shards() -> None:
    log = record(request(sharing="fsdp", num_ranks=4, mixed_precision=DType.BF16)).log
    layer, rest = layer_and_rest_bytes(4)  # reduced in FP32 whatever is computed in
    shards = (_LAYERS * layer + rest) // 4
    reduced = levels(log, "backward", "FSDP reduce-scatter")
    assert max(reduced) == pytest.approx(shards + rest, rel=0.01)
    assert reduced[-1] == pytest.approx(shards, rel=0.01)


def test_gradients_are_reduced_in_the_type_that_is_named() -> None:
    layer, rest = layer_and_rest_bytes(2)
    mixed = {"mixed_precision": DType.BF16, "reduced_in": DType.BF16}
    reduced = levels(record(request(sharing="fsdp", num_ranks=4, **mixed)).log, "backward", "FSDP reduce-scatter")
    shards = 2 * (_LAYERS * layer + rest) // 4  # kept in FP32, and for a moment those of the root in both
    assert max(reduced) == pytest.approx(shards + rest, rel=0.2)
    assert reduced[-1] == pytest.approx(shards, rel=0.01)


def test_mixed_precision_gathers_half_the_bytes_of_shards_in_fp32() -> None:
    _, rest = layer_and_rest_bytes(4)
    wide, narrow = (
        record(request(sharing="fsdp", num_ranks=4, mixed_precision=each)).log for each in (None, DType.BF16)
    )
    for log, share in ((wide, 1), (narrow, 2)):
        assert max(levels(log, "forward", "FSDP gathered weights")) >= rest // share
    assert 2 * max(levels(narrow, "forward", "FSDP gathered weights")) == max(
        levels(wide, "forward", "FSDP gathered weights")
    )


def test_what_is_gathered_is_taken_on_a_stream_of_its_own() -> None:
    log = record(request(sharing="fsdp", num_ranks=2)).log
    streams = {log.labels[label].operator: set() for label in log.label_of}
    for label, stream in zip(log.label_of, log.stream_of, strict=True):
        streams[log.labels[label].operator].add(stream)
    assert streams["FSDP all-gather"] == {1}  # copied in there, gathered in place
    assert streams["FSDP gathered weights"] == {0}
    assert streams["FSDP reduce-scatter"] == {0, 3}  # its input, its output
    assert streams["aten.mm"] == {0}


@pytest.mark.parametrize("sharing", ["fsdp", "ddp", "tp"])
def test_no_phase_reserves_less_than_it_allocates(sharing: str) -> None:
    timeline, _ = profile_model(request(sharing=sharing, num_ranks=2, iterations=2))
    assert (timeline.rank, timeline.num_ranks) == (0, 2)
    for phase in timeline.phases:
        assert phase.peak_reserved_bytes >= phase.peak.allocated_bytes >= phase.after.allocated_bytes
    states = [phase_of(timeline, "optimizer").by_category[kind] for kind in ("weights", "gradients")]
    assert states[0] == pytest.approx(states[1], rel=0.02)


@pytest.mark.parametrize(
    "options",
    [
        {"sharing": "fsdp", "num_ranks": 3},
        {"sharing": "fsdp", "num_ranks": 4, "mixed_precision": DType.BF16, "checkpointing": True},
        {"sharing": "fsdp", "num_ranks": 2, "reshard": False, "iterations": 2},
        {"sharing": "fsdp", "num_ranks": 2, "lora_rank": 4, "lora_targets": ("q_proj", "v_proj")},
        {"sharing": "tp", "num_ranks": 2},
        {"sharing": "tp", "num_ranks": 2, "phases": ("load", "prefill", "decode"), "output_tokens": 4},
    ],
)
def test_simulated_peaks_are_those_that_the_cpus_allocator_counts(options: dict[str, Any]) -> None:
    """The same rank for real, of ranks that are not there either, so that nothing of the network is in its bytes."""
    from real_cpu import real_peaks

    simulated = record(request(**options), target="cpu").log
    with among_fake_ranks(options["num_ranks"]):
        real = real_peaks(request(device="cpu", **options))
    for phase in replay(simulated, None, num_samples=0).phases:
        counted = real[f"{phase.phase} {phase.iteration}"]
        assert phase.peak.allocated_bytes == pytest.approx(counted, rel=0.002, abs=8192)


@pytest.mark.parametrize("options", [{}, {"checkpointing": True, "mixed_precision": DType.BF16}])
def test_fsdps_own_tracker_finds_the_same_peak(options: dict[str, Any]) -> None:
    from fsdp_tracker import ours, theirs

    asked = request(sharing="fsdp", num_ranks=2, attention="math", **options)
    assert ours(asked)[1] == pytest.approx(theirs(asked)[1], rel=0.005)


def test_ddp_sums_gradients_in_one_bucket_first_and_in_many_later() -> None:
    log = record(request(sharing="ddp", num_ranks=2, iterations=2, model="qwen3-0.6b", prompt_tokens=16)).log
    trained = 4 * sum(each.numel() for each in parameters(model="qwen3-0.6b").values())
    buckets = [
        size for size, label in zip(log.sizes, log.label_of, strict=True) if log.labels[label].operator == "DDP bucket"
    ]
    assert buckets[0] == trained
    assert sum(buckets[1:]) == trained
    assert 1 << 20 <= buckets[1] < buckets[2]  # the first one is small, so that sending begins early
    assert all(size >= 25 << 20 for size in buckets[2:-1])


def test_gradients_that_lie_in_ddps_buckets_save_a_copy_of_them() -> None:
    apart, inside = (profile_model(request(sharing="ddp", num_ranks=2, bucket_view=view))[0] for view in (False, True))
    gradients = phase_of(apart, "optimizer").by_category["gradients"]
    saved = phase_of(apart, "optimizer").peak.allocated_bytes - phase_of(inside, "optimizer").peak.allocated_bytes
    assert saved == pytest.approx(gradients, rel=0.02)


def test_tensors_are_split_by_the_plan_of_the_architecture() -> None:
    whole, half = (profile_model(request(**each))[0] for each in ({}, {"sharing": "tp", "num_ranks": 2}))
    split = phase_of(half, "forward").by_category["weights"] / phase_of(whole, "forward").by_category["weights"]
    assert split == pytest.approx(0.5, rel=0.01)  # the norms are whole on every rank


def test_more_ranks_than_a_plan_can_split_over_are_one_line() -> None:
    with pytest.raises(UnsupportedModel) as caught:
        profile_model(request(sharing="tp", num_ranks=3))
    assert "Traceback" not in caught.value.message


def test_an_architecture_without_a_plan_is_said(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"model_type": "bert", "architectures": ["BertForMaskedLM"]}))
    with pytest.raises(UnsupportedModel) as caught:
        profile_model(request(model=str(path), sharing="tp", num_ranks=2, phases=("load", "forward")))
    assert "BertForMaskedLM" in caught.value.message


def test_a_simulated_rank_leaves_no_process_group_and_no_device_behind() -> None:
    hook = sys.excepthook
    record(request(sharing="fsdp", num_ranks=2, phases=("load", "forward")))
    assert not torch.distributed.is_initialized()
    assert not hasattr(torch, "meta")
    assert sys.excepthook is hook


def test_a_large_models_rank_is_simulated_with_its_reserved_memory() -> None:
    options = {
        "model": "llama-8b",
        "dtype": DType.BF16,
        "sharing": "fsdp",
        "num_ranks": 8,
        "phases": ("load", "forward"),
    }
    rank = replay(record(request(**options)).log, AllocatorSettings(), num_samples=0)
    assert rank.phases[0].by_category["weights"] == pytest.approx(2 * 8_030_261_248 / 8, rel=0.001)
