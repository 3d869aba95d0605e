"""Comparison of views along the epipolar geometry: a cost volume around a first depth.

Plane-sweep stereo (Collins 1996) with learned features and group-wise correlation
(arXiv 1903.04025), narrowed to hypotheses around a first estimate as in cascaded multi-view stereo
(arXiv 1912.06378). Beyond both, each hypothesis is compared with the depth that the other view
itself expects there.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Hypotheses of log depth around the first estimate.
HYPOTHESES, REACH = 16, 0.24
#: Differences of log depth are compared on this scale.
AGREEMENT = 0.04


class CostVolume(nn.Module):
    """How well every other view supports each of several depths.

    Attributes:
        channels: of the output.
    """

    def __init__(self, channels: int, features: int = 16, groups: int = 2) -> None:
        super().__init__()
        self.groups = groups
        self.project = nn.Conv2d(channels, features, 3, 1, 1)
        self.channels = HYPOTHESES * (groups + 1) + 1
        offsets = torch.linspace(-REACH, REACH, HYPOTHESES)
        self.offsets: Tensor
        self.register_buffer("offsets", offsets, persistent=False)

    def forward(self, dense: Tensor, log_depth: Tensor, K: Tensor, T_base_camera: Tensor) -> Tensor:
        """Compare.

        Args:
            dense: B x V x C x h x w.
            log_depth: B x V x h x w first estimate.
            K: B x V x 3 x 3 [px of h x w]; T_base_camera: B x V x 4 x 4.

        Returns:
            B x V x channels x h x w: correlation and agreement per hypothesis, and the number of
            views that see it; zeros for a single view.
        """
        B, V, _, h, w = dense.shape
        if V == 1:
            return dense.new_zeros(B, V, self.channels, h, w)
        maps = self.project(dense.flatten(0, 1)).float().unflatten(0, (B, V))
        F_ = maps.shape[2]
        v, u = torch.meshgrid(
            torch.arange(h, device=dense.device) + 0.5,
            torch.arange(w, device=dense.device) + 0.5,
            indexing="ij",
        )
        pixels = torch.stack([u, v, torch.ones_like(u)], -1).float()
        rays = torch.einsum("bvij,hwj->bvhwi", torch.linalg.inv(K), pixels)
        to_camera = torch.linalg.inv(T_base_camera)
        depths = (log_depth[:, :, None] + self.offsets[:, None, None]).exp()  # B, V, D, h, w
        volumes = []
        for i in range(V):
            parts, seen = [], []
            for j in range(V):
                if i == j:
                    continue
                T = to_camera[:, j] @ T_base_camera[:, i]
                turned = torch.einsum("bij,bhwj->bhwi", T[:, :3, :3], rays[:, i])
                x = turned[:, None] * depths[:, i, ..., None] + T[:, None, None, None, :3, 3]
                z = x[..., 2].clamp_min(0.05)
                uv = torch.einsum("bij,bdhwj->bdhwi", K[:, j, :2], x / z[..., None])
                grid = uv / uv.new_tensor([w, h]) * 2 - 1
                ok = (grid.abs() < 1).all(-1) & (x[..., 2] > 0.05)
                source = torch.cat([maps[:, j], log_depth[:, j, None]], 1)
                got = F.grid_sample(
                    source, grid.clamp(-2, 2).reshape(B, -1, w, 2), align_corners=False
                ).reshape(B, F_ + 1, HYPOTHESES, h, w)
                same = (got[:, :F_] * maps[:, i, :, None]).reshape(
                    B, self.groups, -1, HYPOTHESES, h, w
                )
                near = (torch.log(z) - got[:, F_]) / AGREEMENT
                cost = torch.cat([same.mean(2), torch.exp(-near.square())[:, None]], 1)
                parts.append(cost * ok[:, None])
                seen.append(ok)
            count = torch.stack(seen).sum(0)
            mean = torch.stack(parts).sum(0) / count.clamp_min(1)[:, None]
            seen_by = count.float().mean(1, keepdim=True) / (V - 1)
            volumes.append(torch.cat([mean.flatten(1, 2), seen_by], 1))
        return torch.stack(volumes, 1)
