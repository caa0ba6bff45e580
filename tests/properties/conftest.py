"""Properties are tried on the same questions every time; MEMPLAN_EXAMPLES=2000 draws as many new ones instead."""

import os

from hypothesis import HealthCheck, settings

_EXAMPLES = os.environ.get("MEMPLAN_EXAMPLES")

settings.register_profile(
    "memplan",
    deadline=None,
    derandomize=_EXAMPLES is None,
    max_examples=int(_EXAMPLES or 40),
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("memplan")
