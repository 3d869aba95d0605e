"""The locator: its cut-outs are where they should be, and it learns to find points in them."""

import json

import numpy as np
import pytest
import torch

from wristworld_ros.cli.main import main
from wristworld_ros.reconstruction.companions import load_companion
from wristworld_ros.reconstruction.heads import project
from wristworld_ros.reconstruction.locator import (
    BASE_MIDDLE,
    BASE_POINTS,
    PARTS,
    REACHES,
    CutOuts,
    Locator,
    LocatorConfig,
    around,
    in_pictures,
)
from wristworld_ros.training.locator import (
    LocatorLosses,
    evaluate_locator,
    locator_loss,
    rough_cut_outs,
    true_points,
)
from wristworld_ros.training.shard_data import ShardSet

TINY = LocatorConfig(size=64, widths=(16, 16, 16, 16))


@pytest.fixture(scope="module")
def data(companion_shards):
    return ShardSet(companion_shards)


@pytest.mark.parametrize("part", PARTS)
def test_cut_outs_hold_their_part(data, part):
    batch = data.batch(np.arange(2), np.arange(3))
    points, middle = true_points(batch, part)
    K, T = batch.anchor_K.flatten(0, 1), batch.T_world_anchor.flatten(0, 1)
    cuts = around(middle.repeat_interleave(3, 0), K, T, (256, 256), part)
    pixels, depth = (x.flatten(0, 1) for x in project(points, batch.anchor_K, batch.T_world_anchor))
    off = (pixels - cuts.middle[:, None]).abs().amax(-1) / cuts.half[:, None]
    assert off.max() < 1.15 and off.median() < 0.7
    # Half an edge stands for the reach at the middle's distance.
    z = depth.mean(1)
    reach = cuts.half * z / K[:, 0, 0]
    assert (reach / REACHES[PARTS.index(part)] - 1).abs().max() < 0.1


def test_rough_cut_outs_are_off_as_stated(data):
    batch = data.batch(np.zeros(200, int), np.arange(3))
    losses = LocatorLosses(wide=0.0)
    middle = true_points(batch, "hand")[1]
    cuts = rough_cut_outs(batch, middle, "hand", losses, torch.Generator().manual_seed(0))
    K, T = batch.anchor_K.flatten(0, 1), batch.T_world_anchor.flatten(0, 1)
    exact = around(middle.repeat_interleave(3, 0), K, T, (256, 256), "hand")
    shift = (cuts.middle - exact.middle) / exact.half[:, None]
    assert shift.std().item() == pytest.approx(losses.middle_noise, rel=0.15)
    assert (cuts.half / exact.half).log().std().item() == pytest.approx(losses.size_noise, rel=0.15)


def test_places_go_back_to_the_pictures():
    """A cut-out twice as large at half the scale names the same place."""
    torch.manual_seed(0)
    net = Locator(TINY).eval()
    picture = torch.rand(1, 3, 64, 64)
    small = around(
        torch.tensor([[0.0, 0.0, 1.0]]),
        torch.tensor([[[100.0, 0, 32], [0, 100, 32], [0, 0, 1]]]),
        torch.eye(4)[None],
        (64, 64),
        "base",
    )
    assert small.middle.tolist() == [[32.0, 32.0]] and small.half.item() == pytest.approx(30.0)
    with torch.no_grad():
        peaks = net(picture, small, "base")
    pixels, sigma = in_pictures(peaks, small, TINY.size)
    assert pixels.shape == (1, len(BASE_POINTS), 2) and sigma.shape == (1, len(BASE_POINTS))
    # The cut-out's 64 px span 60 px of the picture, from 2 on.
    torch.testing.assert_close(pixels, 2 + peaks.pixels * 60 / 64)
    torch.testing.assert_close(sigma, peaks.sigma * 60 / 64)


def test_bfloat16_training_stays_close_to_float32():
    torch.manual_seed(0)
    net = Locator(TINY).eval()
    picture = torch.rand(2, 3, 64, 64)
    cuts = CutOuts(torch.full((2, 2), 32.0), torch.tensor([20.0, 30.0]))
    with torch.no_grad():
        exact = net(picture, cuts, "hand")
        net.bf16 = True
        half = net(picture, cuts, "hand")
    assert half.pixels.dtype == torch.float32
    assert 0 < (half.log_heat - exact.log_heat).abs().max() < 0.1
    assert (half.pixels - exact.pixels).abs().max() < 0.5


def test_it_learns(data):
    torch.manual_seed(0)
    net = Locator(TINY)
    before = evaluate_locator(net, data)
    net.train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=4e-3)
    generator = torch.Generator().manual_seed(0)
    batch = data.batch(np.arange(2), np.arange(3))
    for _ in range(60):
        loss, figures = locator_loss(net, batch, LocatorLosses(wide=0.0), generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert figures.keys() == {"base_px", "hand_px"}
    after = evaluate_locator(net, data)
    for part in PARTS:
        assert after[f"{part}/px_median"] < 0.6 * before[f"{part}/px_median"]
        assert after[f"{part}/px_median"] <= after[f"{part}/px_p90"]
    assert 0.1 < after["base/sigma_factor"] < 5


def test_points_of_the_base_surround_its_middle():
    assert np.allclose(np.mean(BASE_POINTS, 0), BASE_MIDDLE, atol=0.01)


def test_the_verb_trains_without_a_stage_1(companion_shards, tmp_path):
    command = (
        f"train locator --shards {companion_shards} --val {companion_shards} --steps 2 "
        f"--batch-size 2 --work {tmp_path / 'work'} --out {tmp_path / 'locator'} --seed 3"
    )
    assert main(command.split()) == 0
    document = json.loads((tmp_path / "locator" / "config.json").read_text())
    assert document["training"]["loop"]["seed"] == 3
    assert set(document["scores"]) >= {"split", "hand/px_median", "base/px_p90"}
    model = load_companion(tmp_path / "locator", Locator)
    assert model is not None and model.sha256 == document["sha256"]
    assert load_companion(tmp_path / "nowhere", Locator) is None
