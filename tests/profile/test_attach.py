"""Programs of one's own under the profile: a block, a script, a Trainer."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

import memplan.profile  # noqa: E402
from memplan.cli.attached import run_script  # noqa: E402
from memplan.cli.profile_files import read_profile  # noqa: E402
from memplan.domain.timeline import MemoryTimeline  # noqa: E402
from memplan.profile.attach import Attached  # noqa: E402
from memplan.profile.device_memory import RehearsedMemory  # noqa: E402

WIDTH = 256
TRAINING = """
import sys
import torch
model = torch.nn.Sequential(torch.nn.Linear(256, 256), torch.nn.ReLU(), torch.nn.Linear(256, 256))
optimizer = torch.optim.Adam(model.parameters())
for _ in range(int(sys.argv[1])):
    loss = model(torch.ones(8, 256)).sum()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
print("trained", sys.argv[1:])
if len(sys.argv) > 2:
    sys.exit(int(sys.argv[2]))
"""


def small_model() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(WIDTH, WIDTH), torch.nn.ReLU(), torch.nn.Linear(WIDTH, WIDTH))


def weights_bytes(model: torch.nn.Module) -> int:
    return sum(each.numel() * each.element_size() for each in model.parameters())


def train(model: torch.nn.Module, steps: int) -> None:
    optimizer = torch.optim.Adam(model.parameters())
    for _ in range(steps):
        model(torch.ones(8, WIDTH)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def check_training(timeline: MemoryTimeline, weights: int, steps: int) -> None:
    runs = [(phase.phase, phase.iteration) for phase in timeline.phases]
    assert [each for each in runs if each[0] != "run"] == [
        (name, step) for step in range(steps) for name in ("forward", "backward", "optimizer")
    ]
    last = timeline.phases[runs.index(("optimizer", steps - 1))]
    assert last.by_category["weights"] == pytest.approx(weights, rel=0.02)
    assert last.by_category["gradients"] == pytest.approx(weights, rel=0.02)
    assert last.by_category["optimizer_state"] == pytest.approx(2 * weights, rel=0.02)


def test_a_training_step_is_cut_into_its_phases_without_a_word_from_the_program(
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = small_model()
    with memplan.profile.record("mine", device="cpu") as recording:
        recording.watch(model)
        train(model, 2)
    assert recording.timeline is not None
    check_training(recording.timeline, weights_bytes(model), 2)
    said = capsys.readouterr()
    assert said.out == ""
    assert "mine, Sequential" in said.err
    assert "PEAK" in said.err


def test_a_device_is_watched_like_the_cpu() -> None:
    with Attached("mine", memory=RehearsedMemory()) as recording:
        model = small_model()
        train(model, 2)
    assert recording.timeline is not None
    assert recording.timeline.device == "cuda"
    check_training(recording.timeline, weights_bytes(model), 2)


def test_a_block_within_a_recording_names_a_phase() -> None:
    model = small_model().eval()
    with memplan.profile.record("mine", device="cpu", show=False) as recording:
        with memplan.profile.record("prefill"), torch.no_grad():
            model(torch.ones(64, WIDTH))
        with memplan.profile.record("decode"), torch.no_grad():
            model(torch.ones(1, WIDTH))
    timeline = recording.timeline
    assert timeline is not None
    found = {phase.phase: phase for phase in timeline.phases}
    assert found["prefill"].by_category["activations"] > found["decode"].by_category["activations"]
    assert {share.module for share in timeline.at_peak} >= {"*"}


def test_what_torch_runs_through_is_put_back() -> None:
    before = torch.nn.Module.__call__, torch.autograd.backward
    with memplan.profile.record(device="cpu", show=False):
        assert torch.autograd.backward is not before[1]
    assert (torch.nn.Module.__call__, torch.autograd.backward) == before


def test_an_error_in_a_block_is_the_programs_own_and_the_profile_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "block.json"

    def fails() -> None:
        with memplan.profile.record("mine", device="cpu", output=path, show=False):
            kept = torch.ones(1000)
            del kept
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert read_profile(path).phases


def test_a_long_run_is_recorded_up_to_a_bound_and_says_so() -> None:
    with Attached("mine", "cpu", most_events=100) as recording:
        train(small_model(), 20)
    assert recording.timeline is not None
    assert "later ones are left out" in recording.timeline.warnings[0]
    assert len([each for each in recording.timeline.phases if each.phase == "forward"]) < 20


def test_a_block_writes_its_profile(tmp_path: Path) -> None:
    path = tmp_path / "block.json"
    with memplan.profile.record("mine", device="cpu", output=path, show=False) as recording:
        train(small_model(), 1)
    assert read_profile(path) == recording.timeline


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "train.py"
    path.write_text(TRAINING)
    return path


def test_a_script_is_run_with_its_arguments_and_profiled(script: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_script(["--device", "cpu", str(script), "2", "3"]) == 3
    said = capsys.readouterr()
    assert said.out == "trained ['2', '3']\n"
    assert "train.py" in said.err
    timeline = read_profile(Path("train.profile.json"))
    check_training(timeline, 2 * (WIDTH * WIDTH + WIDTH) * 4, 2)
    assert any("train.py:" in tensor.where for phase in timeline.phases for tensor in phase.largest)


def test_a_profile_that_is_there_is_not_overwritten_unless_told(
    script: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("train.profile.json").write_text("mine")
    assert run_script([str(script), "1"]) == 2
    assert "exists already" in capsys.readouterr().err
    assert run_script(["--force", "--quiet", "--device", "cpu", str(script), "1"]) == 0
    assert json.loads(Path("train.profile.json").read_text())["schema"] == "memplan.profile/1"


def test_a_script_that_fails_keeps_its_traceback_and_what_was_recorded(
    script: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script.write_text("import torch\nkept = torch.ones(1000)\nraise ValueError('its own')\n")
    assert run_script(["--device", "cpu", str(script)]) == 1
    assert "ValueError: its own" in capsys.readouterr().err
    assert read_profile(Path("train.profile.json")).phases


def test_a_script_that_is_not_there_is_one_line(script: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_script(["other.py"]) == 2
    assert capsys.readouterr().err.startswith("error: no such file: other.py\n")


def test_the_module_is_a_command(script: Path) -> None:
    command = [sys.executable, "-m", "memplan.profile", "--device", "cpu", "--quiet", str(script), "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "trained ['1']\n"
    assert done.stderr == "wrote train.profile.json\n"


def test_a_trainer_is_profiled_for_its_first_steps(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", minversion="5.0")
    pytest.importorskip("accelerate")
    from memplan.profile.trainer import TrainerProfile

    config = transformers.LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, vocab_size=256
    )
    tokens = torch.zeros(16, dtype=torch.long)
    profile = TrainerProfile(steps=2, device="cpu", output=tmp_path / "training.json", show=False)
    trainer = transformers.Trainer(
        model=transformers.LlamaForCausalLM(config),
        args=transformers.TrainingArguments(
            output_dir=str(tmp_path), max_steps=3, per_device_train_batch_size=2, report_to=[], use_cpu=True,
            save_strategy="no", disable_tqdm=True, dataloader_pin_memory=False,
        ),
        train_dataset=[{"input_ids": tokens, "labels": tokens}] * 8,
        callbacks=[profile],
    )  # fmt: skip
    trainer.train()
    timeline = read_profile(tmp_path / "training.json")
    assert {phase.iteration for phase in timeline.phases if phase.phase == "optimizer"} == {0, 1}
    last = [phase for phase in timeline.phases if phase.phase == "optimizer"][-1]
    assert last.by_category["optimizer_state"] == pytest.approx(2 * last.by_category["weights"], rel=0.05)


def test_a_program_that_asks_nothing_of_the_device_has_no_profile() -> None:
    with Attached("mine", memory=RehearsedMemory()) as recording:
        pass
    assert recording.timeline is None
    with Attached("mine", "cpu") as recording:
        pass
    assert recording.timeline is None


def test_what_is_computed_again_belongs_to_the_backward_pass_and_an_evaluation_to_the_run() -> None:
    from torch.utils.checkpoint import checkpoint

    layer = torch.nn.Linear(WIDTH, WIDTH)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    with Attached("mine", "cpu") as recording:
        checkpoint(layer, torch.ones(8, WIDTH), use_reentrant=False).sum().backward()
        optimizer.step()
        with torch.no_grad():
            layer.eval()(torch.ones(8, WIDTH))
    assert recording.timeline is not None
    phases = [phase.phase for phase in recording.timeline.phases]
    assert phases == ["run", "forward", "backward", "optimizer", "run"]


WRITING = """
import torch
import transformers
config = transformers.LlamaConfig(
    hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, vocab_size=256
)
model = transformers.LlamaForCausalLM(config).eval()
prompt = torch.ones(2, 48, dtype=torch.long)
for _ in range(2):
    with torch.no_grad():
        model.generate(prompt, max_new_tokens=5, do_sample=False, pad_token_id=0)
