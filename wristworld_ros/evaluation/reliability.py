"""Does the confidence of generated pictures say which pixels are right?"""

from __future__ import annotations

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
        self._bins = np.zeros((BINS, 4))

    def add(self, confidence: NDArray[np.floating], picture: Image, truth: Image) -> None:
        """Add one frame.

        Args:
            confidence: H x W in [0, 1]; picture, truth: H x W x 3 uint8.
        """
        error = np.abs(picture.astype(np.float64) - truth).mean(2).ravel() / 255
        stated = np.asarray(confidence, np.float64).ravel()
        if np.ptp(stated) > 0 and np.ptp(error) > 0:
            self._ranks.append(float(spearmanr(stated, -error)[0]))
        index = np.minimum((stated * BINS).astype(int), BINS - 1)
        values = np.stack([np.ones_like(error), stated, error < RIGHT, error])
        for row, value in enumerate(values):
            self._bins[:, row] += np.bincount(index, value, BINS)

    def summary(self) -> dict[str, Any]:
        """``rank_correlation``: mean over frames of Spearman's between confidence and negative
        error, None when one of them is constant in all; ``bins``: for each tenth of confidence
        that occurs, the share of all ``pixels``, the mean ``stated`` confidence, the share that
        is ``right`` (mean error of the colours below ``RIGHT``) and the mean ``error`` in [0, 1];
        ``gap``: mean distance of stated and right over the pixels that are not surely imagined.
        """
        count = self._bins[:, 0]
        found = np.flatnonzero(count)
        means = self._bins[found, 1:] / count[found, None]
        measured = means[:, 0] > 0
        weight = count[found] * measured
        gap = np.abs(means[:, 0] - means[:, 1]) @ weight / weight.sum() if weight.any() else None
        return {
            "rank_correlation": float(np.mean(self._ranks)) if self._ranks else None,
            "gap": None if gap is None else float(gap),
            "bins": [
                dict(zip(("pixels", "stated", "right", "error"), map(float, row), strict=True))
                for row in np.column_stack([count[found] / count.sum(), means])
            ],
        }
