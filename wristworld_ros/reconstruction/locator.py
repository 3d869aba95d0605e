"""Where the robot's base and the wrist camera are in a picture, in cut-outs at full resolution.

The network of stage 1 finds its landmarks and keypoints in pictures of half the size, among much
else. What a pose needs of a picture is less: a few points of the hand, and of the base, as exactly
as can be. Each cut-out is looked at by itself, and knows neither cameras nor other views, so that
the network fits to any stage 1. Beyond the paper.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wristworld_ros.reconstruction.companions import Companion
from wristworld_ros.reconstruction.heads import (
    WRIST_KEYPOINTS,
    double_conv,
    down_and_up,
    window,
    window_grid,
)
from wristworld_ros.reconstruction.heatmaps import HeatPeaks, locate

_ROUND = ((0.14, 0.0), (-0.14, 0.0), (0.0, 0.14), (0.0, -0.14))
#: Points fixed to the robot's base [m]: its foot and its shoulder, on the axis and around it.
BASE_POINTS = (
    *((0.0, 0.0, z) for z in (0.0, 0.15, 0.3)),
    *((x, y, z) for z in (0.0, 0.3) for x, y in _ROUND),
)
#: Middle of the base's cut-outs in the base frame [m], of the hand's in the wrist camera's.
BASE_MIDDLE, HAND_MIDDLE = (0.0, 0.0, 0.15), (0.0, 0.0, 0.07)
#: Half the edge of a cut-out at its middle [m], base and hand.
REACHES = (0.3, 0.24)
#: Names of the two, in this order.
PARTS = ("base", "hand")
#: Edge of a heat map's cell [px of the cut-out].
CELL = 2


@dataclass(frozen=True)
class LocatorConfig:
    """Sizes.

    Attributes:
        size: edge of the cut-outs [px], a multiple of 16.
        widths: channels at 1/2, 1/4, 1/8 and 1/16 of the cut-out.
    """

    size: int = 112
    widths: tuple[int, int, int, int] = (32, 64, 96, 128)


class CutOuts(NamedTuple):
    """Square parts of pictures: middles N x 2 and half edges N [px]."""

    middle: Tensor
    half: Tensor


class Locator(Companion):
    """A small U-net for the base's cut-outs, and one for the hand's.

    Attributes:
        bf16: run the convolutions in bfloat16.
    """

    config: LocatorConfig
    sizes = LocatorConfig

    def __init__(self, config: LocatorConfig | None = None) -> None:
        super().__init__()
        self.config = config or LocatorConfig()
        points = (len(BASE_POINTS), len(WRIST_KEYPOINTS))
        self.bf16 = False
        self.nets = nn.ModuleList([_PointNet(self.config.widths, count) for count in points])

    def forward(self, images: Tensor, cut_outs: CutOuts, part: str) -> HeatPeaks:
        """Locate the points of one part.

        Args:
            images: N x 3 x H x W in [0, 1].
            cut_outs: N, where the part is roughly, and how large.
            part: of ``PARTS``.

        Returns:
            N x K peaks; ``pixels``, ``sigma`` and ``cell`` are those of the cut-outs, see
            ``in_pictures``.
        """
        size = (images.shape[-2], images.shape[-1])
        with torch.no_grad():
            grid = window_grid(*cut_outs, size, self.config.size)
            crop = F.grid_sample(images, grid, align_corners=False)
            inside = (grid.abs() <= 1).all(-1)[:, None].to(crop)
        net = self.nets[PARTS.index(part)]
        assert isinstance(net, _PointNet)
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.bf16):
            logits = net(torch.cat([2 * crop - 1, inside], 1))
        return locate(logits, net.absent, float(CELL))


class _PointNet(nn.Module):
    def __init__(self, widths: tuple[int, int, int, int], points: int) -> None:
        super().__init__()
        a, b, c, d = widths
        self.enter = double_conv(16, a)
        self.down = nn.ModuleList(
            [double_conv(a, b, 2), double_conv(b, c, 2), double_conv(c, d, 2)]
        )
        self.up = nn.ModuleList(
            [double_conv(d + c, c), double_conv(c + b, b), double_conv(b + a, a)]
        )
        self.out = nn.Conv2d(a, points, 1)
        self.absent = nn.Parameter(torch.zeros(points))

    def forward(self, x: Tensor) -> Tensor:
        x = down_and_up(self.enter(F.pixel_unshuffle(x, CELL)), self.down, self.up)
        return self.out(x).float()


def in_pictures(peaks: HeatPeaks, cut_outs: CutOuts, size: int) -> tuple[Tensor, Tensor]:
    """Places N x K x 2 and standard deviations N x K [px of the pictures] of ``Locator``'s peaks.

    Args:
        size: edge of the cut-outs [px].
    """
    scale = 2 * cut_outs.half / size
    corner = cut_outs.middle - cut_outs.half[:, None]
    return peaks.pixels * scale[:, None, None] + corner[:, None], peaks.sigma * scale[:, None]


def around(
    middle: Tensor, K: Tensor, T_base_camera: Tensor, size: tuple[int, int], part: str
) -> CutOuts:
    """Cut-outs of a part by cameras.

    Args:
        middle: N x 3 of the part in the base frame [m].
        K, T_base_camera: N x 3 x 3 [px], N x 4 x 4; size: (H, W) of the pictures.
    """
    reach = REACHES[PARTS.index(part)]
    pixel, half = window(middle, K[:, None], T_base_camera[:, None], size, reach)
    return CutOuts(pixel[:, 0], half[:, 0])
