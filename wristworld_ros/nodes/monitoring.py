"""What a node tells about itself: frames by fate, latency per stage, and inputs that are missing.

Times are taken from the monotonic clock, so nothing here depends on /clock or on stamps.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from diagnostic_msgs.msg import DiagnosticStatus, KeyValue
from rclpy.node import Node
from rclpy.qos import QoSCompatibility, QoSProfile, qos_check_compatible

from wristworld_ros.nodes import qos
from wristworld_ros.nodes.parameters import PARAMETERS

OK, WARN, ERROR = DiagnosticStatus.OK, DiagnosticStatus.WARN, DiagnosticStatus.ERROR
#: Frames over which rates and latencies are taken.
WINDOW = 100


class FrameCounters:
    """Fate of every set of anchor images; thread-safe.

    ``frames_in == frames_out + sum(drops.values()) + waiting`` holds at any moment for those who
    know what waits (``WristNode.waiting``).
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.reset()

    def reset(self) -> None:
        """Start from zero."""
        with self._lock:
            self._in = self._out = 0
            self._drops: Counter[str] = Counter()
            self._out_times: deque[float] = deque(maxlen=WINDOW)
            self._stages: dict[str, deque[float]] = {}

    def arrived(self, count: int = 1) -> None:
        """A set came in."""
        with self._lock:
            self._in += count

    def published(self, stages: Mapping[str, float], latency: float) -> None:
        """A set led to an output; seconds per stage and in total."""
        with self._lock:
            self._out += 1
            self._out_times.append(time.monotonic())
            for stage, seconds in {**stages, "total": latency}.items():
                self._stages.setdefault(stage, deque(maxlen=WINDOW)).append(seconds)

    def dropped(self, cause: str, count: int = 1) -> None:
        """``count`` sets were dropped."""
        if count:
            with self._lock:
                self._drops[cause] += count

    @property
    def frames_in(self) -> int:
        return self._in

    @property
    def frames_out(self) -> int:
        return self._out

    @property
    def drops(self) -> dict[str, int]:
        """Cause -> sets dropped."""
        with self._lock:
            return dict(self._drops)

    def rate(self) -> float:
        """Outputs per second over the window, 0 when none came in the last two seconds."""
        with self._lock:
            times = list(self._out_times)
        if len(times) < 2 or time.monotonic() - times[-1] > max(2.0, 3 * (times[-1] - times[-2])):
            return 0.0
        return (len(times) - 1) / max(times[-1] - times[0], 1e-9)

    def latencies(self) -> dict[str, tuple[float, float]]:
        """Stage -> median and 99th percentile [s] over the window."""
        with self._lock:
            stages = {name: list(values) for name, values in self._stages.items()}
        return {
            name: (float(np.percentile(v, 50)), float(np.percentile(v, 99)))
            for name, v in stages.items()
        }


