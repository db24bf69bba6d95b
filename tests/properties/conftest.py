"""How many cases are drawn: a few, always the same, in `make test`; 10,000, others every day, in `make soak`."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

settings.register_profile("quick", max_examples=100, derandomize=True, deadline=None, database=None)
SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large]
settings.register_profile(
    "soak",
    max_examples=int(os.environ.get("CASES", 10_000)),
    deadline=None,
    database=None,
    print_blob=True,
    suppress_health_check=SLOW,
)
settings.load_profile("quick")
