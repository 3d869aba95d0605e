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
        monitor = InputMonitor(
            "instruction",
            "std_msgs/msg/String",
            qos.state(1),
            "task in words",
            required=False,
            once=True,
        )
        # An ordinary subscription misses what was latched before it came, a latched one does not
        # match an ordinary publisher (ros2 topic pub): so both.
        node.subscribe(monitor, String, self._receive, qos.latched())

    @property
    def text(self) -> str:
        """The instruction in force, may be empty."""
        return self._node.parameters.instruction if self._received is None else self._received

    def _receive(self, message: String) -> int:
        self._received = message.data
        return 0
