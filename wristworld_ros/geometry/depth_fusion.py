"""Measured and predicted depth of one view: one depth, one confidence.

A confidence in [0, 1] stands for an expected relative error of ``ERROR_SCALE`` (1 - confidence);
below 0, for a pixel that is not to be used.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from wristworld_ros.errors import InvalidInputError

Float32 = NDArray[np.float32]

#: Expected relative depth error at confidence 0: the weight of log(c) in the loss of the network's
#: confidence c, whose minimum over c is at an expected error of 0.05 / c; confidence is 1 - 1 / c.
ERROR_SCALE = 0.05
#: Noise of a depth camera [m]: first + second x depth^2, as of structured light and stereo.
SENSOR_NOISE = (0.001, 0.002)
#: Measured and predicted depth contradict one another beyond this many expected errors.
GATE = 3.0
#: Fewer pixels with both depths than this leave the prediction as it is.
MIN_PIXELS = 64
#: The fit looks at about this many of them, evenly spread.
MAX_PIXELS = 4096
#: Errors of neighbours go together: a frame weighs as much as this many observations ...
OBSERVATIONS = 100.0
#: ... against a scale of 1 and a shift of 0, in units of the mean inverse depth, within these.
SCALE_SIGMA, SHIFT_SIGMA = 0.2, 0.1
#: Residuals beyond this many medians count nothing: Tukey's 4.685 sigma.
BIWEIGHT = 4.685 * 1.4826
#: Median of the absolute value of a Gaussian over its mean.
MEDIAN_OVER_MEAN = 0.845
#: Neighbours (of 8) within ``SAME_SURFACE`` that make a measured pixel part of a surface.
SUPPORT, SAME_SURFACE = 3, 0.02


def expected_error(confidence: NDArray) -> Float32:
    """Expected relative depth error of a confidence; inf below 0."""
    c = np.asarray(confidence, np.float32)
    return np.where(c < 0, np.inf, ERROR_SCALE * (1 - np.minimum(c, 1))).astype(np.float32)


def confidence_of(error: NDArray) -> Float32:
    """Inverse of ``expected_error``, 0 from ``ERROR_SCALE`` on."""
    return np.clip(1 - np.asarray(error, np.float32) / ERROR_SCALE, 0, 1).astype(np.float32)


@dataclass(frozen=True)
class Alignment:
    """Inverse depth as measured = ``scale`` x inverse depth as predicted + ``shift`` [1/m].

    Attributes:
        error_factor: how much larger the remaining differences are than expected, at least 1.
        pixels: how many pixels the fit rests on.
    """

    scale: float = 1.0
    shift: float = 0.0
    error_factor: float = 1.0
    pixels: int = 0

    def __call__(self, depth: NDArray) -> Float32:
        """Aligned depth [m]; the shift may at most double a depth."""
        inverse = self.scale / np.asarray(depth, np.float32)
        return (1 / np.maximum(inverse + self.shift, 0.5 * inverse)).astype(np.float32)


def align_depth(
    predicted: NDArray, predicted_error: NDArray, measured: NDArray, measured_error: NDArray
) -> Alignment:
    """Robust scale and shift in inverse depth, by least squares with Tukey's biweight.

    Args:
        predicted, measured: H x W [m]; measured is 0 or not finite where unknown.
        predicted_error, measured_error: H x W, expected relative errors; inf: do not use.

    Returns:
        The identity when fewer than ``MIN_PIXELS`` pixels have both. Where the depths say nothing
        about scale or shift (a wall seen straight on), the least correction that explains them.
    """
    use = np.flatnonzero(_known(measured) & np.isfinite(predicted_error + measured_error))
    n = len(use)
    if n < MIN_PIXELS:
        return Alignment(pixels=n)
    use = use[:: -(-n // MAX_PIXELS)]
    p, m = (np.asarray(d, np.float64).ravel()[use] for d in (predicted, measured))
    relative = np.hypot(predicted_error.ravel()[use], measured_error.ravel()[use])
    relative = np.maximum(relative, 1e-4).astype(np.float64)
    # Predicted on measured, since noise of the abscissa would flatten the line.
    unit = (1 / m).mean()
    x, y = 1 / (m * unit), 1 / (p * unit)
    A = np.stack([x, np.ones_like(x)], 1) / (relative * y)[:, None]
    b = 1 / relative
    prior = np.diag([SCALE_SIGMA**-2, SHIFT_SIGMA**-2])
    line = np.array([np.median(y / x), 0.0])
    for _ in range(10):
        residual = np.abs(b - A @ line)
        spread = max(float(np.median(residual)), 1e-3)
        kept = np.clip(1 - (residual / (BIWEIGHT * spread)) ** 2, 0, None) ** 2
        weight = kept * min(1.0, OBSERVATIONS / len(use)) / spread**2
        normal = (A * weight[:, None]).T
        line = np.linalg.solve(normal @ A + prior, normal @ b + prior @ [1.0, 0.0])
    line[0] = max(line[0], 0.1)
    aligned = Alignment(float(1 / line[0]), float(-line[1] / line[0] * unit))
    ratio = np.abs(np.log(aligned(p) / m)) / relative
    factor = max(1.0, float(np.median(ratio)) / MEDIAN_OVER_MEAN)
    return Alignment(aligned.scale, aligned.shift, factor, n)


def fuse_depth(
    predicted: NDArray,
    predicted_confidence: NDArray,
    measured: NDArray,
    *,
    noise: tuple[float, float] = SENSOR_NOISE,
    gate: float = GATE,
) -> tuple[Float32, Float32]:
    """Measured depth where there is any, smoothed by and completed with aligned prediction.

    The prediction is first aligned to what is measured (``align_depth``), and its errors are scaled
    up if it misses by more than it says. Where both agree, log depth is their mean, weighted by
    inverse variance. Where they contradict one another, measured depth wins if its neighbours
    support it; a lone or flying pixel loses to the prediction. Holes take the prediction.

    Args:
        predicted: H x W [m], positive.
        predicted_confidence: H x W, below 0 where the prediction is not to be used.
        measured: H x W [m], registered to the same pixels; 0, negative or not finite: unknown.
        noise: standard deviation of the sensor [m] is noise[0] + noise[1] x depth^2.
        gate: contradiction begins at this many expected errors.

    Returns:
        Depth H x W [m] and confidence H x W; below 0 where only an unusable prediction is left.

    Raises:
        InvalidInputError: shapes differ, or predicted depth is not positive and finite.
    """
    shapes = {np.shape(a) for a in (predicted, predicted_confidence, measured)}
    if len(shapes) > 1:
        raise InvalidInputError(
            f"depth fusion of arrays of shapes {sorted(shapes)}; resize them to one (resize_depth)."
        )
    predicted = np.asarray(predicted, np.float32)
    if not (np.isfinite(predicted) & (predicted > 0)).all():
        raise InvalidInputError(
            f"predicted depth reaches from {np.min(predicted):g} m to {np.max(predicted):g} m; "
            "it has to be positive and finite everywhere. Mark doubtful pixels by confidence -1."
        )
    known = _known(measured)
    z = np.where(known, measured, 1).astype(np.float32)
    error_m = np.where(known, noise[0] / z + noise[1] * z, np.inf).astype(np.float32)
    error_p = np.maximum(expected_error(predicted_confidence), 1e-4)
    alignment = align_depth(predicted, error_p, z * known, error_m)
    aligned = alignment(predicted)
    error_p = error_p * np.float32(alignment.error_factor)

    usable = np.isfinite(error_p)
    difference = np.log(z / aligned)
    conflict = known & usable & (np.abs(difference) > gate * np.hypot(error_p, error_m))
    error_m[conflict & (_neighbours(z * known) < SUPPORT)] = np.inf
    error_p[conflict & np.isfinite(error_m)] = np.inf

    weight_m, weight_p = error_m**-2.0, error_p**-2.0
    total = weight_m + weight_p
    share = np.divide(weight_m, total, out=np.zeros_like(total), where=total > 0)
    depth = aligned * np.exp(share * difference)
    confidence = np.where(total > 0, confidence_of(1 / np.sqrt(np.maximum(total, 1e-9))), -1)
    return depth.astype(np.float32), confidence.astype(np.float32)


def resize_depth(depth: NDArray, size: tuple[int, int]) -> Float32:
    """Measured depth at another size: the nearest pixel, or the mean of its surface when reducing.

    Args:
        depth: H x W [m]; 0, negative or not finite where unknown.
        size: (width, height) [px].

    Returns:
        Depth of that size, 0 where the nearest pixel is unknown.
    """
    known = _known(depth)
    clean = np.where(known, depth, 0).astype(np.float32)
    nearest = np.asarray(cv2.resize(clean, size, interpolation=cv2.INTER_NEAREST), np.float32)
    if size[0] >= depth.shape[1] or size[1] >= depth.shape[0]:
        return nearest
    inverse = np.divide(1, clean, out=np.zeros_like(clean), where=known)
    share = cv2.resize(known.astype(np.float32), size, interpolation=cv2.INTER_AREA)
    mean = share / np.maximum(cv2.resize(inverse, size, interpolation=cv2.INTER_AREA), 1e-9)
    one_surface = np.abs(mean - nearest) < SAME_SURFACE * nearest
    return np.where(one_surface, mean, nearest).astype(np.float32)


def _known(depth: NDArray) -> NDArray[np.bool_]:
    return np.isfinite(depth) & (np.nan_to_num(depth) > 0)


def _neighbours(depth: Float32) -> NDArray[np.int64]:
    """How many of the 8 neighbours of every pixel lie on its surface; depth is 0 where unknown."""
    padded = np.pad(depth, 1)
    h, w = depth.shape
    limit = SAME_SURFACE * depth
    count = np.zeros(depth.shape, np.int64)
    for row in range(3):
        for column in range(3):
            if (row, column) != (1, 1):
                count += np.abs(padded[row : row + h, column : column + w] - depth) < limit
    return count
