"""Pictures that show whether a calibration fits: the robot drawn over its own videos."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from wristworld_ros.calibration.contours import ArmMeshes, draw
from wristworld_ros.geometry.camera import project
from wristworld_ros.geometry.transforms import apply, invert
from wristworld_ros.types import CameraModel, FloatArray, Image

_ZOOM = 2
_AXES = ((255, 0, 0), (0, 200, 0), (0, 80, 255))


def enlarge(image: Image) -> Image:
    """The image at twice its size."""
    return np.asarray(
        cv2.resize(image, None, fx=_ZOOM, fy=_ZOOM, interpolation=cv2.INTER_CUBIC), np.uint8
    )


def draw_robot(
    image: Image,
    bodies: FloatArray,
    camera: CameraModel,
    T_base_camera: FloatArray,
    meshes: ArmMeshes | None,
) -> Image:
    """Axes of the hand (10 cm; x red, y green, z blue) and the outline of the arm, enlarged."""
    out = enlarge(image)
    if meshes is not None:
        drawn, _ = draw(meshes, bodies, camera, T_base_camera)
        outline, _ = cv2.findContours(
            (drawn > 0).astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE
        )
        cv2.drawContours(out, outline, -1, (255, 0, 255), 1)
    hand = bodies[-1]
    ends = np.concatenate([hand[None, :3, 3], hand[None, :3, 3] + 0.1 * hand[:3, :3].T])
    pixels, z = project(apply(invert(T_base_camera), ends), camera)
    if (z > 0.05).all() and (np.abs(pixels) < 1e4).all():
        start, *tips = (tuple(int(v) for v in p * _ZOOM) for p in pixels)
        for tip, colour in zip(tips, _AXES, strict=True):
            cv2.line(out, start, tip, colour, 2)
    return out


def draw_points(image: Image, seen: NDArray, predicted: NDArray) -> Image:
    """Where points are seen (green crosses) and predicted (red rings), N x 2 [px], enlarged."""
    out = enlarge(image)
    for p in np.asarray(seen) * _ZOOM:
        cv2.drawMarker(out, (int(p[0]), int(p[1])), (0, 220, 0), cv2.MARKER_CROSS, 9, 1)
    for p in np.asarray(predicted) * _ZOOM:
        if np.isfinite(p).all() and (np.abs(p) < 1e4).all():
            cv2.circle(out, (int(p[0]), int(p[1])), 5, (255, 0, 0), 1)
    return out
