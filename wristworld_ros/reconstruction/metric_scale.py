"""One metric scale for reconstructions whose own scale is arbitrary (VGGT's, method.md, section 2).

Each source gives a factor that multiplies the reconstruction's lengths to make metres, with its
error, or refuses with the reason. ``MetricScale`` keeps one factor over time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wristworld_ros.errors import CalibrationError, InvalidInputError
from wristworld_ros.types import FloatArray

#: Two cameras have to be this far apart [m].
MIN_BASELINE = 0.02
#: Share of the pixels, and number of them, that need measured and predicted depth.
MIN_OVERLAP, MIN_PIXELS = 0.02, 100
#: A path has to spread by this much (RMS) [m], and this much across its main direction.
MIN_SPREAD, MIN_SECOND_SPREAD = 0.02, 0.005
#: Relative errors of more than this many robust standard deviations are outliers.
OUTLIER = 3.0
#: Errors are not believed to be smaller than this (relative).
NOISE_FLOOR = 1e-6


@dataclass(frozen=True)
class ScaleEstimate:
    """A factor from the reconstruction's unit to metres.

    Attributes:
        scale: metres per unit.
        residual: RMS relative error of the inliers (of a path: RMS distance over its spread).
        sigma: standard deviation of log scale, from the residuals.
        inliers, total: measurements used and given.
        source: ``extrinsics``, ``depth``, ``kinematics`` or ``forward_motion``.
    """

    scale: float
    residual: float
    sigma: float
    inliers: int
    total: int
    source: str


def scale_from_extrinsics(
    estimated: NDArray, known: NDArray, *, min_baseline: float = MIN_BASELINE
) -> ScaleEstimate:
    """From the distances between anchors whose extrinsics are known.

    Args:
        estimated: V x 4 x 4 poses of the anchors (camera to world) in the reconstruction's unit.
        known: V x 4 x 4, the same in metres.
        min_baseline: pairs that are nearer to each other [m] are left out.

    Raises:
        CalibrationError: fewer than two cameras, all at one place, or distances contradict.
    """
    estimated, known = _poses(estimated, "estimated"), _poses(known, "known")
    if len(estimated) != len(known) or len(known) < 2:
        raise CalibrationError(
            f"scale from extrinsics: {len(estimated)} estimated and {len(known)} known cameras; "
            "need the same two or more. With one camera take the scale from depth or kinematics."
        )
    i, j = np.triu_indices(len(known), 1)
    metres = np.linalg.norm(known[i, :3, 3] - known[j, :3, 3], axis=1)
    units = np.linalg.norm(estimated[i, :3, 3] - estimated[j, :3, 3], axis=1)
    use = metres >= min_baseline
    if not use.any():
        raise CalibrationError(
            f"scale from extrinsics: the cameras are at most {metres.max():.3g} m apart; need "
            f"{min_baseline:g} m. There is no baseline to take a scale from."
        )
    if (units[use] <= 1e-9 * max(1.0, float(np.abs(estimated[:, :3, 3]).max()))).any():
        raise CalibrationError(
            "scale from extrinsics: the reconstruction puts two cameras at one place that are "
            f"{metres[use].max():.3g} m apart. It has failed; use views that overlap more."
        )
    return _log_scale(np.log(metres[use] / units[use]), metres[use], "extrinsics")


def scale_from_depth(
    predicted: NDArray,
    measured: NDArray,
    *,
    confidence: NDArray | None = None,
    min_confidence: float = 0.0,
    max_pixels: int = 20_000,
) -> ScaleEstimate:
    """From a depth camera: the robust mean of log ratios over the pixels that both know.

    Args:
        predicted: ... x H x W depth in the reconstruction's unit, 0 where unknown.
        measured: the same shape [m], 0 or not finite where unknown.
        confidence: the same shape; pixels below ``min_confidence`` are left out.
        max_pixels: more are thinned out evenly.

    Raises:
        CalibrationError: too little overlap of the two.
    """
    predicted, measured = np.asarray(predicted, np.float64), np.asarray(measured, np.float64)
    if predicted.shape != measured.shape:
        raise InvalidInputError(
            f"predicted depth has shape {predicted.shape}, measured {measured.shape}; resize one."
        )
    both = np.isfinite(predicted) & np.isfinite(measured) & (predicted > 0) & (measured > 0)
    if confidence is not None:
        both &= np.asarray(confidence) >= min_confidence
    count = int(both.sum())
    need = max(MIN_PIXELS, int(MIN_OVERLAP * both.size))
    if count < need:
        raise CalibrationError(
            f"scale from depth: {count} of {both.size} pixels have measured and predicted depth; "
            f"need {need}. Check that depth is registered to colour and in range."
        )
    keep = np.flatnonzero(both)[:: max(1, count // max_pixels)]
    ratios = np.log(measured.ravel()[keep]) - np.log(predicted.ravel()[keep])
    # Neighbouring pixels err together: no more independent than a coarse grid of them.
    return _log_scale(ratios, None, "depth", independent=min(len(ratios), 64))


@dataclass(frozen=True)
class PathAlignment:
    """Similarity that maps an estimated path to a known one: x = s R y + t."""

    estimate: ScaleEstimate
    rotation: FloatArray
    translation: FloatArray


def scale_from_kinematics(
    estimated: NDArray, known: NDArray, *, min_spread: float = MIN_SPREAD, seed: int = 0
) -> PathAlignment:
    """From the path of the wrist: a robust similarity (Umeyama, doi 10.1109/34.88573).

    The path has to be that of one point: the wrist camera's by kinematics with its mount, or, with
    an unknown mount, as good as the hand's as long as the hand turns little.

    Args:
        estimated: N x 3 positions in the reconstruction's unit.
        known: N x 3 positions in the base frame [m].

    Raises:
        CalibrationError: fewer than 4 positions, no motion, motion along a line (its rotation is
            then open, and outliers cannot be told), or fewer than half of them agree.
    """
    y, x = _points(estimated, "estimated"), _points(known, "known")
    if len(x) != len(y) or len(x) < 4:
        raise CalibrationError(
            f"scale from kinematics: {len(y)} estimated and {len(x)} known positions; need the "
            "same number, at least 4."
        )
    spread = np.linalg.svd(x - x.mean(0), compute_uv=False) / np.sqrt(len(x))
    if np.linalg.norm(spread) < min_spread:
        raise CalibrationError(
            f"scale from kinematics: the wrist moved by only {np.linalg.norm(spread):.3g} m RMS; "
            f"need {min_spread:g} m. Move the robot."
        )
    if spread[1] < MIN_SECOND_SPREAD:
        raise CalibrationError(
            f"scale from kinematics: the wrist moved along a line (only {spread[1]:.2g} m RMS "
            f"across it; need {MIN_SECOND_SPREAD:g} m). Move it in a second direction."
        )
    rng = np.random.default_rng(seed)
    best, best_cost = None, np.inf
    for trial in range(100):
        pick = np.arange(len(x)) if trial == 0 else rng.choice(len(x), 4, replace=False)
        try:
            s, R, t = _umeyama(y[pick], x[pick])
        except np.linalg.LinAlgError:
            continue
        cost = float(np.median(np.linalg.norm(x - s * y @ R.T - t, axis=1)))
        if cost < best_cost:
            best, best_cost = (s, R, t), cost
    if best is None:
        raise CalibrationError(
            "scale from kinematics: the estimated wrist does not move. The reconstruction failed."
        )
    s, R, t = best
    for _ in range(5):
        distance = np.linalg.norm(x - s * y @ R.T - t, axis=1)
        # The median length of a 3-D normal vector is 1.538 sigma, and 99.9 % are below 4 sigma.
        inlier = distance <= 4 * max(float(np.median(distance)) / 1.538, NOISE_FLOOR)
        s, R, t = _umeyama(y[inlier], x[inlier])
    distance = np.linalg.norm(x - s * y @ R.T - t, axis=1)
    size = float(np.linalg.norm(x[inlier] - x[inlier].mean(0)) / np.sqrt(inlier.sum()))
    residual = float(np.sqrt((distance[inlier] ** 2).mean())) / size
    if inlier.sum() < max(4, len(x) / 2) or residual > 0.5:
        raise CalibrationError(
            f"scale from kinematics: {int(inlier.sum())} of {len(x)} positions agree, with a "
            f"residual of {100 * residual:.0f} % of the path. Check that both paths belong to the "
            "same point and the same stamps."
        )
    n = int(inlier.sum())
    sigma = residual / np.sqrt(3 * max(n - 3, 1)) + NOISE_FLOOR
    estimate = ScaleEstimate(s, residual, sigma, n, len(x), "kinematics")
    return PathAlignment(estimate, R, t)


def scale_from_forward_motion(
    estimated: NDArray, travelled: NDArray, *, min_travel: float = MIN_SPREAD
) -> ScaleEstimate:
    """From known moves along the wrist camera's axis (an approach to the table, for one).

    Needs no extrinsics and no common frame: each move gives one ratio of lengths.

    Args:
        estimated: N + 1 x 4 x 4 wrist poses (camera to world) in the reconstruction's unit.
        travelled: N signed moves along the optical axis between them [m], by kinematics.

    Raises:
        CalibrationError: no move is long enough, or the estimated wrist does not go forward.
    """
    poses, metres = _poses(estimated, "estimated"), np.asarray(travelled, np.float64)
    if metres.shape != (len(poses) - 1,) or not np.isfinite(metres).all():
        raise CalibrationError(
            f"scale from forward motion: {len(poses)} poses and moves of shape {metres.shape}; "
            "need one finite move less than poses."
        )
    step = poses[1:, :3, 3] - poses[:-1, :3, 3]
    units = (step * poses[:-1, :3, 2]).sum(1)
    use = np.abs(metres) >= min_travel
    if not use.any():
        raise CalibrationError(
            "scale from forward motion: the longest move is "
            f"{np.abs(metres).max(initial=0.0):.3g} m along the axis; need {min_travel:g} m."
        )
    agree = use & (units * metres > 0)
    if agree.sum() < use.sum() / 2 or not agree.any():
        raise CalibrationError(
            f"scale from forward motion: in {int(use.sum() - agree.sum())} of {int(use.sum())} "
            "moves the estimated wrist goes the other way or nowhere. The poses are of no use."
        )
    ratios = np.log(metres[agree] / units[agree])
    return _log_scale(ratios, np.abs(metres[agree]), "forward_motion", total=int(use.sum()))


class MetricScale:
    """One scale over time: a robust running mean in log space.

    Each estimate counts by 1 / sigma^2, but never as surer than ``floor``: the errors of one source
    last. An estimate that is more than 3 sigma off is not believed; when ``patience`` in a row
    agree with each other against the scale, they replace it (the reconstruction's unit changed).

    Args:
        floor: smallest standard deviation of log scale of one estimate.
        window: most estimates that count.
        patience: estimates in a row that change the scale.
    """

    def __init__(self, *, floor: float = 0.01, window: int = 200, patience: int = 10) -> None:
        if not 0 < floor < 1 or window < 1 or patience < 2:
            raise InvalidInputError(
                f"floor {floor} must lie in (0, 1), window {window} be at least 1 and patience "
                f"{patience} at least 2."
            )
        self._floor, self._patience = floor, patience
        self._kept: deque[tuple[float, float]] = deque(maxlen=window)
        self._against: list[tuple[float, float]] = []
        self.rejected = 0
        self.restarts = 0

    @property
    def scale(self) -> float:
        """Metres per unit.

        Raises:
            CalibrationError: there is no estimate yet.
        """
        return float(np.exp(self._mean()[0]))

    @property
    def sigma(self) -> float:
        """Standard deviation of log scale."""
        return self._mean()[1]

    def add(self, estimate: ScaleEstimate) -> bool:
        """Take an estimate; whether it is believed.

        Raises:
            InvalidInputError: the scale is not positive and finite, or its sigma negative.
        """
        if not (np.isfinite(estimate.scale) and estimate.scale > 0 and estimate.sigma >= 0):
            raise InvalidInputError(
                f"scale {estimate.scale} with sigma {estimate.sigma}: need positive, finite values."
            )
        value = (float(np.log(estimate.scale)), max(estimate.sigma, self._floor))
        if self._kept:
            mean, sigma = self._mean()
            if abs(value[0] - mean) > OUTLIER * np.hypot(value[1], sigma):
                self.rejected += 1
                self._against.append(value)
                self._against = self._against[-self._patience :]
                return self._replace()
        self._against.clear()
        self._kept.append(value)
        return True

    def _replace(self) -> bool:
        if len(self._against) < self._patience:
            return False
        logs, sigmas = np.array(self._against).T
        if np.abs(logs - np.median(logs)).max() > OUTLIER * np.sqrt(2) * sigmas.max():
            return False
        self._kept.clear()
        self._kept.extend(self._against)
        self._against = []
        self.restarts += 1
        return True

    def _mean(self) -> tuple[float, float]:
        if not self._kept:
            raise CalibrationError(
                "no metric scale yet: give known extrinsics, a depth camera, kinematics, or move "
                "the wrist forward by a known length."
            )
        logs, sigmas = np.array(self._kept).T
        weights = sigmas**-2
        mean = float(weights @ logs / weights.sum())
        return mean, float(max(weights.sum() ** -0.5, self._floor / 3))

    def state(self) -> Mapping[str, float]:
        """For ``StationCalibration.residuals``: ``metric_scale`` and ``metric_scale_log_sigma``."""
        return {"metric_scale": self.scale, "metric_scale_log_sigma": self.sigma}

    @classmethod
    def from_state(cls, state: Mapping[str, float]) -> MetricScale:
        """Go on from ``state``.

        Raises:
            CalibrationError: it holds no scale.
        """
        if not {"metric_scale", "metric_scale_log_sigma"} <= set(state):
            raise CalibrationError(f"no metric_scale among {sorted(state)}.")
        out = cls()
        sigma = float(state["metric_scale_log_sigma"])
        out.add(ScaleEstimate(float(state["metric_scale"]), 0.0, sigma, 1, 1, "saved"))
        return out


def _log_scale(
    logs: FloatArray,
    weights: FloatArray | None,
    source: str,
    *,
    independent: int | None = None,
    total: int | None = None,
) -> ScaleEstimate:
    """Robust mean of log ratios; long distances count more (their relative error is smaller)."""
    weights = np.ones(len(logs)) if weights is None else weights**2
    order = np.argsort(logs)
    half = np.cumsum(weights[order]) >= weights.sum() / 2
    centre = float(logs[order][int(np.argmax(half))])
    spread = 1.4826 * float(np.median(np.abs(logs - centre)))
    inlier = np.abs(logs - centre) <= OUTLIER * max(spread, NOISE_FLOOR)
    w = weights * inlier
    mean = float(w @ logs / w.sum())
    residual = float(np.sqrt(w @ (logs - mean) ** 2 / w.sum()))
    n = int(inlier.sum())
    count = min(n, independent or n)
    # One measurement says nothing of its own error: it is taken for 10 %.
    sigma = 0.1 if count == 1 else residual / np.sqrt(count - 1) + NOISE_FLOOR
    return ScaleEstimate(
        float(np.exp(mean)),
        residual,
        float(sigma),
        n,
        len(logs) if total is None else total,
        source,
    )


def _umeyama(y: FloatArray, x: FloatArray) -> tuple[float, FloatArray, FloatArray]:
    """s, R, t with x = s R y + t; LinAlgError when y does not move."""
    my, mx = y.mean(0), x.mean(0)
    variance = float(((y - my) ** 2).sum())
    if not variance > 1e-18:
        raise np.linalg.LinAlgError
    U, D, Vt = np.linalg.svd((x - mx).T @ (y - my))
    sign = np.array([1.0, 1.0, np.sign(np.linalg.det(U @ Vt))])
    R = U @ np.diag(sign) @ Vt
    s = float(D @ sign) / variance
    if not s > 0:
        raise np.linalg.LinAlgError
    return s, R, mx - s * R @ my


def _poses(T: NDArray, name: str) -> FloatArray:
    T = np.asarray(T, np.float64)
    if T.ndim != 3 or T.shape[1:] != (4, 4) or not np.isfinite(T).all():
        raise CalibrationError(f"{name} poses have shape {T.shape}; need N x 4 x 4 finite values.")
    return T


def _points(x: NDArray, name: str) -> FloatArray:
    x = np.asarray(x, np.float64)
    if x.ndim != 2 or x.shape[1] != 3 or not np.isfinite(x).all():
        raise CalibrationError(f"{name} path has shape {x.shape}; need N x 3 finite values.")
    return x
