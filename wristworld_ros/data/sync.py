"""Matching of frames from several cameras by stamp, with every dropped frame counted by cause."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from wristworld_ros.errors import InvalidInputError

T = TypeVar("T")
NANOSECONDS = 1_000_000_000

#: Why a frame never became part of a set (docs in ``FrameSynchronizer``).
DROP_CAUSES = ("unmatched", "superseded", "late", "non_monotonic", "time_jump")


@dataclass(frozen=True)
class SyncedSet(Generic[T]):
    """One frame of every camera, taken within the slop.

    Attributes:
        stamp_ns: stamp of the first camera, as it came [ns].
        payloads: camera -> what was pushed, in the order of the cameras.
        stamps_ns: camera -> stamp as it came [ns].
        spread_s: latest minus earliest stamp, after the offsets [s].
    """

    stamp_ns: int
    payloads: Mapping[str, T]
    stamps_ns: Mapping[str, int]
    spread_s: float


class FrameSynchronizer(Generic[T]):
    """Collects frames of several cameras into sets whose stamps differ by at most the slop.

    A set leaves as soon as it is complete; nothing waits on a timer. Frames of one camera must
    arrive in the order of their stamps, cameras may run ahead of each other by ``buffer_size``
    frames. Every frame that was pushed is in exactly one set, in one drop counter, or waiting.

    Causes of drops:
        unmatched: no frame of another camera lies within the slop (slop too small, that camera
            lost a frame, or is silent).
        superseded: a newer frame of the same camera fits the others better.
        late: its partner had waited so long that it was pushed out of the buffer.
        non_monotonic: stamp not after the previous one of the same camera (duplicates included).
        time_jump: was waiting when stamps jumped back by more than a second (bag loop, restart).

    Args:
        cameras: names, first one gives the stamp of a set.
        slop_s: largest difference between the stamps of a set [s].
        offsets_s: camera -> seconds added to its stamps before matching (known trigger delay).
        buffer_size: frames that each camera may hold waiting; bounds the memory.
    """

    def __init__(
        self,
        cameras: Sequence[str],
        *,
        slop_s: float = 0.02,
        offsets_s: Mapping[str, float] | None = None,
        buffer_size: int = 10,
    ) -> None:
        offsets_s = dict(offsets_s or {})
        if not cameras or len(set(cameras)) != len(cameras):
            raise InvalidInputError(f"cameras {list(cameras)}: need at least one, names unique.")
        if unknown := set(offsets_s) - set(cameras):
            raise InvalidInputError(
                f"time offsets given for {sorted(unknown)}, which are not among the cameras "
                f"{list(cameras)}."
            )
        if not 0 <= slop_s < 10:
            raise InvalidInputError(f"slop of {slop_s} s; need 0 to 10 s.")
        if buffer_size < 1:
            raise InvalidInputError(f"buffer of {buffer_size} frames; need at least 1.")
        self.cameras = tuple(cameras)
        self._slop_ns = round(slop_s * NANOSECONDS)
        self._offset_ns = {c: round(offsets_s.get(c, 0.0) * NANOSECONDS) for c in cameras}
        self._buffer_size = buffer_size
        self._queues: dict[str, deque[tuple[int, T]]] = {c: deque() for c in cameras}
        self._newest: dict[str, int] = {}
        self._evicted: dict[str, int] = {}
        self._drops: Counter[tuple[str, str]] = Counter()
        self.received: Counter[str] = Counter()
        self.emitted = 0

    # --- counters ---------------------------------------------------------------------------------

    @property
    def drops(self) -> dict[str, int]:
        """Cause -> dropped frames of all cameras; every cause is present."""
        return {
            cause: sum(n for (_, c), n in self._drops.items() if c == cause)
            for cause in DROP_CAUSES
        }

    @property
    def drops_by_camera(self) -> dict[str, dict[str, int]]:
        """Camera -> cause -> dropped frames."""
        return {c: {k: self._drops[c, k] for k in DROP_CAUSES} for c in self.cameras}

    @property
    def waiting(self) -> dict[str, int]:
        """Camera -> frames in the buffer. A camera with 0 while others wait is the one missing."""
        return {c: len(q) for c, q in self._queues.items()}

    def missing(self) -> list[str]:
        """Cameras that hold up the others: empty buffer while another camera's frame waits."""
        if not any(self._queues.values()):
            return []
        return [c for c, q in self._queues.items() if not q]

    # --- work -------------------------------------------------------------------------------------

    def push(self, camera: str, stamp_ns: int, payload: T) -> list[SyncedSet[T]]:
        """Take in one frame; returns the sets that it completes, oldest first.

        Raises:
            InvalidInputError: unknown camera.
        """
        if camera not in self._queues:
            raise InvalidInputError(
                f"camera '{camera}' is not one of those to synchronise: {list(self.cameras)}."
            )
        self.received[camera] += 1
        stamp = stamp_ns + self._offset_ns[camera]
        newest = self._newest.get(camera)
        if newest is not None and stamp <= newest:
            if newest - stamp <= NANOSECONDS:
                self._drops[camera, "non_monotonic"] += 1
                return []
            self._reset()
        self._newest[camera] = stamp
        self._queues[camera].append((stamp, payload))
        sets = self._match()
        queue = self._queues[camera]
        if len(queue) > self._buffer_size:
            self._evicted[camera] = queue.popleft()[0]
            self._drops[camera, "unmatched"] += 1
        return sets

    def finish(self) -> None:
        """Count what still waits as unmatched, at the end of a recording."""
        for camera, queue in self._queues.items():
            self._drops[camera, "unmatched"] += len(queue)
            queue.clear()

    def _reset(self) -> None:
        for camera, queue in self._queues.items():
            self._drops[camera, "time_jump"] += len(queue)
            queue.clear()
        self._newest.clear()
        self._evicted.clear()

    def _match(self) -> list[SyncedSet[T]]:
        sets: list[SyncedSet[T]] = []
        while all(self._queues.values()):
            heads = {c: q[0][0] for c, q in self._queues.items()}
            latest = max(heads.values())
            oldest_camera = min(self.cameras, key=lambda c: heads[c])
            oldest = heads[oldest_camera]
            if latest - oldest > self._slop_ns:
                # Stamps only grow, so nothing that is still to come can match the oldest frame.
                self._queues[oldest_camera].popleft()
                self._drops[oldest_camera, self._cause(oldest_camera, oldest)] += 1
                continue
            if self._supersede(heads):
                continue
            sets.append(self._emit(heads))
        return sets

    def _cause(self, camera: str, stamp: int) -> str:
        partners = (s for c, s in self._evicted.items() if c != camera)
        return "late" if any(s >= stamp - self._slop_ns for s in partners) else "unmatched"

    def _supersede(self, heads: Mapping[str, int]) -> bool:
        """Drop a head whose successor, already here, gives a set with a smaller spread."""
        spread = max(heads.values()) - min(heads.values())
        for camera, queue in self._queues.items():
            if len(queue) > 1:
                stamps = [queue[1][0], *(s for c, s in heads.items() if c != camera)]
                if max(stamps) - min(stamps) < spread:
                    queue.popleft()
                    self._drops[camera, "superseded"] += 1
                    return True
        return False

    def _emit(self, heads: Mapping[str, int]) -> SyncedSet[T]:
        taken = {c: q.popleft() for c, q in self._queues.items()}
        stamps = {c: stamp - self._offset_ns[c] for c, (stamp, _) in taken.items()}
        self.emitted += 1
        return SyncedSet(
            stamp_ns=stamps[self.cameras[0]],
            payloads={c: payload for c, (_, payload) in taken.items()},
            stamps_ns=stamps,
            spread_s=(max(heads.values()) - min(heads.values())) / NANOSECONDS,
        )
