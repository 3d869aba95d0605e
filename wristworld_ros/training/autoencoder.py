"""Training of the autoencoder on wrist pictures, hole-filled splats and anchor crops."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wristworld_ros.generation.autoencoder import Autoencoder
from wristworld_ros.training.loop import LoopConfig, is_main_process, train, training_record
from wristworld_ros.training.shard_data import ShardSet
from wristworld_ros.weights import save_weights

#: Share of wrist pictures in a batch; the rest are anchor pictures, for variety.
WRIST_SHARE = 0.75


def train_autoencoder(
    train_folder: Path, val_folder: Path, work: Path, out: Path, loop: LoopConfig
) -> dict[str, float]:
    """Train by L1 + gradient L1, standardise the latents on training data, write the weights."""
    record = training_record(loop, {"episodes": str(train_folder)})
    torch.manual_seed(loop.seed)
    model = Autoencoder()
    data, val = ShardSet(train_folder, 128), ShardSet(val_folder, 128)
    model.fit_linear(_spread(data, 400))

    def pictures(size: int, generator: torch.Generator) -> Tensor:
        n = round(size * WRIST_SHARE)
        wrist = torch.randint(len(data), (n,), generator=generator).numpy()
        anchor = torch.randint(len(data), (size - n,), generator=generator).numpy()
        view = torch.randint(3, (size - n,), generator=generator).numpy()
        stack = np.concatenate(
            [data.arrays["wrist_rgb"][wrist], data.arrays["anchor_rgb"][anchor, view]]
        )
        x = torch.from_numpy(stack).permute(0, 3, 1, 2).float() / 255
        flip = torch.rand(len(x), 1, 1, 1, generator=generator) < 0.5
        return torch.where(flip, x.flip(-1), x)

    def compute(net: nn.Module, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        assert isinstance(net, Autoencoder)
        x = pictures(loop.batch_size, generator)
        y = net.decode(net.encode(x))
        l1 = (y - x).abs().mean()
        edges = sum((y.diff(dim=d) - x.diff(dim=d)).abs().mean() for d in (-1, -2))
        mse = F.mse_loss(y, x)
        return l1 + 0.5 * edges + mse, {"psnr": -10 * torch.log10(mse).item()}

    def evaluate(net: nn.Module) -> dict[str, float]:
        assert isinstance(net, Autoencoder)
        return {"psnr": reconstruction_psnr(net, val)}

    ema = train(model, compute, work, loop, evaluate=evaluate, evaluate_every=500)
    model.load_state_dict(ema.state)
    model.eval()
    with torch.no_grad():
        generator = torch.Generator().manual_seed(loop.seed)
        latents = torch.cat([model.encode(pictures(32, generator)) for _ in range(16)])
        model.latent_mean.copy_(latents.mean((0, 2, 3)))
        model.latent_std.copy_(latents.std((0, 2, 3)))
    scores = {"psnr": reconstruction_psnr(model, val)}
    if is_main_process():
        save_weights(
            out,
            model,
            model.config_dict(),
            {"training": record, "scores": {"split": "val", **scores}},
        )
    return scores


@torch.no_grad()
def reconstruction_psnr(model: Autoencoder, data: ShardSet) -> float:
    """Mean PSNR [dB] of wrist pictures through the autoencoder, rounded to 8 bits."""
    values = []
    for start in range(0, len(data), 32):
        x = torch.from_numpy(data.arrays["wrist_rgb"][start : start + 32])
        x = x.permute(0, 3, 1, 2).float() / 255
        y = (model.decode(model.encode(x)).clamp(0, 1) * 255).round() / 255
        values.append(-10 * torch.log10((y - x).square().mean((1, 2, 3))))
    return torch.cat(values).mean().item()


def _spread(data: ShardSet, count: int) -> Tensor:
    """``count`` wrist pictures, evenly spread over the set."""
    index = np.linspace(0, len(data) - 1, count).astype(int)
    return torch.from_numpy(data.arrays["wrist_rgb"][index]).permute(0, 3, 1, 2).float() / 255
