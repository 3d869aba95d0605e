"""Heads on the backbone's tokens: anchor cameras, dense depth, and the wrist head."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wristworld_ros.reconstruction.backbone import BackboneConfig, Features
from wristworld_ros.reconstruction.layers import Block, Mlp

#: Bounds of predicted depth [m]: exp of a clamped logarithm stays finite whatever the weights do.
LOG_DEPTH_RANGE = (-4.0, 3.0)


class PoseRefiner(nn.Module):
    """Iterative refinement of a 9-D pose from one token, as VGGT's camera head (method.md, 2).

    Each iteration embeds the previous pose (detached), modulates the token by AdaLN, runs a small
    trunk and adds an MLP's output to the pose.
    """

    def __init__(self, dim: int, blocks: int = 2, heads: int = 6, iterations: int = 4) -> None:
        super().__init__()
        self.iterations = iterations
        self.empty = nn.Parameter(torch.zeros(9))
        self.embed = nn.Linear(9, dim)
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 3 * dim))
        self.norm = nn.LayerNorm(dim, elementwise_affine=False)
        self.trunk = nn.Sequential(
            *(Block(dim, heads, qk_norm=False, layer_scale=0.1) for _ in range(blocks))
        )
        self.trunk_norm = nn.LayerNorm(dim)
        self.out = Mlp(dim, dim // 2, 9)
        # A quaternion of zeros has no direction: start near identity, 60 degrees of view.
        self.initial: Tensor
        self.register_buffer(
            "initial", torch.tensor([0, 0, 0, 0, 0, 0, 1.0, 1.05, 1.05]), persistent=False
        )

    def forward(self, tokens: Tensor) -> list[Tensor]:
        """B x N x dim tokens, one per camera -> per iteration B x N x 9."""
        pose: Tensor | None = None
        poses = []
        for _ in range(self.iterations):
            previous = self.empty.expand(*tokens.shape[:2], 9) if pose is None else pose.detach()
            shift, scale, gate = self.modulation(self.embed(previous.to(tokens.dtype))).chunk(3, -1)
            x = gate * (self.norm(tokens) * (1 + scale) + shift) + tokens
            delta = self.out(self.trunk_norm(self.trunk(x))).float()
            pose = delta + (self.initial if pose is None else pose.detach())
            poses.append(pose)
        return poses


class CameraHead(nn.Module):
    """Pose encodings of the anchors from their camera tokens."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(2 * config.dim)
        self.refiner = PoseRefiner(2 * config.dim, heads=config.heads)

    def forward(self, features: Features) -> list[Tensor]:
        """Per iteration B x V x 9, world-to-camera, world = first anchor."""
        return self.refiner(self.norm(features.tokens[-1][:, :, 0]))


class WristHead(nn.Module):
    """Wrist pose from a learnable query that attends to all tokens of all views.

    The paper's variant: a 3-layer transformer decoder; then a refiner as the release has it
    (method.md, 2, wrist head). Any number of views.
    """

    def __init__(self, config: BackboneConfig, layers: int = 3) -> None:
        super().__init__()
        dim = 2 * config.dim
        self.query = nn.Parameter(torch.randn(1, 1, dim) * 1e-3)
        self.norm = nn.LayerNorm(dim)
        self.layers = nn.ModuleList(
            nn.TransformerDecoderLayer(
                dim, config.heads, 2 * dim, 0.0, "gelu", batch_first=True, norm_first=True
            )
            for _ in range(layers)
        )
        self.refiner = PoseRefiner(dim, heads=config.heads)

    def forward(self, features: Features) -> list[Tensor]:
        """Per iteration B x 9, world-to-wrist-camera, world = first anchor."""
        memory = self.norm(features.tokens[-1].flatten(1, 2))
        query = self.query.expand(len(memory), -1, -1).to(memory.dtype)
        for layer in self.layers:
            query = layer(query, memory)
        return [pose[:, 0] for pose in self.refiner(query)]


class DepthHead(nn.Module):
    """Depth along z and its confidence, by fusing tokens with the stem's finer features.

    When the anchors are calibrated, the depth of the base plane along each ray is one more input.
    """

    def __init__(self, config: BackboneConfig, width: int = 32) -> None:
        super().__init__()
        c2, c4, c8 = config.stem
        self.tokens = nn.Linear(2 * config.dim * len(config.kept), 4 * width)
        self.up8 = self._fuse(4 * width + c8, 4 * width)
        self.up4 = self._fuse(4 * width + c4, 2 * width)
        self.up2 = self._fuse(2 * width + c2 + 2, width)
        self.out = nn.Conv2d(width, 8, 3, 1, 1)
        self.shuffle = nn.PixelShuffle(2)

    @staticmethod
    def _fuse(c_in: int, c_out: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(c_in, c_out, 3, 1, 1),
            nn.GroupNorm(8, c_out),
            nn.GELU(),
            nn.Conv2d(c_out, c_out, 3, 1, 1),
            nn.GroupNorm(8, c_out),
            nn.GELU(),
        )

    def forward(self, features: Features, plane: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Dense predictions.

        Args:
            features: of the backbone.
            plane: B x V x H x W depth of the base plane [m], 0 where not known; or None.

        Returns:
            Depth [m] and confidence (1 + exp, as VGGT), both B x V x H x W float32.
        """
        B, V = features.tokens[-1].shape[:2]
        h, w = features.grid
        s2, s4, s8 = features.stem
        x = torch.cat([t[:, :, features.first_patch :] for t in features.tokens], -1)
        x = self.tokens(x).flatten(0, 1).transpose(1, 2).reshape(B * V, -1, h, w)
        x = self.up8(torch.cat([_double(x), s8], 1))
        x = self.up4(torch.cat([_double(x), s4], 1))
        H, W = s2.shape[-2:]
        prior = x.new_zeros(B * V, 2, H, W)
        if plane is not None:
            low = F.interpolate(plane.flatten(0, 1)[:, None].to(x.dtype), (H, W), mode="area")
            prior = torch.cat([torch.log(low.clamp_min(0.05)) * (low > 0), (low > 0).to(low)], 1)
        x = self.up2(torch.cat([_double(x), s2, prior], 1))
        x = self.shuffle(self.out(x)).float().reshape(B, V, 2, 2 * H, 2 * W)
        log_depth = x[:, :, 0]
        if plane is not None:  # the head then says by how much a pixel differs from the plane
            log_depth = log_depth + torch.log(plane.clamp_min(0.05)) * (plane > 0)
        return log_depth.clamp(*LOG_DEPTH_RANGE).exp(), 1 + x[:, :, 1].clamp(-8, 8).exp()


def _double(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
