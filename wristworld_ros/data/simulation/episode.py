"""One simulated episode: from a seed to pictures, depth, poses, joints and words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wristworld_ros.data.simulation.backend import mujoco
from wristworld_ros.data.simulation.look_around import look_around_script
from wristworld_ros.data.simulation.render import SceneRenderer, check_size
from wristworld_ros.data.simulation.robots import get_robot
from wristworld_ros.data.simulation.scene import WRIST_CAMERA, Scene, body_of_object, build_scene
from wristworld_ros.data.simulation.script import Kinematics, Script, evenly_spaced, make_script
from wristworld_ros.data.simulation.splits import Split, get_split
from wristworld_ros.errors import InvalidInputError
from wristworld_ros.geometry.transforms import invert
from wristworld_ros.types import AnchorFrame, AnchorView, CameraModel, FloatArray

FPS = 5.0
MAX_ANCHORS = 8
MOTIONS = {"task": make_script, "look-around": look_around_script}


@dataclass(frozen=True)
class SimulatedEpisode:
    """An episode of T frames seen by V anchors and the wrist camera; world: the robot's base.

    Attributes:
        seed, split, robot: where it comes from.
        instruction: the task in words.
        fps: frames per second.
        frame_index: T, which frames of the 5 Hz script were rendered.
        wrist_rgb: T x H x W x 3 uint8.
        wrist_depth: T x H x W float32 along z [m], 0 where nothing is.
        wrist_camera: intrinsics of the wrist camera.
        T_world_wrist: T x 4 x 4, optical frame of the wrist camera.
        T_world_hand: T x 4 x 4, the body that carries gripper and camera.
        anchor_names: V.
        anchor_rgb: V x T x H x W x 3 uint8.
        anchor_depth: V x T x H x W float32 [m], 0 where nothing is.
        anchor_cameras: V intrinsics.
        T_world_camera: V x 4 x 4, optical frames of the anchors.
        joint_names: J, arm and gripper.
        joint_positions: T x J [rad or m].
        gripper_width: T [m].
    """

    seed: int
    split: str
    robot: str
    instruction: str
    fps: float
    frame_index: NDArray[np.int64]
    wrist_rgb: NDArray[np.uint8]
    wrist_depth: NDArray[np.float32]
    wrist_camera: CameraModel
    T_world_wrist: FloatArray
    T_world_hand: FloatArray
    anchor_names: tuple[str, ...]
    anchor_rgb: NDArray[np.uint8]
    anchor_depth: NDArray[np.float32]
    anchor_cameras: tuple[CameraModel, ...]
    T_world_camera: FloatArray
    joint_names: tuple[str, ...]
    joint_positions: FloatArray
    gripper_width: FloatArray

    def __len__(self) -> int:
        return len(self.wrist_rgb)

    @property
    def T_hand_wrist(self) -> FloatArray:
        """4 x 4 mount of the wrist camera on the hand; the same in every frame."""
        return invert(self.T_world_hand[0]) @ self.T_world_wrist[0]

    def stamp_ns(self, frame: int) -> int:
        """Time of ``frame`` since the episode began [ns]."""
        return round(int(self.frame_index[frame]) * 1e9 / FPS)

    def anchor_frame(self, frame: int, *, with_depth: bool = False) -> AnchorFrame:
        """What a robot would know at ``frame``: calibrated anchors, kinematics, instruction."""
        views = tuple(
            AnchorView(
                name=name,
                image=self.anchor_rgb[view, frame],
                stamp_ns=self.stamp_ns(frame),
                camera=self.anchor_cameras[view],
                T_world_camera=self.T_world_camera[view],
                depth=self.anchor_depth[view, frame] if with_depth else None,
            )
            for view, name in enumerate(self.anchor_names)
        )
        joints = dict(zip(self.joint_names, self.joint_positions[frame].tolist(), strict=True))
        return AnchorFrame(
            stamp_ns=self.stamp_ns(frame),
            views=views,
            T_world_wrist=self.T_world_wrist[frame],
            wrist_camera=self.wrist_camera,
            instruction=self.instruction,
            joints=joints,
        )


def simulate_episode(
    seed: int,
    split: str | Split,
    *,
    wrist_size: tuple[int, int] = (128, 128),
    anchor_size: tuple[int, int] = (256, 256),
    n_anchors: int = 3,
    stride: int = 1,
    n_frames: int | None = None,
    shadows: bool = True,
    robot: str | None = None,
    motion: str = "task",
) -> SimulatedEpisode:
    """Simulate and render the episode of ``seed``; the same arguments give the same bytes.

    Args:
        seed: a seed of ``split``.
        split: name of a split, or the split itself.
        wrist_size, anchor_size: (width, height) of the pictures [px].
        n_anchors: number of third-person cameras, 1 to 8.
        stride: render every ``stride``-th frame of the 5 Hz script.
        n_frames: render this many frames, evenly spread over the episode, instead.
        shadows: cast shadows; 2 to 5 times slower.
        robot: use this robot instead of the split's.
        motion: ``task``, or ``look-around`` to calibrate the cameras by.

    Raises:
        InvalidInputError: a value is out of its range.
        RenderingError: there is no offscreen OpenGL.
        PlanningError: the robot reaches no task in this scene.
    """
    split = get_split(split) if isinstance(split, str) else split
    split_robot = split.robot_of(seed)
    check_size("wrist_size", wrist_size)
    check_size("anchor_size", anchor_size)
    if not 1 <= n_anchors <= MAX_ANCHORS:
        raise InvalidInputError(f"n_anchors is {n_anchors}; use 1 to {MAX_ANCHORS}.")
    if stride < 1 or (n_frames is not None and n_frames < 1):
        raise InvalidInputError(f"stride {stride} and n_frames {n_frames} must be at least 1.")
    if motion not in MOTIONS:
        raise InvalidInputError(f"motion '{motion}' is unknown; use one of {', '.join(MOTIONS)}.")
    scene = build_scene(
        seed, split, get_robot(robot or split_robot), anchor_count=n_anchors, shadows=shadows
    )
    script = MOTIONS[motion](scene, seed)
    frames = evenly_spaced(len(script.gripper_width), n_frames, stride)
    return _render(scene, script, frames, seed, split, wrist_size, anchor_size, FPS / stride)


def _render(
    scene: Scene,
    script: Script,
    frames: Sequence[int],
    seed: int,
    split: Split,
    wrist_size: tuple[int, int],
    anchor_size: tuple[int, int],
    fps: float,
) -> SimulatedEpisode:
    kinematics = Kinematics(scene)
    model, data = scene.model, scene.data
    target = model.body(body_of_object(script.target)).mocapid[0]
    hand = model.body(scene.robot.hand_body).id
    wrist_pictures, wrist_poses, hand_poses, joints = [], [], [], []
    anchor_pictures: list[list[tuple]] = [[] for _ in scene.anchors]
    with SceneRenderer(model) as render:
        for frame in frames:
            width = float(script.gripper_width[frame])
            data.mocap_pos[target] = script.object_poses[frame, :3]
            data.mocap_quat[target] = script.object_poses[frame, 3:]
            kinematics.set(script.arm_positions[frame], width)
            mujoco.mj_camlight(model, data)
            wrist_pictures.append(render(data, WRIST_CAMERA, *wrist_size))
            wrist_poses.append(_camera_pose(scene, WRIST_CAMERA))
            hand_poses.append(_pose(data.xpos[hand], data.xmat[hand]))
            fingers = scene.robot.finger_positions(width).values()
            joints.append([*script.arm_positions[frame], *fingers])
            for pictures, anchor in zip(anchor_pictures, scene.anchors, strict=True):
                pictures.append(render(data, anchor, *anchor_size))
    return SimulatedEpisode(
        seed=seed,
        split=split.name,
        robot=scene.robot.name,
        instruction=script.instruction,
        fps=fps,
        frame_index=np.array(list(frames), np.int64),
        wrist_rgb=np.stack([image for image, _ in wrist_pictures]),
        wrist_depth=np.stack([depth for _, depth in wrist_pictures]),
        wrist_camera=_camera_model(scene, WRIST_CAMERA, wrist_size),
        T_world_wrist=np.stack(wrist_poses),
        T_world_hand=np.stack(hand_poses),
        anchor_names=scene.anchors,
        anchor_rgb=np.stack([[image for image, _ in view] for view in anchor_pictures]),
        anchor_depth=np.stack([[depth for _, depth in view] for view in anchor_pictures]),
        anchor_cameras=tuple(_camera_model(scene, name, anchor_size) for name in scene.anchors),
        T_world_camera=np.stack([_camera_pose(scene, name) for name in scene.anchors]),
        joint_names=scene.robot.joint_names,
        joint_positions=np.array(joints, np.float64),
        gripper_width=script.gripper_width[list(frames)],
    )


def _pose(position: FloatArray, rotation: FloatArray) -> FloatArray:
    T = np.eye(4)
    T[:3, :3] = rotation.reshape(3, 3)
    T[:3, 3] = position
    return T


def _camera_pose(scene: Scene, name: str) -> FloatArray:
    """Pose of a camera's optical frame (x right, y down, z forward) in the world, 4 x 4."""
    camera = scene.model.camera(name).id
    T = _pose(scene.data.cam_xpos[camera], scene.data.cam_xmat[camera])
    T[:3, :3] = T[:3, :3] @ np.diag([1.0, -1.0, -1.0])
    return T


def _camera_model(scene: Scene, name: str, size: tuple[int, int]) -> CameraModel:
    return CameraModel.from_fov(np.deg2rad(float(scene.model.camera(name).fovy[0])), *size)
