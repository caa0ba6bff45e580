"""Diagnoses: every kind is found in a trace that has it, with its evidence and what its mend returns."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from memplan.budget.caching_allocator.settings import AllocatorSettings
from memplan.domain.timeline import Category, Finding, MemoryTimeline, OutOfMemory, Phase
from memplan.profile.at_peak import live_at, shares_at_peak
from memplan.profile.cache_pool import with_cache_pool
from memplan.profile.events import EventLog, Label
from memplan.profile.findings import find
from memplan.profile.limits import on_device
from memplan.profile.replay import replay
from memplan.records import replace
from memplan.units import GIB, MIB

LAYERS = 8


class Run:
    """A trace being written, by the kinds of things that a model's run does."""

    def __init__(self, *, weights_dtype: str = "bfloat16") -> None:
        self.log = EventLog()
        self.log.begin("load")
        for layer in range(LAYERS):
            self.make(100 * MIB, f"model.layers.{layer}.mlp", "load", "weights", dtype=weights_dtype, shape=(5, 10))

    def begin(self, phase: Phase, iteration: int = 0) -> None:
        self.log.begin(phase, iteration)

    def make(
        self,
        size: int,
        module: str,
        operator: str = "aten.mm",
        category: Category = "activations",
        *,
        shape: tuple[int, ...] = (),
        dtype: str = "bfloat16",
    ) -> int:
        label = Label(module=module, operator=operator, where="model.py:7 forward", shape=shape, dtype=dtype)
        return self.log.allocate(size, label, category)

    def passing(self, size: int, **more: object) -> None:
        """A pass whose activations live for one layer each."""
        for layer in range(LAYERS):
            self.log.free(self.make(size, f"model.layers.{layer}.mlp", **more))  # type: ignore[arg-type]

    def timeline(self, phases: tuple[Phase, ...] = (), **settings: object) -> MemoryTimeline:
        found = replay(self.log, AllocatorSettings())
        shown = phases or tuple({phase.phase for phase in found.phases})
        return MemoryTimeline(
            model_name="m",
            architecture="A",
            device="simulated",
            device_name="",
            settings=settings,
            phases=tuple(phase for phase in found.phases if phase.phase in shown),
            samples=found.samples,
        )

    def findings(self, **settings: object) -> dict[str, Finding]:
        timeline = self.timeline(**settings)
        return {finding.code: finding for finding in find(timeline, self.log, AllocatorSettings())}


def quiet() -> Run:
    """Inference as it should be: nothing to find."""
    run = Run()
    for iteration in range(3):
        run.begin("prefill", iteration)
        run.passing(4 * MIB)
    return run


def test_a_run_as_it_should_be_has_no_findings() -> None:
    assert quiet().findings() == {}


def test_growth_names_what_stays_alive_and_who_made_it() -> None:
    run = Run()
    for iteration in range(4):
        run.begin("generate", iteration)
        run.make(3 * MIB, "model.norm", "aten.add", shape=(3, 512), dtype="float32")
        run.passing(4 * MIB)
    found = run.findings()["leak"]
    assert found.severity == "error"
    assert "3.0 MiB each time" in found.title
    assert "2 x float32 [3, 512], 6.0 MiB made by aten.add in model.norm at model.py:7 forward" in found.evidence


def test_what_only_the_first_run_makes_is_no_leak() -> None:
    run = Run()
    for iteration in range(4):
        run.begin("optimizer", iteration)
        if iteration == 0:
            run.make(500 * MIB, "", "aten.zeros_like", "optimizer_state")
        run.passing(4 * MIB)
    assert "leak" not in run.findings()


