"""Holes of a picture filled from what is around them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def fill_holes(image: Tensor, mask: Tensor) -> Tensor:
    """Fill unmeasured pixels from the nearest measured ones at the finest level that has any.

    A push-pull pyramid: average the measured pixels down, then fill up. The autoencoder then sees
    a picture without black holes; which pixels were holes stays in the mask.

    Args:
        image: B x 3 x H x W in [0, 1].
        mask: B x 1 x H x W float, 1 where measured.

    Returns:
        B x 3 x H x W; mid-grey where nothing at all was measured.
    """
    levels = [(image * mask, mask)]
    while min(levels[-1][1].shape[-2:]) > 1:
        color, weight = levels[-1]
        H, W = weight.shape[-2:]
        pad = (0, W % 2, 0, H % 2)
        color, weight = F.pad(color, pad), F.pad(weight, pad)
        total = F.avg_pool2d(weight, 2)
        mean = F.avg_pool2d(color, 2) / total.clamp_min(1e-6)
        covered = (total > 0).to(image.dtype)
        levels.append((mean * covered, covered))
    color, weight = levels.pop()
    total = weight.sum((-2, -1), keepdim=True)
    mean = (color * weight).sum((-2, -1), keepdim=True) / total.clamp_min(1e-6)
    filled = torch.where(weight > 0, color, torch.where(total > 0, mean, mean.new_tensor(0.5)))
    while levels:
        color, weight = levels.pop()
        size = color.shape[-2:]
        up = F.interpolate(filled, scale_factor=2, mode="bilinear", align_corners=False)
        filled = color * weight + up[..., : size[0], : size[1]] * (1 - weight)
    return filled
