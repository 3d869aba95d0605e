"""Training of depth at full resolution: its losses, that it learns, and its verb."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from wristworld_ros.reconstruction.fine_depth import FineDepth
from wristworld_ros.reconstruction.model import SceneOutput
from wristworld_ros.training.fine_depth import FineDepthLosses, fine_depth_loss, predict_scene
from wristworld_ros.training.shard_data import ShardSet
from wristworld_ros.training.stage1 import above_table


@pytest.fixture(scope="module")
def batch(companion_shards):
    return ShardSet(companion_shards, full_depth=True).batch(np.arange(2), np.arange(3))


def test_known_cameras_stay_where_they_are(tiny_stage1, batch):
    calibrated = predict_scene(tiny_stage1, batch, torch.ones(2, 2, dtype=torch.bool))
    torch.testing.assert_close(calibrated.T_base_anchor, batch.T_world_anchor)
    bare = predict_scene(tiny_stage1, batch, torch.zeros(2, 2, dtype=torch.bool))
    assert (bare.T_base_anchor - batch.T_world_anchor).abs().max() > 0.01


def test_loss_is_least_at_the_truth_and_what_stands_on_the_table_counts_more(batch):
    true = batch.anchor_depth.clamp_min(0.05)
    sure = torch.full_like(true, 2.0)
    losses = FineDepthLosses(judged=0.0)
    above = above_table(batch) & (batch.anchor_depth > 0.05)
    below = ~above & (batch.anchor_depth > 0.05)
    assert 0.02 < above.float().mean() < 0.6

    def loss_of(mask, pixels=500):
        index = mask.flatten().nonzero()[:pixels, 0]
        factor = torch.ones(true.numel())
        factor[index] = 1.1
        return fine_depth_loss(true * factor.reshape(true.shape), sure, batch, losses)[0].item()

    assert fine_depth_loss(true, sure, batch, losses)[0] < 1e-6
    assert loss_of(above) == pytest.approx(3 * loss_of(below), rel=0.01) and loss_of(below) > 0


def test_confidence_settles_at_the_expected_error(batch):
    """Wrong by 2.5 % everywhere, the loss is least where confidence is 0.05 / 0.025."""
    depth = batch.anchor_depth.clamp_min(0.05) * float(np.exp(0.025))
    values = [
        fine_depth_loss(depth, torch.full_like(depth, c), batch, FineDepthLosses())[0].item()
        for c in (1.5, 1.9, 2.0, 2.1, 2.5)
    ]
    assert np.argmin(values) == 2


def test_it_sharpens_what_was_smeared(batch):
    """From true depth that was blurred it learns by heart where the edges were."""
    torch.manual_seed(0)
    half = batch.anchor_depth[..., 1::2, 1::2].flatten(0, 1)[:, None].clamp_min(0.05)
    blurred = F.avg_pool2d(half, 5, 1, 2, count_include_pad=False).reshape(2, 3, 128, 128)
    scene = SceneOutput(
        blurred, torch.full_like(blurred, 2.0), blurred[..., ::4, ::4], batch.T_world_anchor,
        batch.anchor_K,
    )  # fmt: skip
    model = FineDepth()
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    errors = []
    for _ in range(40):
        depth, confidence = model(batch.anchors, scene)
        loss, figures = fine_depth_loss(depth, confidence, batch, FineDepthLosses())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        errors.append(figures["above_log_error"])
    whole = 1 / F.interpolate(1 / blurred, scale_factor=2.0, mode="bilinear")
    _, before = fine_depth_loss(whole, torch.full_like(whole, 2.0), batch, FineDepthLosses())
    assert min(errors[-5:]) < 0.7 * before["above_log_error"]
