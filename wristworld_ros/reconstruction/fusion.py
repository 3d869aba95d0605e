"""Pose source ``fused``: exact kinematics, and a mount that is estimated while the robot works.

Beyond WristWorld (method.md, 5, item 1): the hand's pose is exact, the mount T_hand_wrist and maybe
the fixed cameras are not. Both are estimated over a window of frames from where stage 1 sees the
wrist camera; a camera that is moved later is noticed, named and estimated anew.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from wristworld_ros.errors import CalibrationError, InvalidInputError
from wristworld_ros.geometry.transforms import invert, pose_error
from wristworld_ros.reconstruction.bump import ShiftDetector
from wristworld_ros.reconstruction.bundle import (
    BASE,
    ErrorModel,
    Fit,
    KeypointSight,
    Prior,
    Source,
    WristObservation,
    fit_window,
)
from wristworld_ros.reconstruction.calibration_file import (
    MOUNT,
    PlacedCamera,
    StationCalibration,
)
from wristworld_ros.reconstruction.hand_eye import (
    average_pose,
    cross_matrices,
    inverted,
    second_rotation,
)
from wristworld_ros.types import CameraModel, FloatArray

#: A mount whose sights leave one direction less sure than this is not determined [m, rad].
WORST_SIGMA = (0.03, float(np.deg2rad(6.0)))
#: Frames between which hand and picture hardly change say nothing new [m, rad].
MIN_MOTION = (0.003, float(np.deg2rad(0.5)))
#: Frames before an unknown camera is placed, before bumps are watched for, and after a bump.
MIN_FRAMES, SETTLED_FRAMES, AFTER_BUMP = 3, 25, 4
#: A moved camera may be anywhere near where it was [m, rad].
BUMP_SIGMA = (0.05, float(np.deg2rad(8.0)))
#: Smallest move that is reported as a bump [m, rad]; either suffices.
MIN_BUMP = (0.012, float(np.deg2rad(1.8)))


@dataclass(frozen=True)
class Bump:
    """A camera that was moved.

    Attributes:
        moved: name of a fixed camera, or ``mount``.
        stamp_ns: of the first frame after the move, as far as can be told [ns].
        noticed_ns: of the frame that gave it away [ns].
        metres, radians: size of the move.
        certain: False when the sights fit another camera's move nearly as well.
    """

    moved: str
    stamp_ns: int
    noticed_ns: int
    metres: float
    radians: float
    certain: bool

    def __str__(self) -> str:
        what = "the wrist camera's mount" if self.moved == MOUNT else f"camera '{self.moved}'"
        return (
            f"{what} moved by {1e3 * self.metres:.0f} mm and {np.rad2deg(self.radians):.1f} deg"
            + ("" if self.certain else " (another camera may have moved instead)")
            + "; it is being estimated anew."
        )


@dataclass(frozen=True)
class MountEstimate:
    """The mount, and how far to trust it.

    Attributes:
        T_hand_wrist: 4 x 4; the prior one while ``reason`` says why there is none better.
        covariance: 6 x 6 in the hand's axes.
        cameras: name -> ``T_base_camera`` of every fixed camera.
        camera_covariances: name -> 6 x 6 of those that are estimated.
        frames: frames in the window; inliers: share of the sights that the fit believes.
        reason: empty, or why the estimate is not to be used (the kinematic pose stays).
    """

    T_hand_wrist: FloatArray
    covariance: FloatArray
    cameras: dict[str, FloatArray]
    camera_covariances: dict[str, FloatArray]
    frames: int
    inliers: float
    reason: str = ""

    def wrist_pose(self, T_base_hand: FloatArray) -> tuple[FloatArray, FloatArray]:
        """``T_base_wrist`` and its 6 x 6 covariance in the base's axes."""
        turn = np.kron(np.eye(2), T_base_hand[:3, :3])
        return T_base_hand @ self.T_hand_wrist, turn @ self.covariance @ turn.T


