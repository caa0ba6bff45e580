"""Compiled code on the CPU, by what the allocator tells PyTorch's profiler: its first run and those after it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers", minversion="5.0")

from memplan.domain.timeline import MemoryTimeline, PhaseMemory  # noqa: E402
from memplan.profile.profiled import ProfiledRecorder  # noqa: E402
from memplan.profile.replay import replay  # noqa: E402
from memplan.profile.request import ProfileRequest  # noqa: E402
from memplan.profile.run import profile_model  # noqa: E402

TINY = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 512,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 256,
    "torch_dtype": "float32",
}


def phase(timeline: MemoryTimeline, name: str, iteration: int = 0) -> PhaseMemory:
    return next(each for each in timeline.phases if (each.phase, each.iteration) == (name, iteration))


def test_every_block_is_in_the_trace_with_its_operator_and_its_category(capfd: pytest.CaptureFixture[str]) -> None:
    recorder = ProfiledRecorder()
    weight = torch.ones(512, 512)
    with recorder:
        recorder.begin("load")
        recorder.hold(weight, "weights", module="layer", operator="load")
        recorder.begin("forward")
        made = weight @ weight
        recorder.classify([made], "kv_cache")
        del made
        recorder.begin("forward", 1)
        again = weight @ weight
        spike = torch.relu(again)
        del spike
    assert capfd.readouterr().err == ""
    first, one, two = replay(recorder.log, None).phases
    size = weight.nbytes
    assert first.peak.allocated_bytes == size
    assert (one.peak.allocated_bytes, one.after.allocated_bytes) == (2 * size, size)
    assert one.by_category == {"weights": size, "kv_cache": size}
    assert (two.peak.allocated_bytes, two.after.allocated_bytes) == (3 * size, 2 * size)
    assert two.by_category == {"weights": size, "activations": 2 * size}
    assert {tensor.operator for tensor in two.largest} == {"load", "aten.mm", "aten.clamp_min"}
    assert (again.shape, recorder.log.marks[0].position) == (weight.shape, 0)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_code_keeps_less_than_the_code_as_it_is_written(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    asked = {"model": str(tmp_path), "device": "cpu", "phases": ("load", "forward"), "prompt_tokens": 128}
    peaks = {}
    for execution in ("eager", "compiled"):
        timeline, _ = profile_model(
            ProfileRequest(**asked, execution=execution, iterations=2, offline=True)  # type: ignore[arg-type]
        )
        run = phase(timeline, "forward", 1)
        peaks[execution] = run.peak.allocated_bytes - run.before.allocated_bytes
        assert run.by_category["weights"] == phase(timeline, "load").after.allocated_bytes
    # silu(gate) * up is one kernel: eager holds three such tensors at once, compiled code two or one.
    assert peaks["compiled"] < peaks["eager"]
    assert any(tensor.operator == "compiled code" for tensor in run.largest)
