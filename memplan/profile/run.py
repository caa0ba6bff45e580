"""One profile, from what was asked to a timeline: build the model, run its phases, replay what was recorded.

Torch is imported when a profile runs, never when this module is.
"""

from __future__ import annotations

import importlib

from memplan.domain.timeline import MemoryTimeline
from memplan.errors import MissingExtra
from memplan.profile.events import EventLog
from memplan.profile.request import ProfileRequest, check_request


def profile_model(request: ProfileRequest) -> tuple[MemoryTimeline, EventLog | None]:
    """Run a request and return its timeline, and the trace of allocations that it was made from.

    Raises: MissingExtra without torch or transformers; UsageError for what cannot be run; SourceError,
    UnsupportedModel for a model that cannot be had or built.
    """
    check_request(request)
    for package in ("torch", "transformers"):
        try:
            importlib.import_module(package)
        except ImportError:
            raise MissingExtra(f"profile needs {package}", hint="pip install 'memplan[profile]'") from None
    from memplan.profile.simulated import profile_simulated

    return profile_simulated(request)
