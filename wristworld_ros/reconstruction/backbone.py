"""VGGT-shaped backbone: patch embedding, then frame and global attention in turn.

Follows VGGT (arXiv 2503.11651) as summed up in method.md, 2; at ``mini`` size the patch embedding
is a small convolutional stem, since 10^4 training scenes do not feed a plain ViT. Beyond VGGT the
known calibration of the anchors, when there is any, enters as ray embeddings.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from wristworld_ros.errors import InvalidInputError
from wristworld_ros.reconstruction.layers import Block, rope_2d


@dataclass(frozen=True)
class BackboneConfig:
    """Sizes of the backbone.

    Attributes:
        patch_size: input pixels per token edge; 16, by four strided convolutions.
        dim: token width C.
        pairs: number of (frame, global) block pairs.
        heads: attention heads.
        registers: register tokens per view, next to one camera token.
        stem: channels at 1/2, 1/4 and 1/8 of the input size.
        kept: indices of the pairs whose outputs go to the dense heads.
        layer_scale: initial layer scale.
    """

    patch_size: int = 16
    dim: int = 192
    pairs: int = 4
    heads: int = 6
    registers: int = 4
    stem: tuple[int, int, int] = (32, 64, 96)
    kept: tuple[int, ...] = (1, 3)
    layer_scale: float = 0.1


@dataclass(frozen=True)
class Features:
    """What the heads see.

    Attributes:
        tokens: per kept pair B x V x (1 + registers + h*w) x 2C, camera token first.
        stem: features (B*V) x c x H/s x W/s at strides s = 2, 4 and 8.
        grid: (h, w) of the patch tokens.
        first_patch: index of the first patch token.
    """

    tokens: list[Tensor]
    stem: tuple[Tensor, Tensor, Tensor]
    grid: tuple[int, int]
    first_patch: int


def _conv(c_in: int, c_out: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(c_in, c_out, 3, stride, 1), nn.GroupNorm(min(8, c_out // 8), c_out), nn.GELU()
    )


class Backbone(nn.Module):
    """Images (and calibration, where known) to tokens."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.config = config
        C = config.dim
        c2, c4, c8 = config.stem
        self.stem2 = _conv(3, c2, 2)
        self.stem4 = nn.Sequential(_conv(c2, c4, 2), _conv(c4, c4, 1))
        self.stem8 = nn.Sequential(_conv(c4, c8, 2), _conv(c8, c8, 1))
        self.patch = nn.Conv2d(c8, C, 2, 2)
        # First view and the others have their own camera and register tokens, as in VGGT.
        self.special = nn.Parameter(torch.randn(2, 1 + config.registers, C) * 0.02)
        self.intrinsics = nn.Linear(3, C)
        self.extrinsics = nn.Linear(9, C)
        self.unknown = nn.Parameter(torch.zeros(2, C))

        def block() -> Block:
            return Block(C, config.heads, qk_norm=True, layer_scale=config.layer_scale)

        self.frame_blocks = nn.ModuleList(block() for _ in range(config.pairs))
        self.global_blocks = nn.ModuleList(block() for _ in range(config.pairs))
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1), False)
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1), False)

    def forward(
        self,
        images: Tensor,
        rays: Tensor | None = None,
        T_world_camera: Tensor | None = None,
        known: Tensor | None = None,
    ) -> Features:
        """Compute tokens.

        Args:
            images: B x V x 3 x H x W in [0, 1]; H and W are multiples of ``patch_size``.
            rays: B x V x h x w x 3 directions with z = 1 in the camera frame at patch centres.
            T_world_camera: B x V x 4 x 4 poses in the robot's base frame (z up, metres).
            known: B x 2 bool: intrinsics known, extrinsics known; all False when None.

        Raises:
            InvalidInputError: a side is not a multiple of the patch size.
        """
        B, V, _, H, W = images.shape
        p = self.config.patch_size
        if H % p or W % p:
            raise InvalidInputError(
                f"images of {W} x {H} px: both sides must be multiples of {p}. Resize them."
            )
        x = (images.flatten(0, 1) - self.mean) / self.std
        s2 = self.stem2(x)
        s4 = self.stem4(s2)
        s8 = self.stem8(s4)
        patches = self.patch(s8)  # B*V, C, h, w
        h, w = patches.shape[-2:]
        patches = patches.flatten(2).transpose(1, 2).reshape(B, V, h * w, -1)
        with torch.autocast(x.device.type, enabled=False):  # metres need more than 8 bits
            patches = patches.float() + self._calibration(patches, rays, T_world_camera, known)

        special = torch.cat(
            [self.special[:1], self.special[1:].expand(V - 1, -1, -1)]
        )  # V, 1 + registers, C
        tokens = torch.cat([special.expand(B, -1, -1, -1).to(patches.dtype), patches], 2)
        N = tokens.shape[2]
        rows, columns = torch.meshgrid(
            torch.arange(1, h + 1, device=x.device),
            torch.arange(1, w + 1, device=x.device),
            indexing="ij",
        )
        positions = torch.cat(
            [
                torch.zeros(special.shape[1], 2, dtype=torch.long, device=x.device),
                torch.stack([rows, columns], -1).reshape(-1, 2),
            ]
        )
        head_dim = self.config.dim // self.config.heads
        frame_rope = rope_2d(positions, head_dim)
        global_rope = rope_2d(positions.repeat(V, 1), head_dim)
        kept = []
        for i, (frame, glob) in enumerate(zip(self.frame_blocks, self.global_blocks, strict=True)):
            a = frame(tokens.reshape(B * V, N, -1), frame_rope).reshape(B, V, N, -1)
            tokens = glob(a.reshape(B, V * N, -1), global_rope).reshape(B, V, N, -1)
            if i in self.config.kept:
                kept.append(torch.cat([a, tokens], -1))
        return Features(kept, (s2, s4, s8), (h, w), special.shape[1])

    def _calibration(
        self,
        patches: Tensor,
        rays: Tensor | None,
        T_world_camera: Tensor | None,
        known: Tensor | None,
    ) -> Tensor:
        """Embedding of rays: in the camera frame (intrinsics) and in the base (extrinsics)."""
        B, V, n, _ = patches.shape
        no = self.unknown[:, None, None, None]  # 2, 1, 1, 1, C
        if known is None or rays is None:
            return no[0] + no[1]
        directions = rays.reshape(B, V, n, 3)
        inner = torch.where(known[:, 0, None, None, None], self.intrinsics(directions), no[0])
        if T_world_camera is None:
            return inner + no[1]
        T = T_world_camera.to(directions)
        world = torch.einsum("bvij,bvnj->bvni", T[..., :3, :3], directions)
        origin = T[..., None, :3, 3].expand_as(world)
        ground = origin + base_plane_depth(origin, world) * world
        outer = self.extrinsics(torch.cat([world, origin, ground], -1))
        return inner + torch.where(known[:, 1, None, None, None], outer, no[1])


def base_plane_depth(origin: Tensor, direction: Tensor) -> Tensor:
    """Depth at which rays meet the base plane z = 0: the natural prior of a table-top scene.

    Args:
        origin, direction: ... x 3 in the robot's base frame; directions have z = 1 in the camera.

    Returns:
        ... x 1 [m], within 0 to 4 (rays that do not go down get 4).
    """
    return (-origin[..., 2:] / direction[..., 2:].clamp(max=-0.05)).clamp(0, 4)
