"""Pairs of anchor and wrist pixels that see the same point.

``exact_correspondences`` takes them from known depth and pose (simulation). Learned matchers give
the same record.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Correspondences:
    """Pairs per view.

    Attributes:
        anchor: B x V x M x 2 pixels in each anchor.
        wrist: B x M x 2 pixels in the wrist image, the same for all views.
        valid: B x V x M bool: the point is visible in that anchor.
    """

    anchor: Tensor
    wrist: Tensor
    valid: Tensor


def exact_correspondences(
    wrist_depth: Tensor,
    wrist_K: Tensor,
    T_world_wrist: Tensor,
    anchor_depth: Tensor,
    anchor_K: Tensor,
    T_world_anchor: Tensor,
    *,
    grid: int = 16,
    tolerance: float = 0.015,
) -> Correspondences:
    """Correspondences of a grid of wrist pixels from true geometry.

    Args:
        wrist_depth: B x h x w along z [m].
        wrist_K, T_world_wrist: B x 3 x 3, B x 4 x 4.
        anchor_depth: B x V x H x W [m].
        anchor_K, T_world_anchor: B x V x 3 x 3, B x V x 4 x 4.
        grid: points per side.
        tolerance: a point is visible when it is at most this [m] behind the anchor's depth.
    """
    B, h, w = wrist_depth.shape
    V, H, W = anchor_depth.shape[1:]
    device = wrist_depth.device
    rows = ((torch.arange(grid, device=device) + 0.5) * h / grid).long()
    columns = ((torch.arange(grid, device=device) + 0.5) * w / grid).long()
    v, u = torch.meshgrid(rows, columns, indexing="ij")
    v, u = v.reshape(-1), u.reshape(-1)
    pixels = torch.stack([u, v], -1).float() + 0.5  # M, 2
    z = wrist_depth[:, v, u]
    rays = (pixels - wrist_K[:, None, :2, 2]) / torch.stack(
        [wrist_K[:, 0, 0], wrist_K[:, 1, 1]], -1
    )[:, None]
    local = torch.cat([rays * z[..., None], z[..., None]], -1)
    world = local @ T_world_wrist[:, :3, :3].transpose(1, 2) + T_world_wrist[:, None, :3, 3]
    R, t = T_world_anchor[..., :3, :3], T_world_anchor[..., :3, 3]
    x = (world[:, None] - t[:, :, None]) @ R  # B, V, M, 3
    depth = x[..., 2]
    focal = torch.stack([anchor_K[..., 0, 0], anchor_K[..., 1, 1]], -1)[:, :, None]
    uv = x[..., :2] / depth.clamp_min(1e-3)[..., None] * focal + anchor_K[:, :, None, :2, 2]
    column = uv[..., 0].floor().long()
    row = uv[..., 1].floor().long()
    inside = (depth > 0) & (column >= 0) & (column < W) & (row >= 0) & (row < H) & (z > 0)[:, None]
    index = row.clamp(0, H - 1) * W + column.clamp(0, W - 1)
    seen = anchor_depth.reshape(B, V, -1).gather(2, index)
    visible = inside & (depth < seen + tolerance) & (depth > seen - 3 * tolerance)
    return Correspondences(uv, pixels.expand(B, -1, -1), visible)
