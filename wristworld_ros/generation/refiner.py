"""Convolutional branch of the mini model, on the latents.

The transformer sees 2 x 2 latent cells as one token and learns slowly from the 10^4 frames that the
mini model has; convolutions learn what is local (closing gaps, the gripper, edges between tokens)
from far fewer.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Dilations of the residual blocks: together they see the whole 16 x 16 latent picture.
DILATIONS = (1, 2, 4, 1, 2, 1)


class ResidualBlock(nn.Module):
    """Two convolutions; a vector scales and shifts the second one's input."""

    def __init__(self, width: int, dilation: int, vector: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(8, width)
        self.conv1 = nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation)
        self.norm2 = nn.GroupNorm(8, width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.modulation = nn.Linear(vector, 2 * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, vector: Tensor) -> Tensor:
        h = self.norm2(self.conv1(F.silu(self.norm1(x))))
        scale, shift = self.modulation(vector)[:, :, None, None].chunk(2, 1)
        h = h * (1 + scale) + shift
        return x + self.conv2(F.silu(h))


class LatentRefiner(nn.Module):
    """Correction of latents, frame by frame.

    Args:
        channels: of the input; out_channels: of the latents.
        context: width of the vector that describes the clip (pooled anchor tokens).
        width: channels inside, a multiple of 8.
    """

    def __init__(self, channels: int, out_channels: int, context: int, width: int = 96) -> None:
        super().__init__()
        self.vector = nn.Sequential(nn.Linear(context + 1, 192), nn.SiLU())
        self.stem = nn.Conv2d(channels, width, 3, padding=1)
        self.blocks = nn.ModuleList(ResidualBlock(width, d, 192) for d in DILATIONS)
        self.norm = nn.GroupNorm(8, width)
        self.out = nn.Conv2d(width, out_channels, 3, padding=1)
        assert self.out.bias is not None
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        """B x channels x F x h x w, times B, B x context -> B x out_channels x F x h x w."""
        B, _, T = x.shape[:3]
        vector = self.vector(torch.cat([context, t[:, None].to(context.dtype)], 1))
        vector = vector.repeat_interleave(T, 0)
        h = self.stem(x.transpose(1, 2).flatten(0, 1))
        for block in self.blocks:
            h = block(h, vector)
        return self.out(F.silu(self.norm(h))).unflatten(0, (B, T)).transpose(1, 2)
