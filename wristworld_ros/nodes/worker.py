"""One thread for inference: the latest frame wins, and what it replaces is handed back."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class LatestWorker(Generic[T]):
    """Runs ``work`` on the newest item only.

    Args:
        work: called in the thread with each item that is taken up; must not raise.
        name: of the thread.

    Attributes:
        stopping: set while ``stop`` waits; long waits inside ``work`` should watch it.
    """

    def __init__(self, work: Callable[[T], None], name: str) -> None:
        self._work = work
        self._condition = threading.Condition()
        self._item: T | None = None
        self._busy = False
        self.stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name)
        self._thread.start()

    def submit(self, item: T) -> T | None:
        """Hand over an item; returns the one that waited and is now dropped, if any."""
        with self._condition:
            if self.stopping.is_set():
                return item
            replaced, self._item = self._item, item
            self._condition.notify()
            return replaced

    @property
    def pending(self) -> int:
        """Items that wait or are being worked on: 0, 1 or 2."""
        with self._condition:
            return int(self._busy) + int(self._item is not None)

    def stop(self) -> T | None:
        """End the thread after the item in work; returns the one that still waited, if any."""
        with self._condition:
            self.stopping.set()
            waiting, self._item = self._item, None
            self._condition.notify()
        self._thread.join()
        return waiting

    def _run(self) -> None:
        while True:
            with self._condition:
                self._busy = False
                self._condition.wait_for(lambda: self._item is not None or self.stopping.is_set())
                if self.stopping.is_set():
                    return
                item, self._item = self._item, None
                self._busy = True
            assert item is not None
            self._work(item)
