"""What is known of a moment, and how steady stage 1 is from one moment to the next."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wristworld_ros.evaluation.baselines import inpainted_splat, true_condition
from wristworld_ros.evaluation.metrics import pose_error_mm_deg
from wristworld_ros.geometry.transforms import invert
from wristworld_ros.geometry.warping import warped
from wristworld_ros.types import (
    AnchorFrame,
    CameraModel,
    ConditionMap,
    FloatArray,
    Image,
    Reconstruction,
)

#: Pixels of two consecutive true pictures that differ by less than this [grey levels] and 5 % of
#: depth show the same point.
SAME_COLOUR, SAME_DEPTH = 8.0, 0.05


@dataclass(frozen=True)
class Truth:
    """What is known of one moment; None where it is not.

    Attributes:
        anchors: the views with calibration and measured depth, in the order stage 1 gets them.
        T_world_wrist: 4 x 4 pose of the wrist camera, in the world of ``anchors``.
        camera: the wrist camera, undistorted; image: its picture; depth: along z [m], 0 unknown.
    """

    anchors: AnchorFrame
    T_world_wrist: FloatArray | None = None
    camera: CameraModel | None = None
    image: Image | None = None
    depth: NDArray[np.float32] | None = None


#: What stage 1 made of a moment, and the truth.
Moment = tuple[Reconstruction, Truth]


def true_pose(result: Reconstruction, truth: Truth) -> FloatArray | None:
    """The true wrist pose in the frame of ``result``; None when it is not known there."""
    if truth.T_world_wrist is None or result.world_frame == truth.anchors.world_frame:
        return truth.T_world_wrist
    first = truth.anchors.views[0].T_world_camera
    return None if first is None else invert(first) @ truth.T_world_wrist


def true_map(truth: Truth) -> ConditionMap | None:
    """The condition map of true geometry; None where it is not known."""
    if truth.T_world_wrist is None or truth.camera is None:
        return None
    return true_condition(truth.anchors, truth.T_world_wrist, truth.camera)


def steadiness(before: Moment, after: Moment) -> dict[str, float]:
    """What the estimate adds to the motion between two consecutive frames.

    Returns:
        ``jitter_mm`` and ``jitter_deg``: estimated against true motion of the wrist camera;
        ``motion_mm``: the true motion; ``flicker_estimated`` and ``flicker_true`` [grey levels]:
        mean absolute difference of consecutive inpainted maps, the earlier one warped by true depth
        and motion, where the true pictures show the same point; with estimated and true geometry.
    """
    out: dict[str, float] = {}
    (result_a, truth_a), (result_b, truth_b) = before, after
    true_a, true_b = true_pose(result_a, truth_a), true_pose(result_b, truth_b)
    if true_a is None or true_b is None:
        return out
    motion = invert(true_b) @ true_a
    a, b = result_a.estimate.T_world_wrist, result_b.estimate.T_world_wrist
    out["jitter_mm"], out["jitter_deg"] = pose_error_mm_deg(invert(b) @ a, motion)
    out["motion_mm"] = 1e3 * float(np.linalg.norm(motion[:3, 3]))
    camera, depth_a, depth_b = truth_b.camera, truth_a.depth, truth_b.depth
    if camera is None or depth_a is None or depth_b is None:
        return out
    assert truth_a.image is not None and truth_b.image is not None
    old_depth, z = warped(depth_a, motion, camera, depth_b)
    moved, _ = warped(truth_a.image, motion, camera, depth_b)
    same = (z > 0) & (np.abs(old_depth - z) < SAME_DEPTH * z)
    same &= np.abs(moved.astype(np.float32) - truth_b.image).mean(2) < SAME_COLOUR
    maps = {"estimated": (result_a.condition, result_b.condition)}
    ideal_a, ideal_b = true_map(truth_a), true_map(truth_b)
    if ideal_a is not None and ideal_b is not None:
        maps["true"] = (ideal_a, ideal_b)
    for name, (old, new) in maps.items():
        if same.any() and old.mask.shape == new.mask.shape == same.shape:
            earlier, _ = warped(inpainted_splat(old.image, old.mask), motion, camera, depth_b)
            later = inpainted_splat(new.image, new.mask)
            out[f"flicker_{name}"] = float(
                np.abs(earlier.astype(np.float32) - later).mean(2)[same].mean()
            )
    return out
