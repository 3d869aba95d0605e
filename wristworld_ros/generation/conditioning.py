"""From a condition map to the tensors that condition the generator."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from wristworld_ros.types import ConditionMap


def condition_tensors(conditions: Sequence[ConditionMap]) -> tuple[Tensor, Tensor]:
    """Stack condition maps: B x 3 x H x W in [0, 1] (black holes) and B x 1 x H x W masks."""
    image = torch.from_numpy(np.stack([c.image for c in conditions])).permute(0, 3, 1, 2)
    mask = torch.from_numpy(np.stack([c.mask for c in conditions]))[:, None]
    return image.float() / 255, mask.float()


def mask_channels(mask: Tensor, factor: int = 8, parts: int = 2) -> Tensor:
    """Coverage per latent cell, in ``parts`` x ``parts`` sub-cells.

    Args:
        mask: B x 1 x H x W.

    Returns:
        B x parts^2 x H/factor x W/factor in [0, 1].
    """
    return F.pixel_unshuffle(F.avg_pool2d(mask, factor // parts), parts)


def ray_channels(K: Tensor, height: int, width: int, factor: int = 8) -> Tensor:
    """Where each latent cell looks: x / z and y / z of its centre in the camera frame.

    Args:
        K: B x 3 x 3 [px of the height x width picture].

    Returns:
        B x 2 x height/factor x width/factor.
    """
    v, u = torch.meshgrid(
        (torch.arange(height // factor, device=K.device) + 0.5) * factor,
        (torch.arange(width // factor, device=K.device) + 0.5) * factor,
        indexing="ij",
    )
    K = K[:, :, :, None, None]
    return torch.stack([(u - K[:, 0, 2]) / K[:, 0, 0], (v - K[:, 1, 2]) / K[:, 1, 1]], 1)
