"""Training of the depth around the hand: its truth, its losses, and that it learns."""

import numpy as np
import pytest
import torch

from wristworld_ros.reconstruction.hand_depth import HandDepth, HandDepthConfig
from wristworld_ros.training.hand_depth import (
    HandDepthLosses,
    Sample,
    draw_sample,
    hand_depth_loss,
    perturbed,
    true_close_depth,
    within,
)
from wristworld_ros.training.shard_data import ShardSet


@pytest.fixture(scope="module")
def data(companion_shards):
    return ShardSet(companion_shards, full_depth=True)


def sample_of(tiny_stage1, data):
    batch = data.batch(np.arange(2), np.arange(3))
    scene = tiny_stage1.scene(batch.anchors, batch.anchor_K, batch.T_world_anchor)
    return Sample(batch, scene, batch.T_world_wrist, torch.ones(2, dtype=torch.bool))


def run(model, sample):
    return model(sample.batch.anchors, sample.scene, sample.T_base_wrist, sample.given)


def test_full_depth_holds_the_reduced_one(companion_shards, data):
    half = ShardSet(companion_shards).arrays["anchor_depth"]
    np.testing.assert_array_equal(data.arrays["anchor_depth"][:, :, 1::2, 1::2], half)


def test_true_depth_of_a_cut_out_is_that_of_its_pixels(tiny_stage1, data):
    sample = sample_of(tiny_stage1, data)
    close = run(HandDepth(HandDepthConfig(size=48, widths=(16,) * 4)), sample)
    true = true_close_depth(sample.batch, close)
    # Pixels of the cut-out by their rays, in the whole picture's own intrinsics.
    S = 48
    v, u = torch.meshgrid(torch.arange(S) + 0.5, torch.arange(S) + 0.5, indexing="ij")
    for b in range(2):
        for view in range(3):
            K = sample.batch.anchor_K[b, view] @ torch.linalg.inv(close.K[b, view])
            place = torch.stack([u, v, torch.ones_like(u)], -1) @ K.T
            column, row = place[..., 0].floor().long(), place[..., 1].floor().long()
            inside = (column >= 0) & (column < 256) & (row >= 0) & (row < 256)
            whole = sample.batch.anchor_depth[b, view]
            expected = whole[row.clamp(0, 255), column.clamp(0, 255)] * inside
            assert (true[b, view] == expected).float().mean() > 0.98  # but for rounding
    hand = within(sample, close, true, 0.11)
    assert 0.01 < hand.float().mean() < within(sample, close, true, 0.2).float().mean() < 0.6
    # The middle of the cut-outs is where the hand is, at its depth.
    middle = (
        torch.linalg.inv(sample.batch.T_world_anchor)
        @ torch.cat([close.middle, torch.ones(2, 1)], 1)[:, None, :, None].float()
    )
    z = middle[:, :, 2, 0, None, None].expand_as(true)
    assert ((true - z).abs()[hand] < 0.11).all()


def test_estimated_cameras_do_not_move_the_truth(tiny_stage1, data):
    """What is near the hand is judged by the true cameras, whatever the scene was placed by."""
    sample = sample_of(tiny_stage1, data)
    model = HandDepth(HandDepthConfig(size=48, widths=(16,) * 4))
    moved = torch.eye(4)
    moved[:3, 3] = torch.tensor([0.3, -0.2, 0.1])
    scene = sample.scene
    other = Sample(
        sample.batch,
        type(scene)(
            scene.depth,
            scene.confidence,
            scene.first_depth,
            moved @ scene.T_base_anchor,
            scene.anchor_K,
        ),
        moved @ sample.T_base_wrist,
        sample.given,
    )
    masks = []
    for s in (sample, other):
        close = run(model, s)
        masks.append(within(s, close, true_close_depth(s.batch, close), 0.15))
    assert (masks[0] == masks[1]).float().mean() > 0.999


def test_loss_is_least_at_the_truth_and_the_hand_counts_most(tiny_stage1, data):
    sample = sample_of(tiny_stage1, data)
    close = run(HandDepth(HandDepthConfig(size=48, widths=(16,) * 4)), sample)
    true = true_close_depth(sample.batch, close)
    hand = within(sample, close, true, HandDepthLosses().hand)
    behind = (true > 0.05) & ~within(sample, close, true, HandDepthLosses().near)

    def loss_of(depth):
        changed = type(close)(depth, close.right.detach(), close.K, close.grid, close.middle)
        return hand_depth_loss(changed, sample, HandDepthLosses(judged=0.0))[0].item()

    right = true.clamp_min(0.05)
    pixels = min(int(hand.sum()), int(behind.sum()), 200)

    def first(mask):
        index = mask.flatten().nonzero()[:pixels, 0]
        out = torch.zeros(mask.numel(), dtype=torch.bool)
        out[index] = True
        return out.reshape(mask.shape)

    least = loss_of(right)
    on_hand = loss_of(torch.where(first(hand), 1.1 * right, right)) - least
    on_table = loss_of(torch.where(first(behind), 1.1 * right, right)) - least
    assert on_table > 0
    assert on_hand == pytest.approx(15 * on_table, rel=0.01)


def test_it_learns_a_frame_by_heart(tiny_stage1, data):
    torch.manual_seed(0)
    sample = sample_of(tiny_stage1, data)
    model = HandDepth(HandDepthConfig(size=48, widths=(16, 24, 32, 32)))
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    errors = []
    for _ in range(60):
        loss, figures = hand_depth_loss(run(model, sample), sample, HandDepthLosses())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        errors.append(figures["hand_log_error"])
    assert errors[-1] < 0.25 * errors[0]


def test_known_poses_are_moved_as_far_as_is_said():
    generator = torch.Generator().manual_seed(0)
    T = torch.eye(4).repeat(4000, 1, 1)
    moved = perturbed(T, (0.003, 0.01), generator)
    np.testing.assert_allclose(moved[:, :3, 3].std(0), 0.003, rtol=0.05)
    turn = torch.stack([moved[:, 2, 1], moved[:, 0, 2], moved[:, 1, 0]], 1)
    np.testing.assert_allclose(turn.std(0), 0.01, rtol=0.05)


def test_a_sample_has_known_or_learned_poses(tiny_stage1, data):
    generator = torch.Generator().manual_seed(1)
    seen = {True: 0, False: 0}
    for _ in range(6):
        sample = draw_sample(tiny_stage1, data, 1, HandDepthLosses(given=0.5, moved=0), generator)
        given = bool(sample.given[0])
        seen[given] += 1
        off = (sample.T_base_wrist - sample.batch.T_world_wrist)[0, :3, 3].norm()
        assert (off < 0.03) == given  # this stage 1 was not trained
    assert min(seen.values()) > 0


def test_some_cameras_are_mounted_elsewhere(tiny_stage1, data):
    generator = torch.Generator().manual_seed(1)
    losses = HandDepthLosses(given=1.0, moved=0.5, mount_noise=(0.05, 0.2))
    off = []
    for _ in range(10):
        sample = draw_sample(tiny_stage1, data, 4, losses, generator)
        off += (sample.T_base_wrist - sample.batch.T_world_wrist)[:, :3, 3].norm(dim=1).tolist()
    moved = np.array(off) > 0.02
    assert 0.25 < moved.mean() < 0.75
    assert np.median(np.array(off)[~moved]) < 0.01
    assert np.median(np.array(off)[moved]) == pytest.approx(0.05 * 1.54, rel=0.35)  # of three axes
