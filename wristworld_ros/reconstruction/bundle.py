"""Mount and fixed cameras from sights of the wrist camera over a window of frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from wristworld_ros.errors import CalibrationError, InvalidInputError
from wristworld_ros.reconstruction.calibration_file import MOUNT, check_covariance
from wristworld_ros.reconstruction.hand_eye import (
    cross_matrices,
    difference,
    perturb,
    pose_residuals,
    tukey_weights,
)
from wristworld_ros.types import FloatArray, check_transform

#: Name of the sight that is a pose in the robot's base frame.
BASE = "base"
#: Points nearer than this before a camera [m] are held there.
MIN_DEPTH = 0.05
#: Largest step of one iteration [m, rad].
MAX_STEP = 0.2


@dataclass(frozen=True)
class KeypointSight:
    """Points of the wrist camera found in the picture of a fixed camera.

    Attributes:
        pixels: P x 2 [px].
        sigma: P, stated standard deviation per axis [px]; infinite where a point was not seen.
        K: 3 x 3 of that picture (undistorted).
    """

    pixels: NDArray[np.floating]
    sigma: NDArray[np.floating]
    K: NDArray[np.floating]

    def __post_init__(self) -> None:
        sigma, pixels = np.asarray(self.sigma), np.asarray(self.pixels)
        if pixels.shape != (*sigma.shape, 2) or sigma.ndim != 1 or np.shape(self.K) != (3, 3):
            raise InvalidInputError(
                f"keypoints of shape {pixels.shape} with sigmas {sigma.shape} and K "
                f"{np.shape(self.K)}; need P x 2, P and 3 x 3."
            )
        if not (sigma > 0).all() or not np.isfinite(pixels[np.isfinite(sigma)]).all():
            raise InvalidInputError(
                "keypoints need finite pixels and positive sigmas; give an infinite sigma to a "
                "point that was not seen."
            )


@dataclass(frozen=True)
class PoseSight:
    """Pose of the wrist camera, estimated from pictures.

    Attributes:
        T: 4 x 4 ``T_base_wrist`` (name ``base``) or ``T_camera_wrist`` (name of a camera).
        covariance: 6 x 6 stated covariance, in the axes of base or camera.
    """

    T: FloatArray
    covariance: FloatArray

    def __post_init__(self) -> None:
        check_transform(self.T, "estimated wrist pose")
        check_covariance(self.covariance, "covariance of the estimated wrist pose")


@dataclass(frozen=True)
class WristObservation:
    """What one moment says: kinematics, and sights by camera name (or ``base``).

    Attributes:
        stamp_ns: [ns].
        T_base_hand: 4 x 4.
        sights: name -> sight.
    """

    stamp_ns: int
    T_base_hand: FloatArray
    sights: Mapping[str, KeypointSight | PoseSight] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_transform(self.T_base_hand, "T_base_hand")
        if MOUNT in self.sights:
            raise InvalidInputError(f"a camera cannot be called '{MOUNT}'; rename it.")


class Source:
    """All sights of one name and kind in a window, stacked."""

    def __init__(
        self, name: str, observations: Sequence[WristObservation], model: FloatArray
    ) -> None:
        self.name = name
        sights = [o.sights[name] for o in observations]
        self.stamps = [o.stamp_ns for o in observations]
        self.hands = np.stack([o.T_base_hand for o in observations])
        self.keypoints = isinstance(sights[0], KeypointSight)
        if any(isinstance(s, KeypointSight) != self.keypoints for s in sights):
            raise InvalidInputError(f"sights of '{name}' are poses in some frames only.")
        if self.keypoints:
            found = [s for s in sights if isinstance(s, KeypointSight)]
            self.model = model
            self.sigma = np.stack([np.asarray(s.sigma, np.float64) for s in found])
            seen = np.isfinite(self.sigma)[..., None]
            pixels = np.stack([np.asarray(s.pixels, np.float64) for s in found])
            self.pixels = np.where(seen, pixels, 0.0)
            self.K = np.stack([np.asarray(s.K, np.float64) for s in found])
            if self.sigma.shape[1] != len(model):
                raise InvalidInputError(
                    f"'{name}' gives {self.sigma.shape[1]} keypoints; the model has {len(model)}."
                )
        else:
            poses = [s for s in sights if isinstance(s, PoseSight)]
            self.sights = np.stack([s.T for s in poses])
            covariances = np.stack([s.covariance for s in poses])
            self.whitener = np.linalg.inv(np.linalg.cholesky(covariances + 1e-14 * np.eye(6)))
            self.sigma = np.ones((len(poses), 1))

    def residuals(self, poses: Mapping[str, FloatArray]) -> tuple[FloatArray, FloatArray]:
        """Errors in stated sigmas (n x k x d) and derivatives by mount and camera (n x k x d x 12).

        A keypoint that was not seen has zeros.
        """
        mount = poses[MOUNT]
        camera = np.eye(4) if self.name == BASE else poses[self.name]
        if not self.keypoints:
            error, jacobian = pose_residuals(self.hands, mount, camera, self.sights)
            error = np.einsum("nij,nj->ni", self.whitener, error)
            return error[:, None], (self.whitener @ jacobian)[:, None]
        R_h, t_h, R_c = self.hands[:, None, :3, :3], self.hands[:, None, :3, 3], camera[:3, :3].T
        arm = self.model @ mount[:3, :3].T
        from_camera = (R_h @ (arm + mount[:3, 3])[..., None])[..., 0] + t_h - camera[:3, 3]
        x = from_camera @ R_c.T
        z = np.maximum(x[..., 2:], MIN_DEPTH)
        focal = self.K[:, None, [0, 1], [0, 1]]
        xy = x[..., :2] / z
        error = xy * focal + self.K[:, None, :2, 2] - self.pixels
        d_x = np.empty((*x.shape, 12))
        turned = R_c @ R_h
        d_x[..., :3] = turned
        d_x[..., 3:6] = -turned @ cross_matrices(arm)
        d_x[..., 6:9] = -R_c
        d_x[..., 9:] = R_c @ cross_matrices(from_camera)
        scale = focal / z / self.sigma[..., None]
        jacobian = scale[..., None] * (d_x[..., :2, :] - xy[..., None] * d_x[..., 2:, :])
        return error / self.sigma[..., None], jacobian

    @property
    def seen(self) -> NDArray[np.bool_]:
        """n x k, whether the keypoint was seen."""
        return np.isfinite(self.sigma)


@dataclass(frozen=True)
class Prior:
    """A pose that is known to a covariance (6 x 6)."""

    T: FloatArray
    covariance: FloatArray

    @classmethod
    def from_sigma(cls, T: FloatArray, sigma: tuple[float, float]) -> Prior:
        """Equal standard deviations per axis: translation [m], rotation [rad]."""
        if not (min(sigma) > 0 and np.isfinite(sigma).all()):
            raise CalibrationError(f"sigmas {sigma} of a prior pose must be positive and finite.")
        return cls(T, np.diag([sigma[0] ** 2] * 3 + [sigma[1] ** 2] * 3))


@dataclass(frozen=True)
class Fit:
    """Poses that fit a window.

    Attributes:
        poses: name -> 4 x 4, all of them.
        free: names of the fitted ones, in the order of the covariance.
        covariance: 6 F x 6 F.
        information: 6 F x 6 F of the sights alone, without priors.
        weights: name of a source -> n x k robust weights in [0, 1].
        noise: name of a source -> (lasting error, error that varies) in stated sigmas.
    """

    poses: dict[str, FloatArray]
    free: tuple[str, ...]
    covariance: FloatArray
    information: FloatArray
    weights: dict[str, FloatArray]
    noise: dict[str, tuple[float, float]]

    def block(self, name: str) -> FloatArray:
        """6 x 6 covariance of one pose."""
        i = 6 * self.free.index(name)
        return self.covariance[i : i + 6, i : i + 6]


@dataclass(frozen=True)
class ErrorModel:
    """What the errors of sights are like, beyond their stated sigmas; measured on val.

    The error of a point in one camera has a part that lasts over the whole window (the network errs
    the same way in pictures that look the same), and a part that varies from frame to frame. Only
    the latter shrinks with the number of frames.

    Attributes:
        lasting: expected size of the lasting part, in stated sigmas.
        strength: how many measured values this expectation is worth.
        shared: points of one camera err together: this many count as one.
    """

    lasting: float = 1.0
    strength: float = 6.0
    shared: float = 4.0


def fit_window(
    sources: Sequence[Source],
    poses: Mapping[str, FloatArray],
    free: Sequence[str],
    priors: Mapping[str, Prior],
    model: ErrorModel,
    *,
    iterations: int = 30,
) -> Fit:
    """Maximum a posteriori poses: Gauss-Newton with Tukey weights, each source at its own error.

    The squared residuals of a point are averaged over the window, not summed: what lasts does not
    average out. Each source is weighted by what its mean residuals say of its lasting error,
    together with the error model, plus its varying error over the effective number of frames
    (autocorrelation at lag 1).

    Raises:
        CalibrationError: neither sights nor priors determine the free poses.
    """
    current = {name: np.array(T) for name, T in poses.items()}
    index = {name: 6 * i for i, name in enumerate(free)}
    size = 6 * len(free)
    weights: dict[str, FloatArray] = {}
    noise: dict[str, tuple[float, float]] = {}
    values = sum(2 * len(s.model) for s in sources if s.keypoints)
    freedom = max(values / max(values - size, 1), 1.0) if values else 1.0
    for iteration in range(iterations):
        information, prior_information = np.zeros((size, size)), np.zeros((size, size))
        gradient = np.zeros(size)
        for source in sources:
            error, jacobian = source.residuals(current)
            robust = _robust(error, source.seen, soft=iteration < 3)
            weights[source.name] = robust
            lasting, varying = _error_parts(error, robust, source, model, freedom)
            noise[source.name] = (lasting, varying[0])
            count = np.maximum(robust.sum(0), 1e-9)
            shared = model.shared if source.keypoints else 1.0
            total = shared * (lasting**2 + varying[0] ** 2 / varying[1])
            weight = (robust / (count * total))[..., None]
            names = [(MOUNT, 0), (source.name, 6)]
            blocks = [(index[n], jacobian[..., o : o + 6]) for n, o in names if n in index]
            for i, J in blocks:
                gradient[i : i + 6] += np.einsum("nkdi,nkd->i", J, error * weight)
                for j, J2 in blocks:
                    information[i : i + 6, j : j + 6] += np.einsum(
                        "nkdi,nkdj->ij", J * weight[..., None], J2
                    )
        for name, prior in priors.items():
            if name in index:
                block = slice(index[name], index[name] + 6)
                inverse = np.linalg.inv(prior.covariance)
                prior_information[block, block] += inverse
                gradient[block] += inverse @ difference(prior.T, current[name])
        total_information = information + prior_information
        try:
            covariance = _inverse(total_information)
        except np.linalg.LinAlgError:
            raise CalibrationError(
                f"the poses of {', '.join(free)} are not determined by {len(sources)} sources over "
                "this window; state a prior for them, or move the hand more."
            ) from None
        step = -covariance @ gradient
        step *= min(1.0, MAX_STEP / max(float(np.abs(step).max()), 1e-12))
        for name, i in index.items():
            current[name] = perturb(current[name], step[i : i + 6])
        if iteration > 4 and np.abs(step).max() < 2e-6:
            break
    return Fit(current, tuple(free), covariance, information, weights, noise)


def _inverse(information: FloatArray) -> FloatArray:
    """Inverse of a positive definite matrix; LinAlgError when it is singular in its own scale."""
    scale = 1 / np.sqrt(np.maximum(np.diag(information), 1e-300))
    scaled = information * scale * scale[:, None]
    values = np.linalg.eigvalsh(scaled)
    if not values[0] > 1e-10:
        raise np.linalg.LinAlgError
    out = np.linalg.inv(scaled) * scale * scale[:, None]
    return np.asarray((out + out.T) / 2)


def _robust(error: FloatArray, seen: NDArray[np.bool_], *, soft: bool) -> FloatArray:
    """n x k weights; ``soft`` ones (Huber) keep far points in play while the start is far off."""
    norms = np.linalg.norm(error, axis=-1)
    weights = np.zeros(seen.shape)
    if not seen.any():
        return weights
    if soft:
        limit = np.median(norms[seen])
        weights[seen] = np.minimum(1.0, limit / np.maximum(norms[seen], 1e-12))
    else:
        weights[seen] = tukey_weights(norms[seen], error.shape[-1])
    return weights


def _error_parts(
    error: FloatArray, robust: FloatArray, source: Source, model: ErrorModel, freedom: float
) -> tuple[float, tuple[float, float]]:
    """Lasting error, and (varying error, effective number of frames), in stated sigmas."""
    count = robust.sum(0)[:, None]
    mean = (robust[..., None] * error).sum(0) / np.maximum(count, 1e-9)
    deviation = error - mean
    energy = float((robust[..., None] * deviation**2).sum())
    varying2 = energy / max(float(robust.sum()) * error.shape[-1], 1e-9)
    n = len(error)
    correlation = 0.0
    if n > 2:
        pair = np.minimum(robust[1:], robust[:-1])[..., None]
        correlation = float((pair * deviation[1:] * deviation[:-1]).sum()) / max(energy, 1e-12)
        correlation = float(np.clip(correlation, 0.0, 0.95))
    effective = max(n * (1 - correlation) / (1 + correlation), 1.0)
    if n < 5:  # too few to tell the parts apart
        varying2 = max(varying2, model.lasting**2)
    if not source.keypoints:  # the mean residual of poses is what the fit makes zero
        return model.lasting, (float(np.sqrt(varying2)), effective)
    measured = max(float((mean**2).mean()) * freedom - varying2 / effective, 0.0)
    worth = error.shape[1] * error.shape[2] / model.shared
    lasting2 = (model.strength * model.lasting**2 + worth * measured) / (model.strength + worth)
    return float(np.sqrt(lasting2)), (float(np.sqrt(varying2)), effective)
