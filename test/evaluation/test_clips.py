"""Scores of wrist videos: what flickers and what does not."""

import numpy as np
import pytest

from wristworld_ros.data.simulation.episode import simulate_episode
from wristworld_ros.evaluation.clips import LENGTH, evaluate_clips, flicker


@pytest.fixture(scope="module")
def episode():
    return simulate_episode(100000, "val")


def test_the_true_video_holds_still_and_noise_does_not(episode):
    truth = [episode.wrist_rgb[8 + i] for i in range(4)]
    still = np.mean(flicker(truth, episode, 8))
    rng = np.random.default_rng(0)
    noisy = [np.clip(x + rng.normal(0, 12, x.shape), 0, 255).astype(np.uint8) for x in truth]
    # Differences of two normal values of deviation 12, and linear interpolation softens one.
    assert still < 4
    assert 6 < np.mean(flicker(noisy, episode, 8)) < 14 + still


def test_one_picture_for_all_frames_flickers_where_the_camera_moves(episode):
    """A picture that stands still is not the view of a camera that moves."""
    moving = [episode.wrist_rgb[8 + i] for i in range(4)]
    frozen = [moving[0]] * 4
    assert np.mean(flicker(frozen, episode, 8)) > 1.5 * np.mean(flicker(moving, episode, 8))


def test_clips_are_scored(episode):
    clips = len(episode) // LENGTH
    assert clips >= 2
    scores = evaluate_clips("val", [100000], geometries=["true"])["true"]
    assert scores["clips"] == clips
    assert scores["fvd"].keys() == {"generated", "splat_estimated"}
    means = scores["flicker"]
    assert 0.5 < means["truth"] < 4
    assert 0.5 * means["truth"] < means["generated"] < 2 * means["truth"]
    assert 0 < scores["fvd"]["generated"] < np.inf
