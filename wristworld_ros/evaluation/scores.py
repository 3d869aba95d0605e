"""Scores of one frame and their means over an episode."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wristworld_ros.evaluation.metrics import psnr_of, squared_error, ssim
from wristworld_ros.generation.lpips import lpips
from wristworld_ros.types import Image

#: Pixels nearer than this to the wrist camera are the gripper and what it holds [m].
NEAR = 0.12
#: Generated pixels with a confidence from here on count as measured.
MEASURED = 0.5


def regions(
    mask: NDArray[np.bool_],
    depth: NDArray[np.floating],
    confidence: NDArray[np.floating] | None = None,
) -> dict[str, NDArray[np.bool_]]:
    """Parts of the picture that are scored apart.

    Args:
        mask: H x W, where the condition map has a point.
        depth: H x W [m], 0 where unknown.
        confidence: H x W of the generated view.
    """
    parts = {
        "covered": mask,
        "holes": ~mask,
        "near": (depth > 0) & (depth < NEAR),
        "far": depth >= NEAR,
    }
    if confidence is not None:
        parts["measured"] = confidence >= MEASURED
        parts["imagined"] = confidence < MEASURED
    return parts


def score_frame(
    pictures: Mapping[str, Image],
    truth: Image,
    parts: Mapping[str, NDArray[np.bool_]],
    *,
    with_lpips: bool = True,
) -> dict[str, dict[str, float]]:
    """PSNR, SSIM, LPIPS and PSNR per region of several pictures against one truth.

    Returns:
        Name of the picture -> metric -> value, NaN where a region is empty.
    """
    out: dict[str, dict[str, float]] = {}
    for name, picture in pictures.items():
        squared = squared_error(picture, truth)
        out[name] = {"psnr": psnr_of(squared), "ssim": ssim(picture, truth)}
        out[name].update({f"psnr_{p}": psnr_of(squared, m) for p, m in parts.items()})
    if with_lpips:
        distances = lpips(list(pictures.values()), [truth])
        for name, value in zip(pictures, distances, strict=True):
            out[name]["lpips"] = value
    return out


class Means:
    """Means of named values over frames, NaN left out."""

    def __init__(self) -> None:
        self._values: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))

    def add(self, scores: Mapping[str, Mapping[str, float]]) -> None:
        """Add the scores of one frame."""
        for name, metrics in scores.items():
            for metric, value in metrics.items():
                if np.isfinite(value):
                    self._values[name][metric].append(float(value))

    def summary(self) -> dict[str, dict[str, float]]:
        """Name -> metric -> mean, and ``frames``: how many frames count."""
        return {
            name: {
                **{m: float(np.mean(v)) for m, v in metrics.items()},
                "frames": float(max(len(v) for v in metrics.values())),
            }
            for name, metrics in self._values.items()
        }


def spread(values: list[float]) -> dict[str, Any] | None:
    """Mean, median, p90 and largest of a list; None when it is empty."""
    finite = [v for v in values if np.isfinite(v)]
    if not finite:
        return None
    return {
        "mean": float(np.mean(finite)),
        "median": float(np.median(finite)),
        "p90": float(np.percentile(finite, 90)),
        "max": float(np.max(finite)),
    }


def percentiles(values: list[float]) -> dict[str, float] | None:
    """p50, p99 and mean of durations [s]; None when there are none."""
    if not values:
        return None
    p50, p99 = np.percentile(values, [50, 99])
    return {"p50": float(p50), "p99": float(p99), "mean": float(np.mean(values))}
