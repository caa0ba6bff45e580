"""One simulation from traffic to what came of it."""

from __future__ import annotations

from memplan.domain.simulation import SimulationResult, SimulationSettings, Traffic


def simulate(settings: SimulationSettings, traffic: Traffic) -> SimulationResult:
    """Serve `traffic` with one deployment and return what came of it. The same arguments give the same answer.

    Raises: UsageError when settings make no sense together.
    """
    raise NotImplementedError
