"""Quality of service by name, so that a topic's profile stands in one place and in diagnostics."""

from __future__ import annotations

from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy

_RELIABILITY = {
    "reliable": ReliabilityPolicy.RELIABLE,
    "best_effort": ReliabilityPolicy.BEST_EFFORT,
}


def image(reliability: str, depth: int = 5) -> QoSProfile:
    """Images, clouds and masks: keep the last ``depth``; reliable or best_effort."""
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST, depth=depth, reliability=_RELIABILITY[reliability]
    )


def state(depth: int = 10) -> QoSProfile:
    """Small messages of which each counts: status, estimates, joint states, diagnostics."""
    return image("reliable", depth)


def latched() -> QoSProfile:
    """The last message is kept for those who come later: instruction."""
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST,
        depth=1,
        reliability=ReliabilityPolicy.RELIABLE,
        durability=DurabilityPolicy.TRANSIENT_LOCAL,
    )


def late_joiner() -> QoSProfile:
    """Subscription that takes from volatile and from latched publishers alike."""
    return image("reliable", 1)


def tf() -> QoSProfile:
    """Same as tf2_ros on /tf."""
    return image("reliable", 100)


def tf_static() -> QoSProfile:
    """Same as tf2_ros on /tf_static: every publisher's last message reaches late joiners."""
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST,
        depth=100,
        reliability=ReliabilityPolicy.RELIABLE,
        durability=DurabilityPolicy.TRANSIENT_LOCAL,
    )


def describe(profile: QoSProfile) -> str:
    """Short text for diagnostics, e.g. ``best_effort, volatile, depth 5``."""
    return f"{profile.reliability.name}, {profile.durability.name}, depth {profile.depth}".lower()
