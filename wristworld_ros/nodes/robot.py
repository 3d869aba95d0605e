"""The robot's description and joints: its body for the map, and poses that TF does not have."""

from __future__ import annotations

import threading
import time

from sensor_msgs.msg import JointState
from std_msgs.msg import String

from wristworld_ros.data.joints import JointHistory
from wristworld_ros.data.messages import decode_joint_state, stamp_to_ns
from wristworld_ros.errors import InvalidInputError
from wristworld_ros.nodes import qos
from wristworld_ros.nodes.base import WristNode
from wristworld_ros.nodes.monitoring import OK, WARN, InputMonitor
from wristworld_ros.reconstruction.robot_model import RobotModel

#: Joint states kept: 2 seconds at 1 kHz.
KEPT = 2000


class RobotInput:
    """``robot_description`` and ``joint_states``.

    Attributes:
        model: the robot, once its description has come and been read by ``update``.
    """

    def __init__(self, node: WristNode) -> None:
        self.model: RobotModel | None = None
        self._text, self._read = "", ""
        self._error = ""
        self._joints = JointHistory(KEPT)
        self._newest = 0
        self._changed = threading.Condition()
        node.subscribe(
            InputMonitor(
                "joint_states",
                "sensor_msgs/msg/JointState",
                qos.image("best_effort"),
                "joint positions",
                required=False,
            ),
            JointState,
            self._receive_joints,
        )
        monitor = InputMonitor(
            "robot_description",
            "std_msgs/msg/String",
            qos.latched(),
            "URDF of the robot",
            required=False,
            once=True,
        )
        node.subscribe(monitor, String, self._receive_description)

    def _receive_joints(self, message: JointState) -> int:
        stamp = stamp_to_ns(message.header.stamp, "joint_states")
        joints = decode_joint_state(message, "joint_states")
        with self._changed:
            self._joints.add(stamp, joints)
            # A bag that starts over, or a new clock, goes back.
            self._newest = stamp
            self._changed.notify_all()
        return stamp

    def _receive_description(self, message: String) -> int:
        self._text = message.data
        return 0

    def update(self) -> None:
        """Read a description that has come; takes a second or two, so not in a callback."""
        if self._text == self._read:
            return
        self._read = self._text
        try:
            self.model, self._error = RobotModel.from_urdf(self._read), ""
        except InvalidInputError as error:
            self.model, self._error = None, str(error)

    def joints(self, stamp_ns: int, timeout_s: float) -> dict[str, float] | None:
        """Positions [rad or m] nearest to a stamp; with a model only if they are all there.

        With a model, joint states as new as the stamp are waited for, if there have been any.
        """
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while self.model is not None and 0 < self._newest < stamp_ns:
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    break
                self._changed.wait(remaining)
            joints = self._joints.at(stamp_ns)
        if self.model is None:
            return joints
        missing = self.model.missing(joints or {})
        self._error = ""
        if missing:
            self._error = (
                f"joint_states lack {', '.join(missing)} near the images. Publish them, the "
                "gripper's too, with stamps of the same clock."
            )
        return None if missing else joints

    def not_placed(self) -> None:
        """Say that the frame of the root link is not connected to the world."""
        assert self.model is not None
        self._error = (
            f"TF does not connect its root link '{self.model.root}' to the world frame. Publish "
            "that transform, or set world_frame to the root link."
        )

    def status(self) -> tuple[bytes, str]:
        """For the diagnostics."""
        if self._error:
            return WARN, f"the robot's body is not drawn: {self._error}"
        if self.model is None:
            return OK, "no robot_description: the robot's body is not drawn by its joints"
        return OK, f"{len(self.model.links)} links from robot_description"
