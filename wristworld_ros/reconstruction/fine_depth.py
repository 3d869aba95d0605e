"""Depth of the whole pictures at their full resolution, with sharp edges.

The network of stage 1 sees pictures at half their size, and its depth runs smoothly from the robot
to the wall behind it. But a pixel shows the one or the other: here it takes the depth of one of its
neighbours, chosen by the picture, as convex upsampling does (Teed and Deng 2020, RAFT, arXiv
2003.12039). Beyond the paper.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wristworld_ros.reconstruction.companions import Companion
from wristworld_ros.reconstruction.heads import LOG_DEPTH_RANGE, conv, down_and_up
from wristworld_ros.reconstruction.model import HALVE, SceneOutput, base_plane

#: Channels of the network's input: four pixels' colours, and four clues of depth.
CLUES = 16
#: Ratios of depth that count as one, in the input and as a correction.
RATIO_UNIT, CORRECTION_UNIT = 0.2, 0.1


@dataclass(frozen=True)
class FineDepthConfig:
    """Sizes.

    Attributes:
        widths: channels at 1/2, 1/4 and 1/8 of the pictures.
        steps: distances of the neighbours to choose from [px of half the pictures].
    """

    widths: tuple[int, int, int] = (24, 48, 64)
    steps: tuple[int, ...] = (1, 3)


class FineDepth(Companion):
    """A small U-net over each view by itself."""

    config: FineDepthConfig
    sizes = FineDepthConfig

    def __init__(self, config: FineDepthConfig | None = None) -> None:
        super().__init__()
        self.config = config or FineDepthConfig()
        a, b, c = self.config.widths
        self.enter = conv(CLUES, a)
        self.down = nn.ModuleList([conv(a, b, 2), conv(b, c, 2)])
        self.up = nn.ModuleList([conv(c + b, b), conv(b + a, a)])
        self.choices = 1 + 8 * len(self.config.steps)
        self.out = nn.Conv2d(a, 4 * (self.choices + 2), 1)

    def refine(self, images: Tensor, scene: SceneOutput) -> SceneOutput:
        """The same scene with depth and confidence at full resolution; see ``forward``."""
        depth, confidence = self(images, scene)
        return SceneOutput(
            depth, confidence, scene.first_depth, scene.T_base_anchor, scene.anchor_K, scale=1
        )

    def forward(self, images: Tensor, scene: SceneOutput) -> tuple[Tensor, Tensor]:
        """Compute.

        Args:
            images: B x V x 3 x H x W in [0, 1], those of ``scene``.
            scene: of ``Stage1Model``, depth B x V x H/2 x W/2.

        Returns:
            Depth [m] and confidence (1 + exp, as in ``scene``), both B x V x H x W.
        """
        B, V = images.shape[:2]
        with torch.no_grad():
            log_depth = torch.log(scene.depth.flatten(0, 1)[:, None])
            doubt = torch.log((scene.confidence - 1).clamp_min(1e-3)).flatten(0, 1)[:, None]
            K = scene.anchor_K * images.new_tensor(HALVE)[:, None]
            h, w = scene.depth.shape[-2:]
            plane = base_plane(K, scene.T_base_anchor, (h, w))
            plane = torch.log(plane.clamp_min(0.05)).flatten(0, 1)[:, None]
            around = F.avg_pool2d(log_depth, 9, 1, 4, count_include_pad=False)
            clues = [
                F.pixel_unshuffle(2 * images.flatten(0, 1) - 1, 2),
                ((log_depth - plane) / RATIO_UNIT).clamp(-3, 3),
                ((log_depth - around) / RATIO_UNIT).clamp(-3, 3),
                log_depth,
                doubt / 4,
            ]
            neighbours = self._neighbours(log_depth)
        x = down_and_up(self.enter(torch.cat(clues, 1)), self.down, self.up)
        out = self.out(x).float().unflatten(1, (self.choices + 2, 4))
        weights = out[:, : self.choices].softmax(1)
        log = (weights * neighbours[:, :, None]).sum(1) + CORRECTION_UNIT * out[:, -2]
        log = F.pixel_shuffle(log, 2).clamp(*LOG_DEPTH_RANGE)
        confidence = F.pixel_shuffle(doubt + out[:, -1], 2).clamp(-8, 8)
        shape = (B, V, *images.shape[-2:])
        return log.exp().reshape(shape), 1 + confidence.exp().reshape(shape)

    def _neighbours(self, log_depth: Tensor) -> Tensor:
        """N x 1 x h x w -> N x choices x h x w: each pixel's own value, and its neighbours'."""
        found = [log_depth]
        for step in self.config.steps:
            padded = F.pad(log_depth, (step,) * 4, mode="replicate")
            h, w = log_depth.shape[-2:]
            found += [
                padded[:, :, dy * step : dy * step + h, dx * step : dx * step + w]
                for dy in range(3)
                for dx in range(3)
                if (dy, dx) != (1, 1)
            ]
        return torch.cat(found, 1)
