"""Frozen features: pairs and tokens of a tiny model, kept on disk, and pairs made worse."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from wristworld_ros.data.simulation.shards import write_shards
from wristworld_ros.errors import InvalidInputError
from wristworld_ros.experiments import features
from wristworld_ros.experiments.frames import batches, from_shards, simulated_batch
from wristworld_ros.reconstruction.backbone import BackboneConfig
from wristworld_ros.reconstruction.matching import TrackSource
from wristworld_ros.reconstruction.model import Stage1Model

TINY = BackboneConfig(dim=48, pairs=2, heads=4, stem=(16, 16, 16), kept=(0, 1))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Stage1Model(TINY).eval()


@pytest.fixture(scope="module")
def batch():
    return simulated_batch(100_000, "val", frames=2)


@pytest.fixture(scope="module")
def data(model, batch):
    return features.compute_features(model, [batch], 2)


def test_tokens_and_poses_are_those_of_the_frames(model, batch, data):
    two = features.first_views(batch, 2)
    known = torch.ones(2, 2, dtype=torch.bool)
    with torch.no_grad():
        output, *_ = model._features(
            two.anchors, two.anchor_K * torch.tensor([0.5, 0.5, 1.0])[:, None],
            two.T_world_anchor, known,
        )  # fmt: skip
    expected = output.tokens[-1].half().numpy()
    np.testing.assert_allclose(data.tokens, expected, atol=2e-3)
    np.testing.assert_array_equal(data.T_base_wrist, batch.T_world_wrist.numpy())
    assert data.size.tolist() == [128, 128]
    assert data.valid.shape == (2, 2 * 256) and data.valid.any(1).all()
    np.testing.assert_array_equal(data.checked, data.valid)


def test_pairs_lifted_by_true_depth_meet_their_wrist_pixels(batch):
    """The frames of the lift, of the pairs and of the pose are one and the same."""

    class TrueDepth(Stage1Model):
        def scene(self, images, K, T_world_camera):
            scene = super().scene(images, K, T_world_camera)
            return replace(scene, depth=batch.anchor_depth)

    found = features.compute_features(TrueDepth(TINY).eval(), [batch], 3)
    errors = features.distances(found)[found.valid]
    assert np.median(errors) < 1.5
    far = replace(found, T_base_wrist=found.T_base_wrist[::-1])
    assert np.median(features.distances(far)[found.valid]) > 5


def test_matched_pairs_are_checked_without_cameras(model, batch):
    """A tracker that leaves every point where it is: its pairs fit one fundamental matrix."""

    def still(images, queries):
        n = images.shape[1]
        one = torch.ones(len(queries), n, queries.shape[1])
        return queries[:, None].expand(-1, n, -1, -1), one, one

    source = TrackSource(still, grid=8, filters=features.PairFilters(epipolar=None, min_pairs=1))
    found = features.compute_features(model, [batch], 2, source)
    assert found.valid.sum() == 2 * 2 * 64
    assert found.checked.sum() == found.valid.sum()
    np.testing.assert_allclose(found.pixels[0, :2], [[8, 8], [24, 8]])


def test_thinned_keeps_as_many_pairs_as_asked_and_moves_them(data):
    thin = features.thinned(data, 10, 2.0, seed=1)
    assert thin.valid.sum(1).tolist() == [10, 10]
    assert not (thin.valid & ~data.valid).any()
    moved = (thin.pixels - data.pixels)[data.valid]
    assert moved.std() == pytest.approx(2.0, rel=0.15)
    again = features.thinned(data, 10, 2.0, seed=1)
    np.testing.assert_array_equal(again.pixels, thin.pixels)
    assert (features.thinned(data, 10, 2.0, seed=2).valid != thin.valid).any()
    np.testing.assert_array_equal(features.thinned(data, 10_000, 0.0).valid, data.valid)


def test_right_pairs_are_those_near_the_truth(data):
    distance = features.distances(data)
    right = features.with_pairs(data, "right").valid
    np.testing.assert_array_equal(right, data.valid & (distance < features.RIGHT))
    with pytest.raises(InvalidInputError, match="'good' are not 'all'"):
        features.with_pairs(data, "good")


def test_too_many_views_and_no_frames_are_refused(model, batch):
    with pytest.raises(InvalidInputError, match="4 anchors; the frames have 3"):
        features.compute_features(model, [batch], 4)
    with pytest.raises(InvalidInputError, match="no frames"):
        features.compute_features(model, [], 1)


def test_shards_give_the_frames_of_the_simulation_and_features_are_kept(tmp_path, model):
    folder = tmp_path / "shards"
    write_shards("val", [100_000], folder, frames_per_episode=2, processes=1)
    source = from_shards(folder, 1)
    (read,) = batches(source)
    made = simulated_batch(100_000, "val", frames=2)
    for name, value in vars(made).items():
        tolerance = 1e-4 if "depth" in name else 1e-6
        torch.testing.assert_close(getattr(read, name), value, atol=tolerance, rtol=1e-5)
    with pytest.raises(InvalidInputError, match="has 1 shards, and 2 are wanted"):
        from_shards(folder, 2)

    kept = features.stored(tmp_path, model, "sha", source, 1)
    stamp = (kept / "tokens.npy").stat().st_mtime_ns
    assert features.stored(tmp_path, model, "sha", source, 1) == kept
    assert (kept / "tokens.npy").stat().st_mtime_ns == stamp
    assert features.stored(tmp_path, model, "sha", source, 2) != kept
    expected = features.compute_features(model, [read], 1)
    for name, value in vars(features.load(kept)).items():
        np.testing.assert_array_equal(value, getattr(expected, name))
