"""Conditions of stage 2 at tiny size: episodes of stripes, and networks that fit them."""

import numpy as np
import torch

from wristworld_ros.generation.anchor_encoder import AnchorEncoderConfig
from wristworld_ros.generation.autoencoder import MINI_AUTOENCODER, Autoencoder
from wristworld_ros.generation.model import Stage2Config
from wristworld_ros.training.conditions import ConditionSet
from wristworld_ros.training.stage2 import pixels

SIZE, FRAMES = 32, 12
TINY = Stage2Config(
    heads=2,
    head_dim=24,
    ffn_dim=32,
    layers=1,
    refiner=16,
    anchors=AnchorEncoderConfig(image_size=32, width=32, layers=1, heads=2),
)


class Words:
    """Text encoder of a test: a token of ones for each word."""

    def encode(self, text: str) -> torch.Tensor:
        out = torch.zeros(TINY.text_tokens, 384)
        out[: len(text.split())] = 1
        return out


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
        measured=mask,
        wrist_K=np.repeat([[[30.0, 0, 16], [0, 30, 16], [0, 0, 1]]], FRAMES, 0),
        anchors=rng.integers(0, 255, (FRAMES, 3, 32, 32, 3), np.uint8),
        views=np.repeat(np.array([2, 3], np.uint8), FRAMES // 2),
        instructions=["pick the red cube"] * FRAMES,
        episode=np.repeat([0, 1], FRAMES // 2),
    )


def tiny_autoencoder() -> Autoencoder:
    """Principal components of the stripes."""
    torch.manual_seed(0)
    blocks = (16, 16, 16, 16)
    model = Autoencoder(
        {**MINI_AUTOENCODER, "encoder_block_out_channels": blocks,
         "decoder_block_out_channels": blocks}
    )  # fmt: skip
    model.fit_linear(pixels(frames().wrist))
    return model.eval().requires_grad_(False)
