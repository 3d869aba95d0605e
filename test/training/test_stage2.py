"""Stage-2 training at tiny size: what is trained lowers the error of what users get."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from wristworld_ros.generation.model import Stage2Model
from wristworld_ros.training.stage2 import (
    batches_by_views,
    clip_context,
    encode_set,
    evaluate_latents,
    flow_matching_loss,
)

sys.path.insert(0, str(Path(__file__).parent))
from stripes import FRAMES, TINY, Words, frames, tiny_autoencoder


@pytest.fixture(scope="module")
def latents():
    return encode_set(frames(), tiny_autoencoder(), Words())


def test_batches_by_views_hold_every_frame_once(latents):
    batches = list(batches_by_views(latents.data, 4))
    assert sorted(np.concatenate(batches)) == list(range(FRAMES))
    assert all(len(set(latents.data.views[b])) == 1 for b in batches)


def test_flow_matching_is_learned(latents):
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


def test_an_untrained_generator_shows_its_condition(latents):
    """Its correction starts at zero, so that only the autoencoder is between the two."""
    torch.manual_seed(0)
    scores = evaluate_latents(Stage2Model(TINY).eval(), latents, tiny_autoencoder())
    assert scores["psnr"] > 20 and scores["psnr_condition"] > 20
    assert scores["psnr"] == pytest.approx(scores["psnr_condition"], abs=6)
