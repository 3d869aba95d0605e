"""Depth around the hand once more, in cut-outs at full resolution, by the wrist camera's pose.

What a wrist camera sees best, gripper and grasped object, is small in the third-person pictures
and stands free before the table, so that the dense depth of whole pictures is worst there. But the
hand is rigid: where the wrist camera is says where its surfaces are. Beyond the paper.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wristworld_ros.reconstruction.companions import Companion
from wristworld_ros.reconstruction.heads import (
    LOG_DEPTH_RANGE,
    cut_out,
    double_conv,
    down_and_up,
    project,
)
from wristworld_ros.reconstruction.model import SceneOutput, base_plane, pixel_rays

#: Channels of the network's input; see ``HandDepth._clues``.
CLUES = 18
#: Lengths in the wrist's frame [m], ratios of depth, heights [m] that count as one.
REACH_UNIT, RATIO_UNIT, HEIGHT_UNIT = 0.15, 0.2, 0.2
#: Relative error of depth that is right.
TOLERANCE = 0.02
#: Confidence of a depth that is as likely right as not, and of one that is surely right.
EVEN, SURE = 0.45, 0.8


@dataclass(frozen=True)
class HandDepthConfig:
    """Sizes.

    Attributes:
        size: edge of the cut-outs [px], a multiple of 16.
        reach: of the cut-outs to each side of their middle [m].
        ahead: distance of the middle before the wrist camera [m].
        widths: channels at 1/2, 1/4, 1/8 and 1/16 of the cut-out.
        planes, plane_reach: depths at which the views are compared, and how far they reach before
            and behind the middle [m].
        match_groups, group_width: channels that views are compared by, in groups.
    """

    size: int = 112
    reach: float = 0.24
    ahead: float = 0.1
    widths: tuple[int, int, int, int] = (32, 80, 128, 160)
    planes: int = 16
    plane_reach: float = 0.16
    match_groups: int = 2
    group_width: int = 4


@dataclass(frozen=True)
class CloseDepth:
    """Depth in cut-outs.

    Attributes:
        depth: B x V x S x S [m].
        right: B x V x S x S, probability that depth is right to ``TOLERANCE``. A pixel is the
            hand's or not: where that is unclear the expected error says nothing of the likely one.
        K: B x V x 3 x 3 intrinsics of the cut-outs [px].
        grid: B x V x S x S x 2 places of their pixels in the whole pictures, in [-1, 1].
        middle: B x 3 in the base frame [m].
    """

    depth: Tensor
    right: Tensor
    K: Tensor
    grid: Tensor
    middle: Tensor

    @property
    def confidence(self) -> Tensor:
        """On the scale of the whole pictures' confidence in [0, 1]: what is right more likely than
        not is drawn by default, and nothing has an expected error below one percent."""
        likely = EVEN + (SURE - EVEN) * (2 * self.right - 1)
        return torch.where(self.right < 0.5, 2 * EVEN * self.right, likely)


class HandDepth(Companion):
    """A small U-net over the cut-outs of all views, which a plane sweep compares with each other.

    The sweep is that of multi-view stereo (Yao et al. 2018, arXiv 1804.02505) with the group-wise
    correlation of Guo et al. 2019 (arXiv 1903.04025).
    """

    config: HandDepthConfig
    sizes = HandDepthConfig

    def __init__(self, config: HandDepthConfig | None = None) -> None:
        super().__init__()
        self.config = config or HandDepthConfig()
        a, b, c, d = self.config.widths
        self.enter = double_conv(4 * CLUES, a)
        self.features = nn.Conv2d(a, self.config.match_groups * self.config.group_width, 1)
        # Mean and best of the other views.
        costs = 2 * self.config.match_groups * self.config.planes
        last = nn.Conv2d(a, a, 3, 1, 1, bias=False)
        nn.init.zeros_(last.weight)
        self.compare = nn.Sequential(nn.Conv2d(costs, a, 1), nn.GELU(), last)
        self.down = nn.ModuleList(
            [double_conv(a, b, 2), double_conv(b, c, 2), double_conv(c, d, 2)]
        )
        self.up = nn.ModuleList(
            [double_conv(d + c, c), double_conv(c + b, b), double_conv(b + a, a)]
        )
        self.out = nn.Conv2d(a, 16, 1)

    def forward(
        self, images: Tensor, scene: SceneOutput, T_base_wrist: Tensor, given: Tensor
    ) -> CloseDepth:
        """Compute.

        Args:
            images: B x V x 3 x H x W in [0, 1], those of ``scene``.
            scene: of ``Stage1Model``.
            T_base_wrist: B x 4 x 4, in the frame of ``scene.T_base_anchor``.
            given: B bool, whether that pose is known (kinematics) rather than estimated.
        """
        B, V, _, H, W = images.shape
        S = self.config.size
        with torch.no_grad():
            middle = T_base_wrist[:, :3, 3] + self.config.ahead * T_base_wrist[:, :3, 2]
            K, grid = cut_out(
                middle, scene.anchor_K, scene.T_base_anchor, (H, W), self.config.reach, S
            )
            clues, log_depth, log_middle = self._clues(
                images, scene, T_base_wrist, given, middle, K, grid
            )
        x = self.enter(F.pixel_unshuffle(clues, 2))
        if V > 1:
            features = self.features(x).unflatten(0, (B, V))
            x = x + self.compare(
                likeness(
                    features.unflatten(2, (self.config.match_groups, self.config.group_width)),
                    scene.T_base_anchor,
                    K * K.new_tensor([0.5, 0.5, 1])[:, None],
                    middle,
                    self.config.planes,
                    self.config.plane_reach,
                )
            )
        x = down_and_up(x, self.down, self.up)
        out = F.pixel_shuffle(self.out(x), 2).float().unflatten(0, (B, V))
        # Every pixel shows the hand or what is behind it; a mean of the two is neither.
        hand = out[:, :, 0].sigmoid()
        log = hand * (log_middle + RATIO_UNIT * out[:, :, 1]) + (1 - hand) * (
            log_depth + RATIO_UNIT * out[:, :, 2]
        )
        return CloseDepth(
            log.clamp(*LOG_DEPTH_RANGE).exp(),
            out[:, :, 3].clamp(-8, 8).sigmoid(),
            K,
            grid,
            middle,
        )

    def _clues(
        self,
        images: Tensor,
        scene: SceneOutput,
        T_base_wrist: Tensor,
        given: Tensor,
        middle: Tensor,
        K: Tensor,
        grid: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """BV x CLUES x S x S, and the logarithms of predicted depth and of the middle's."""
        B, V = images.shape[:2]
        S = self.config.size
        flat = grid.flatten(0, 1)

        def sample(maps: Tensor, mode: str = "bilinear") -> Tensor:
            out = F.grid_sample(
                maps.flatten(0, 1), flat, mode=mode, padding_mode="border", align_corners=False
            )
            return out.unflatten(0, (B, V))

        colours = sample(images)
        inside = (grid.abs() <= 1).all(-1).float()
        log_depth = torch.log(sample(scene.depth[:, :, None], "nearest")[:, :, 0])
        sure = sample(1 - 1 / scene.confidence[:, :, None])[:, :, 0]
        T = scene.T_base_anchor
        R, t = T[..., :3, :3], T[..., :3, 3]
        z = torch.einsum("bvi,bvi->bv", R[..., 2], middle[:, None] - t)
        log_middle = torch.log(z.clamp_min(0.1))[..., None, None].expand_as(log_depth)
        plane = torch.log(base_plane(K, T, (S, S)).clamp_min(0.05))
        rays = torch.einsum("bvij,bvhwj->bvhwi", R, pixel_rays(K, (S, S), 1))
        origin = t[:, :, None, None]
        seen = origin + rays * log_depth.exp()[..., None]
        at_middle = origin + rays * log_middle.exp()[..., None]
        to_wrist = T_base_wrist[:, :3, :3].mT[:, None]
        centre = T_base_wrist[:, None, None, None, :3, 3]

        def turned(v: Tensor) -> Tensor:
            return torch.einsum("bvij,bvhwj->bvihw", to_wrist.expand(B, V, 3, 3), v)

        def ratio(log: Tensor) -> Tensor:
            return ((log - log_middle) / RATIO_UNIT).clamp(-3, 3)[:, :, None]

        parts = [
            2 * colours - 1,
            ratio(log_depth),
            ratio(plane),
            sure[:, :, None],
            (turned(seen - centre) / REACH_UNIT).clamp(-3, 3),
            (turned(at_middle - centre) / REACH_UNIT).clamp(-3, 3),
            turned(F.normalize(rays, dim=-1)),
            (seen[..., 2] / HEIGHT_UNIT).clamp(-1, 4)[:, :, None],
            given.to(colours)[:, None, None, None, None].expand(B, V, 1, S, S),
            inside[:, :, None],
        ]
        return torch.cat(parts, 2).flatten(0, 1), log_depth, log_middle