@pytest.mark.parametrize(
    ("code", "phase", "module", "operator", "shape"),
    [
        ("logits", "prefill", "lm_head", "aten.mm", (1, 2048, 128256)),
        ("logits", "forward", "", "aten._log_softmax", (2048, 32000)),
        ("attention-scores", "prefill", "model.layers.3.self_attn", "aten._softmax", (1, 32, 2048, 2048)),
        ("optimizer-temporaries", "optimizer", "", "aten._foreach_mul", (4096, 4096)),
        ("prefill-chunk", "prefill", "model.layers.3.mlp", "aten.mm", (1, 2048, 14336)),
    ],
)
def test_a_spike_is_known_by_its_shape_and_its_maker(
    code: str, phase: Phase, module: str, operator: str, shape: tuple[int, ...]
) -> None:
    run = Run()
    run.begin(phase)
    run.log.free(run.make(300 * MIB, module, operator, shape=shape))
    found = run.findings(prompt_tokens=2048)[code]
    assert found.title.startswith(phase)
    assert "0.29 GiB of the 0.29 GiB above what stays" in found.evidence
    assert "model.py:7 forward" in found.evidence


def test_a_small_spike_is_not_worth_a_word() -> None:
    run = Run()
    run.begin("prefill")
    run.log.free(run.make(10 * MIB, "lm_head", shape=(1, 2048, 128256)))
    assert "logits" not in run.findings(prompt_tokens=2048)


def test_activations_of_all_layers_at_once_are_told_where_nothing_goes_backward() -> None:
    run = Run()
    run.begin("prefill")
    kept = [run.make(20 * MIB, f"model.layers.{layer}.mlp") for layer in range(LAYERS)]
    for number in kept:
        run.log.free(number)
    found = run.findings()["gradient-tracking"]
    assert found.evidence.startswith("8 of 8 layers")
    assert found.saves_bytes == 140 * MIB
    run.begin("backward")
    run.passing(4 * MIB)
    assert "gradient-tracking" not in run.findings()


def test_a_cache_that_outlives_its_request_and_one_in_training_are_told() -> None:
    run = Run()
    run.begin("prefill")
    cache = run.make(64 * MIB, "model.layers.0.self_attn", category="kv_cache")
    run.begin("prefill", 1)
    run.passing(4 * MIB)
    run.log.free(cache)
    found = run.findings()["cache-kept"]
    assert (found.saves_bytes, "next prefill" in found.title) == (64 * MIB, True)
    run = Run()
    run.begin("forward")
    run.log.free(run.make(64 * MIB, "model.layers.0.self_attn", category="kv_cache"))
    run.begin("backward")
    run.passing(4 * MIB)
    assert run.findings()["cache-in-training"].mend == "use_cache=False"


def test_weights_of_32_bits_are_told_in_inference_alone() -> None:
    run = Run(weights_dtype="float32")
    run.begin("decode")
    run.passing(4 * MIB)
    assert run.findings()["full-precision"].saves_bytes == LAYERS * 50 * MIB
    run.begin("backward")
    assert "full-precision" not in run.findings()


def test_padding_is_told_by_the_mean_length() -> None:
    run = Run()
    run.begin("decode")
    run.log.free(run.make(200 * MIB, "model.layers.0.self_attn", category="kv_cache"))
    found = run.findings(mean_length=250, prompt_tokens=900, output_tokens=100)["padding"]
    assert found.saves_bytes == 150 * MIB
    assert "padding" not in run.findings(mean_length=1000, prompt_tokens=900, output_tokens=100)


def fragmented() -> Run:
    """Growing blocks whose holes are always a little too small: what expandable segments are for."""
    run = Run()
    run.begin("prefill")
    held = None
    for step in range(40):
        grown = run.make((40 + 4 * step) * MIB, "model.layers.0.self_attn")
        if held is not None:
            run.log.free(held)
        held = grown
    return run


def test_allocator_settings_are_advised_with_what_their_replay_saved() -> None:
    run = fragmented()
    timeline = run.timeline()
    found = run.findings()["allocator"]
    assert "expandable_segments:True" in found.mend
    assert found.evidence.startswith("replayed: as it is reserves")
    expandable = replay(run.log, AllocatorSettings(expandable_segments=True))
    now = max(phase.peak_reserved_bytes for phase in timeline.phases)
    assert found.saves_bytes is not None
    assert 0 < found.saves_bytes <= now - expandable.peak_reserved_bytes + now // 100


def test_settings_that_are_set_already_are_not_advised() -> None:
    run = fragmented()
    settings = AllocatorSettings(expandable_segments=True)
    codes = {finding.code for finding in find(run.timeline(), run.log, settings)}
    assert "allocator" not in codes


