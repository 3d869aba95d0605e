"""Does the confidence of generated pictures say which pixels are right, and which pictures?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from wristworld_ros.generation.detail import RIGHT
from wristworld_ros.types import Image

BINS = 10


class Reliability:
    """Sums over frames of what was stated and what was so."""

    def __init__(self) -> None:
        self._ranks: list[float] = []
        self._bins = np.zeros((BINS + 1, 4))  # imagined pixels first, then tenths

    def add(self, confidence: NDArray[np.floating], picture: Image, truth: Image) -> None:
        """Add one frame.

        Args:
            confidence: H x W in [0, 1]; picture, truth: H x W x 3 uint8.
        """
        error = colour_error(picture, truth).ravel()
        stated = np.asarray(confidence, np.float64).ravel()
        if np.ptp(stated) > 0 and np.ptp(error) > 0:
            self._ranks.append(float(spearmanr(stated, -error)[0]))
        index = np.where(stated > 0, np.minimum((stated * BINS).astype(int), BINS - 1) + 1, 0)
        values = np.stack([np.ones_like(error), stated, error < RIGHT, error])
        for row, value in enumerate(values):
            self._bins[:, row] += np.bincount(index, value, BINS + 1)

    def summary(self) -> dict[str, Any]:
        """``rank_correlation``: mean over frames of Spearman's between confidence and negative
        error, None when one of them is constant in all; ``bins``: for the imagined pixels, whose
        confidence is 0, and for each tenth above, where they occur, the share of all ``pixels``,
        the mean ``stated`` confidence, the share that is ``right`` (mean error of the colours
        below ``RIGHT``) and the mean ``error`` in [0, 1]; ``gap``: mean distance of stated and
        right over the pixels that are not surely imagined.
        """
        count = self._bins[:, 0]
        found = np.flatnonzero(count)
        means = self._bins[found, 1:] / count[found, None]
        weight = count[found] * (found > 0)
        gap = np.abs(means[:, 0] - means[:, 1]) @ weight / weight.sum() if weight.any() else None
        return {
            "rank_correlation": float(np.mean(self._ranks)) if self._ranks else None,
            "gap": None if gap is None else float(gap),
            "bins": [
                dict(zip(("pixels", "stated", "right", "error"), map(float, row), strict=True))
                for row in np.column_stack([count[found] / count.sum(), means])
            ],
        }


class ViewScores:
    """What was said of whole pictures, and how good they were."""

    def __init__(self) -> None:
        self._rows: list[tuple[float, float, float, float]] = []

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, score: float, picture: Image, truth: Image, metrics: Mapping[str, float]) -> None:
        """Add one picture: its ``WristFrame.score``, and ``psnr`` and perhaps ``lpips``."""
        right = float((colour_error(picture, truth) < RIGHT).mean())
        self._rows.append((score, right, metrics["psnr"], metrics.get("lpips", float("nan"))))

    def summary(self) -> dict[str, float | None]:
        """``stated`` and ``right``: means of the score and of the share of right pixels; ``gap``:
        their mean distance; ``rank_right``, ``rank_psnr``, ``rank_lpips``: Spearman's correlation
        of the score with each (LPIPS negative), None where one is constant or unknown.
        """
        score, right, psnr, lpips = np.array(self._rows).reshape(-1, 4).T

        def rank(values: NDArray[np.floating]) -> float | None:
            known = len(score) > 1 and np.isfinite(values).all()
            if not known or np.ptp(score) == 0 or np.ptp(values) == 0:
                return None
            return float(spearmanr(score, values)[0])

        return {
            "stated": float(score.mean()),
            "right": float(right.mean()),
            "gap": float(np.abs(score - right).mean()),
            "rank_right": rank(right),
            "rank_psnr": rank(psnr),
            "rank_lpips": rank(-lpips),
        }


def colour_error(picture: Image, truth: Image) -> NDArray[np.float64]:
    """Mean absolute error of the colours per pixel, H x W in [0, 1]."""
    return np.abs(picture.astype(np.float64) - truth).mean(2) / 255