def likeness(
    features: Tensor, T: Tensor, K: Tensor, middle: Tensor, planes: int, reach: float
) -> Tensor:
    """How like the other views a pixel is, were it at each of several depths.

    Args:
        features: B x V x G x C x s x s, G groups of channels.
        T, K: B x V x 4 x 4 cameras in the base frame, and 3 x 3 intrinsics of the features [px].
        middle: B x 3 in the base frame [m].
        planes: number of depths, across each view's own axis.
        reach: from the middle to the first and to the last of them [m].

    Returns:
        BV x (2 G planes) x s x s: cosines of the angles between features, first the mean over the
        other views, then the largest.
    """
    B, V, G, C, s = features.shape[:5]
    with torch.no_grad():
        R, t = T[..., :3, :3], T[..., :3, 3]
        z = torch.einsum("bvi,bvi->bv", R[..., 2], middle[:, None] - t)
        steps = torch.linspace(-1, 1, planes, device=z.device) * reach
        z = (z[..., None] + steps).clamp_min(0.05)
        rays = torch.einsum("bvij,bvhwj->bvhwi", R, pixel_rays(K, (s, s), 1))
        points = t[:, :, None, None, None] + rays[:, :, None] * z[..., None, None, None]
        points = points.reshape(B * V, planes * s * s, 3)
    features = F.normalize(features, dim=3)
    own = features.flatten(0, 1)
    cosines = []
    for shift in range(1, V):
        with torch.no_grad():
            others = (x.roll(-shift, 1).flatten(0, 1)[:, None] for x in (K, T))
            pixel, _ = project(points, *others)
            grid = (2 * pixel / s - 1).reshape(B * V, planes * s, s, 2)
        other = features.roll(-shift, 1).reshape(B * V, G * C, s, s)
        seen = F.grid_sample(other, grid, align_corners=False).reshape(B * V, G, C, planes, s, s)
        product = seen[:, :, 0] * own[:, :, 0, None]
        for c in range(1, C):
            product = torch.addcmul(product, seen[:, :, c], own[:, :, c, None])
        cosines.append(product)
    stacked = torch.stack(cosines)
    return torch.cat([stacked.mean(0), stacked.amax(0)], 1).flatten(1, 2)
