"""The task in words: from a parameter until a message comes."""

from __future__ import annotations

from std_msgs.msg import String

from wristworld_ros.nodes import qos
from wristworld_ros.nodes.base import WristNode
from wristworld_ros.nodes.monitoring import InputMonitor


class InstructionInput:
    """Latest instruction, from latched and from ordinary publishers alike."""

    def __init__(self, node: WristNode) -> None:
        self._node = node
        self._received: str | None = None
        # A latched subscription does not match an ordinary publisher (ros2 topic pub), and an
        # ordinary one misses what was latched before: so both, on the same topic.
        for profile in (qos.latched(), qos.state(1)):
            monitor = InputMonitor(
                "instruction",
                "std_msgs/msg/String",
                profile,
                "task in words",
                required=False,
                once=True,
            )
            node.subscribe(monitor, String, self._receive)

    @property
    def text(self) -> str:
        """The instruction in force, may be empty."""
        return self._node.parameters.instruction if self._received is None else self._received

    def _receive(self, message: String) -> int:
        self._received = message.data
        return 0
