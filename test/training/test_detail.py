"""The detail restorer's training: what the autoencoder loses comes back from the condition map."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from wristworld_ros.cli.main import main
from wristworld_ros.generation.detail import DetailConfig, DetailRestorer
from wristworld_ros.generation.lpips import LPIPS
from wristworld_ros.generation.model import Stage2Model
from wristworld_ros.training.detail import (
    DetailLosses,
    decode_set,
    detail_loss,
    detail_step,
    evaluate_detail,
    varied_alike,
)
from wristworld_ros.training.stage2 import encode_set, pixels

sys.path.insert(0, str(Path(__file__).parent))
from stripes import FRAMES, SIZE, TINY, Words, frames, tiny_autoencoder


@pytest.fixture(scope="module")
def perceptual():
    return LPIPS()


@pytest.fixture(scope="module")
def decoded():
    torch.manual_seed(0)
    autoencoder = tiny_autoencoder()
    latents = encode_set(frames(), autoencoder, Words())
    return decode_set(Stage2Model(TINY).eval(), latents, autoencoder)


def test_details_that_the_autoencoder_loses_come_back(decoded, perceptual):
    torch.manual_seed(0)
    data = frames()
    net = DetailRestorer(DetailConfig(widths=(16, 16, 16, 16)))
    before = evaluate_detail(net, data, decoded, perceptual)
    net.train()
    optimizer = torch.optim.AdamW(net.parameters(), 5e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(40):
        loss, figures = detail_step(net, data, decoded, perceptual, 6, DetailLosses(), generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert figures.keys() == {"psnr", "lpips", "doubt"}
    after = evaluate_detail(net, data, decoded, perceptual)
    for name in ("psnr_decoded", "psnr_condition", "lpips_decoded", "lpips_condition"):
        assert after[name] == before[name]
    assert after["psnr"] > before["psnr_decoded"] + 3
    assert after["lpips"] < 0.5 * before["lpips_decoded"]
    assert after["doubt"] < 0.6 * before["doubt"]


def test_pictures_of_one_view_stay_alike():
    data = frames()
    truth = pixels(data.wrist) * 0.85  # whose colours stay below 1
    mask = torch.from_numpy(data.mask)[:, None].float().repeat(1, 2, 1, 1)
    stack = torch.stack([truth, truth * 0.5], 1)
    varied, turned = varied_alike(stack, mask, torch.Generator().manual_seed(1))
    torch.testing.assert_close(varied[:, 1], varied[:, 0] * 0.5)
    flipped = (turned != mask).flatten(1).any(1)
    assert 0 < flipped.sum() < FRAMES
    back = torch.where(flipped[:, None, None, None], varied[:, 0].flip(-1), varied[:, 0])
    # Colours change by one factor per channel, once their order is undone.
    for i in range(FRAMES):
        seen = {round(float(back[i, c].max()), 4) for c in range(3)}
        was = truth[i].amax((1, 2))
        assert min(seen) >= 0.8 * was.min() - 1e-3 and max(seen) <= min(1, 1.15 * was.max()) + 1e-3
        assert ((back[i] > 0).any(0) == (truth[i] > 0).any(0)).all()


def test_losses_of_a_known_error(perceptual):
    """A grey picture that is too bright by 0.1, everywhere or in one half."""
    truth = torch.full((2, 3, SIZE, SIZE), 0.4)
    unsure = torch.zeros(2, 1, SIZE, SIZE)
    plain = DetailLosses(perceptual=0.0, right=0.0)
    loss, figures = detail_loss(truth + 0.1, unsure, truth, perceptual, plain)
    assert loss.item() == pytest.approx(0.1 + 5 * 0.01, rel=1e-4)
    assert figures["psnr"] == pytest.approx(20, abs=1e-3)
    half = truth.clone()
    half[..., : SIZE // 2] += 0.1
    loss, _ = detail_loss(half, unsure, truth, perceptual, plain)
    # One column of differences in SIZE - 1 has an error of 0.1.
    assert loss.item() == pytest.approx(0.05 + 5 * 0.005 + 0.5 * 0.1 / (SIZE - 1), rel=1e-4)
    more, figures = detail_loss(half, unsure, truth, perceptual, replace(plain, perceptual=2.0))
    assert (more - loss).item() == pytest.approx(2 * figures["lpips"], rel=1e-4)
    assert figures["lpips"] > 0
    # Surely right everywhere, which is so in one half.
    sure = torch.full_like(unsure, 3.0)
    more, _ = detail_loss(half, sure, truth, perceptual, replace(plain, right=1.0))
    expected = 0.5 * np.log1p(np.exp(-3)) + 0.5 * np.log1p(np.exp(3))
    assert (more - loss).item() == pytest.approx(expected, rel=1e-4)


def test_lpips_has_a_gradient_where_nothing_is_seen(perceptual):
    """Features that are all zero: an unguarded root would give NaN."""
    flat = torch.full((1, 3, SIZE, SIZE), -1.0, requires_grad=True)
    perceptual(flat, torch.zeros(1, 3, SIZE, SIZE)).sum().backward()
    assert flat.grad.isfinite().all() and flat.grad.abs().max() > 0


def test_the_verb_needs_stage2_and_says_whose_it_is(companion_shards, tmp_path, capsys):
    from wristworld_ros.resources import model_dir

    mini = model_dir("mini")
    command = (
        f"train detail --shards {companion_shards} --val {companion_shards} --steps 1 "
        f"--batch-size 2 --work {tmp_path / 'work'} --out {tmp_path / 'detail'} "
        f"--stage1 {mini / 'stage1'} --autoencoder {mini / 'autoencoder'}"
    )
    assert main(command.split()) == 2
    assert "train detail needs --stage2" in capsys.readouterr().err
    assert main([*command.split(), "--stage2", str(mini / "stage2")]) == 0
    document = json.loads((tmp_path / "detail" / "config.json").read_text())
    stage2 = json.loads((mini / "stage2" / "config.json").read_text())
    assert document["stage2"] == stage2["sha256"]
    assert document["scores"].keys() >= {"split", "psnr", "lpips", "lpips_condition"}