def mount_prior(calibration: StationCalibration) -> Prior:
    """The mount that a calibration holds.

    Raises:
        CalibrationError: it has no mount, or none with a covariance.
    """
    if calibration.mount is None or MOUNT not in calibration.covariances:
        raise CalibrationError(
            "the calibration has no mount with a covariance; 'fused' needs both to start from. "
            "Remove the file to start from the given mount."
        )
    return Prior(calibration.mount, calibration.covariances[MOUNT])


def camera_priors(calibration: StationCalibration) -> dict[str, Prior]:
    """The fixed cameras that a calibration holds with a covariance, by name."""
    return {
        name: Prior(calibration.cameras[name].T_base_camera, covariance)
        for name, covariance in calibration.covariances.items()
        if name != MOUNT
    }


class MountEstimator:
    """Estimates the mount, and unknown fixed cameras, over a bounded window of frames.

    Args:
        mount: what is known of ``T_hand_wrist`` (the URDF's); counts by its covariance.
        cameras: known ``T_base_camera``. A name with a ``Prior`` is estimated and starts there; a
            4 x 4 array is taken as exact; a camera that is missing is estimated from nothing.
        keypoints: P x 3 points of the wrist camera that keypoint sights are about [m].
        errors: what the errors of sights are like.
        window: most frames that are kept; the oldest go first.
        false_alarm_rate: of the bump detection, per frame and camera; None switches it off.
    """

    def __init__(
        self,
        mount: Prior,
        cameras: Mapping[str, FloatArray | Prior] | None = None,
        *,
        keypoints: NDArray | None = None,
        errors: ErrorModel | None = None,
        window: int = 240,
        false_alarm_rate: float | None = 1e-6,
    ) -> None:
        if window < SETTLED_FRAMES:
            raise InvalidInputError(f"window {window} is below {SETTLED_FRAMES} frames.")
        self._priors: dict[str, Prior] = {MOUNT: mount}
        self._poses: dict[str, FloatArray] = {MOUNT: np.array(mount.T, np.float64)}
        for name, known in (cameras or {}).items():
            if isinstance(known, Prior):
                self._priors[name] = known
            self._poses[name] = np.array(known.T if isinstance(known, Prior) else known, np.float64)
        self._fixed = {n for n in self._poses if n not in self._priors}
        self._model = np.zeros((0, 3)) if keypoints is None else np.asarray(keypoints, np.float64)
        self._errors = errors or ErrorModel()
        self._frames: deque[WristObservation] = deque(maxlen=window)
        self._rate = false_alarm_rate
        self._detectors: dict[str, ShiftDetector] = {}
        self._reference: dict[str, FloatArray] | None = None
        self._fit: Fit | None = None
        self._new = 0
        self._estimate = self._kept("no frame has come yet")
        self.bumps: list[Bump] = []

    # --- frames -----------------------------------------------------------------------------------

    def add(self, observation: WristObservation) -> Bump | None:
        """Take one moment; returns a bump when this frame gives one away.

        A frame in which the hand stands still since the last one kept is left out.
        """
        if not observation.sights:
            return None
        if self._frames:
            last = self._frames[-1]
            metres, radians = pose_error(last.T_base_hand, observation.T_base_hand)
            if metres < MIN_MOTION[0] and radians < MIN_MOTION[1]:
                return None
        self._frames.append(observation)
        self._new += 1
        return self._watch(observation)

    def estimate(self) -> MountEstimate:
        """The present estimate; solved again when the window has grown by a tenth."""
        if self._new >= max(1, len(self._frames) // 10):
            self._new = 0
            self._estimate = self._solve()
        return self._estimate

    def camera_sigma(self, name: str) -> tuple[float, float]:
        """Largest standard deviations of an estimated camera; infinite for one without estimate.

        A camera far from a small workspace is sure of what it sees there long before it is sure
        of its own place, since its errors of position and rotation cancel there.

        Returns:
            Of the place, in the camera's frame, of a point in the middle of the hand's positions
            [m], and of the camera's rotation [rad].
        """
        estimate = self.estimate()
        covariance = estimate.camera_covariances.get(name)
        if covariance is None:
            return float("inf"), float("inf")
        middle = np.mean([o.T_base_hand[:3, 3] for o in self._frames], axis=0)
        arm = middle - estimate.cameras[name][:3, 3]  # poses change in the base's axes
        J = np.hstack([-np.eye(3), cross_matrices(arm)])
        point, turn = (
            np.linalg.eigvalsh(C)[-1] for C in (J @ covariance @ J.T, covariance[3:, 3:])
        )
        return float(np.sqrt(point)), float(np.sqrt(turn))

    # --- solving ----------------------------------------------------------------------------------

    def _sources(self, frames: list[WristObservation] | None = None) -> list[Source]:
        chosen = list(self._frames) if frames is None else frames
        names = sorted({name for o in chosen for name in o.sights})
        out = []
        for name in names:
            having = [o for o in chosen if name in o.sights]
            if name == BASE or name in self._poses or self._start(name, having):
                out.append(Source(name, having, self._model))
        return out

    def _start(self, name: str, having: list[WristObservation]) -> bool:
        """First pose of an unknown camera, by the mount as it is known now."""
        if len(having) < MIN_FRAMES:
            return False
        hands = np.stack([o.T_base_hand for o in having]) @ self._poses[MOUNT]
        source = Source(name, having, self._model)
        if not source.keypoints:
            self._poses[name] = average_pose(hands @ inverted(source.sights))[0]
            return True
        points = self._model @ np.swapaxes(hands[:, :3, :3], 1, 2) + hands[:, None, :3, 3]
        rays = (source.pixels - source.K[:, None, :2, 2]) / source.K[:, None, [0, 1], [0, 1]]
        seen = source.seen
        if seen.sum() < 6:
            return False
        ok, turn, shift, _ = cv2.solvePnPRansac(
            points[seen], rays[seen], np.eye(3), None, reprojectionError=0.03, iterationsCount=200
        )
        if not ok:
            return False
        T_camera_base = np.eye(4)
        T_camera_base[:3, :3] = cv2.Rodrigues(turn)[0]
        T_camera_base[:3, 3] = np.ravel(shift)
        self._poses[name] = invert(T_camera_base)
        return True

    def _solve(self) -> MountEstimate:
        sources = self._sources()
        names = {s.name for s in sources} - {BASE}
        free = [MOUNT, *sorted(n for n in names if n not in self._fixed)]
        try:
            if not sources:
                raise CalibrationError("no camera is placed yet")
            fit = fit_window(sources, self._poses, free, self._priors, self._errors)
        except CalibrationError as error:
            return self._kept(str(error))
        reason = self._weakness(fit)
        self._poses.update(fit.poses)
        self._fit = fit
        weights = np.concatenate([w[s.seen] for s, w in self._paired(sources, fit)])
        result = MountEstimate(
            fit.poses[MOUNT],
            fit.block(MOUNT),
            {n: T for n, T in fit.poses.items() if n != MOUNT},
            {n: fit.block(n) for n in free if n != MOUNT},
            len(self._frames),
            float((weights > 0.1).mean()),
            reason,
        )
        if reason:
            prior = self._priors[MOUNT]
            return replace(result, T_hand_wrist=prior.T, covariance=prior.covariance)
        if self._rate is not None and self._reference is None:
            self._begin_watch(sources)
        return result

    @staticmethod
    def _paired(sources: list[Source], fit: Fit) -> list[tuple[Source, FloatArray]]:
        return [(s, fit.weights[s.name]) for s in sources]

    def _weakness(self, fit: Fit) -> str:
        """Why the sights do not determine the mount, or nothing.

        What they say of it is their information less what the other free poses take; the prior of
        the mount is left out, those of the cameras count.
        """
        size = len(fit.information)
        others = fit.information + 0.0
        for i, name in enumerate(fit.free):
            if name != MOUNT and name in self._priors:
                block = slice(6 * i, 6 * i + 6)
                others[block, block] += np.linalg.inv(self._priors[name].covariance)
        scale = np.array([WORST_SIGMA[0]] * 3 + [WORST_SIGMA[1]] * 3)
        full = np.tile(scale, size // 6)
        scaled = others * full * full[:, None]
        rest = scaled[6:, 6:]
        given = scaled[:6, :6]
        if size > 6:
            given = given - scaled[:6, 6:] @ np.linalg.pinv(rest, rcond=1e-9) @ scaled[6:, :6]
        values, vectors = np.linalg.eigh(given)
        if values[0] >= 1:
            return ""
        turn = np.rad2deg(second_rotation(np.stack([o.T_base_hand for o in self._frames])))
        axis = vectors[:, 0]
        kind = "position" if np.linalg.norm(axis[:3]) > np.linalg.norm(axis[3:]) else "rotation"
        part = axis[:3] if kind == "position" else axis[3:]
        along = np.round(part / np.linalg.norm(part), 1) + 0.0
        sigma = 1 / np.sqrt(max(values[0], 1e-12))
        unit = f"{1e3 * WORST_SIGMA[0]:.0f} mm / {np.rad2deg(WORST_SIGMA[1]):.0f} deg"
        return (
            f"the mount is not determined: its {kind} about {along.tolist()} (hand axes) is "
            f"{min(sigma, 999):.1f} times less sure than {unit}. The hand turned by {turn:.0f} deg "
            "about a second axis so far; turn it about two axes, or give the cameras' poses."
        )

    def _kept(self, reason: str) -> MountEstimate:
        """The prior mount, with the reason."""
        prior = self._priors[MOUNT]
        cameras = {n: T for n, T in self._poses.items() if n != MOUNT}
        return MountEstimate(
            prior.T, prior.covariance, cameras, {}, len(self._frames), 0.0, f"{reason}."
        )

    # --- bumps ------------------------------------------------------------------------------------

    def _begin_watch(self, sources: list[Source]) -> None:
        if min(len(s.hands) for s in sources) < SETTLED_FRAMES:
            return
        self._reference = dict(self._poses)
        for source in sources:
            assert self._rate is not None
            detector = ShiftDetector(false_alarm_rate=self._rate)
            for value in _shifts(source, self._reference):
                detector.add(value)
            detector.accept()
            self._detectors[source.name] = detector

    def _watch(self, observation: WristObservation) -> Bump | None:
        if self._reference is None:
            return None
        alarms = {}
        for name, sight in observation.sights.items():
            if name not in self._detectors or (
                isinstance(sight, KeypointSight) and not np.isfinite(sight.sigma).any()
            ):
                continue
            value = _shifts(Source(name, [observation], self._model), self._reference)[0]
            if self._detectors[name].add(value):
                alarms[name] = self._detectors[name].onset()
        if not alarms or max(alarms.values()) < AFTER_BUMP:
            return None
        return self._explain(alarms, observation.stamp_ns)

    def _explain(self, alarms: Mapping[str, int], now_ns: int) -> Bump | None:
        """Which single move fits the newest frames best; None when it is too small to matter."""
        assert self._reference is not None
        reference = self._reference
        after = list(self._frames)[-max(alarms.values()) :]
        before = list(self._frames)[: -len(after)]
        known = {**reference}
        old = {s.name: s for s in self._sources(before)}
        sources = [s for s in self._sources(after) if s.name in old and s.name in self._detectors]
        for source in sources:
            _remove_lasting(source, old[source.name], reference)
        costs: dict[str, tuple[float, FloatArray]] = {}
        for name in [MOUNT, *(n for n in alarms if n != BASE)]:
            prior = {name: Prior.from_sigma(reference[name], BUMP_SIGMA)}
            fit = fit_window(sources, known, [name], prior, self._errors)
            costs[name] = (_cost(sources, fit.poses), fit.poses[name])
        ranked = sorted(costs, key=lambda n: costs[n][0])
        moved = ranked[0]
        cost, pose = costs[moved]
        metres, radians = pose_error(reference[moved], pose)
        if (metres < MIN_BUMP[0] and radians < MIN_BUMP[1]) or cost > 0.8 * _cost(sources, known):
            for name in alarms:
                self._detectors[name].accept()
            return None
        rival = costs[ranked[1]][0] if len(ranked) > 1 else np.inf
        stamp = after[0].stamp_ns
        bump = Bump(moved, stamp, now_ns, metres, radians, bool(rival > 1.15 * cost))
        self.bumps.append(bump)
        self._restart(moved, pose, stamp)
        return bump

    def _restart(self, moved: str, pose: FloatArray, stamp_ns: int) -> None:
        """Forget what the move made wrong, and estimate that pose anew from where it was."""
        kept = []
        for o in self._frames:
            sights = o.sights
            if o.stamp_ns < stamp_ns:
                sights = {n: s for n, s in sights.items() if moved not in (MOUNT, n)}
            if sights:
                kept.append(replace(o, sights=sights))
        if moved != MOUNT and self._fit is not None:
            self._poses[MOUNT] = self._fit.poses[MOUNT]
        self._frames.clear()
        self._frames.extend(kept)
        assert self._reference is not None
        self._priors[moved] = Prior.from_sigma(self._reference[moved], BUMP_SIGMA)
        self._fixed.discard(moved)
        self._poses[moved] = pose
        self._reference = None
        self._detectors.clear()
        self._new = max(1, len(kept))

    # --- keeping ----------------------------------------------------------------------------------

    def calibration(
        self,
        cameras: Mapping[str, CameraModel] | None = None,
        *,
        wrist_camera: CameraModel | None = None,
        base_frame: str = "base_link",
        hand_frame: str = "hand",
        made: str = "",
    ) -> StationCalibration:
        """The present estimate for ``save_calibration``; ``cameras`` gives intrinsics by name."""
        e = self.estimate()
        models = cameras or {}
        return StationCalibration(
            mount=e.T_hand_wrist,
            wrist_camera=wrist_camera,
            cameras={n: PlacedCamera(models.get(n), T) for n, T in e.cameras.items()},
            covariances={MOUNT: e.covariance, **e.camera_covariances},
            residuals={"inlier_share": e.inliers, "window_frames": float(e.frames)},
            base_frame=base_frame,
            hand_frame=hand_frame,
            made=made,
        )

    @classmethod
    def from_calibration(
        cls,
        calibration: StationCalibration,
        *,
        keypoints: NDArray | None = None,
        errors: ErrorModel | None = None,
        window: int = 240,
        false_alarm_rate: float | None = 1e-6,
    ) -> MountEstimator:
        """Start from a saved calibration; poses with a covariance go on being estimated.

        Raises:
            CalibrationError: it has no mount, or none with a covariance.
        """
        mount = mount_prior(calibration)
        priors = camera_priors(calibration)
        known: dict[str, FloatArray | Prior] = {
            name: priors.get(name, placed.T_base_camera)
            for name, placed in calibration.cameras.items()
        }
        return cls(
            mount,
            known,
            keypoints=keypoints,
            errors=errors,
            window=window,
            false_alarm_rate=false_alarm_rate,
        )


def _shifts(source: Source, poses: Mapping[str, FloatArray]) -> FloatArray:
    """Mean error of every frame over its points, n x d, in stated sigmas."""
    error = source.residuals(poses)[0]
    seen = source.seen[..., None]
    return np.asarray((error * seen).sum(1) / np.maximum(seen.sum(1), 1))


def _remove_lasting(recent: Source, old: Source, poses: Mapping[str, FloatArray]) -> None:
    """Take the lasting error before a move off the sights after it."""
    if not recent.keypoints:
        return
    error = old.residuals(poses)[0]
    seen = old.seen[..., None]
    mean = np.nanmedian(np.where(seen, error, np.nan), axis=0)
    offset = np.nan_to_num(mean) * np.where(recent.seen, recent.sigma, 0.0)[..., None]
    recent.pixels = recent.pixels + offset


def _cost(sources: list[Source], poses: Mapping[str, FloatArray]) -> float:
    """Sum of error norms (robust: not squared) over all seen points."""
    return sum(
        float((np.linalg.norm(s.residuals(poses)[0], axis=-1) * s.seen).sum()) for s in sources
    )
