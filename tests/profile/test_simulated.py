"""A profile without a GPU: the phases of real models on meta tensors, against real bytes and against each other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers", minversion="5.0")

from memplan.domain.dtypes import DType  # noqa: E402
from memplan.domain.timeline import MemoryTimeline, PhaseMemory  # noqa: E402
from memplan.errors import SourceNotFound, UnsupportedModel, UsageError  # noqa: E402
from memplan.profile import generation  # noqa: E402
from memplan.profile.execute import record  # noqa: E402
from memplan.profile.replay import replay  # noqa: E402
from memplan.profile.request import TRAINING, ProfileRequest  # noqa: E402
from memplan.profile.run import profile_model  # noqa: E402

BERT = {
    "model_type": "bert",
    "architectures": ["BertForMaskedLM"],
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "vocab_size": 512,
    "max_position_embeddings": 256,
}
T5 = {
    "model_type": "t5",
    "architectures": ["T5ForConditionalGeneration"],
    "d_model": 64,
    "d_kv": 16,
    "d_ff": 128,
    "num_layers": 2,
    "num_heads": 4,
    "vocab_size": 512,
    "decoder_start_token_id": 0,
    "pad_token_id": 0,
}
MOE = {
    "model_type": "qwen3_moe",
    "architectures": ["Qwen3MoeForCausalLM"],
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 128,
    "moe_intermediate_size": 32,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "vocab_size": 512,
}
VIT = {
    "model_type": "vit",
    "architectures": ["ViTForImageClassification"],
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "image_size": 64,
    "patch_size": 16,
}


@pytest.fixture(autouse=True, scope="module")
def _one_thread():  # type: ignore[no-untyped-def]
    """Models this small gain nothing from more, and threads that wait for each other take the machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _profile(model: object, **differs: object) -> MemoryTimeline:
    asked: dict[str, object] = {"prompt_tokens": 128, "output_tokens": 6, "offline": True, **differs}
    return profile_model(ProfileRequest(model=str(model), **asked))[0]  # type: ignore[arg-type]


def _phase(timeline: MemoryTimeline, name: str, iteration: int = 0) -> PhaseMemory:
    return next(each for each in timeline.phases if each.phase == name and each.iteration == iteration)


@pytest.fixture
def folder(tmp_path: Path):  # type: ignore[no-untyped-def]
    def write(config: dict[str, object]) -> Path:
        path = tmp_path / "config.json"
        path.write_text(json.dumps(config), "utf-8")
        return path

    return write


def test_a_model_of_the_catalogue_is_profiled_from_its_facts() -> None:
    timeline = _profile("llama-70b", output_tokens=100)
    decode = _phase(timeline, "decode")
    layers, heads, width, element_bytes = 80, 8, 128, 2
    assert timeline.device == "simulated"
    assert timeline.architecture == "LlamaForCausalLM"
    assert decode.by_category["weights"] == pytest.approx(70_553_706_496 * 2, rel=1e-3)
    tokens = 128 + 99
    assert decode.by_category["kv_cache"] == pytest.approx(
        2 * layers * tokens * heads * width * element_bytes, rel=0.02
    )
    assert sum(decode.by_category.values()) == decode.peak.allocated_bytes
    assert timeline.warnings  # not every step was run