class EventCounters:
    """Counts of things that are not sets of images (publications lost, bad transforms)."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()

    def add(self, name: str) -> None:
        with self._lock:
            self._counts[name] += 1

    def snapshot(self) -> dict[str, int]:
        with self._lock:
            return dict(self._counts)


@dataclass
class InputMonitor:
    """One subscribed topic: what came, what was refused, and why nothing comes.

    Attributes:
        topic: fully resolved name.
        type_name: as ROS writes it, e.g. ``sensor_msgs/msg/Image``.
        profile: QoS of the subscription.
        role: what it is, for people, e.g. ``image of camera 'anchor_0'``.
        required: a missing required input is an error, another one a hint.
        once: one message is enough (latched topics); it does not go stale.
        cure: what to do when publishers match and nothing comes, instead of the general advice.
    """

    topic: str
    type_name: str
    profile: QoSProfile
    role: str
    required: bool = True
    once: bool = False
    cure: str = ""
    since: float = field(default_factory=time.monotonic)
    received: int = 0
    refused: int = 0
    last_time: float = 0.0
    last_stamp_ns: int = 0
    last_error: str = ""
    last_error_time: float = 0.0

    def accept(self, stamp_ns: int = 0) -> None:
        """A usable message came."""
        self.received += 1
        self.last_time = time.monotonic()
        self.last_stamp_ns = stamp_ns

    def refuse(self, reason: str) -> None:
        """A message came that cannot be used."""
        self.refused += 1
        self.last_error, self.last_error_time = reason, time.monotonic()

    def status(self, node: Node, timeout_s: float) -> tuple[bytes, str]:
        """Level and text: ok, or what is wrong and the cure."""
        now = time.monotonic()
        age = now - (self.last_time or self.since)
        if self.last_error and now - self.last_error_time < max(timeout_s, 1.0):
            return ERROR, f"{self.refused} messages refused, the last because: {self.last_error}"
        if self.received and (self.once or age <= timeout_s):
            return OK, f"{self.role}: {self.received} messages"
        if age <= timeout_s:
            return OK, f"{self.role}: waiting for the first message"
        reason = self._why_silent(node)
        silent = f"no message for {age:.1f} s" if self.received else "no message yet"
        level = ERROR if self.required else OK
        return level, f"{self.role}: {silent} on {self.topic}: {reason}"

    def _why_silent(self, node: Node) -> str:
        publishers = node.get_publishers_info_by_topic(self.topic)
        if not publishers:
            similar = sorted(
                name
                for name, types in node.get_topic_names_and_types()
                if self.type_name in types and name != self.topic and _foreign(node, name)
            )
            found = f"; topics of type {self.type_name} with publishers: {', '.join(similar)}" * (
                bool(similar)
            )
            return (
                "nobody publishes it. Start its publisher, or correct the parameters (cameras, "
                f"image_transport), the namespace or a remapping{found}"
            )
        types = {p.topic_type for p in publishers}
        if self.type_name not in types:
            return (
                f"it is published as {', '.join(sorted(types))} but {self.type_name} is needed. "
                "Correct the topic, or the parameter image_transport"
            )
        problems = []
        for p in publishers:
            compatibility, reason = qos_check_compatible(p.qos_profile, self.profile)
            if compatibility == QoSCompatibility.ERROR:
                problems.append(
                    f"{p.node_name} offers {qos.describe(p.qos_profile)}, asked is "
                    f"{qos.describe(self.profile)} ({reason.strip().rstrip(';')})"
                )
        if len(problems) == len(publishers):
            return (
                f"QoS does not match: {'; '.join(problems)}. Set input_reliability to best_effort, "
                "or change the publisher"
            )
        names = ", ".join(sorted({p.node_name for p in publishers}))
        cure = self.cure or (
            "Check that it is publishing (ros2 topic hz); if so, large messages get lost on the "
            "way: give the publisher the Fast DDS profile config/fastdds_large_messages.xml, or "
            "set input_reliability to reliable"
        )
        return f"published by {names} with matching QoS, but nothing arrives. {cure}"


def _foreign(node: Node, topic: str) -> bool:
    """Whether somebody other than the nodes of this package publishes a topic."""
    names = {p.node_name for p in node.get_publishers_info_by_topic(topic)}
    return bool(names - set(PARAMETERS))


def diagnostic(
    node_name: str, component: str, level: bytes, message: str, values: Mapping[str, object]
) -> DiagnosticStatus:
    """One DiagnosticStatus; floats with four significant digits."""
    pairs = [
        KeyValue(key=k, value=f"{v:.4g}" if isinstance(v, float) else str(v))
        for k, v in values.items()
    ]
    return DiagnosticStatus(
        level=level,
        name=f"{node_name.lstrip('/')}: {component}",
        message=message,
        hardware_id=node_name,
        values=pairs,
    )


class ProblemLog:
    """Says each problem in the log when it appears, again ever more rarely, and when it ends.

    Args:
        first_s, longest_s: time until the first repetition and between later ones at most [s].
    """

    def __init__(self, node: Node, first_s: float = 10.0, longest_s: float = 300.0) -> None:
        self._node, self._first, self._longest = node, first_s, longest_s
        self._said: dict[str, tuple[float, float]] = {}

    def update(self, component: str, level: bytes, message: str) -> None:
        """Report the present state of a component."""
        logger, now = self._node.get_logger(), time.monotonic()
        if level == OK:
            if self._said.pop(component, None) is not None:
                logger.info(f"{component}: in order again")
            return
        due, pause = self._said.get(component, (now, self._first))
        if now < due:
            return
        self._said[component] = now + pause, min(2 * pause, self._longest)
        if level == ERROR:
            logger.error(f"{component}: {message}")
        else:
            logger.warning(f"{component}: {message}")
