"""What is stated of pixels against what is so."""

import numpy as np
import pytest

from wristworld_ros.evaluation.reliability import Reliability
from wristworld_ros.generation.detail import RIGHT

SIZE = 40


def frame(error):
    """A picture that is off by ``error`` (H x W in [0, 1]), and the truth."""
    truth = np.full((SIZE, SIZE, 3), 60, np.uint8)
    return (truth + np.round(255 * error)[..., None]).astype(np.uint8), truth


def test_a_confidence_that_falls_with_the_error_ranks_it():
    error = np.linspace(0, 0.5, SIZE * SIZE).reshape(SIZE, SIZE)
    for confidence, expected in ((1 - error, 1), (error, -1)):
        trust = Reliability()
        trust.add(confidence, *frame(error))
        assert trust.summary()["rank_correlation"] == pytest.approx(expected, abs=1e-3)


def test_stated_and_true_shares_stand_side_by_side():
    """Half of the picture at 0.75, of which three quarters are right; the rest is imagined."""
    rng = np.random.default_rng(0)
    wrong = rng.random((SIZE, SIZE)) < 0.25
    confidence = np.full((SIZE, SIZE), 0.75)
    confidence[:, SIZE // 2 :] = 0
    wrong[:, SIZE // 2 :] = True
    trust = Reliability()
    trust.add(confidence, *frame(wrong * 2 * RIGHT))
    low, high = trust.summary()["bins"]
    share = 1 - wrong[:, : SIZE // 2].mean()
    assert low == pytest.approx(
        {"pixels": 0.5, "stated": 0, "right": 0, "error": 2 * RIGHT}, abs=2e-3
    )
    assert high == pytest.approx(
        {"pixels": 0.5, "stated": 0.75, "right": share, "error": 2 * RIGHT * (1 - share)}, abs=2e-3
    )
    # What is surely imagined has no say in how far off the statements are.
    assert trust.summary()["gap"] == pytest.approx(abs(share - 0.75), abs=1e-9)


def test_what_is_not_known_is_not_stated():
    trust = Reliability()
    trust.add(np.zeros((SIZE, SIZE)), *frame(np.zeros((SIZE, SIZE))))
    summary = trust.summary()
    assert summary["rank_correlation"] is None and summary["gap"] is None
    assert summary["bins"] == [{"pixels": 1, "stated": 0, "right": 1, "error": 0}]
