"""Stage-2 training at tiny size: what is trained lowers the error of what users get."""

import numpy as np
import pytest
import torch

from wristworld_ros.generation.anchor_encoder import AnchorEncoderConfig
from wristworld_ros.generation.autoencoder import MINI_AUTOENCODER, Autoencoder
from wristworld_ros.generation.model import Stage2Config, Stage2Model
from wristworld_ros.training.conditions import ConditionSet
from wristworld_ros.training.loop import LoopConfig
from wristworld_ros.training.stage2 import (
    LatentSet,
    batches_by_views,
    clip_context,
    encode_set,
    evaluate_latents,
    flow_matching_loss,
    pixels,
    train_detail,
)

SIZE, FRAMES = 32, 12
TINY = Stage2Config(
    heads=2,
    head_dim=24,
    ffn_dim=32,
    layers=1,
    refiner=16,
    detail=16,
    anchors=AnchorEncoderConfig(image_size=32, width=32, layers=1, heads=2),
)


class Words:
    """Text encoder of a test: a token of ones for each word."""

    def encode(self, text: str) -> torch.Tensor:
        out = torch.zeros(TINY.text_tokens, 384)
        out[: len(text.split())] = 1
        return out


@pytest.fixture(scope="module")
def autoencoder() -> Autoencoder:
    torch.manual_seed(0)
    blocks = (16, 16, 16, 16)
    model = Autoencoder(
        {**MINI_AUTOENCODER, "encoder_block_out_channels": blocks,
         "decoder_block_out_channels": blocks}
    )  # fmt: skip
    model.fit_linear(pixels(frames().wrist))
    return model.eval().requires_grad_(False)


def frames() -> ConditionSet:
    """Two episodes of stripes; their condition maps are true but for a black hole."""
    rng = np.random.default_rng(0)
    wrist = np.zeros((FRAMES, SIZE, SIZE, 3), np.uint8)
    for i in range(FRAMES):
        wrist[i, :, (np.arange(SIZE) + i) % 4 < 2] = rng.integers(60, 255, 3)
    mask = np.ones((FRAMES, SIZE, SIZE), bool)
    mask[:, 8:14, 8:20] = False
    return ConditionSet(
        wrist=wrist,
        image=wrist * mask[..., None],
        mask=mask,
        wrist_K=np.repeat([[[30.0, 0, 16], [0, 30, 16], [0, 0, 1]]], FRAMES, 0),
        anchors=rng.integers(0, 255, (FRAMES, 3, 32, 32, 3), np.uint8),
        views=np.repeat(np.array([2, 3], np.uint8), FRAMES // 2),
        instructions=["pick the red cube"] * FRAMES,
        episode=np.repeat([0, 1], FRAMES // 2),
    )


@pytest.fixture(scope="module")
def latents(autoencoder: Autoencoder) -> LatentSet:
    return encode_set(frames(), autoencoder, Words())


def test_batches_by_views_hold_every_frame_once(latents):
    batches = list(batches_by_views(latents.data, 4))
    assert sorted(np.concatenate(batches)) == list(range(FRAMES))
    assert all(len(set(latents.data.views[b])) == 1 for b in batches)


def test_flow_matching_is_learned(latents, autoencoder):
    torch.manual_seed(0)
    model = Stage2Model(TINY)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    generator = torch.Generator().manual_seed(0)
    weights = torch.ones(16)
    index = np.arange(FRAMES // 2)[:, None]
    errors = []
    for _ in range(30):
        loss, figures = flow_matching_loss(
            model,
            clip_context(model, latents, index),
            latents.clean[index].float().transpose(1, 2),
            weights,
            generator,
        )
        errors.append(figures["x0_error_over_condition"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert errors[0] == pytest.approx(1, abs=1e-4)  # the correction starts at zero
    assert np.mean(errors[-5:]) < 0.7


def test_details_that_the_autoencoder_loses_come_back(latents, autoencoder, tmp_path):
    torch.manual_seed(0)
    model = Stage2Model(TINY).eval().requires_grad_(False)
    before = evaluate_latents(model, latents, autoencoder)
    assert before["psnr"] == pytest.approx(before["psnr_decoded"], abs=1e-4)
    model.detail.requires_grad_(True)
    loop = LoopConfig(steps=80, batch_size=8, learning_rate=3e-3, warmup=5, ema=0.9)
    train_detail(model, latents, autoencoder, tmp_path, loop)
    after = evaluate_latents(model, latents, autoencoder)
    assert after["psnr_decoded"] == pytest.approx(before["psnr_decoded"], abs=1e-4)
    assert after["psnr"] > before["psnr"] + 2