"""


def test_a_script_that_writes_text_is_cut_into_prompts_and_what_is_written_after_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("transformers", minversion="5.0")
    monkeypatch.chdir(tmp_path)
    Path("write.py").write_text(WRITING)
    assert run_script(["--device", "cpu", "--quiet", "write.py"]) == 0
    timeline = read_profile(Path("write.profile.json"))
    assert [(phase.phase, phase.iteration) for phase in timeline.phases if phase.phase != "run"] == [
        ("prefill", 0),
        ("decode", 0),
        ("prefill", 1),
        ("decode", 1),
    ]
    decode = next(phase for phase in timeline.phases if phase.phase == "decode")
    assert decode.by_category["kv_cache"] >= 2 * 2 * 2 * 48 * 64 * 4
    # Weights are their modules', although they were made before anybody called the model.
    assert decode.by_module["model.layers.0"] > 100_000


def test_a_page_is_written_where_the_name_of_the_file_says_so(tmp_path: Path) -> None:
    path = tmp_path / "block.html"
    with memplan.profile.record("mine", device="cpu", output=path, show=False):
        train(small_model(), 1)
    assert path.read_text().startswith("<!doctype html>")


def test_the_error_of_a_script_is_told_as_python_tells_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("fails.py").write_text("import torch\nkept = torch.ones(1000)\nraise ValueError('no good')\n")
    assert run_script(["--device", "cpu", "fails.py"]) == 1
    said = capsys.readouterr().err
    assert "ValueError: no good" in said
    assert "runpy" not in said
    assert "attached.py" not in said
    assert "hint:" not in said


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused_with_what_can_be_watched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("quiet.py").write_text("import torch\n")
    assert run_script(["--device", "cuda", "quiet.py"]) == 5
    assert "--device cpu" in capsys.readouterr().err
