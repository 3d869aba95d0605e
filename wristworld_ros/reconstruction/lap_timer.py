"""How long the parts of a frame took."""

from __future__ import annotations

import time


class LapTimer:
    """Seconds from lap to lap.

    Attributes:
        laps: name -> seconds since the lap before, or since the start.
    """

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """End a lap."""
        now = time.perf_counter()
        self.laps[name] = now - self._last
        self._last = now