def growing_cache(*, steps: int = 60) -> Run:
    run = Run()
    run.begin("prefill")
    held = {layer: run.make(2 * MIB, f"model.layers.{layer}.self_attn", "aten.cat", "kv_cache") for layer in range(8)}
    run.begin("decode")
    for step in range(1, steps + 1):
        for layer in range(LAYERS):
            module = f"model.layers.{layer}.self_attn"
            grown = run.make(2 * MIB + step * 65536, module, "aten.cat", "kv_cache")
            run.log.free(held[layer])
            held[layer] = grown
    for number in held.values():
        run.log.free(number)
    return run


def test_a_cache_made_once_is_tried_and_holds_no_more_than_the_cache_at_its_fullest() -> None:
    run = growing_cache()
    pooled = with_cache_pool(run.log)
    assert pooled is not None
    assert len(pooled.sizes) == 2 * LAYERS
    assert max(pooled.sizes[LAYERS:]) == 2 * MIB + 60 * 65536
    assert live_at(pooled, len(pooled.order)) == live_at(run.log, len(run.log.order))
    assert [mark.phase for mark in pooled.marks] == ["load", "prefill", "decode"]
    found = run.findings()["cache-pool"]
    assert f"{LAYERS * 60} allocations fewer" in found.evidence
    assert with_cache_pool(quiet().log) is None


def ran_out(make: Callable[[MemoryTimeline], MemoryTimeline]) -> dict[str, Finding]:
    return {finding.code: finding for finding in find(make(quiet().timeline()))}


def test_too_little_memory_and_enough_of_it_in_pieces_are_told_apart() -> None:
    def full(wanted: int, free: int, allocated: int, reserved: int) -> dict[str, Finding]:
        found = OutOfMemory(
            phase="prefill",
            wanted_bytes=wanted,
            free_bytes=free,
            capacity_bytes=free + reserved,
            allocated_bytes=allocated,
            reserved_bytes=reserved,
        )
        return ran_out(lambda timeline: replace(timeline, out_of_memory=found, capacity_bytes=free + reserved))

    small = full(4 * GIB, GIB, 9 * GIB, 10 * GIB)
    assert "2.00 GiB more" in small["capacity"].evidence
    pieces = full(2 * GIB, GIB, 7 * GIB, 10 * GIB)
    assert "expandable_segments" in pieces["fragmentation"].mend
    assert "3.00 GiB lie free" in pieces["fragmentation"].evidence


def test_a_limit_is_put_on_a_run_that_was_recorded_without_one() -> None:
    run = fragmented()
    timeline = run.timeline()
    most = max(phase.peak_reserved_bytes for phase in timeline.phases)
    roomy = on_device(timeline, run.log, AllocatorSettings(), capacity_bytes=most + GIB, outside_bytes=GIB)
    assert (roomy.phases, roomy.out_of_memory) == (timeline.phases, None)
    close = on_device(timeline, run.log, AllocatorSettings(), capacity_bytes=most - 100 * MIB, outside_bytes=0)
    assert close.out_of_memory is None
    assert max(phase.peak_reserved_bytes for phase in close.phases) <= most - 100 * MIB
    assert any("give back its cache" in warning for warning in close.warnings)
    small = on_device(timeline, run.log, AllocatorSettings(), capacity_bytes=900 * MIB, outside_bytes=200 * MIB)
    assert small.out_of_memory is not None
    assert small.phases == timeline.phases


def test_what_was_alive_at_the_peak_sums_to_it() -> None:
    run = growing_cache()
    timeline = run.timeline()
    shares = shares_at_peak(run.log, ("prefill", "decode"))
    assert sum(share.size_bytes for share in shares) == timeline.peak.peak.allocated_bytes
    assert {(share.category, share.module, share.count) for share in shares} == {
        ("weights", "model.layers.*.mlp", LAYERS),
        ("kv_cache", "model.layers.*.self_attn", LAYERS),
    }
    assert shares_at_peak(run.log, ("optimizer",)) == ()
