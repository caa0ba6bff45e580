"""What stops a quantization, or keeps it from starting: one clear line, and nothing lost."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from memplan.cli.quantize_request import ask  # noqa: E402 - after the skip
from memplan.cli.quantize_stops import in_one_go, resumable  # noqa: E402
from memplan.errors import DoesNotFit, SourceNotFound, Unfinished, UnsupportedModel, UsageError  # noqa: E402
from memplan.quantize.checkpoint import Checkpoint  # noqa: E402
from memplan.quantize.skeleton import Skeleton  # noqa: E402
from memplan.quantize.workspace import Workspace, write_safetensors  # noqa: E402


@pytest.mark.parametrize(
    ("stop", "said"),
    [
        (KeyboardInterrupt(), "stopped after 2 of 5 blocks"),
        (MemoryError(), "out of memory after 2 of 5 blocks"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate"), "out of memory"),
        (torch.OutOfMemoryError("CUDA out of memory."), "out of memory"),
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "the disk is full"),
    ],
)
def test_what_stops_work_says_how_to_go_on(tmp_path: Path, stop: BaseException, said: str) -> None:
    workspace = Workspace(tmp_path / "out", {})
    workspace.blocks = [{}, {}]
    with pytest.raises(Unfinished, match=said) as told, resumable(workspace, 5):
        raise stop
    assert told.value.exit_code == 7
    assert "--resume" in str(told.value.hint)


def test_other_errors_are_not_taken_for_a_lack_of_room(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="shapes"), resumable(Workspace(tmp_path / "out", {}), 5):
        raise RuntimeError("shapes do not match")
    with pytest.raises(PermissionError), resumable(Workspace(tmp_path / "out", {}), 5):
        raise PermissionError(errno.EACCES, "denied")


def test_work_that_keeps_nothing_says_what_there_was_too_little_of() -> None:
    with pytest.raises(DoesNotFit, match="the disk is full while a file was written; nothing is kept"):  # noqa: SIM117
        with in_one_go("a file was written"):
            raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(PermissionError), in_one_go("a file was written"):
        raise PermissionError(errno.EACCES, "denied")


def test_pickled_weights_are_not_opened(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(SourceNotFound, match="no weights") as told:
        Checkpoint(tmp_path)
    assert "weights_only" in str(told.value.hint)


def test_an_architecture_that_is_not_known_is_told(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "nobody-knows"}))
    write_safetensors(tmp_path / "model.safetensors", {"a.weight": torch.zeros(2, 2)})
    with pytest.raises(UnsupportedModel, match="cannot build"):
        Skeleton(tmp_path)


def test_what_is_fallen_back_on_is_checked_before_work_begins() -> None:
    asked = ask({"model": "demo", "method": "rtn", "bits": 3, "fallback": "int8,none"})
    (request,) = asked.fallbacks
    assert (request.method.name, request.bits, asked.keeps_base) == ("int8", 8, True)
    for wrong, said in (("none,int8", "behind"), ("rtn", "tried first"), ("int9", "unknown method")):
        with pytest.raises(UsageError, match=said):
            ask({"model": "demo", "method": "rtn", "fallback": wrong})


def test_files_are_written_as_the_library_reads_them(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    tensors = {
        "b": torch.arange(6, dtype=torch.int8).reshape(2, 3).t(),
        "a": torch.randn(3, 5, dtype=torch.bfloat16),
        "scale": torch.tensor(2.0),
        "none": torch.empty(0, 4),
    }
    write_safetensors(tmp_path / "x.safetensors", tensors)
    found = load_file(tmp_path / "x.safetensors")
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], value) for name, value in tensors.items())
