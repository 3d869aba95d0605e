"""Play a bag into a running graph at its own rate, and record what the graph publishes.

One thread does both: between two publications the executor takes in what has come. Times are
monotonic seconds of this process, so that latencies need no clock to agree.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rclpy.executors import Executor
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from rclpy.subscription import Subscription

from wristworld_ros.data.bags import BagReader, Connection
from wristworld_ros.errors import BagError
from wristworld_ros.nodes.conversions import message_class

_RELIABILITY = {1: "RELIABLE", 2: "BEST_EFFORT"}
_DURABILITY = {1: "TRANSIENT_LOCAL", 2: "VOLATILE"}


def offered_qos(connection: Connection) -> QoSProfile:
    """The QoS that a topic was recorded with; reliable and volatile where the bag says nothing."""
    offered = connection.qos[0] if connection.qos else {}

    def policy(kind: Any, names: Mapping[int, str], value: object, default: str) -> Any:
        name = names.get(value, "") if isinstance(value, int) else str(value or "").upper()
        return getattr(kind, name if name in names.values() else default)

    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST,
        depth=max(int(offered.get("depth") or 0), 10),
        reliability=policy(ReliabilityPolicy, _RELIABILITY, offered.get("reliability"), "RELIABLE"),
        durability=policy(DurabilityPolicy, _DURABILITY, offered.get("durability"), "VOLATILE"),
    )


def wait_until(
    executor: Executor, condition: Callable[[], bool], timeout_s: float, idle_s: float = 0.05
) -> bool:
    """Spin until ``condition`` holds; returns whether it does within ``timeout_s``."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        executor.spin_once(timeout_sec=idle_s)
    return True


@dataclass(frozen=True)
class Recorded:
    """One message as it was received: serialised bytes and monotonic time [s]."""

    topic: str
    msgtype: str
    time: float
    raw: bytes


class Recorder:
    """Keeps the serialised messages of some topics.

    Args:
        node: gets the subscriptions.
        topics: topic -> message type, e.g. ``sensor_msgs/msg/Image``.
    """

    def __init__(self, node: Node, topics: Mapping[str, str]) -> None:
        self.messages: list[Recorded] = []
        self._node = node
        profile = QoSProfile(
            history=HistoryPolicy.KEEP_LAST, depth=200, reliability=ReliabilityPolicy.RELIABLE
        )
        self.subscriptions: dict[str, Subscription] = {
            topic: node.create_subscription(
                message_class(msgtype), topic, self._keeper(topic, msgtype), profile, raw=True
            )
            for topic, msgtype in topics.items()
        }

    def _keeper(self, topic: str, msgtype: str) -> Callable[[bytes], None]:
        def keep(raw: bytes) -> None:
            self.messages.append(Recorded(topic, msgtype, time.monotonic(), raw))

        return keep

    def unmatched(self, topics: Collection[str]) -> list[str]:
        """Those of ``topics`` that nobody publishes yet."""
        return [t for t in topics if self._node.count_publishers(t) == 0]


@dataclass
class PlaybackTimes:
    """When the player sent what.

    Attributes:
        started: monotonic time that belongs to ``bag_start_ns``.
        sent: topic -> {log time in the bag [ns]: monotonic time [s]}.
        late: messages sent more than 10 ms after they were due.
    """

    bag_start_ns: int
    started: float = 0.0
    rate: float = 1.0
    finished: float = 0.0
    late: int = 0
    sent: dict[str, dict[int, float]] = field(default_factory=dict)

    def to_bag_time(self, moment: float) -> int:
        """Monotonic time [s] -> time of the bag [ns]."""
        return self.bag_start_ns + round((moment - self.started) * self.rate * 1e9)


class BagPlayer:
    """Publishes a bag's messages, byte for byte, with the QoS that they were recorded with.

    Args:
        node: gets the publishers.
        path: the bag.
        topics: which to play; None plays all.

    Raises:
        BagError: the bag cannot be read, is empty, or has a topic of a type unknown here.
    """

    def __init__(self, node: Node, path: Path, topics: Collection[str] | None = None) -> None:
        with BagReader(path) as bag:
            self._messages = [(m.topic, m.log_time_ns, bytes(m.raw)) for m in bag.messages(topics)]
            connections = {c.topic: c for c in bag.connections}
        if not self._messages:
            raise BagError(f"{path} holds no message on {topics or 'any topic'}; nothing to play.")
        played = {topic for topic, _, _ in self._messages}
        try:
            self.publishers: dict[str, Publisher] = {
                topic: node.create_publisher(
                    message_class(connections[topic].msgtype),
                    topic,
                    offered_qos(connections[topic]),
                )
                for topic in sorted(played)
            }
        except ImportError as error:
            raise BagError(f"{path} cannot be played: {error}") from error

    def __len__(self) -> int:
        return len(self._messages)

    @property
    def duration_s(self) -> float:
        """From the first to the last message [s]."""
        return (self._messages[-1][1] - self._messages[0][1]) / 1e9

    def unmatched(self, required: Mapping[str, int]) -> list[str]:
        """Topics with fewer subscribers than ``required`` (topic -> count)."""
        return [
            topic
            for topic, count in required.items()
            if topic in self.publishers and self.publishers[topic].get_subscription_count() < count
        ]

    def play(
        self, executor: Executor, rate: float = 1.0, progress: Callable[[], None] | None = None
    ) -> PlaybackTimes:
        """Publish everything, each message when it is due; ``progress`` is called for each."""
        times = PlaybackTimes(self._messages[0][1], time.monotonic(), rate)
        for topic, log_time, raw in self._messages:
            due = times.started + (log_time - times.bag_start_ns) / 1e9 / rate
            while (remaining := due - time.monotonic()) > 0:
                executor.spin_once(timeout_sec=remaining)
            now = time.monotonic()
            times.late += now - due > 0.01
            times.sent.setdefault(topic, {})[log_time] = now
            self.publishers[topic].publish(raw)
            if progress is not None:
                progress()
        times.finished = time.monotonic()
        return times
