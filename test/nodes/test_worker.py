"""The worker thread: the latest item wins, and none is lost without being handed back."""

from __future__ import annotations

import threading

from hypothesis import given, settings
from hypothesis import strategies as st

from wristworld_ros.nodes.worker import LatestWorker


def test_what_waits_is_replaced_and_handed_back() -> None:
    started, go, done = threading.Event(), threading.Event(), []

    def work(item: int) -> None:
        done.append(item)
        started.set()
        go.wait(30)

    worker = LatestWorker(work, "test")
    assert worker.submit(1) is None
    assert started.wait(30)
    assert worker.submit(2) is None
    assert worker.pending == 2
    assert worker.submit(3) == 2
    go.set()
    waiting = worker.stop()
    assert done + ([waiting] if waiting else []) == [1, 3]
    assert worker.submit(4) == 4  # stopped: refused


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 50))
def test_every_item_is_worked_on_or_handed_back_once(count: int) -> None:
    done: list[int] = []
    worker = LatestWorker(done.append, "test")
    back = [item for i in range(count) if (item := worker.submit(i)) is not None]
    waiting = worker.stop()
    back += [] if waiting is None else [waiting]
    assert sorted(done + back) == list(range(count))
    assert done == sorted(done)


def test_stop_waits_for_the_item_in_work() -> None:
    started, go, done = threading.Event(), threading.Event(), []

    def work(item: int) -> None:
        started.set()
        go.wait(30)
        done.append(item)

    worker = LatestWorker(work, "test")
    worker.submit(1)
    assert started.wait(30)
    threading.Timer(0.05, go.set).start()
    assert worker.stop() is None
    assert done == [1]
