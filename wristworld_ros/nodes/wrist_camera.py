"""Which virtual wrist camera a node synthesises: from parameters, or from a camera_info topic."""

from __future__ import annotations

from wristworld_ros.errors import InvalidInputError
from wristworld_ros.geometry.camera import camera_from_ros_k
from wristworld_ros.nodes.parameters import ReconstructionParameters
from wristworld_ros.types import CameraModel

#: Sides of the generated picture are multiples of this [px]; known cameras whose sides are not, or
#: that are larger than ``LARGEST_SIDE``, are reduced to about ``PIXELS``.
SIDE_STEP, LARGEST_SIDE, PIXELS = 16, 256, 128 * 128


def from_parameters(p: ReconstructionParameters) -> CameraModel | None:
    """The virtual wrist camera that the ``wrist_*`` parameters describe, None when they do not.

    Raises:
        InvalidInputError: the parameters are set in part, or the sides are not multiples of 16.
    """
    size = p.wrist_width, p.wrist_height
    if any(size) and (not all(size) or size[0] % SIDE_STEP or size[1] % SIDE_STEP):
        raise InvalidInputError(
            f"wrist_width={size[0]} and wrist_height={size[1]} px: set both, to multiples of "
            f"{SIDE_STEP}."
        )
    if p.wrist_fx == p.wrist_fov_y == 0:
        if any(size) and not p.wrist_camera_info_topic:
            raise InvalidInputError(
                f"wrist_width={size[0]} and wrist_height={size[1]} px are set without a focal "
                "length; set wrist_fov_y [rad] or wrist_fx [px] too, or neither."
            )
        return None
    if not any(size):
        raise InvalidInputError(
            f"the virtual wrist camera has a focal length (wrist_fx={p.wrist_fx:g} px, "
            f"wrist_fov_y={p.wrist_fov_y:g} rad) but no size; set wrist_width and wrist_height."
        )
    if p.wrist_fx == 0:
        return CameraModel.from_fov(p.wrist_fov_y, *size)
    cx = p.wrist_cx if p.wrist_cx >= 0 else (size[0] - 1) / 2
    cy = p.wrist_cy if p.wrist_cy >= 0 else (size[1] - 1) / 2
    k = [p.wrist_fx, 0.0, cx, 0.0, p.wrist_fy or p.wrist_fx, cy, 0.0, 0.0, 1.0]
    return camera_from_ros_k(k, *size)


def at_model_size(camera: CameraModel, p: ReconstructionParameters) -> CameraModel:
    """A known wrist camera at ``wrist_width`` x ``wrist_height``, or at a size the model takes."""
    if p.wrist_width and p.wrist_height:
        return camera.resized(p.wrist_width, p.wrist_height)
    width, height = camera.width, camera.height
    if width % SIDE_STEP == height % SIDE_STEP == 0 and max(width, height) <= LARGEST_SIDE:
        return camera
    scale = (PIXELS / (width * height)) ** 0.5 / SIDE_STEP
    return camera.resized(
        max(1, round(width * scale)) * SIDE_STEP, max(1, round(height * scale)) * SIDE_STEP
    )
