"""Scripted tasks: what the robot does in a scene, as joint positions and object poses per frame.

Motion is kinematic: inverse kinematics for the arm, and the target object follows the gripper
while it is held or pushed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wristworld_ros.data.simulation.backend import mujoco
from wristworld_ros.data.simulation.scene import (
    TABLE_X,
    TABLE_Y,
    TOOL_SITE,
    PlacedObject,
    Scene,
    SceneStreams,
)
from wristworld_ros.errors import WristWorldError

FloatArray = NDArray[np.float64]

_MAX_IK_ERROR = 0.005  # [m]
_MAX_IK_TURN = 0.035  # [rad]
_MAX_STEP = 0.6  # of a joint from frame to frame [rad]
_ATTEMPTS = 25
_IK_ITERATIONS = 60
_FINGER_HALF_THICKNESS = 0.012  # in the direction of a push [m]
_LOW = 0.012  # height of the tool centre above the table for flat objects and pushes [m]


class PlanningError(WristWorldError):
    """No reachable script was found for a scene."""


@dataclass(frozen=True)
class Waypoint:
    """A pose that the tool centre moves to, pointing down.

    Attributes:
        position: of the tool centre (3,) [m].
        width: opening of the gripper [m].
        frames: pictures on the way, the last one at the waypoint.
        holding, pushing: how the target object follows on the way.
    """

    position: FloatArray
    width: float
    frames: int
    holding: bool = False
    pushing: bool = False


@dataclass(frozen=True)
class Task:
    """What to do with which object; ``yaw`` [rad] of the gripper, ``push`` its direction (2,)."""

    instruction: str
    target: int
    yaw: float
    waypoints: tuple[Waypoint, ...]
    push: FloatArray | None = None


@dataclass(frozen=True)
class Script:
    """A task worked out frame by frame.

    Attributes:
        instruction: the task in words.
        target: index of the object that moves.
        arm_positions: T x J [rad].
        gripper_width: T [m].
        object_poses: T x 7, position [m] and quaternion wxyz of the target.
    """

    instruction: str
    target: int
    arm_positions: FloatArray
    gripper_width: FloatArray
    object_poses: FloatArray


class Kinematics:
    """Forward and inverse kinematics of the robot in a scene."""

    def __init__(self, scene: Scene) -> None:
        model = scene.model
        self.scene = scene
        self._site = model.site(TOOL_SITE).id
        joints = [model.joint(name) for name in scene.robot.arm_joints]
        self._positions = np.array([joint.qposadr[0] for joint in joints])
        self._velocities = np.array([joint.dofadr[0] for joint in joints])
        self._limits = np.array([joint.range for joint in joints])
        self._home = np.array(scene.robot.home)

    def set(self, arm: FloatArray, width: float) -> None:
        """Move the model to joint positions ``arm`` (J,) and gripper opening ``width`` [m]."""
        model, data = self.scene.model, self.scene.data
        data.qpos[self._positions] = arm
        for joint, position in self.scene.robot.finger_positions(width).items():
            data.qpos[model.joint(joint).qposadr[0]] = position
        mujoco.mj_kinematics(model, data)
        mujoco.mj_comPos(model, data)

    def tool_pose(self) -> tuple[FloatArray, FloatArray]:
        """Position (3,) [m] and rotation 3 x 3 of the tool centre in the world."""
        data = self.scene.data
        rotation = data.site_xmat[self._site].reshape(3, 3).copy()
        return data.site_xpos[self._site].copy(), rotation

    def solve(
        self, position: FloatArray, rotation: FloatArray, start: FloatArray, width: float
    ) -> tuple[FloatArray, float, float]:
        """Damped least squares from ``start``, drawn to the home posture in the null space.

        Returns:
            Joint positions (J,), the remaining distance [m] and (small) angle [rad].
        """
        model, data = self.scene.model, self.scene.data
        jacobian = np.zeros((6, model.nv))
        arm = start.copy()
        distance = angle = np.inf
        for _ in range(_IK_ITERATIONS):
            self.set(arm, width)
            at, turned = self.tool_pose()
            offset = position - at
            skew = rotation @ turned.T
            twist = 0.5 * np.array(
                [skew[2, 1] - skew[1, 2], skew[0, 2] - skew[2, 0], skew[1, 0] - skew[0, 1]]
            )
            distance, angle = float(np.linalg.norm(offset)), float(np.linalg.norm(twist))
            if distance < 5e-4 and angle < 2e-3:
                break
            mujoco.mj_jacSite(model, data, jacobian[:3], jacobian[3:], self._site)
            columns = jacobian[:, self._velocities]
            inverse = columns.T @ np.linalg.inv(columns @ columns.T + 1e-4 * np.eye(6))
            step = inverse @ np.concatenate([offset, twist])
            null_space = np.eye(len(arm)) - inverse @ columns
            step = step + null_space @ (0.05 * (self._home - arm))
            arm = np.clip(arm + np.clip(step, -0.25, 0.25), self._limits[:, 0], self._limits[:, 1])
        return arm, distance, angle


def make_script(scene: Scene, seed: int) -> Script:
    """Draw a task for ``scene`` and work it out; tries again while the arm cannot reach.

    Raises:
        PlanningError: no task was reachable.
    """
    kinematics = Kinematics(scene)
    for attempt in range(_ATTEMPTS):
        rng = SceneStreams(seed).stream("script", attempt)
        task = _draw_task(scene, rng)
        script = _work_out(kinematics, task, rng)
        if script is not None:
            return script
    raise PlanningError(
        f"seed {seed} with robot '{scene.robot.name}': the arm reached none of {_ATTEMPTS} "
        f"scripted tasks within {_MAX_IK_ERROR * 1000:.0f} mm and {_MAX_IK_TURN} rad, or only in "
        "leaps. Leave this seed out."
    )


def _draw_task(scene: Scene, rng: np.random.Generator) -> Task:
    objects = scene.objects
    limit = scene.robot.max_width - 0.006
    graspable = [i for i, o in enumerate(objects) if o.solid.extent[:2].min() < limit]
    name = str(rng.choice(["pick", "move", "push", "put"]))
    if name == "push" or not graspable:
        return _push_task(scene, int(rng.integers(len(objects))), rng)
    target = graspable[int(rng.integers(len(graspable)))]
    if name == "pick":
        return _pick_task(scene, target, rng)
    if name == "put":
        supports = [
            i for i, o in enumerate(objects) if i != target and o.solid.support_height is not None
        ]
        if supports:
            return _put_task(scene, target, supports[int(rng.integers(len(supports)))], rng)
    return _move_task(scene, target, rng)


@dataclass(frozen=True)
class _Grasp:
    """How to take hold of an object: tool height above its bottom, widths and yaw."""

    centre: FloatArray
    height: float
    clearance: float
    open_width: float
    closed_width: float
    yaw: float

    def approach(self) -> tuple[Waypoint, ...]:
        above, at = self.above(self.centre, self.clearance), self.above(self.centre, 0)
        return (
            Waypoint(above, self.open_width, 8),
            Waypoint(at, self.open_width, 8),
            Waypoint(at, self.closed_width, 4),
            Waypoint(above, self.closed_width, 6, holding=True),
        )

    def above(self, place: FloatArray, height: float) -> FloatArray:
        return np.array([place[0], place[1], self.height + height])


def _grasp(scene: Scene, target: PlacedObject, rng: np.random.Generator) -> _Grasp:
    extent = target.solid.extent
    height = extent[2]
    # The fingers close along the hand's y axis: across the narrow side of the object.
    yaw = target.yaw + (0 if extent[1] <= extent[0] else np.pi / 2)
    return _Grasp(
        centre=target.centre,
        height=max(_LOW, height - 0.035) if height > 0.05 else max(0.01, height * 0.45),
        clearance=0.13 + rng.uniform(0, 0.08),
        open_width=scene.robot.max_width,
        closed_width=max(float(extent[:2].min()) - 0.002, 0.0),
        yaw=(yaw + np.pi / 2) % np.pi - np.pi / 2,
    )


def _pick_task(scene: Scene, target: int, rng: np.random.Generator) -> Task:
    grasp = _grasp(scene, scene.objects[target], rng)
    lifted = np.array([*grasp.centre, 0.25 + rng.uniform(0, 0.1)])
    waypoints = (*grasp.approach(), Waypoint(lifted, grasp.closed_width, 8, holding=True))
    return Task(f"pick up the {scene.objects[target].name}", target, grasp.yaw, waypoints)


def _release(grasp: _Grasp, place: FloatArray, support: float) -> tuple[Waypoint, ...]:
    """Carry the object to ``place``, its bottom at height ``support``, and let go."""
    at = grasp.above(place, support + 0.001)
    return (
        Waypoint(
            grasp.above(place, support + 0.001 + 0.7 * grasp.clearance),
            grasp.closed_width,
            8,
            holding=True,
        ),
        Waypoint(at, grasp.closed_width, 5, holding=True),
        Waypoint(at, grasp.open_width, 3),
        Waypoint(grasp.above(place, support + 0.001 + grasp.clearance), grasp.open_width, 5),
    )


def _put_task(scene: Scene, target: int, support: int, rng: np.random.Generator) -> Task:
    grasp = _grasp(scene, scene.objects[target], rng)
    below = scene.objects[support]
    waypoints = (
        *grasp.approach(),
        *_release(grasp, below.centre, below.solid.support_height or 0.0),
    )
    moved = scene.objects[target].name
    text = f"put the {moved} {below.solid.support_word} the {below.name}"
    return Task(text, target, grasp.yaw, waypoints)


def _move_task(scene: Scene, target: int, rng: np.random.Generator) -> Task:
    moved = scene.objects[target]
    grasp = _grasp(scene, moved, rng)
    shift = scene.robot.workspace_x
    for _ in range(100):
        place = np.array([rng.uniform(*TABLE_X) + shift, rng.uniform(*TABLE_Y)])
        gaps = [
            np.linalg.norm(place - o.centre) - o.solid.radius - moved.solid.radius
            for o in scene.objects
        ]
        if min(gaps) > 0:
            break
    forward, left = place - grasp.centre
    if abs(left) > abs(forward):
        where = "to the left" if left > 0 else "to the right"
    else:
        where = "away from the robot" if forward > 0 else "towards the robot"
    waypoints = (*grasp.approach(), *_release(grasp, place, 0.0))
    return Task(f"move the {moved.name} {where}", target, grasp.yaw, waypoints)


def _push_task(scene: Scene, target: int, rng: np.random.Generator) -> Task:
    pushed = scene.objects[target]
    angle, where = (
        (0.0, "forward"),
        (np.pi / 2, "to the left"),
        (-np.pi / 2, "to the right"),
    )[int(rng.integers(3))]
    direction = np.array([np.cos(angle), np.sin(angle)])
    stand_off = pushed.reach(direction) + _FINGER_HALF_THICKNESS
    start = pushed.centre - direction * (stand_off + 0.02)
    end = start + direction * (0.02 + rng.uniform(0.07, 0.12))
    high = float(pushed.solid.extent[2]) + 0.13 + rng.uniform(0, 0.08)
    low = min(0.02, max(_LOW, 0.5 * float(pushed.solid.extent[2])))
    waypoints = (
        Waypoint(np.array([*start, high]), 0.0, 8),
        Waypoint(np.array([*start, low]), 0.0, 8),
        Waypoint(np.array([*end, low]), 0.0, 16, pushing=True),
        Waypoint(np.array([*end, high]), 0.0, 6),
    )
    return Task(f"push the {pushed.name} {where}", target, angle, waypoints, direction)


def pointing_down(yaw: float) -> FloatArray:
    """Rotation 3 x 3 of a tool that points down, turned by ``yaw`` [rad]."""
    c, s = np.cos(yaw), np.sin(yaw)
    return np.array([[c, s, 0.0], [s, -c, 0.0], [0.0, 0.0, -1.0]])


def _blend(first: FloatArray, second: FloatArray, fraction: float) -> FloatArray:
    """Rotation between two 3 x 3 rotations."""
    a, b = np.zeros(4), np.zeros(4)
    mujoco.mju_mat2Quat(a, first.ravel())
    mujoco.mju_mat2Quat(b, second.ravel())
    mixed = a * (1 - fraction) + (b if a @ b >= 0 else -b) * fraction
    rotation = np.zeros(9)
    mujoco.mju_quat2Mat(rotation, mixed / np.linalg.norm(mixed))
    return rotation.reshape(3, 3)


def _smooth_steps(count: int) -> Iterator[float]:
    """Fractions of the way, from above 0 to 1, slow at both ends."""
    for step in np.linspace(0, 1, count + 1)[1:]:
        yield float(step * step * (3 - 2 * step))


def reached(distance: float, angle: float, step: FloatArray) -> bool:
    """Whether the arm is where it should be, to [m] and [rad], without a leap of a joint [rad]."""
    return bool(
        distance <= _MAX_IK_ERROR and angle <= _MAX_IK_TURN and np.abs(step).max() <= _MAX_STEP
    )


def _work_out(kinematics: Kinematics, task: Task, rng: np.random.Generator) -> Script | None:
    """Joint positions and object poses for every frame, or None if the arm cannot follow."""
    robot = kinematics.scene.robot
    arm = np.array(robot.home) + rng.normal(0, 0.06, len(robot.home))
    width = task.waypoints[0].width
    kinematics.set(arm, width)
    position, rotation = kinematics.tool_pose()
    down = pointing_down(task.yaw)
    follower = _ObjectFollower(kinematics.scene.objects[task.target], task.push)
    arms, widths, poses = [arm.copy()], [width], [follower.pose()]
    for number, waypoint in enumerate(task.waypoints):
        for fraction in _smooth_steps(waypoint.frames):
            goal = position * (1 - fraction) + waypoint.position * fraction
            opening = width * (1 - fraction) + waypoint.width * fraction
            facing = _blend(rotation, down, fraction) if number == 0 else down
            arm, distance, angle = kinematics.solve(goal, facing, arms[-1], opening)
            if not reached(distance, angle, arm - arms[-1]):
                return None
            follower.update(*kinematics.tool_pose(), waypoint.holding, waypoint.pushing)
            arms.append(arm.copy())
            widths.append(opening)
            poses.append(follower.pose())
        position, width = waypoint.position, waypoint.width
    return Script(
        instruction=task.instruction,
        target=task.target,
        arm_positions=np.array(arms),
        gripper_width=np.array(widths),
        object_poses=np.array(poses),
    )


class _ObjectFollower:
    """Pose of the target object as the gripper holds, pushes or leaves it."""

    def __init__(self, target: PlacedObject, push: FloatArray | None) -> None:
        c, s = np.cos(target.yaw), np.sin(target.yaw)
        self._position = target.position.copy()
        self._rotation = np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])
        self._centre = target.centre.copy()
        self._push = push
        self._contact = 0.0 if push is None else target.reach(push) + _FINGER_HALF_THICKNESS
        self._tool: tuple[FloatArray, FloatArray] | None = None

    def update(
        self, position: FloatArray, rotation: FloatArray, holding: bool, pushing: bool
    ) -> None:
        """Follow the tool centre to ``position`` and ``rotation``."""
        if holding and self._tool is not None:
            turn = rotation @ self._tool[1].T
            self._position = position + turn @ (self._position - self._tool[0])
            self._rotation = turn @ self._rotation
        if pushing and self._push is not None:
            overlap = float((position[:2] - self._centre) @ self._push) + self._contact
            if overlap > 0:
                self._centre = self._centre + self._push * overlap
                self._position[:2] += self._push * overlap
        self._tool = (position, rotation)

    def pose(self) -> FloatArray:
        """Position and quaternion wxyz (7,)."""
        wxyz = np.zeros(4)
        mujoco.mju_mat2Quat(wxyz, np.ascontiguousarray(self._rotation).ravel())
        return np.concatenate([self._position, wxyz])


def still_object(target: PlacedObject) -> FloatArray:
    """Position and quaternion wxyz (7,) of an object that nothing has moved."""
    return _ObjectFollower(target, None).pose()


def evenly_spaced(total: int, count: int | None, stride: int) -> Sequence[int]:
    """Indices of the frames to render: ``count`` evenly spread ones, else every ``stride``-th."""
    if count is None:
        return range(0, total, stride)
    return [int(i) for i in np.unique(np.linspace(0, total - 1, count).round())]
