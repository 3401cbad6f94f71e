"""What holds for every test: hypothesis draws the same examples on each run, and a busy machine may take its time."""

from __future__ import annotations

import httpx
from hypothesis import HealthCheck, settings

from tests.until import PATIENCE_S

settings.register_profile(
    "steady", deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("steady")

_unless_said = httpx._config.DEFAULT_TIMEOUT_CONFIG  # 5 s, and no public way to say otherwise for all clients
_unless_said.connect = _unless_said.read = _unless_said.write = _unless_said.pool = PATIENCE_S
