"""What is stated of pixels against what is so."""

import numpy as np
import pytest

from wristworld_ros.evaluation.reliability import Reliability, ViewScores
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


def test_imagined_pixels_are_not_those_of_little_confidence():
    """Half is imagined and all right, half stated at 0.05 and all wrong."""
    confidence = np.zeros((SIZE, SIZE))
    confidence[:, : SIZE // 2] = 0.05
    trust = Reliability()
    trust.add(confidence, *frame((confidence > 0) * 2 * RIGHT))
    imagined, low = trust.summary()["bins"]
    assert (imagined["stated"], imagined["right"], imagined["pixels"]) == (0, 1, 0.5)
    assert (low["stated"], low["right"]) == (pytest.approx(0.05), 0)
    assert trust.summary()["gap"] == pytest.approx(0.05)


def test_what_is_not_known_is_not_stated():
    trust = Reliability()
    trust.add(np.zeros((SIZE, SIZE)), *frame(np.zeros((SIZE, SIZE))))
    summary = trust.summary()
    assert summary["rank_correlation"] is None and summary["gap"] is None
    assert summary["bins"] == [{"pixels": 1, "stated": 0, "right": 1, "error": 0}]


def test_scores_of_views_are_ranked_by_how_good_the_views_are():
    scores = ViewScores()
    for stated, error in ((0.9, 0.0), (0.6, 0.5 * RIGHT), (0.2, 4 * RIGHT)):
        picture, truth = frame(np.full((SIZE, SIZE), error))
        quality = {"psnr": 30 - 100 * error, "lpips": error}
        scores.add(stated, picture, truth, quality)
    summary = scores.summary()
    assert summary["stated"] == pytest.approx(1.7 / 3)
    assert summary["right"] == pytest.approx(2 / 3)
    assert summary["gap"] == pytest.approx((0.1 + 0.4 + 0.2) / 3)
    assert summary["rank_psnr"] == summary["rank_lpips"] == pytest.approx(1.0)
    assert 0.8 < summary["rank_right"] < 0.9  # two are tied


def test_ranks_of_one_view_are_not_stated():
    scores = ViewScores()
    scores.add(0.5, *frame(np.zeros((SIZE, SIZE))), {"psnr": 100.0})
    assert len(scores) == 1
    assert [scores.summary()[f"rank_{k}"] for k in ("right", "psnr", "lpips")] == [None] * 3
