"""From predictions of arbitrary scale (``GeometryPrediction``) to scenes in metres.

Every call of VGGT or Depth Anything 3 has a unit of its own. Fixed cameras see a scene of which
most stays, so that the ratio of the depths of two calls is the ratio of their units: all calls are
brought to the unit of the first, the reference, in which one ``MetricScale`` holds over time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from wristworld_ros.errors import CalibrationError, InvalidInputError
from wristworld_ros.geometry.depth_fusion import resize_depth
from wristworld_ros.geometry.transforms import invert
from wristworld_ros.reconstruction.geometry_prediction import (
    GeometryPrediction,
    fit_intrinsics,
    fit_maps,
)
from wristworld_ros.reconstruction.metric_scale import (
    MIN_BASELINE,
    MetricScale,
    ScaleEstimate,
    scale_from_depth,
    scale_from_extrinsics,
    scale_from_forward_motion,
    scale_from_kinematics,
)
from wristworld_ros.reconstruction.model import SceneOutput
from wristworld_ros.types import AnchorFrame, FloatArray

#: Predicted and known lengths or depths that differ by more than this (RMS, relative) after
#: scaling have different shapes: no scale makes one of the other.
MAX_RESIDUAL = 0.25
#: The same between two calls of fixed cameras; beyond it a new reference begins.
MAX_CHANGE = 0.1
#: Predicted cameras that are turned or displaced by more than this against the known are wrong.
MAX_TURN = float(np.deg2rad(30))
#: A scale from one call is not believed to be better than this (standard deviation of its log): the
#: errors of a call's baselines go together, and do not show in what they leave.
CALL_SIGMA = 0.03
#: Pictures of the wrist camera that one scale from its path rests on.
PATH = 12
#: Known poses of a camera are the same up to this [m, and entries of the rotation].
SAME_POSE = 1e-3


@dataclass(frozen=True)
class MetricScene:
    """A scene in metres, and what its scale rests on.

    Attributes:
        scene: at the resolution of the prediction; ``anchor_K`` is in pixels of a picture of twice
            that size, as ``SceneOutput`` has it, and ``first_depth`` is the depth at a quarter.
        scale: metres per unit of this prediction.
        sigma: standard deviation of log scale.
        residual: RMS relative error that the last believed measurement left.
        source: of that measurement: ``depth``, ``extrinsics``, ``kinematics``,
            ``forward_motion``, or two of them joined by ``+``.
        measured: whether it is of this frame; else the scale is kept from earlier ones.
        refused: source -> why it gave no scale for this frame.
    """

    scene: SceneOutput
    scale: float
    sigma: float
    residual: float
    source: str
    measured: bool
    refused: Mapping[str, str]


class MetricGeometry:
    """Predictions of the same anchors, one after the other, in metres.

    Measured depth and known extrinsics (two or more cameras) are taken from the frames themselves,
    depth first; the path of a real wrist camera from ``observe_wrist``. The first prediction is the
    reference. Another set of cameras, a known pose that changed, or depth that differs in shape
    begins a new one, and what was learned of the scale is dropped with the old.

    Args:
        max_turn: largest angle [rad] between predicted and known cameras, see ``camera_misfit``.

    Attributes:
        tracker: metres per unit of the reference.
        T_base_first: 4 x 4 pose of the first anchor in the robot's base, from the wrist's path.
        restarts: references after the first.
    """

    def __init__(self, *, max_turn: float = MAX_TURN) -> None:
        self._max_turn = max_turn
        self._reference: NDArray | None = None
        self._views: dict[str, FloatArray | None] = {}  # of the reference
        self.restarts = -1
        self._restart()

    def _restart(self) -> None:
        self.tracker = MetricScale(floor=CALL_SIGMA)
        self.T_base_first: FloatArray | None = None
        self._path: deque[tuple[FloatArray, FloatArray]] = deque(maxlen=5 * PATH)
        self._fresh = 0  # of them, since the last scale from the path
        self._path_state = "no picture of a real wrist camera was given (observe_wrist)."
        self._believed: list[ScaleEstimate] = []
        self.restarts += 1

    def __call__(self, prediction: GeometryPrediction, frame: AnchorFrame) -> MetricScene:
        """The scene of one moment.

        Calibrated anchors keep their known K and poses, and the world is the robot's base. Else K
        is the known one where there is one, poses are the predicted, and the world is the first
        anchor, or the robot's base once ``T_base_first`` is known.

        Args:
            prediction: of the frame's views, in their order (B = 1).
            frame: without lens distortion.

        Raises:
            CalibrationError: no source gives a scale and none was found before; with the reasons.
            InvalidInputError: the prediction has another number of views or sets.
        """
        unit, unit_sigma, poses = self._in_reference(prediction, frame, 0)
        depth = _numpy(prediction.depth) * unit
        believed, refused = [], {"kinematics": self._path_state}
        for source, measure in (("depth", _from_depth), ("extrinsics", self._from_extrinsics)):
            try:
                estimate = measure(depth, poses, frame)
            except CalibrationError as error:
                refused[source] = str(error)
                continue
            if self.tracker.add(estimate):
                believed.append(estimate)
            else:
                refused[source] = self._contradiction(estimate)
        self._believed = believed or self._believed
        if not self._believed:
            raise CalibrationError(
                "no metric scale, and none is guessed. "
                + " ".join(f"From {source}: {reason}" for source, reason in refused.items())
                + " Give camera_info and TF of two or more cameras that are apart, or a depth "
                "topic (use_depth), or pictures of a real wrist camera with its kinematic pose."
            )
        scale = self.tracker.scale * unit
        return MetricScene(
            self._scene(prediction, frame, poses, unit),
            scale,
            float(np.hypot(self.tracker.sigma, unit_sigma)),
            max(e.residual for e in self._believed),
            "+".join(e.source for e in self._believed),
            bool(believed),
            refused,
        )

    def observe_wrist(
        self, prediction: GeometryPrediction, frame: AnchorFrame, T_base_wrist: FloatArray
    ) -> str:
        """Take one picture of a real wrist camera, to find the scale by the robot's kinematics.

        Every ``PATH`` pictures, the path of the wrist camera is aligned with the known one; where
        it runs along a line, moves along the camera's axis give the scale. Either way the first
        anchor is placed in the base frame by the poses of the wrist camera in the last
        ``5 * PATH`` pictures.

        Args:
            prediction: of the frame's views and, as the last one, the wrist's picture (B = 1).
            frame: without lens distortion.
            T_base_wrist: 4 x 4 pose of the wrist camera by kinematics and its mount.

        Returns:
            Why there is no scale from the path yet; empty when this picture gave one.

        Raises:
            InvalidInputError: the prediction has another number of views or sets.
        """
        poses = self._in_reference(prediction, frame, 1)[2]
        self._path.append((poses[-1], np.asarray(T_base_wrist, np.float64)))
        self._fresh = min(self._fresh + 1, 5 * PATH)
        if self._fresh < PATH:
            self._path_state = f"{self._fresh} of {PATH} pictures of the wrist camera so far."
            return self._path_state
        seen, known = (np.array(T) for T in zip(*self._path, strict=True))
        try:
            estimate = self._from_path(seen[-self._fresh :], known[-self._fresh :])
        except CalibrationError as error:
            self._path_state = str(error)
            return self._path_state
        self._fresh = 0
        if not self.tracker.add(estimate):
            self._path_state = self._contradiction(estimate)
            return self._path_state
        self._path_state = "its last scale is kept."
        self._believed = [estimate]
        R = _turns(seen, known).mean().as_matrix()
        offsets = known[:, :3, 3] - self.tracker.scale * seen[:, :3, 3] @ R.T
        self.T_base_first = np.eye(4)
        self.T_base_first[:3] = np.column_stack([R, np.median(offsets, axis=0)])
        return ""

    def _in_reference(
        self, prediction: GeometryPrediction, frame: AnchorFrame, further: int
    ) -> tuple[float, float, FloatArray]:
        """Reference units per unit of a prediction, sigma of its log, and T_first_camera in them.

        ``further`` views come after those of the frame.
        """
        B, V = prediction.depth.shape[:2]
        if B != 1 or len(frame.views) + further != V:
            raise InvalidInputError(
                f"prediction of {B} sets of {V} views for a frame of {len(frame.views)} views"
                + (f" and {further} of the wrist" if further else "")
                + "; need one set of these views, in the frame's order."
            )
        depth = _numpy(prediction.depth)[: len(frame.views)]
        views = {v.name: v.T_world_camera for v in frame.views}
        unit, sigma = self._unit(depth, views)
        poses = np.array([invert(T) for T in _numpy(prediction.T_camera_first)])
        poses[:, :3, 3] *= unit
        return unit, sigma, poses

    def _unit(self, depth: NDArray, views: dict[str, FloatArray | None]) -> tuple[float, float]:
        """Reference units per unit of this depth (V x h x w), and sigma of its log."""
        reference = self._reference
        if reference is not None:
            if reference.shape == depth.shape and _same(views, self._views):
                ratio = scale_from_depth(depth, reference)
                if ratio.residual <= MAX_CHANGE:
                    return ratio.scale, ratio.sigma
            self._restart()
        self._reference, self._views = depth, views
        return 1.0, 0.0

    def _from_extrinsics(
        self, depth: NDArray, poses: FloatArray, frame: AnchorFrame
    ) -> ScaleEstimate:
        placed = [i for i, v in enumerate(frame.views) if v.T_world_camera is not None]
        if len(placed) < 2:
            raise CalibrationError(
                f"{len(placed)} of {len(frame.views)} cameras have a known pose; need two that are "
                "apart."
            )
        known = np.array([frame.views[i].T_world_camera for i in placed])
        estimate = _of_one_shape(scale_from_extrinsics(poses[placed], known), "the baselines")
        turn = camera_misfit(poses[placed], known)
        if turn > self._max_turn:
            raise CalibrationError(
                f"the predicted cameras are {np.rad2deg(turn):.0f} deg off the known ones (limit "
                f"{np.rad2deg(self._max_turn):.0f}). Check that every camera's pose (TF) is its "
                "own and that the views overlap."
            )
        return estimate

    def _from_path(self, seen: FloatArray, known: FloatArray) -> ScaleEstimate:
        """From poses of the wrist camera in the first anchor's frame and in the base, N x 4 x 4."""
        rotations = _turns(seen, known)
        turns = (rotations * rotations.mean().inv()).magnitude()
        try:
            alignment = scale_from_kinematics(seen[:, :3, 3], known[:, :3, 3])
            estimate = alignment.estimate
            aligned = Rotation.from_matrix(alignment.rotation)
            turns = np.append(turns, (aligned * rotations.mean().inv()).magnitude())
        except CalibrationError as path_error:
            travelled = ((known[1:] - known[:-1])[:, :3, 3] * known[:-1, :3, 2]).sum(1)
            try:
                estimate = scale_from_forward_motion(seen, travelled)
            except CalibrationError as error:
                raise CalibrationError(f"{path_error} {error}") from None
            estimate = _of_one_shape(estimate, "the wrist's moves")
        if turns.max() > self._max_turn:
            raise CalibrationError(
                f"scale from the wrist's path: the wrist camera is turned by up to "
                f"{np.rad2deg(turns.max()):.0f} deg against kinematics (limit "
                f"{np.rad2deg(self._max_turn):.0f}). Check its mount and the stamps."
            )
        return estimate

    def _contradiction(self, estimate: ScaleEstimate) -> str:
        return (
            f"{estimate.scale:.4g} m per unit contradicts {self.tracker.scale:.4g}, which is kept "
            "until estimates in a row agree on another."
        )

    def _scene(
        self,
        prediction: GeometryPrediction,
        frame: AnchorFrame,
        poses: FloatArray,
        unit: float,
    ) -> SceneOutput:
        depth = prediction.depth * (self.tracker.scale * unit)
        h, w = depth.shape[-2:]
        size = (2 * h, 2 * w)
        K = fit_intrinsics(prediction.K, (h, w), size).clone()
        if frame.calibrated:
            poses = np.array([v.T_world_camera for v in frame.views])
        else:
            poses = poses.copy()
            poses[:, :3, 3] *= self.tracker.scale
            poses = poses if self.T_base_first is None else self.T_base_first @ poses
        for i, view in enumerate(frame.views):
            if view.camera is not None:
                K[0, i] = torch.from_numpy(view.camera.resized(size[1], size[0]).K.copy()).to(K)
        quarter = fit_maps(depth, (max(1, h // 4), max(1, w // 4)))
        return SceneOutput(
            depth, prediction.confidence, quarter, torch.from_numpy(poses)[None].to(depth), K
        )


def camera_misfit(estimated: FloatArray, known: FloatArray) -> float:
    """How far predicted cameras are from known ones, whatever frame and scale [rad].

    Args:
        estimated, known: V x 4 x 4 poses (camera to world), V >= 2.

    Returns:
        Median over the pairs of cameras of the larger of two angles: of their relative rotation,
        and of the direction from one to the other (where they are ``MIN_BASELINE`` apart).
    """
    worst = []
    for i, j in zip(*np.triu_indices(len(known), 1), strict=True):
        a, b = invert(estimated[i]) @ estimated[j], invert(known[i]) @ known[j]
        turn = Rotation.from_matrix(a[:3, :3].T @ b[:3, :3]).magnitude()
        lengths = np.linalg.norm(a[:3, 3]), np.linalg.norm(b[:3, 3])
        if lengths[1] >= MIN_BASELINE and lengths[0] > 0:
            cosine = a[:3, 3] @ b[:3, 3] / (lengths[0] * lengths[1])
            turn = max(turn, np.arccos(np.clip(cosine, -1, 1)))
        worst.append(turn)
    return float(np.median(worst))


def _turns(seen: FloatArray, known: FloatArray) -> Rotation:
    """Rotations from the first anchor's frame to the base, one by each pose of the wrist camera."""
    return Rotation.from_matrix(known[:, :3, :3] @ seen[:, :3, :3].transpose(0, 2, 1))


def _from_depth(depth: NDArray, poses: FloatArray, frame: AnchorFrame) -> ScaleEstimate:
    h, w = depth.shape[1:]
    measured = [(i, v.depth) for i, v in enumerate(frame.views) if v.depth is not None]
    if not measured:
        raise CalibrationError("no camera gives measured depth.")
    predicted = depth[[i for i, _ in measured]]
    sensor = np.array([resize_depth(d, (w, h)) for _, d in measured])
    return _of_one_shape(scale_from_depth(predicted, sensor), "measured and predicted depth")


def _of_one_shape(estimate: ScaleEstimate, what: str) -> ScaleEstimate:
    if estimate.residual > MAX_RESIDUAL:
        raise CalibrationError(
            f"{what} differ by {100 * estimate.residual:.0f} % after scaling (limit "
            f"{100 * MAX_RESIDUAL:.0f} %): the prediction has failed, or they are not of the same "
            "cameras. Check topics and stamps; use views that overlap more."
        )
    return estimate


def _same(a: Mapping[str, FloatArray | None], b: Mapping[str, FloatArray | None]) -> bool:
    """Whether views are the same, and so are their poses where both are known."""
    return list(a) == list(b) and all(
        p is None or q is None or np.allclose(p, q, atol=SAME_POSE)
        for p, q in zip(a.values(), b.values(), strict=True)
    )


def _numpy(value: torch.Tensor) -> NDArray:
    return value[0].double().cpu().numpy()
