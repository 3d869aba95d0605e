"""Losses, errors and training of small wrist heads on made-up features with known answers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from wristworld_ros.experiments.features import FrozenSet, save
from wristworld_ros.experiments.head_training import (
    STARTS,
    HeadLosses,
    Run,
    SmallHead,
    constant_errors,
    execute,
    frames,
    head_errors,
    head_loss,
)
from wristworld_ros.experiments.lab import clearly_better, compare, summary
from wristworld_ros.reconstruction.pose_encoding import encode_pose, fov_from_intrinsics
from wristworld_ros.training.loop import LoopConfig

K = np.array([[100.0, 0, 64], [0, 100, 64], [0, 0, 1]], np.float32)
SIZE = (128, 128)


def make_set(n=64, seed=0):
    """A wrist camera over a table, looking down; its centre stands in the tokens."""
    rng = np.random.default_rng(seed)
    centre = rng.uniform([0.3, -0.2, 0.3], [0.7, 0.2, 0.5], (n, 3))
    T = np.tile(np.diag([1.0, -1, -1, 1]), (n, 1, 1))
    T[:, :3, 3] = centre
    points = np.zeros((n, 40, 3))
    points[..., :2] = centre[:, None, :2] + rng.uniform(-0.15, 0.15, (n, 40, 2))
    points[..., 2] = rng.uniform(0, 0.1, (n, 40))
    x = (points - centre[:, None]) @ T[:, :3, :3]
    pixels = (x / x[..., 2:]) @ K.T
    tokens = np.zeros((n, 1, 3, 16))
    tokens[..., :3] = 10 * (centre - [0.5, 0, 0.4])[:, None, None]
    tokens[:, :, 1, 5] = 1
    every = np.ones((n, 40), bool)
    return FrozenSet(
        tokens.astype(np.float16), points.astype(np.float32), pixels[..., :2].astype(np.float32),
        every, every, T.astype(np.float32), np.tile(K, (n, 1, 1)), np.array(SIZE),
    )  # fmt: skip


def true_poses(batch):
    return encode_pose(batch.T_base_wrist, fov_from_intrinsics(batch.wrist_K, *SIZE))


def test_the_losses_are_zero_at_the_truth_and_as_computed_by_hand_elsewhere():
    batch = frames(make_set(8), np.arange(8))
    truth = true_poses(batch)
    weights = HeadLosses(pose=1.0)
    loss, _ = head_loss([truth, truth], batch, weights)
    assert loss.item() < 1e-6
    flipped = torch.cat([truth[:, :3], -truth[:, 3:7], truth[:, 7:]], 1)
    assert head_loss([flipped], batch, weights)[0].item() < 1e-6

    shift = torch.tensor([0.07, 0, 0, 0, 0, 0, 0, 0, 0])
    only_pose = HeadLosses(projection=0.0, pose=2.0, fov=0.0)
    # 0.07 m over 7 numbers, twice weighted; an earlier iteration counts 0.6 as much.
    assert head_loss([truth, truth + shift], batch, only_pose)[0].item() == pytest.approx(0.02)
    assert head_loss([truth + shift, truth], batch, only_pose)[0].item() == pytest.approx(0.012)
    wide = torch.tensor([0, 0, 0, 0, 0, 0, 0, 0.1, 0.1])
    assert head_loss([truth + wide], batch, HeadLosses(fov=3.0))[0].item() == pytest.approx(0.3)


def test_lambda_depth_weighs_points_behind_the_camera_and_lambda_u_those_before_it():
    batch = frames(make_set(4), np.arange(4))
    away = true_poses(batch)
    away[:, 3:7] = torch.tensor([0.0, 0, 0, 1])  # looks up: all points are behind

    def loss(pose, **weights):
        return head_loss([pose], batch, HeadLosses(fov=0.0, **weights))[0].item()

    depth = (batch.T_base_wrist[:, None, 2, 3] - batch.points[..., 2]).mean().item()
    assert loss(away, lambda_u=5.0) == pytest.approx(depth, rel=1e-4)
    assert loss(away, lambda_depth=3.0) == pytest.approx(3 * depth, rel=1e-4)
    near = true_poses(batch) + torch.tensor([0.01, 0, 0, 0, 0, 0, 0, 0, 0])
    assert loss(near, lambda_depth=9.0) == pytest.approx(loss(near), rel=1e-6)
    assert loss(near, lambda_u=4.0) == pytest.approx(4 * loss(near), rel=1e-5)


def test_errors_of_a_head_that_is_10_mm_and_5_degrees_off():
    data = make_set(40)

    class Off(torch.nn.Module):
        def forward(self, tokens):
            batch = frames(data, np.arange(len(data)))
            T = batch.T_base_wrist.clone()
            T[:, 2, 3] += 0.01
            a = np.deg2rad(5.0)
            turn = torch.eye(3)
            turn[0, 0] = turn[1, 1] = float(np.cos(a))
            turn[1, 0], turn[0, 1] = float(np.sin(a)), -float(np.sin(a))
            T[:, :3, :3] = T[:, :3, :3] @ turn
            return [encode_pose(T, fov_from_intrinsics(batch.wrist_K, *SIZE))]

    errors = head_errors(Off(), data, size=40)
    assert errors["mm"] == pytest.approx(10, abs=1e-2)
    assert errors["deg"] == pytest.approx(5, abs=1e-2)
    assert 1 < errors["px"] < 6


def test_the_constant_pose_is_the_mean():
    data = make_set(200)
    errors = constant_errors(data, data)
    distance = np.linalg.norm(
        data.T_base_wrist[:, :3, 3] - data.T_base_wrist[:, :3, 3].mean(0), axis=1
    )
    assert errors["mm"] == pytest.approx(1e3 * np.sort(distance)[99], rel=1e-3)
    assert errors["deg"] < 0.05


@pytest.mark.parametrize("start", STARTS)
def test_an_untrained_head_says_its_start(start):
    pose = SmallHead(16, start)(torch.randn(2, 1, 3, 16))[-1]
    expected = torch.tensor(STARTS[start]).expand(2, 7)
    torch.testing.assert_close(pose[:, :7], expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("losses", [HeadLosses(), HeadLosses(projection=0.0, pose=1.0)])
def test_a_head_learns_from_either_loss(tmp_path, losses):
    save(tmp_path / "train", make_set(64), {})
    save(tmp_path / "val", make_set(32, seed=1), {})
    loop = LoopConfig(steps=30, learning_rate=4e-3, warmup=3, ema=0.8, checkpoint_every=31)
    run = Run("a", tmp_path / "train", {"val": tmp_path / "val"}, losses, loop)
    errors = execute(run)["val"]
    constant = constant_errors(make_set(64), make_set(32, seed=1))
    assert errors["mm"] < 0.6 * constant["mm"]
    assert errors["px"] < 0.6 * constant["px"]


def test_the_same_seed_gives_the_same_figures(tmp_path):
    save(tmp_path / "set", make_set(16), {})
    loop = LoopConfig(steps=3, checkpoint_every=4)
    run = Run("a", tmp_path / "set", {"val": tmp_path / "set"}, HeadLosses(), loop)
    errors = execute(run)
    assert execute(run) == errors
    for other in (replace(run, loop=replace(loop, seed=1)), replace(run, pairs=5, sigma=1.0)):
        assert execute(other) != errors


def test_summaries_say_when_seeds_disagree():
    a = summary("a", "val", [{"mm": m, "deg": 1.0, "px": 2.0} for m in (3.0, 1.0, 2.0)])
    b = summary("b", "val", [{"mm": m, "deg": d, "px": 1.0} for m, d in ((2.5, 2.0), (4.0, 3.0))])
    assert a["mm"] == {"median": 2.0, "min": 1.0, "max": 3.0, "seeds": [3.0, 1.0, 2.0]}
    assert clearly_better(a, b, "deg") and not clearly_better(a, b, "mm")
    text = compare(a, b)
    assert "2.0 against 3.2 mm (within the spread of seeds)" in text
    assert "1.0 against 2.5 deg (better)" in text and "2.0 against 1.0 px (worse)" in text
