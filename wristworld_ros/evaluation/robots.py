"""Robots by their URDF: the simulated ones, and those of recordings."""

from __future__ import annotations

from functools import cache

from wristworld_ros.data.frames import BagFrames
from wristworld_ros.data.simulation.urdf import robot_urdf
from wristworld_ros.errors import InvalidInputError
from wristworld_ros.reconstruction.robot_model import RobotModel


@cache
def simulated_robot(name: str) -> RobotModel:
    """The robot called ``name`` (``SimulatedEpisode.robot``)."""
    return RobotModel.from_urdf(robot_urdf(name))


def robot_of(source: BagFrames) -> RobotModel | None:
    """The robot that a bag describes, placed by its joint states; None, and noted, without."""
    if not source.robot_description:
        return None
    try:
        robot = RobotModel.from_urdf(source.robot_description)
    except InvalidInputError as error:
        source.note(f"the robot's body is not drawn: {error}")
        return None
    source.robot_root, source.robot_joints = robot.root, robot.joints
    return robot
