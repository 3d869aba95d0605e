"""What the plane sweep is trained on, and the verb that trains it."""

import json
from dataclasses import fields

import numpy as np
import pytest
import torch

from wristworld_ros.cli.main import main
from wristworld_ros.data.simulation.shards import DEPTH_STEP, read_shard
from wristworld_ros.generation.lpips import LPIPS
from wristworld_ros.reconstruction.plane_sweep import PlaneSweep, PlaneSweepConfig, SweepInputs
from wristworld_ros.resources import model_dir
from wristworld_ros.training.plane_sweep import (
    PlaneSweepLosses,
    SweepBatches,
    depth_error,
    evaluate_plane_sweep,
    plane_sweep_step,
    recoloured,
)
from wristworld_ros.training.sweep_data import POSED, build_sweep_data, sweep_batch

CONFIG = PlaneSweepConfig(planes=8, widths=(16, 16, 16, 16), fine=16)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def episodes(companion_shards, cache):
    return build_sweep_data(companion_shards, model_dir("mini") / "stage1", cache, processes=1)


def test_frames_come_with_what_stage_1_says_of_them(episodes, companion_shards):
    shard = read_shard(next(companion_shards.glob("[0-9]*.npz")))
    (episode,) = episodes
    assert len(episode) == 2 and episode.kind in POSED
    inputs, truth = sweep_batch([(episode, 1), (episode, 0)])
    V = episode.views
    assert inputs.images.shape == (2, V, 3, 256, 256)
    assert inputs.map_mask.shape == (2, 2, 32, 32)
    np.testing.assert_array_equal(
        (truth.image * 255).round().byte().permute(0, 2, 3, 1).numpy(), shard.wrist_rgb[::-1]
    )
    np.testing.assert_allclose(truth.depth.numpy(), shard.wrist_depth[::-1] * DEPTH_STEP, rtol=1e-6)
    # Which anchors these are shows in their pictures, and their places in what they see.
    for v in range(V):
        same = [(episode.anchors[0, v] == rgb[0]).all() for rgb in shard.anchor_rgb]
        (index,) = np.flatnonzero(same)
        expected = np.linalg.inv(shard.T_world_camera[index]) @ shard.T_world_wrist[0]
        np.testing.assert_allclose(inputs.T_anchor_wrist[1, v], expected, atol=1e-5)
        np.testing.assert_allclose(inputs.K[1, v], shard.anchor_K[index], rtol=1e-6)
    known = inputs.confidence > 0.45
    assert known.float().mean() > 0.5 and (inputs.confidence >= -1).all()
    assert (inputs.map_depth[inputs.map_mask[:, 0] > 0] > 0.02).all()


def test_the_true_depth_of_other_rays_does_not_count(episodes):
    (episode,) = episodes
    values = {f.name: getattr(episode, f.name) for f in fields(episode)}
    learned = type(episode)(**{**values, "kind": "calibrated"})
    _, truth = sweep_batch([(episode, 0), (learned, 0)])
    assert truth.depth[0].any() and not truth.depth[1].any()
    assert torch.equal(truth.image[0], truth.image[1])


def test_views_map_and_truth_change_colours_together(episodes):
    (episode,) = episodes
    inputs, truth = sweep_batch([(episode, 0), (episode, 1)])
    flat = {f.name: torch.full_like(getattr(inputs, f.name), 0.2) for f in fields(SweepInputs)}
    for name in ("images", "map_image"):
        flat[name] = flat[name] * torch.tensor([1.0, 2.0, 3.0])[:, None, None]
    same = type(truth)(flat["map_image"], truth.depth)
    other, seen = recoloured(SweepInputs(**flat), same, torch.Generator().manual_seed(0))
    assert torch.equal(other.map_image, seen.image)
    assert torch.equal(other.images[:, 0, :, :32, :32], seen.image)
    assert torch.equal(other.depth, flat["depth"]) and torch.equal(seen.depth, truth.depth)
    for i in range(2):
        ratios = sorted((seen.image[i, :, 0, 0] / 0.2).tolist())
        assert ratios[0] != pytest.approx(1.0) and 0.8 <= ratios[0] <= 1.15
        assert 2.4 <= ratios[2] <= 3.45


def test_errors_of_depth_are_relative_and_forgive_what_is_small():
    truth = torch.tensor([[[1.0, 0.1], [0.0, 0.5]]])
    exact = torch.tensor([[[1.0, 0.1], [9.0, 0.5]]])
    assert depth_error(exact, truth, 0.02).item() == 0
    off = exact * torch.tensor([[1.0, np.exp(0.05)], [1.0, 1.0]])
    assert depth_error(off, truth, 0.02).item() == pytest.approx((0.05 - 0.01) / 3, rel=1e-4)
    slightly = exact * torch.tensor([[1.0, np.exp(0.01)], [1.0, 1.0]])
    assert depth_error(slightly, truth, 0.02).item() == pytest.approx(0.01**2 / 0.04 / 3, rel=1e-3)


def test_a_few_steps_make_maps_better(episodes):
    torch.manual_seed(0)
    perceptual = LPIPS()
    net = PlaneSweep(CONFIG)
    before = evaluate_plane_sweep(net, episodes, perceptual)
    data = SweepBatches(episodes)
    optimizer = torch.optim.AdamW(net.parameters(), 5e-3)
    generator = torch.Generator().manual_seed(0)
    net.train()
    for _ in range(25):
        loss, figures = plane_sweep_step(
            net, data, perceptual, 2, PlaneSweepLosses(window=32), generator
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    after = evaluate_plane_sweep(net, episodes, perceptual)
    assert figures.keys() >= {"psnr", "psnr_map", "lpips", "doubt", "log_error"}
    for name in ("psnr_map", "lpips_map", "near_map", "covered_map"):
        assert after[name] == before[name]
    assert after["psnr_all"] > before["psnr_map"] + 1
    assert after[f"{episodes[0].kind}/psnr"] == after["psnr"]


def test_the_verb_trains_for_one_stage_1(companion_shards, cache, episodes, tmp_path, capsys):
    work = tmp_path / "work"
    work.mkdir()
    for name in ("data_train", "data_val"):
        (work / name).symlink_to(cache)
    command = (
        f"train plane-sweep --shards {companion_shards} --val {companion_shards} --steps 1 "
        f"--batch-size 2 --work {work} --out {tmp_path / 'plane_sweep'}"
    )
    assert main(command.split()) == 2
    assert "train plane-sweep needs --stage1" in capsys.readouterr().err
    stage1 = model_dir("mini") / "stage1"
    assert main([*command.split(), "--stage1", str(stage1)]) == 0
    document = json.loads((tmp_path / "plane_sweep" / "config.json").read_text())
    assert document["stage1"] == json.loads((stage1 / "config.json").read_text())["sha256"]
    assert document["scores"].keys() >= {"split", "psnr", "psnr_map", "near", "covered"}
