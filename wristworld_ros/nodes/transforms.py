"""TF for a node: /tf and /tf_static into a TransformTree, with lookups that wait a bounded time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from wristworld_ros.data.messages import decode_transform
from wristworld_ros.errors import TransformLookupError, WristWorldError
from wristworld_ros.geometry.tf_tree import TransformTree
from wristworld_ros.types import FloatArray

#: History of moving frames [s]; as in tf2.
CACHE_S = 10.0


class TransformListener:
    """Thread-safe tree that is filled from the executor and asked from the worker.

    Args:
        ignored_frame: child frame that is not taken in (the one that the node itself publishes).
        on_error: told about each transform that cannot be used.

    Attributes:
        received: transforms taken in.
        time_jumps: times that a publisher jumped back further than the history reaches.
    """

    def __init__(self, ignored_frame: str, on_error: Callable[[str], None]) -> None:
        self._ignored, self._on_error = ignored_frame, on_error
        self._changed = threading.Condition()
        self._tree = TransformTree(CACHE_S)
        self.received = 0
        self.time_jumps = 0

    def add(self, message: object, static: bool) -> None:
        """Take in a tf2_msgs/TFMessage."""
        topic = "/tf_static" if static else "/tf"
        with self._changed:
            for transform in message.transforms:  # type: ignore[attr-defined]
                try:
                    parent, child, stamp, T = decode_transform(transform, topic)
                    if child == self._ignored:
                        continue
                    too_old = self._tree.too_old
                    self._tree.set_transform(parent, child, stamp, T, static)
                    if self._tree.too_old > too_old:  # a bag that starts over, or a new clock
                        self.time_jumps += 1
                        self._tree.clear()
                        self._tree.set_transform(parent, child, stamp, T, static)
                    self.received += 1
                except WristWorldError as error:
                    self._on_error(f"{topic}: {error}" if topic not in str(error) else str(error))
            self._changed.notify_all()

    def __contains__(self, frame: str) -> bool:
        """Whether any transform names the frame."""
        with self._changed:
            return frame in self._tree

    def lookup(self, target: str, source: str, stamp_ns: int) -> FloatArray:
        """``T_target_source`` at a stamp, at once.

        Raises:
            TransformLookupError: not known (yet).
        """
        with self._changed:
            return self._tree.lookup(target, source, stamp_ns)

    def wait_for(
        self,
        target: str,
        source: str,
        stamp_ns: int,
        timeout_s: float,
        stopping: threading.Event | None = None,
    ) -> FloatArray:
        """``T_target_source`` at a stamp, waiting for it to arrive.

        Raises:
            TransformLookupError: not known after ``timeout_s``, or ``stopping`` was set.
        """
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while True:
                try:
                    return self._tree.lookup(target, source, stamp_ns)
                except TransformLookupError:
                    remaining = deadline - time.monotonic()
                    if remaining <= 0 or (stopping is not None and stopping.is_set()):
                        raise
                    self._changed.wait(min(remaining, 0.05))  # and look at stopping