def test_steps_that_are_written_are_those_that_would_have_been_run(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ProfileRequest(model="demo", prompt_tokens=100, output_tokens=30)
    written = record(asked).log
    monkeypatch.setattr(generation, "_FIRST_STEPS", 1000)
    run = record(asked).log
    assert written.order == run.order
    assert written.sizes == run.sizes
    assert written.category_of == run.category_of


@pytest.mark.parametrize("config", [None, MOE, T5], ids=["dense", "experts", "encoder-decoder"])
def test_inference_makes_what_it_makes_on_a_real_device(folder, config) -> None:  # type: ignore[no-untyped-def]
    model = "demo" if config is None else str(folder(config))
    asked = {"model": model, "prompt_tokens": 64, "output_tokens": 4, "batch": 2, "dtype": DType.F32}
    _same_peaks(asked)


@pytest.mark.parametrize(
    ("config", "options"),
    [
        (None, {}),
        (None, {"checkpointing": True}),
        (None, {"lora_rank": 4}),
        (None, {"optimizer": "sgd-momentum", "attention": "math"}),
        (None, {"attention": "eager", "iterations": 2}),
        (MOE, {}),
        (T5, {}),
        (BERT, {}),
        (VIT, {"lora_rank": 4}),
    ],
)
def test_training_makes_what_it_makes_on_a_real_device(folder, config, options) -> None:  # type: ignore[no-untyped-def]
    model = "demo" if config is None else str(folder(config))
    asked = {"model": model, "prompt_tokens": 64, "output_tokens": 8, "batch": 2, "dtype": DType.F32}
    _same_peaks({**asked, "phases": TRAINING, **options})


def _same_peaks(asked: dict[str, object]) -> None:
    simulated = replay(record(ProfileRequest(**asked), target="cpu").log, None)  # type: ignore[arg-type]
    real = replay(record(ProfileRequest(device="cpu", **asked)).log, None)  # type: ignore[arg-type]
    for here, there in zip(simulated.phases, real.phases, strict=True):
        assert here.peak.allocated_bytes == pytest.approx(there.peak.allocated_bytes, rel=0.01), here.phase
        assert here.by_category == pytest.approx(there.by_category, rel=0.05, abs=65536)


def test_the_bytes_of_a_real_run_are_those_that_the_allocator_hands_out() -> None:
    """Counted by PyTorch's profiler, which hears of every block from the allocator itself."""
    log = record(ProfileRequest(model="demo", device="cpu", phases=TRAINING, prompt_tokens=64, dtype=DType.F32)).log
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        record(ProfileRequest(model="demo", device="cpu", phases=TRAINING, prompt_tokens=64, dtype=DType.F32))
    events = [each for each in profiler.profiler.kineto_results.events() if each.name() == "[memory]"]
    level = peak = 0
    for event in sorted(events, key=lambda each: each.start_ns()):
        level += event.nbytes()
        peak = max(peak, level)
    assert replay(log, None).peak_allocated_bytes == pytest.approx(peak, rel=0.01)


def test_attention_kernels_differ_in_what_they_hold() -> None:
    kinds = ("flash", "efficient", "math", "eager")
    peaks = {
        kind: _phase(_profile("llama-8b", attention=kind, phases=("prefill",), prompt_tokens=4096), "prefill").peak
        for kind in kinds
    }
    held = {kind: peak.allocated_bytes for kind, peak in peaks.items()}
    assert held["flash"] <= held["efficient"] < held["math"]
    assert held["eager"] > held["flash"] + 32 * 4096 * 4096 * 2  # the matrix of scores


def test_a_static_cache_is_made_once_and_a_dynamic_one_grows() -> None:
    static, dynamic = (_profile("demo", cache=kind, output_tokens=64) for kind in ("static", "dynamic"))
    assert _phase(static, "prefill").by_category["kv_cache"] == _phase(static, "decode").by_category["kv_cache"]
    assert _phase(dynamic, "prefill").by_category["kv_cache"] < _phase(dynamic, "decode").by_category["kv_cache"]


def test_a_step_of_training_is_told_by_what_holds_its_memory() -> None:
    timeline = _profile("llama-8b", phases=TRAINING, prompt_tokens=512)
    weights_bytes = 8_030_261_248 * 2
    step = _phase(timeline, "optimizer").by_category
    assert step["weights"] == pytest.approx(weights_bytes, rel=1e-3)
    assert step["gradients"] == pytest.approx(weights_bytes, rel=1e-3)
    assert step["optimizer_state"] == pytest.approx(2 * weights_bytes, rel=1e-3)
    assert step["workspace"] == pytest.approx(weights_bytes, rel=2e-3)  # what the foreach form makes beside


@pytest.mark.parametrize(
    ("optimizer", "state_bytes_per_parameter", "has_temporaries"),
    [
        ("adamw-fused", 4.0, False),
        ("adamw-8bit", 2.0 + 8 / 256, False),
        ("sgd", 0.0, False),
        ("sgd-momentum", 2.0, None),
    ],
)
def test_optimizers_keep_what_they_need(
    optimizer: str, state_bytes_per_parameter: float, has_temporaries: bool | None
) -> None:
    step = _phase(_profile("llama-8b", phases=TRAINING, prompt_tokens=64, optimizer=optimizer), "optimizer")
    kept = step.by_category.get("optimizer_state", 0)
    assert kept == pytest.approx(8_030_261_248 * state_bytes_per_parameter, rel=1e-2, abs=1)
    if has_temporaries is False:
        assert step.by_category.get("workspace", 0) < 64 << 20


def test_checkpointing_trades_activations_away() -> None:
    plain, saved = (_profile("llama-8b", phases=TRAINING, prompt_tokens=2048, checkpointing=on) for on in (False, True))
    assert _phase(saved, "forward").after.allocated_bytes < 0.6 * _phase(plain, "forward").after.allocated_bytes


def test_a_device_that_is_too_small_ends_the_profile_with_what_was_wanted() -> None:
    timeline = _profile("llama-8b", phases=("load",), capacity_bytes=12 << 30)
    assert timeline.out_of_memory is not None
    assert timeline.out_of_memory.phase == "load"
    tensor = timeline.out_of_memory.tensor
    assert tensor is not None
    assert tensor.category == "weights"  # transformers' warm-up takes no more than there is


def test_a_model_that_writes_no_text_runs_forward(folder) -> None:  # type: ignore[no-untyped-def]
    path = folder(BERT)
    assert [phase.phase for phase in _profile(path).phases] == ["load", "forward"]
    with pytest.raises(UnsupportedModel, match="writes no text"):
        _profile(path, phases=("decode",))


def test_what_the_cpu_has_no_kernel_for_is_refused() -> None:
    with pytest.raises(UsageError, match="flash"):
        _profile("demo", device="cpu", attention="flash")


def test_a_repetition_of_a_phase_ends_where_it_did_before() -> None:
    timeline = _profile("demo", iterations=3)
    after = {_phase(timeline, "decode", iteration).after.allocated_bytes for iteration in range(3)}
    assert len(after) == 1


def test_warming_up_is_not_shown() -> None:
    timeline = _profile("demo", warmup=2, iterations=2, phases=("prefill",))
    assert [(phase.phase, phase.iteration) for phase in timeline.phases] == [("prefill", 0), ("prefill", 1)]


def test_a_model_larger_than_the_machine_is_refused_before_it_is_built() -> None:
    with pytest.raises(UsageError, match="too large for the CPU"):
        _profile("llama-405b", device="cpu")


def test_an_interrupt_keeps_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(self: generation.Generation) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(generation.Generation, "decode", stop)
    timeline = _profile("demo")
    assert timeline.interrupted
    assert _phase(timeline, "prefill").peak.allocated_bytes > _phase(timeline, "load").peak.allocated_bytes


def test_weights_of_a_folder_are_loaded_where_they_are_asked_for(folder) -> None:  # type: ignore[no-untyped-def]
    path = folder(MOE)
    with pytest.raises(SourceNotFound, match="no weights"):
        _profile(path, device="cpu", weights="real", phases=("prefill",))
    import transformers

    model = transformers.Qwen3MoeForCausalLM(transformers.Qwen3MoeConfig(**MOE))
    model.save_pretrained(path.parent)
    timeline = _profile(path.parent, device="cpu", weights="real", phases=("load", "prefill"))
    weights_bytes = sum(each.numel() * 4 for each in model.parameters())
    assert _phase(timeline, "load").by_category["weights"] == pytest.approx(weights_bytes, rel=0.01)


def test_code_that_does_not_run_without_values_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: generation.Generation) -> None:
        raise RuntimeError("Cannot copy out of meta tensor\nmore")

    monkeypatch.setattr(generation.Generation, "prefill", fail)
    with pytest.raises(UnsupportedModel, match="does not run on meta tensors: RuntimeError: Cannot copy out of meta"):
        _profile("demo")


def test_what_cudnn_takes_for_convolutions_is_said_to_be_left_out(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(VIT))
    asked = {"model": str(tmp_path), "phases": ("load", "forward"), "offline": True}
    timeline, _ = profile_model(ProfileRequest(**asked))  # type: ignore[arg-type]
    assert [note for note in timeline.warnings if "cuDNN" in note and note.startswith("a module with a convolution")]
    on_cpu, _ = profile_model(ProfileRequest(device="cpu", **asked))  # type: ignore[arg-type]
    assert on_cpu.warnings == ()
