"""Profiles made one after the other."""

from __future__ import annotations

from memplan.cli.options import Given
from memplan.cli.profile_completed import completed
from memplan.cli.profile_request import AskedProfiles, ask_profiles
from memplan.cli.progress import Step, progress
from memplan.domain.timeline import MemoryTimeline
from memplan.errors import UsageError
from memplan.profile.pace import Pace
from memplan.profile.request import ProfileRequest, check_request
from memplan.records import replace


def run_profiles(given: Given) -> tuple[list[MemoryTimeline], bool]:
    """Return the profiles that a command asks for, and whether it was interrupted after some of them.

    Raises: MemplanError for what cannot be asked or run; KeyboardInterrupt before the first profile is through.
    """
    from memplan.cli.options import TRAINING
    from memplan.cli.profile_ranks import check_launch, profile_ranks, said_once
    from memplan.cli.state import filled_in
    from memplan.profile.packages import require_packages

    with said_once():
        here, given = given, filled_in(given, forget=TRAINING)
        asked = ask_profiles(given, remembered=frozenset(given.keys() - here.keys()))
        for request in asked.requests:
            check_request(request)
        check_launch(asked.requests)
        if "memory_viz" in given and len(asked.requests) > 1:
            what = "name one batch, one length and one attention kernel"
            raise UsageError("--memory-viz writes one profile", hint=what)
        require_packages()
    made: list[MemoryTimeline] = []
    with progress("profiling") as step:
        for number, request in enumerate(asked.requests):
            try:
                if request.sharing != "none" and request.device != "simulated":
                    step(number, len(asked.requests), f"{request.num_ranks} processes")
                    made += profile_ranks(request)
                    continue
                pace = Pace(request, _one_of(step, number, len(asked.requests)))
                made.append(_profile(request, asked, given, pace))
            except KeyboardInterrupt:
                if not made:
                    raise
                return made, True
            if made[-1].interrupted:
                return made, True
    _save(made, asked, given)
    return made, False


def _one_of(step: Step, number: int, count: int) -> Step:
    """How far one of several profiles is, as how far all of them are."""

    def told(done: int, total: int, name: str = "") -> None:
        step(number * total + done, count * total, f"{number + 1} of {count}: {name}" if count > 1 else name)

    return told


def _profile(request: ProfileRequest, asked: AskedProfiles, given: Given, pace: Pace) -> MemoryTimeline:
    from memplan.profile.run import profile_model

    # What is simulated runs without a limit, so that a page shows every phase of a run that would not fit, too.
    free = replace(request, capacity_bytes=None) if request.device == "simulated" else request
    timeline, log = profile_model(free, pace)
    pace.look()
    if asked.spec is not None:
        timeline = replace(timeline, model_name=asked.spec.name)
    if "mean_length" in given:
        timeline = replace(timeline, settings={**timeline.settings, "mean_length": int(given["mean_length"])})
    if log is not None and "memory_viz" in given:
        from memplan.budget.caching_allocator.settings import parse_settings
        from memplan.cli.profile_files import write_memory_viz

        write_memory_viz(given, log, parse_settings(request.allocator))
    try:
        return completed(timeline, log, request, asked)
    except KeyboardInterrupt:
        said = "interrupted before it was looked for what is the matter"
        return replace(timeline, interrupted=True, warnings=(*timeline.warnings, said))


def _save(made: list[MemoryTimeline], asked: AskedProfiles, given: Given) -> None:
    if not given.get("save_correction"):
        return
    from memplan.cli.corrections import save_correction

    for timeline in made:
        save_correction(timeline, asked.gpu)
