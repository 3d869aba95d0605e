"""The robots: which joints move, where the hand, the tool centre and the wrist camera are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from wristworld_ros.errors import InvalidInputError


@dataclass(frozen=True)
class CameraMount:
    """Where the wrist camera sits on the hand.

    Attributes:
        position: of the optical centre in the hand frame [m]; +x is the camera's side, +z points
            along the fingers.
        tilt_deg: angle between the optical axis and the fingers, towards the fingertips [deg].
    """

    position: tuple[float, float, float]
    tilt_deg: float

    def moved(self, offset: tuple[float, float, float], tilt_deg: float) -> CameraMount:
        """The mount shifted by ``offset`` [m] and tilted by ``tilt_deg`` more."""
        x, y, z = (a + b for a, b in zip(self.position, offset, strict=True))
        return CameraMount((x, y, z), self.tilt_deg + tilt_deg)


@dataclass(frozen=True)
class Robot:
    """A robot arm with a parallel gripper.

    Attributes:
        name: name of the robot and of its pack.
        arm_joints: names in the pack, from the base to the hand.
        home: their positions at rest [rad].
        hand_body: body that carries the gripper and the camera; the ``hand`` frame.
        tool_centre: the point between the fingertips, in the hand frame [m].
        max_width: widest opening of the gripper [m].
        mount: nominal mount of the wrist camera.
        finger_joints: joint -> (position when closed, position when open) [rad or m].
        workspace_x: shift along x of table, objects and cameras in the base frame [m].
        adapter: body that couples the gripper to the flange, and by how much it is turned about
            its z axis against the pack [deg]; so that the camera looks forward at home.
    """

    name: str
    arm_joints: tuple[str, ...]
    home: tuple[float, ...]
    hand_body: str
    tool_centre: tuple[float, float, float]
    max_width: float
    mount: CameraMount
    finger_joints: Mapping[str, tuple[float, float]]
    workspace_x: float = 0.0
    adapter: tuple[str, float] | None = None

    @property
    def joint_names(self) -> tuple[str, ...]:
        """Arm and finger joints as published, without the prefix of the gripper's pack."""
        names = self.arm_joints + tuple(self.finger_joints)
        return tuple(n[2:] if n.startswith(("g_", "h_")) else n for n in names)

    def finger_positions(self, width: float) -> dict[str, float]:
        """Positions of the finger joints for an opening of ``width`` [m] (clipped)."""
        opening = min(max(width / self.max_width, 0.0), 1.0)
        return {
            joint: closed + opening * (opened - closed)
            for joint, (closed, opened) in self.finger_joints.items()
        }


_PANDA_JOINTS = tuple(f"panda_joint{i}" for i in range(1, 8))
_PANDA_HOME = (0.0, -0.25, 0.0, -2.2, 0.0, 2.0, 0.785)
_ROBOTIQ_CLOSED = 0.8  # driver angle of a closed 2F-85 [rad]
_ROBOTIQ_JOINTS = {
    f"g_{side}_{link}_joint": (sign * _ROBOTIQ_CLOSED, 0.0)
    for side in ("right", "left")
    for link, sign in (("driver", 1.0), ("spring_link", 1.0), ("follower", -1.0))
}
_ROBOTIQ_MOUNT = CameraMount((0.085, 0.0, 0.03), 20.0)

ROBOTS: Mapping[str, Robot] = {
    robot.name: robot
    for robot in (
        Robot(
            name="panda",
            arm_joints=_PANDA_JOINTS,
            home=_PANDA_HOME,
            hand_body="h_panda_hand",
            tool_centre=(0.0, 0.0, 0.1034),
            max_width=0.08,
            mount=CameraMount((0.078, 0.0, 0.018), 17.0),
            finger_joints={
                "h_panda_finger_joint1": (0.0, 0.04),
                "h_panda_finger_joint2": (0.0, 0.04),
            },
        ),
        Robot(
            name="panda_2f85",
            arm_joints=_PANDA_JOINTS,
            home=(*_PANDA_HOME[:6], 0.0),
            hand_body="g_base",
            tool_centre=(0.0, 0.0, 0.145),
            max_width=0.085,
            mount=_ROBOTIQ_MOUNT,
            finger_joints=_ROBOTIQ_JOINTS,
            adapter=("g_base_mount", 135.0),
        ),
        Robot(
            name="ur5e",
            arm_joints=(
                "shoulder_pan_joint",
                "shoulder_lift_joint",
                "elbow_joint",
                "wrist_1_joint",
                "wrist_2_joint",
                "wrist_3_joint",
            ),
            home=(2.895, -1.471, 1.547, -1.647, -1.571, -0.246),
            hand_body="g_base",
            tool_centre=(0.0, 0.0, 0.145),
            max_width=0.085,
            mount=_ROBOTIQ_MOUNT,
            finger_joints=_ROBOTIQ_JOINTS,
            workspace_x=0.1,
        ),
    )
}


def get_robot(name: str) -> Robot:
    """The robot called ``name``.

    Raises:
        InvalidInputError: it is not one of ``ROBOTS``.
    """
    if name not in ROBOTS:
        raise InvalidInputError(f"no robot '{name}'; use one of {', '.join(ROBOTS)}.")
    return ROBOTS[name]
