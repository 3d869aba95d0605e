"""Pose source ``fused`` over a stream of frames: the mount, and anchors that nothing places."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from wristworld_ros.errors import InvalidInputError
from wristworld_ros.reconstruction.bundle import ErrorModel, Prior, WristObservation
from wristworld_ros.reconstruction.fusion import MountEstimator
from wristworld_ros.reconstruction.heads import WRIST_KEYPOINTS
from wristworld_ros.types import AnchorFrame, FloatArray

#: A camera whose stated standard deviations are larger is not placed yet: of where the hand is for
#: it [m], and of its rotation [rad]. On val the wrist's pose in the camera is then off by 10 mm and
#: 4 degrees in the median; from pictures alone it is 80 mm and 8 degrees.
PLACED_SIGMA = (0.1, float(np.deg2rad(10.0)))


class FusedPose:
    """Kinematics with an estimated mount, for frames of the same anchors one after the other.

    Anchors without a pose (no TF) are placed by where they see the wrist camera while the hand
    moves; their intrinsics have to be known.

    Args:
        mount: where the mount starts, as a correction of the frames' wrist pose.
        cameras: where anchors start that the frames give no pose of, e.g. from a saved calibration.
        errors: what errors the estimator expects.

    Attributes:
        estimator: from the first frame on; a new one when given poses change.
        placed: names of the anchors that are placed by estimate.
    """

    def __init__(
        self,
        mount: Prior,
        cameras: Mapping[str, Prior] | None = None,
        errors: ErrorModel | None = None,
    ) -> None:
        self.mount = mount
        self._errors = errors
        self.cameras = dict(cameras or {})
        self.estimator: MountEstimator | None = None
        self._given: dict[str, FloatArray] = {}
        self._names: list[str] = []
        self.placed: set[str] = set()

    def place(self, frame: AnchorFrame) -> AnchorFrame:
        """The frame with the poses found so far in the place of those that it lacks."""
        given = {v.name: v.T_world_camera for v in frame.views if v.T_world_camera is not None}
        names = [v.name for v in frame.views]
        if self.estimator is None or names != self._names or not _same_poses(given, self._given):
            self._given, self._names = given, names
            starts = {n: p for n, p in self.cameras.items() if n in names and n not in given}
            self.estimator = MountEstimator(
                self.mount,
                {**starts, **given},
                keypoints=np.array(WRIST_KEYPOINTS),
                errors=self._errors,
            )
            self.placed = {n for n, start in starts.items() if _sure(start.covariance)}
        if frame.calibrated:
            return frame
        found = self.estimator.estimate()
        # Once placed it stays so: the world must not change from one frame to the next.
        self.placed |= {
            name
            for name in found.camera_covariances
            if all(np.array(self.estimator.camera_sigma(name)) <= PLACED_SIGMA)
        }
        views = []
        for view in frame.views:
            if view.T_world_camera is None and view.name in self.placed:
                view = replace(view, T_world_camera=found.cameras[view.name])
            views.append(view)
        return replace(frame, views=tuple(views))

    def wrist_pose(
        self, frame: AnchorFrame, seen: WristObservation
    ) -> tuple[FloatArray, FloatArray] | None:
        """``T_world_wrist`` by kinematics and the mount that the pictures ask for, with covariance.

        None while anchors are not placed: then no pose in the world fits the pictures.

        Args:
            frame: of ``place``, with the wrist's pose by the given mount.
            seen: that pose, and where stage 1 sees the wrist camera.
        """
        if self.estimator is None:
            raise InvalidInputError("place the frame before asking for its wrist pose.")
        self.estimator.add(seen)
        pose = self.estimator.estimate().wrist_pose(seen.T_base_hand)
        return pose if frame.calibrated else None


def _sure(covariance: FloatArray) -> bool:
    """Whether a camera's own pose is known to ``PLACED_SIGMA``; then so is what it sees."""
    largest = [np.linalg.eigvalsh(covariance[p, p])[-1] for p in (slice(0, 3), slice(3, 6))]
    return bool((np.sqrt(largest) <= PLACED_SIGMA).all())


def _same_poses(a: Mapping[str, FloatArray], b: Mapping[str, FloatArray]) -> bool:
    return a.keys() == b.keys() and all(np.allclose(a[n], b[n], atol=1e-6) for n in a)
