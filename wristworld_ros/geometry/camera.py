"""Pinhole cameras with distortion: projection, rays, and conversion to and from CameraInfo.

Our K counts pixel centres at integer + 0.5 (the centre of a W-wide image is W / 2); ROS and OpenCV
count them at integers, so principal points differ by half a pixel. Only this module knows that.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from wristworld_ros.errors import CalibrationError
from wristworld_ros.types import CameraModel

FloatArray = NDArray[np.float64]


def camera_from_ros_k(
    k: Sequence[float],
    width: int,
    height: int,
    distortion_model: str = "",
    d: Sequence[float] = (),
) -> CameraModel:
    """CameraModel from the fields of a sensor_msgs/CameraInfo (k row-major, 9 values).

    An empty distortion model, or coefficients that are all zero, mean an undistorted pinhole.

    Raises:
        CalibrationError: as CameraModel, and when ``k`` has not 9 values.
    """
    if len(k) != 9:
        raise CalibrationError(f"camera_info.k has {len(k)} values; need 9.")
    K = np.array(k, np.float64).reshape(3, 3)
    K[:2, 2] += 0.5
    if not np.isfinite(np.asarray(d, np.float64)).all():
        raise CalibrationError(f"camera_info.d is {list(d)}; need finite values.")
    if distortion_model in ("", "none") or not np.any(d):
        return CameraModel(K, int(width), int(height))
    return CameraModel(K, int(width), int(height), distortion_model, tuple(d))


def camera_to_ros_k(camera: CameraModel) -> tuple[list[float], str, list[float]]:
    """Fields k (9, row-major), distortion_model and d of a sensor_msgs/CameraInfo."""
    K = camera.K.copy()
    K[:2, 2] -= 0.5
    if camera.distortion_model == "none":
        return K.ravel().tolist(), "plumb_bob", [0.0] * 5
    return K.ravel().tolist(), camera.distortion_model, list(camera.D)


def project(points: NDArray, camera: CameraModel) -> tuple[FloatArray, FloatArray]:
    """Project points of the camera frame.

    Args:
        points: N x 3 [m].

    Returns:
        N x 2 pixels (NaN where z <= 0) and N depths z [m].
    """
    points = np.asarray(points, np.float64).reshape(-1, 3)
    z = points[:, 2]
    front = z > 0
    pixels = np.full((len(points), 2), np.nan)
    if front.any():
        xy = points[front, :2] / z[front, None]
        pixels[front] = _distort(xy, camera) * camera.K[[0, 1], [0, 1]] + camera.K[:2, 2]
    return pixels, z


def pixel_rays(camera: CameraModel, pixels: NDArray | None = None) -> FloatArray:
    """Directions with z = 1 through pixels, in the camera frame, lens distortion removed.

    Args:
        pixels: N x 2; all pixel centres of the image when None.

    Returns:
        N x 3, or H x W x 3 when ``pixels`` is None.
    """
    if pixels is None:
        u, v = np.meshgrid(np.arange(camera.width) + 0.5, np.arange(camera.height) + 0.5)
        rays = pixel_rays(camera, np.stack([u, v], -1).reshape(-1, 2))
        return rays.reshape(camera.height, camera.width, 3)
    uv = np.asarray(pixels, np.float64).reshape(-1, 2)
    xy = _undistort((uv - camera.K[:2, 2]) / camera.K[[0, 1], [0, 1]], camera)
    return np.concatenate([xy, np.ones((len(xy), 1))], 1)


def unproject(depth: NDArray, camera: CameraModel) -> FloatArray:
    """Points of a depth image: H x W depth along z [m] -> H x W x 3 in the camera frame [m]."""
    if depth.shape != (camera.height, camera.width):
        raise CalibrationError(
            f"depth has shape {depth.shape}, its camera {(camera.height, camera.width)}; "
            "resize one of them."
        )
    return pixel_rays(camera) * np.asarray(depth, np.float64)[..., None]


def rectify(image: NDArray, camera: CameraModel) -> tuple[NDArray, CameraModel]:
    """Remove lens distortion from an image; K stays, and D becomes empty."""
    if camera.distortion_model == "none":
        return image, camera
    pinhole = CameraModel(camera.K, camera.width, camera.height)
    source, _ = project(pixel_rays(pinhole).reshape(-1, 3), camera)
    grid = (source - 0.5).astype(np.float32).reshape(camera.height, camera.width, 2)
    interpolation = cv2.INTER_LINEAR if image.ndim == 3 else cv2.INTER_NEAREST
    return cv2.remap(image, grid[..., 0], grid[..., 1], interpolation), pinhole


def _distort(xy: FloatArray, camera: CameraModel) -> FloatArray:
    """Ideal to distorted image coordinates (both at z = 1); formulas as in OpenCV and ROS."""
    if camera.distortion_model == "none":
        return xy
    D = camera.D
    r2 = (xy**2).sum(1, keepdims=True)
    if camera.distortion_model == "equidistant":
        r = np.sqrt(r2)
        theta = np.arctan(r)
        k1, k2, k3, k4 = D
        t2 = theta**2
        scaled = theta * (1 + t2 * (k1 + t2 * (k2 + t2 * (k3 + t2 * k4))))
        return xy * np.where(r > 1e-12, scaled / np.maximum(r, 1e-12), 1.0)
    k1, k2, p1, p2, k3, k4, k5, k6 = (*D, 0, 0, 0, 0)[:8] if len(D) < 8 else D
    radial = (1 + r2 * (k1 + r2 * (k2 + r2 * k3))) / (1 + r2 * (k4 + r2 * (k5 + r2 * k6)))
    x, y = xy[:, :1], xy[:, 1:]
    return np.concatenate(
        [
            x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x**2),
            y * radial + p1 * (r2 + 2 * y**2) + 2 * p2 * x * y,
        ],
        1,
    )


def _undistort(target: FloatArray, camera: CameraModel, iterations: int = 20) -> FloatArray:
    """Inverse of ``_distort`` by Newton's method with a numerical Jacobian."""
    xy = target.copy()
    if camera.distortion_model == "none":
        return xy
    step = 1e-6
    for _ in range(iterations):
        error = _distort(xy, camera) - target
        if np.abs(error).max(initial=0.0) < 1e-12:
            break
        dx = (_distort(xy + [step, 0], camera) - _distort(xy - [step, 0], camera)) / (2 * step)
        dy = (_distort(xy + [0, step], camera) - _distort(xy - [0, step], camera)) / (2 * step)
        det = dx[:, 0] * dy[:, 1] - dx[:, 1] * dy[:, 0]
        det = np.where(np.abs(det) < 1e-9, 1e-9, det)
        xy[:, 0] -= (dy[:, 1] * error[:, 0] - dy[:, 0] * error[:, 1]) / det
        xy[:, 1] -= (dx[:, 0] * error[:, 1] - dx[:, 1] * error[:, 0]) / det
    return xy
