"""The phases of a profile in their order: load; prefill, decode or generate; forward, backward, optimizer.

Each does what transformers does in that phase, with nothing around it that a program of one's own would not have.
"""

from __future__ import annotations

import torch

from memplan.domain.timeline import PHASES, Phase
from memplan.profile.generation import Generation
from memplan.profile.inputs import require_text
from memplan.profile.load_warmup import WARM_UP
from memplan.profile.pace import Pace
from memplan.profile.recorder import Recorder
from memplan.profile.request import INFERENCE, ProfileRequest
from memplan.profile.sharing import layers_of, shared
from memplan.profile.subject import Subject, cut_before_load
from memplan.profile.training import Training, prepare
from memplan.records import replace

_TEXT: frozenset[Phase] = frozenset(("prefill", "decode", "generate"))
_STEPS: frozenset[Phase] = frozenset(("forward", "backward", "optimizer"))


def fitting(request: ProfileRequest, subject: Subject) -> ProfileRequest:
    """The request with phases that the model has: one that writes no text runs forward where inference is asked.

    A graph is captured between a first decode and those that replay it.
    """
    if request.execution == "graph":
        return replace(request, phases=tuple(each for each in PHASES if each in {*request.phases, "capture", "decode"}))
    if request.phases == INFERENCE and subject.kind not in ("decoder", "encoder_decoder"):
        return replace(request, phases=("load", "forward"))
    return request


def run(subject: Subject, recorder: Recorder, request: ProfileRequest, pace: Pace | None = None) -> tuple[str, ...]:
    """Run the phases of a request, in order, and return what a person should know about how they were run.

    Raises: UnsupportedModel when a phase makes no sense for the model.
    """
    asked = set(request.phases)
    if asked & _TEXT:
        require_text(subject)
    prepare(subject, request)
    if request.execution == "compiled":
        subject.model.forward = torch.compile(subject.model.forward)
    in_shards = cut_before_load(request)
    if in_shards:
        subject = shared(subject, request, recorder)
    recorder.name_modules(subject.model)
    notes: list[str] = []
    pace = pace or Pace(request, lambda *_: None)
    with recorder, pace.through(layers_of(subject.model)):
        load(subject, recorder, warms_up=request.sharing != "fsdp")
        if request.sharing != "none" and not in_shards:
            subject = shared(subject, request, recorder)
            recorder.name_modules(subject.model)
            recorder.classify(subject.model.parameters(), "weights")
        # Both are kept until the recorder stops, so that what they hold is not freed by the end of the run.
        generation = Generation(subject, recorder, request)
        training = Training(subject, recorder, request)
        if asked & _TEXT:
            with torch.no_grad():
                notes += _generate(generation, request, pace)
        if asked & _STEPS:
            generation.end()
            _train(training, request, pace)
    return tuple(notes)


def load(subject: Subject, recorder: Recorder, *, warms_up: bool = True) -> None:
    """Note the weights as they are laid out when transformers loads them.

    On a GPU it first takes and returns all of their bytes at once (see `load_warmup`). Shards of FSDP2 are made on the
    GPU one by one, without that.
    """
    recorder.begin("load")
    weights = list(subject.weights())
    if warms_up and subject.runs_as == "cuda" and subject.device == "meta":
        recorder.spike([sum(tensor.untyped_storage().nbytes() for _, tensor in weights)], WARM_UP)
    for name, tensor in weights:
        recorder.hold(tensor, "weights", module=name.rpartition(".")[0], operator="load")


def _generate(generation: Generation, request: ProfileRequest, pace: Pace) -> list[str]:
    for iteration in range(-request.warmup, request.iterations):
        if "generate" in request.phases:
            pace.begin("generate")
            generation.begin("generate", iteration)
            generation.prefill()
            generation.decode()
            generation.end()
        if "prefill" in request.phases or "decode" in request.phases:
            pace.begin("prefill")
            generation.begin("prefill", iteration)
            generation.prefill()
            if "decode" in request.phases:
                pace.begin("decode")
            if request.execution == "graph" and iteration == 0:
                generation.capture()
            elif "decode" in request.phases:
                generation.begin("decode", iteration)
                generation.decode()
    return generation.notes


def _train(training: Training, request: ProfileRequest, pace: Pace) -> None:
    for iteration in range(-request.warmup, request.iterations):
        pace.begin("forward")
        training.forward(iteration)
        if request.trains:
            pace.begin("backward")
            training.backward(iteration)
        if "optimizer" in request.phases:
            pace.begin("optimizer")
            training.step(iteration)
