"""What stage 1 knows of every view at the cloud's resolution: picture, depth, camera and place."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from wristworld_ros.geometry.cloud import depth_edges, join_points, select_points
from wristworld_ros.geometry.depth_fusion import fuse_depth, resize_depth
from wristworld_ros.reconstruction import robot_fusion
from wristworld_ros.reconstruction.hand_depth import CloseDepth
from wristworld_ros.reconstruction.model import SceneOutput
from wristworld_ros.reconstruction.robot_model import VIEW_REACH, RobotModel
from wristworld_ros.types import AnchorFrame, CameraModel, FloatArray, PointCloud

#: Parts of the robot nearer to the wrist camera than this [m] are its own housing.
ROBOT_NEAR = 0.03


@dataclass(frozen=True)
class PosedViews:
    """Views of one moment; lists have one entry per view.

    Attributes:
        images: H x W x 3 uint8.
        depths, confidences: H x W [m], and in [0, 1]; confidence below 0 where a pixel is not used.
        cameras, poses: intrinsics, and 4 x 4 camera to world.
        shown: H x W bool, the pixel shows the robot's body.
    """

    images: list[NDArray[np.uint8]]
    depths: list[NDArray[np.float32]]
    confidences: list[NDArray[np.float32]]
    cameras: list[CameraModel]
    poses: list[FloatArray]
    shown: list[NDArray[np.bool_]]


def posed_views(
    frame: AnchorFrame,
    scene: SceneOutput,
    poses: list[FloatArray],
    *,
    size: int,
    edge_threshold: float,
    use_measured_depth: bool,
    close: CloseDepth | None = None,
    surface: PointCloud | None = None,
) -> PosedViews:
    """Bring a scene to the size of the cloud, and join all that is known of its depth.

    Predicted depth, that of the cut-outs over it, the robot's body over both, then measured depth.

    Args:
        frame: without lens distortion.
        scene: of its views.
        poses: 4 x 4 camera to world, one per view.
        size: long side of the pictures [px]; smaller ones stay as they are.
        edge_threshold: relative depth jump at which predicted points are left out.
        use_measured_depth: whether the views' own depth counts.
        close: depth around the hand.
        surface: of the robot's body, in the world frame.
    """
    out = PosedViews([], [], [], [], poses, [])
    network = (scene.size[1], scene.size[0])
    for i, view in enumerate(frame.views):
        height, width = view.image.shape[:2]
        scale = min(1.0, size / max(width, height))
        reduced = (max(1, round(width * scale)), max(1, round(height * scale)))
        if view.camera is None:
            K = scene.anchor_K[0, i].double().cpu().numpy()
            camera = CameraModel(K, *network).resized(*reduced)
        else:
            camera = view.camera.resized(*reduced)
        predicted = scene.depth[0, i].cpu().numpy()
        # Inverse depth is linear over planes in the image, depth is not. What is sharp stays so.
        how = cv2.INTER_LINEAR if scene.scale > 1 else cv2.INTER_NEAREST
        depth: NDArray = 1 / cv2.resize(1 / predicted, reduced, interpolation=how)
        sure = 1 - 1 / scene.confidence[0, i].cpu().numpy()
        confidence: NDArray = cv2.resize(sure, reduced, interpolation=how)
        if close is not None:
            paste(depth, confidence, close, scene, i)
        confidence[depth_edges(depth, edge_threshold)] = -1.0
        body = np.zeros(depth.shape, bool)
        if surface is not None:
            robot = robot_fusion.robot_depth(surface, poses[i], camera)
            depth, confidence, body = robot_fusion.with_robot(depth, confidence, robot)
        if use_measured_depth and view.depth is not None:
            measured = resize_depth(view.depth, reduced)
            depth, confidence = fuse_depth(depth, confidence, measured)
        image = cv2.resize(view.image, reduced, interpolation=cv2.INTER_AREA)
        out.images.append(np.asarray(image, np.uint8))
        out.depths.append(depth.astype(np.float32))
        out.confidences.append(confidence.astype(np.float32))
        out.cameras.append(camera)
        out.shown.append(body)
    return out


def body_in_view(
    robot: RobotModel,
    frame: AnchorFrame,
    views: PosedViews,
    seen: PointCloud,
    T_world_wrist: FloatArray,
    camera: CameraModel,
) -> PointCloud:
    """The robot's body for the map, beyond what the pictures show of it.

    Args:
        frame: with joints.
        views: of the same moment.
        seen: points of the body that the pictures show; they stay where they are far from the
            wrist camera.
        T_world_wrist, camera: the wrist camera.
    """
    assert frame.joints is not None
    surface = robot.surface_in_view(
        frame.joints, frame.T_world_robot, T_world_wrist, camera, ROBOT_NEAR
    )
    inside = robot_fusion.in_picture(surface.points, T_world_wrist, camera, ROBOT_NEAR)
    coloured = robot_fusion.colour_surface(
        select_points(surface, inside),
        views.images,
        views.depths,
        views.shown,
        views.cameras,
        views.poses,
    )
    away = np.linalg.norm(seen.points - T_world_wrist[:3, 3], axis=1) > VIEW_REACH
    return join_points(select_points(seen, away), coloured)


def paste(
    depth: NDArray, confidence: NDArray, close: CloseDepth, scene: SceneOutput, view: int
) -> None:
    """Overwrite depth and confidence (H x W) where the cut-out of a view has pixels.

    The nearest pixel's value is taken, so that the hand and what is behind it are not mixed; depth
    is the median of 5 x 5 pixels of the cut-out, without the network's noise from pixel to pixel.
    """
    H, W = depth.shape
    network = scene.size
    K = scene.anchor_K[0, view].double().cpu().numpy()
    crop = close.K[0, view].double().cpu().numpy()
    index = []
    for axis, (full, pixels) in enumerate(((W, network[1]), (H, network[0]))):
        place = (np.arange(full) + 0.5) * pixels / full
        ray = (place - K[axis, 2]) / K[axis, axis]
        index.append(np.floor(ray * crop[axis, axis] + crop[axis, 2]).astype(int))
    S = close.depth.shape[-1]
    columns, rows = index
    to = np.ix_((rows >= 0) & (rows < S), (columns >= 0) & (columns < S))
    of = np.ix_(rows[(rows >= 0) & (rows < S)], columns[(columns >= 0) & (columns < S)])
    depth[to] = cv2.medianBlur(close.depth[0, view].float().cpu().numpy(), 5)[of]
    confidence[to] = close.confidence[0, view].cpu().numpy()[of]
