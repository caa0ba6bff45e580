"""A request run on a device: the model is built, its phases run under the recorder, the trace comes back.

`simulated` runs on the meta device as if on a GPU (or, for checks against real bytes, as if on a CPU); `cpu` runs for
real.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from memplan.domain.timeline import Capture, Phase
from memplan.errors import MemplanError, UnsupportedModel
from memplan.introspect.bytesource import show
from memplan.profile.events import EventLog
from memplan.profile.fake_ranks import collective_answers
from memplan.profile.kernels import Target, simulated_kernels
from memplan.profile.pace import Pace
from memplan.profile.profiled import ProfiledRecorder
from memplan.profile.recorder import Recorder
from memplan.profile.replay import PhaseWork
from memplan.profile.request import ProfileRequest
from memplan.profile.runs import fitting, run
from memplan.profile.sharing import as_one_rank, notes_of
from memplan.profile.subject import load_subject
from memplan.profile.values import meta_answers, note_value
from memplan.profile.work import WorkCounter
from memplan.profile.workspaces import MATRIX_PRODUCTS, cublas_workspace_bytes, insides, left_out
from memplan.records import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """A trace with the work of its phases, of what model it is, and what a person should know about how it was made.

    `interrupted` says that the last of its phases was cut short by the person.
    """

    log: EventLog
    work: dict[int, PhaseWork]
    architecture: str
    dtype: str
    device_name: str
    phases: tuple[Phase, ...]
    notes: tuple[str, ...]
    capture: Capture | None = None
    interrupted: bool = False


def record(request: ProfileRequest, *, target: Target = "cuda", pace: Pace | None = None) -> Recorded:
    """Run a request on the meta device or on the CPU; `target` is the device that the meta device stands for.

    An interruption keeps what was recorded, once there is more than the load. Raises: as `profile_model`.
    """
    subject = load_subject(request, runs_as="cpu" if request.device == "cpu" else target)
    request = fitting(request, subject)
    recorder = _recorder(request, target)
    interrupted = False
    with settled(request), _kernels(request, target), explained(request), as_one_rank(request, recorder):
        try:
            notes = run(subject, recorder, request, pace)
        except KeyboardInterrupt:
            if len(recorder.log.marks) < 2:
                raise
            notes, interrupted = (f"interrupted in {recorder.log.marks[-1].phase}: later phases are missing",), True
    is_gpu = request.device == "simulated" and target == "cuda"
    return Recorded(
        log=recorder.log,
        work=recorder.work.by_phase() if recorder.work is not None else {},
        architecture=subject.architecture,
        dtype=str(subject.dtype).removeprefix("torch."),
        device_name="" if subject.device == "meta" else subject.device,
        phases=request.phases,
        notes=(*subject.notes, *notes_of(request), *notes, *(left_out(recorder.log) if is_gpu else ())),
        capture=recorder.graph,
        interrupted=interrupted,
    )


def _recorder(request: ProfileRequest, target: Target) -> Recorder:
    if request.execution == "compiled":
        return cast("Recorder", ProfiledRecorder())
    if request.device == "cpu":
        return Recorder("cpu", work=WorkCounter())
    kept = dict.fromkeys(MATRIX_PRODUCTS, cublas_workspace_bytes(request.compute_capability))
    return Recorder(
        "meta",
        inside=insides(target),
        answers=meta_answers() if request.sharing == "none" else {**meta_answers(), **collective_answers()},
        note_value=note_value,
        kept=kept if target == "cuda" else None,
        work=WorkCounter(),
    )


@contextlib.contextmanager
def explained(request: ProfileRequest) -> Iterator[None]:
    """Say in one line that a model's code cannot be run on tensors without values, or on inputs of these sizes.

    Raises: UnsupportedModel.
    """
    try:
        yield
    except (MemplanError, MemoryError):
        raise
    except Exception as error:
        reason = str(error).strip().splitlines()[:1] or [""]
        what = "on meta tensors" if request.device == "simulated" else f"on the {request.device}"
        hint = "try a real device, --device cpu or cuda" if request.device == "simulated" else None
        problem = f"the model's code does not run {what}: {type(error).__name__}: {show(reason[0])}"
        raise UnsupportedModel(problem, hint=hint) from error


def _kernels(request: ProfileRequest, target: Target) -> contextlib.AbstractContextManager[Any]:
    if request.device == "cpu" and request.attention == "math":
        plain: contextlib.AbstractContextManager[Any] = sdpa_kernel(SDPBackend.MATH)
        return plain
    if request.device == "cpu":
        return contextlib.nullcontext()
    return simulated_kernels(target, request.attention, request.compute_capability)


@contextlib.contextmanager
def settled(request: ProfileRequest) -> Iterator[None]:
    """A run with its own seed, and what a model prints while it runs kept off the terminal."""
    import transformers

    from memplan.introspect.torch_meta import quiet_transformers

    with quiet_transformers(transformers), torch.random.fork_rng(devices=[]):
        torch.manual_seed(request.seed)
        yield
