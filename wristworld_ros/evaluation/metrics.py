"""Full-reference picture metrics and pose error, on uint8 RGB."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray
from skimage.metrics import structural_similarity

from wristworld_ros.errors import InvalidInputError
from wristworld_ros.geometry.transforms import pose_error
from wristworld_ros.types import FloatArray, Image, check_image

#: PSNR of identical pictures [dB], so that it stays a number in JSON.
PSNR_LIMIT = 100.0


def _check_pair(a: Image, b: Image) -> None:
    check_image(a, "first picture")
    check_image(b, "second picture")
    if a.shape != b.shape:
        raise InvalidInputError(
            f"pictures of {a.shape[1]} x {a.shape[0]} and {b.shape[1]} x {b.shape[0]} px cannot be "
            "compared; bring both to one size (fit_truth)."
        )


def psnr(a: Image, b: Image, mask: NDArray[np.bool_] | None = None) -> float:
    """Peak signal-to-noise ratio [dB], at most ``PSNR_LIMIT``.

    Args:
        a, b: H x W x 3 uint8.
        mask: H x W, pixels to compare; all when None.

    Returns:
        NaN when the mask is empty.
    """
    return psnr_of(squared_error(a, b), mask)


def squared_error(a: Image, b: Image) -> FloatArray:
    """Squared difference per pixel, mean over channels: H x W."""
    _check_pair(a, b)
    difference = a.astype(np.int32) - b.astype(np.int32)
    return np.square(difference).sum(2) / 3.0


def psnr_of(squared: FloatArray, mask: NDArray[np.bool_] | None = None) -> float:
    """PSNR [dB] of a ``squared_error``, over the pixels of a mask; NaN when it is empty."""
    if mask is not None:
        if mask.shape != squared.shape:
            raise InvalidInputError(f"mask {mask.shape} does not fit pictures {squared.shape}.")
        squared = squared[mask]
    if squared.size == 0:
        return float("nan")
    mean = float(squared.mean())
    if mean == 0:
        return PSNR_LIMIT
    return min(10 * float(np.log10(255.0**2 / mean)), PSNR_LIMIT)


def ssim(a: Image, b: Image) -> float:
    """Structural similarity, mean over channels, with scikit-image's default 7 x 7 window.

    Raises:
        InvalidInputError: a side is shorter than the window.
    """
    _check_pair(a, b)
    if min(a.shape[:2]) < 7:
        raise InvalidInputError(
            f"SSIM needs sides of at least 7 px, got {a.shape[1]} x {a.shape[0]}."
        )
    return float(structural_similarity(a, b, channel_axis=2, data_range=255))


def pose_error_mm_deg(T_estimated: FloatArray, T_true: FloatArray) -> tuple[float, float]:
    """Distance of two poses: translation [mm] and rotation [degrees]."""
    metres, radians = pose_error(T_estimated, T_true)
    return metres * 1e3, float(np.degrees(radians))


def fit_truth(image: Image, width: int, height: int) -> Image:
    """A true picture at the size of the generated one: centre crop to its aspect, then area mean.

    Args:
        image: H x W x 3 uint8.
        width, height: wanted size [px].
    """
    check_image(image, "true picture")
    h, w = image.shape[:2]
    if (w, h) == (width, height):
        return image
    crop_w = min(w, round(h * width / height))
    crop_h = min(h, round(w * height / width))
    x, y = (w - crop_w) // 2, (h - crop_h) // 2
    crop = image[y : y + crop_h, x : x + crop_w]
    kind = cv2.INTER_AREA if crop_w >= width else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(crop, (width, height), interpolation=kind), np.uint8)
