"""What a generated wrist view has to beat: trivial pictures, copies, and inpainted geometry."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from wristworld_ros.errors import InvalidInputError
from wristworld_ros.evaluation.metrics import fit_truth
from wristworld_ros.geometry.camera import rectify
from wristworld_ros.geometry.cloud import cloud_from_depth
from wristworld_ros.geometry.splatting import splat
from wristworld_ros.types import (
    AnchorFrame,
    AnchorView,
    CameraModel,
    ConditionMap,
    FloatArray,
    Image,
    check_image,
)

#: Neighbourhood of Telea's inpainting [px].
INPAINT_RADIUS = 3
#: Distance from what was drawn at which the mean colour weighs 63 % [px]; of 8, 16 and 32 the best
#: on val.
FADE = 8.0
#: Distance in front of the wrist camera that the crop of a calibrated view is centred on [m].
LOOK_AT = 0.15


def mean_image(images: Sequence[Image], width: int, height: int) -> Image:
    """Mean of many wrist pictures, each fitted to one size."""
    if not len(images):
        raise InvalidInputError("the mean of no pictures; give at least one.")
    total = np.zeros((height, width, 3))
    for image in images:
        total += fit_truth(image, width, height)
    return np.round(total / len(images)).astype(np.uint8)


def load_mean_image(path: str | Path, width: int, height: int) -> Image:
    """A stored mean image (PNG) at a size.

    Raises:
        InvalidInputError: the file is missing or no picture.
    """
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise InvalidInputError(f"mean image {path} is missing or no picture. Check the path.")
    return fit_truth(np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8), width, height)


def flat_colour(image: Image) -> Image:
    """The mean colour of ``image`` everywhere: of the truth (oracle), or of the mean image."""
    check_image(image)
    out = np.empty_like(image)
    out[:] = np.round(image.reshape(-1, 3).mean(0)).astype(np.uint8)
    return out


def cropped_view(
    view: AnchorView,
    width: int,
    height: int,
    T_world_wrist: FloatArray | None = None,
    share: float = 0.5,
) -> Image:
    """A crop of the third-person view in place of a wrist view.

    Args:
        view: the third-person view.
        width, height: wanted size [px].
        T_world_wrist: when given, and the view is calibrated, the crop is centred on what lies
            in front of the wrist camera; else on the middle of the picture.
        share: of the picture's shorter side that the crop covers.
    """
    h, w = view.image.shape[:2]
    scale = share * min(w / width, h / height)
    crop_w, crop_h = max(1, round(width * scale)), max(1, round(height * scale))
    centre = np.array([w / 2, h / 2])
    if T_world_wrist is not None and view.camera is not None and view.T_world_camera is not None:
        target = T_world_wrist[:3, 3] + LOOK_AT * T_world_wrist[:3, 2]
        p = view.T_world_camera[:3, :3].T @ (target - view.T_world_camera[:3, 3])
        if p[2] > 0:
            K = view.camera.K
            centre = K[[0, 1], [0, 1]] * p[:2] / p[2] + K[:2, 2]
    x = int(np.clip(round(centre[0] - crop_w / 2), 0, w - crop_w))
    y = int(np.clip(round(centre[1] - crop_h / 2), 0, h - crop_h))
    return fit_truth(
        np.ascontiguousarray(view.image[y : y + crop_h, x : x + crop_w]), width, height
    )


def copied_view(view: AnchorView, width: int, height: int) -> Image:
    """The whole third-person view in place of a wrist view, as policies get it today."""
    return fit_truth(view.image, width, height)


def mean_colour(views: Sequence[AnchorView]) -> NDArray[np.float64]:
    """Mean colour (3,) of the third-person pictures, a guess where nothing else is known."""
    return np.mean([view.image.reshape(-1, 3).mean(0) for view in views], 0)


def inpainted_splat(
    image: Image, mask: NDArray[np.bool_], mean: NDArray[np.float64] | None = None
) -> Image:
    """A condition map with its holes closed by Telea's method; grey where nothing was drawn.

    Args:
        image: H x W x 3 uint8.
        mask: H x W, True where a point was drawn.
        mean: (3,) colour of ``mean_colour`` that holes take on away from their rim, whose colours
            say little of their middle.
    """
    check_image(image, "condition map")
    if mask.shape != image.shape[:2]:
        raise InvalidInputError(f"mask {mask.shape} does not fit the map {image.shape[:2]}.")
    far = np.broadcast_to(127.0 if mean is None else mean, image.shape)
    if not mask.any():
        return far.round().astype(np.uint8)
    holes = (~mask).astype(np.uint8)
    near = np.asarray(cv2.inpaint(image, holes, INPAINT_RADIUS, cv2.INPAINT_TELEA), np.uint8)
    if mean is None:
        return near
    share = np.exp(-cv2.distanceTransform(holes, cv2.DIST_L2, 5) / FADE)[..., None]
    return (share * near + (1 - share) * far).round().astype(np.uint8)


def true_condition(
    frame: AnchorFrame, T_world_wrist: FloatArray, camera: CameraModel
) -> ConditionMap | None:
    """The condition map from measured depth and the true wrist pose.

    Returns:
        None unless every view has depth, intrinsics and extrinsics.
    """
    images, depths, cameras, poses = [], [], [], []
    for view in frame.views:
        if view.camera is None or view.T_world_camera is None or view.depth is None:
            return None
        image, pinhole = rectify(view.image, view.camera)
        images.append(image)
        depths.append(rectify(view.depth, view.camera)[0])
        cameras.append(pinhole)
        poses.append(view.T_world_camera)
    cloud = cloud_from_depth(images, depths, cameras, poses)
    pinhole = CameraModel(camera.K, camera.width, camera.height)
    return splat(cloud, T_world_wrist, pinhole)
