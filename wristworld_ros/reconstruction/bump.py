"""Detection of a lasting shift in a series that is noisy and correlated in time."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy.stats import f as f_distribution

from wristworld_ros.errors import InvalidInputError
from wristworld_ros.types import FloatArray

#: Innovations count at most this many standard deviations: one wild frame is not a shift.
CLIP = 4.0
#: Correlation from frame to frame that is assumed at most.
MAX_CORRELATION = 0.95


class ShiftDetector:
    """Window tests on the innovations of a first-order autoregressive series.

    The series before the newest frames is the baseline. The mean of the last L innovations is
    tested by Hotelling's T^2 against it, for every L of ``windows``; its threshold holds the
    uncertainty of the baseline itself. The older frames enter the baseline as newer ones come.

    Args:
        false_alarm_rate: probability of an alarm per test (one per frame) without any shift, for
            normal noise.
        windows: lengths [frames].
        min_baseline, max_baseline: length of the baseline [frames].
    """

    def __init__(
        self,
        *,
        false_alarm_rate: float = 1e-6,
        windows: Sequence[int] = (4, 12),
        min_baseline: int = 25,
        max_baseline: int = 400,
    ) -> None:
        if not 0 < false_alarm_rate < 1:
            raise InvalidInputError(f"false_alarm_rate {false_alarm_rate} must lie in (0, 1).")
        self.false_alarm_rate = false_alarm_rate
        self.windows = tuple(windows)
        self.min_baseline = min_baseline
        self._baseline: deque[FloatArray] = deque(maxlen=max_baseline)
        self._recent: deque[FloatArray] = deque()
        self._stale = 0
        self._known: tuple[float, FloatArray, FloatArray, FloatArray] | None = None

    def add(self, value: NDArray) -> bool:
        """Take the next vector of the series; whether a shift shows."""
        self._recent.append(np.asarray(value, np.float64))
        if len(self._recent) > max(self.windows):
            self._baseline.append(self._recent.popleft())
            self._stale += 1
        return self._test()

    def accept(self) -> None:
        """Take the newest frames for baseline: the shift that showed is none of interest."""
        self._baseline.extend(self._recent)
        self._recent.clear()
        self._known = None

    def onset(self) -> int:
        """How many of the newest frames lie after the most probable time of a shift."""
        _, spread, mean, _ = self._statistics()
        white = np.linalg.solve(spread, (np.array(self._recent) - mean).T).T
        after = np.cumsum(white[::-1], 0) / np.sqrt(np.arange(1, len(white) + 1))[:, None]
        return int(np.argmax(np.linalg.norm(after, axis=1))) + 1

    def _statistics(self) -> tuple[float, FloatArray, FloatArray, FloatArray]:
        """Of the baseline: correlation, Cholesky factor of the innovations, mean, clip.

        Renewed when a twentieth of the baseline is new.
        """
        if self._known is not None and self._stale < len(self._baseline) // 20:
            return self._known
        self._stale = 0
        series = np.array(self._baseline)
        mean: FloatArray = np.median(series, axis=0).astype(np.float64)
        series = series - mean
        limit = CLIP * 1.4826 * np.median(np.abs(series), 0) + 1e-12
        series = series.clip(-limit, limit)
        energy = float((series**2).sum())
        correlation = float((series[1:] * series[:-1]).sum()) / max(energy, 1e-24)
        # The estimate is low by (1 + 4 phi) / n in short series (Marriott and Pope 1954).
        correlation += (1 + 4 * correlation) / len(series)
        correlation = float(np.clip(correlation, 0.0, MAX_CORRELATION))
        steps = series[1:] - correlation * series[:-1]
        covariance = steps.T @ steps / max(len(steps) - 1, 1)
        ridge = 1e-9 + 1e-6 * float(np.trace(covariance))
        spread = np.linalg.cholesky(covariance + ridge * np.eye(len(limit)))
        self._known = (correlation, spread.astype(np.float64), mean, limit)
        return self._known

    def _test(self) -> bool:
        n = len(self._baseline)
        if n < self.min_baseline:
            return False
        correlation, spread, mean, limit = self._statistics()
        last = (self._baseline[-1] - mean).clip(-limit, limit)
        recent = np.array([last, *(np.array(self._recent) - mean)])
        steps = np.linalg.solve(spread, (recent[1:] - correlation * recent[:-1]).T).T
        steps = steps.clip(-CLIP, CLIP)
        for L in self.windows:
            if len(steps) < L:
                continue
            average = steps[-L:].mean(0)
            t2 = float(average @ average) / (1 / L + 1 / n)
            if t2 > _limit(self.false_alarm_rate / len(self.windows), len(mean), n):
                return True
        return False


@cache
def _limit(probability: float, p: int, n: int) -> float:
    """What Hotelling's T^2 of ``p`` values against ``n`` frames exceeds with a probability."""
    return float(p * (n - 1) / (n - p) * f_distribution.isf(probability, p, n - p))
