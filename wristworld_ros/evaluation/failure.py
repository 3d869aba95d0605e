"""Why a generated view is wrong: where its squared error lies, by what was measured there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wristworld_ros.evaluation.metrics import squared_error
from wristworld_ros.evaluation.scores import NEAR
from wristworld_ros.types import ConditionMap, Image

#: Relative depth error from which on depth counts as wrong.
WRONG_DEPTH = 0.05
#: Shift of the whole view from which on the pose is to blame for what was measured [px].
WRONG_POSE = 2.0

#: Cause -> what it says of the pixels that it has to answer for.
REASONS: Mapping[str, str] = {
    "unreachable": "no anchor camera sees this part of the view, and it was imagined",
    "left_out": "an anchor sees it, but stage 1 did not trust its depth there and left it out",
    "pose": "the wrist pose is off, so that all that was measured is displaced",
    "near_depth": "depth is wrong close to the camera: the gripper, or what it holds",
    "far_depth": "depth is wrong",
    "colour": "place and depth are right, the colours are not: light, reflections, blur",
}


@dataclass(frozen=True)
class Diagnosis:
    """Where the squared error of a view lies.

    Attributes:
        cause: key of ``REASONS`` that has to answer for most of it.
        shares: cause -> share of the squared error, in [0, 1]; they add up to 1.
        shift_px: by how much the pose error displaces the view at its median depth.
    """

    cause: str
    shares: Mapping[str, float]
    shift_px: float

    @property
    def text(self) -> str:
        """The reason in words, with its share."""
        return f"{REASONS[self.cause]} ({self.shares[self.cause]:.0%} of the squared error)"


def diagnose(
    picture: Image,
    truth: Image,
    condition: ConditionMap,
    true_map: ConditionMap,
    true_depth: NDArray[np.floating],
    pose_error: tuple[float, float],
) -> Diagnosis:
    """Attribute every pixel's error to one cause.

    Args:
        picture, truth: H x W x 3 uint8.
        condition: what stage 1 drew; true_map: what it would draw with true depth and pose.
        true_depth: H x W of the wrist view [m], 0 where nothing is.
        pose_error: translation [mm] and rotation [deg].
    """
    squared = squared_error(picture, truth)
    shift = _shift(condition, true_depth, pose_error)
    known = condition.measured & (true_depth > 0)
    off = np.abs(condition.depth - true_depth) > WRONG_DEPTH * true_depth
    near = true_depth < NEAR
    displaced = np.full(squared.shape, shift > WRONG_POSE)
    where = {
        "unreachable": ~condition.measured & ~true_map.measured,
        "left_out": ~condition.measured & true_map.measured,
        "pose": condition.measured & displaced,
        "near_depth": known & ~displaced & off & near,
        "far_depth": known & ~displaced & off & ~near,
        "colour": condition.measured & ~displaced & ~(known & off),
    }
    total = max(float(squared.sum()), 1e-9)
    shares = {cause: float(squared[mask].sum()) / total for cause, mask in where.items()}
    return Diagnosis(max(shares, key=lambda c: shares[c]), shares, shift)


def _shift(
    condition: ConditionMap, true_depth: NDArray[np.floating], pose_error: tuple[float, float]
) -> float:
    """Displacement of the view by a pose error [px], at the median depth."""
    seen = true_depth[true_depth > 0]
    mm, deg = pose_error
    depth = float(np.median(seen)) if len(seen) else np.inf
    return float(condition.camera.K[0, 0] * (mm * 1e-3 / depth + np.deg2rad(deg)))
