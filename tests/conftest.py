"""Properties are tried on the same questions every time, however long a busy machine takes over them.

MEMPLAN_EXAMPLES=2000 draws new ones instead: so many where a test does not say how many itself.
"""

import os

from hypothesis import HealthCheck, settings

_EXAMPLES = os.environ.get("MEMPLAN_EXAMPLES")

settings.register_profile(
    "memplan",
    deadline=None,
    derandomize=_EXAMPLES is None,
    max_examples=int(_EXAMPLES or 100),
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("memplan")
