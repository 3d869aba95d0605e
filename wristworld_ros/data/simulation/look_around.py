"""Motion to calibrate cameras by: the hand sways over the table and turns about all axes."""

from __future__ import annotations

import numpy as np
from scipy.spatial.transform import Rotation

from wristworld_ros.data.simulation.scene import Scene, SceneStreams
from wristworld_ros.data.simulation.script import (
    FloatArray,
    Kinematics,
    PlanningError,
    Script,
    pointing_down,
    reached,
    still_object,
)

#: Frames of the motion, at 5 Hz.
FRAMES = 200
#: Middle of the tool centre's way [m], and how far it sways from there.
_MIDDLE, _SWAY = np.array([0.45, 0.0, 0.25]), np.array([0.12, 0.2, 0.1])
#: How far the hand turns about x, y and z [deg].
_TURN = np.array([25.0, 25.0, 40.0])
#: Each of them is the sum of two swings with periods in this range [frames].
_PERIODS = (35.0, 100.0)
_ATTEMPTS = 50


def look_around_script(scene: Scene, seed: int, frames: int = FRAMES) -> Script:
    """Joint positions that sway smoothly; objects stay where they are.

    Raises:
        PlanningError: the arm could follow none of the motions that were drawn.
    """
    kinematics = Kinematics(scene)
    width = scene.robot.max_width
    for attempt in range(_ATTEMPTS):
        rng = SceneStreams(seed).stream("look-around", attempt)
        arms = _follow(kinematics, _swings(rng, frames), width)
        if arms is not None:
            return Script(
                instruction="look around",
                target=0,
                arm_positions=arms,
                gripper_width=np.full(frames, width),
                object_poses=np.repeat(still_object(scene.objects[0])[None], frames, 0),
            )
    raise PlanningError(
        f"seed {seed} with robot '{scene.robot.name}': the arm could follow none of {_ATTEMPTS} "
        "swaying motions. Leave this seed out."
    )


def _swings(rng: np.random.Generator, frames: int) -> FloatArray:
    """T x 6 within [-1, 1]."""
    time = np.arange(frames)[:, None, None]
    turns = time / rng.uniform(*_PERIODS, (2, 6)) + rng.uniform(0, 1, (2, 6))
    share = rng.uniform(0.35, 0.65, 6)
    return (np.stack([share, 1 - share]) * np.sin(2 * np.pi * turns)).sum(1)


def _follow(kinematics: Kinematics, swings: FloatArray, width: float) -> FloatArray | None:
    """Joint positions T x J, or None where the arm cannot follow."""
    robot = kinematics.scene.robot
    middle = _MIDDLE + [robot.workspace_x, 0, 0]
    arms: list[FloatArray] = []
    for swing in swings:
        rotation = Rotation.from_euler("xyz", swing[3:] * _TURN, degrees=True).as_matrix()
        goal = rotation @ pointing_down(0.0)
        start = arms[-1] if arms else np.array(robot.home)
        arm, distance, angle = kinematics.solve(middle + swing[:3] * _SWAY, goal, start, width)
        if not reached(distance, angle, arm - start if arms else np.zeros(1)):
            return None
        arms.append(arm)
    return np.array(arms)
