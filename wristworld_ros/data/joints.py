"""Joint positions over time, from messages that may each hold a part of the robot."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Mapping

#: Joint states farther than this from a frame are not used [ns].
JOINT_TOLERANCE_NS = 100_000_000


class JointHistory:
    """Joint states by stamp; arm and gripper may come in messages of their own.

    Args:
        limit: messages kept, the newest ones; all when None.
    """

    def __init__(self, limit: int | None = None) -> None:
        self._stamps: list[int] = []
        self._states: dict[int, dict[str, float]] = {}
        self._order: deque[int] = deque()
        self._limit = limit

    def __len__(self) -> int:
        return len(self._stamps)

    def add(self, stamp_ns: int, joints: Mapping[str, float]) -> None:
        """Keep a message's positions [rad or m]."""
        if stamp_ns not in self._states:
            insort(self._stamps, stamp_ns)
            self._order.append(stamp_ns)
        self._states.setdefault(stamp_ns, {}).update(joints)
        if self._limit is not None and len(self._order) > self._limit:
            oldest = self._order.popleft()
            del self._states[oldest]
            del self._stamps[bisect_left(self._stamps, oldest)]

    def at(self, stamp_ns: int, tolerance_ns: int = JOINT_TOLERANCE_NS) -> dict[str, float] | None:
        """Every joint's position nearest in time; None when nothing is within the tolerance."""
        first = bisect_left(self._stamps, stamp_ns - tolerance_ns)
        last = bisect_left(self._stamps, stamp_ns + tolerance_ns + 1)
        out: dict[str, float] = {}
        for stamp in sorted(self._stamps[first:last], key=lambda s: -abs(s - stamp_ns)):
            out.update(self._states[stamp])
        return out or None
